//! Passwords: Argon2id, as many at once as there are cores, and the same work for every answer. Only a bcrypt hash takes the
//! time that its cost says, until its owner signs in and it is replaced.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use crate::crypto::{Random, SecretText};
use crate::model::Email;

/// OWASP's first recommendation for Argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// How many may wait for each core: a few seconds' work, after which a caller had better come again later.
const WAITING: usize = 16;
/// A refused password need not be common to be guessed first: 8 characters at least, by NIST SP 800-63B.
const LENGTH: std::ops::RangeInclusive<usize> = 8..=256;

/// The commonest passwords, a line each, sorted; see docs/decisions/common-passwords.md.
static COMMON: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("common_passwords.txt").lines().filter(|line| !line.starts_with('#')).collect());

/// A stored hash, in the PHC or the bcrypt format.
#[derive(Clone)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// The text to store.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for PasswordHash {
    fn from(hash: String) -> Self {
        Self(hash)
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What comparing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the password.
    Match,
    /// It is the password, and its hash is of an older kind.
    MatchNeedsUpgrade,
    /// It is not, or there is none.
    NoMatch,
}

/// Why a password was not hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotHashed {
    /// Too many wait already, or the server stops.
    #[error("passwords cannot be hashed at the moment")]
    Busy,
    /// A fault of the program.
    #[error("hashing a password panicked")]
    Panicked,
}

/// What is wrong with a new password, if anything; the message follows "the password" in a sentence.
#[must_use]
pub fn objection(password: &SecretText, email: &Email) -> Option<&'static str> {
    let password = normalized(password);
    let text = password.expose();
    if !LENGTH.contains(&text.chars().count()) {
        return Some("must have 8 to 256 characters");
    }
    let folded = Zeroizing::new(text.to_lowercase());
    if COMMON.binary_search(&folded.as_str()).is_ok() {
        return Some("is one of the commonest passwords");
    }
    (folded.trim() == email.as_str()).then_some("must not be the email address")
}

/// Hashes and verifies.
#[derive(Clone)]
pub struct Hasher {
    random: Random,
    /// Those that are hashed.
    places: Arc<Semaphore>,
    /// Those that are hashed or wait for it.
    queue: Arc<Semaphore>,
    /// What a password is compared with where there is none to compare it with.
    dummy: Arc<phc::PasswordHash>,
    /// How many were computed.
    computed: Arc<AtomicU64>,
}

impl Hasher {
    /// Hashes as many passwords at once as there are cores: each takes all of one and 19 MiB.
    ///
    /// # Panics
    /// Never: the dummy is a constant that reads as a hash.
    #[must_use]
    pub fn new(random: Random) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Never equal to a hash: it has the parameters of one, and a digest that nobody computed.
        let dummy = format!("{}{}${}", current(), "A".repeat(22), "A".repeat(43));
        let dummy = phc::PasswordHash::new(&dummy).expect("parameters, 16 bytes of salt and 32 of digest are a hash");
        let queue = Arc::new(Semaphore::new(cores * (1 + WAITING)));
        let computed = Arc::default();
        Self { random, places: Arc::new(Semaphore::new(cores)), queue, dummy: Arc::new(dummy), computed }
    }

    /// How many hashes were computed, of passwords that are stored and of none alike.
    #[must_use]
    pub fn computed(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }

    /// The hash of a new password.
    ///
    /// # Errors
    /// Where too many wait already, or the server stops.
    ///
    /// # Panics
    /// Never: the salt and the parameters are within Argon2's limits.
    pub async fn hash(&self, password: &SecretText) -> Result<PasswordHash, NotHashed> {
        let password = normalized(password);
        let salt = self.random.bytes::<16>();
        self.run(move || {
            let hash: phc::PasswordHash = argon2id()
                .hash_password_with_salt(password.expose().as_bytes(), &salt)
                .expect("16 bytes are a salt and 256 characters are not too long");
            PasswordHash(hash.to_string())
        })
        .await
    }

    /// Compares a password with the stored hash. Without one it does the same work for nothing.
    ///
    /// # Errors
    /// Where too many wait already, or the server stops.
    pub async fn verify(&self, password: &SecretText, hash: Option<PasswordHash>) -> Result<Verdict, NotHashed> {
        let password = normalized(password);
        // A longer one was never accepted; hashing it would cost what the caller likes.
        let is_possible = password.expose().chars().count() <= *LENGTH.end();
        let password = if is_possible { password } else { SecretText::from(String::new()) };
        let hash = hash.filter(|_| is_possible);
        let dummy = Arc::clone(&self.dummy);
        self.run(move || {
            hash.and_then(|hash| compare(password.expose(), &hash)).unwrap_or_else(|| {
                let _ = std::hint::black_box(argon2id().verify_password(password.expose().as_bytes(), &*dummy));
                Verdict::NoMatch
            })
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, NotHashed> {
        let _turn = self.queue.try_acquire().map_err(|_| NotHashed::Busy)?;
        let place = self.places.clone().acquire_owned().await.map_err(|_| NotHashed::Busy)?;
        self.computed.fetch_add(1, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        })
        .await
        .map_err(|error| if error.is_panic() { NotHashed::Panicked } else { NotHashed::Busy })
    }
}

fn argon2id() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the parameters are within Argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// How a hash begins that is made with today's parameters.
fn current() -> String {
    format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$")
}

/// `None` where the hash cannot be read, and so nothing was computed.
fn compare(password: &str, PasswordHash(hash): &PasswordHash) -> Option<Verdict> {
    if hash.starts_with("$2") {
        let is_match = bcrypt::verify(password, hash).ok()?;
        return Some(if is_match { Verdict::MatchNeedsUpgrade } else { Verdict::NoMatch });
    }
    let parsed = phc::PasswordHash::new(hash).ok()?;
    match argon2id().verify_password(password.as_bytes(), &parsed) {
        Ok(()) if hash.starts_with(&current()) => Some(Verdict::Match),
        Ok(()) => Some(Verdict::MatchNeedsUpgrade),
        Err(argon2::password_hash::Error::PasswordInvalid) => Some(Verdict::NoMatch),
        Err(_) => None,
    }
}

/// NFC, so that one password typed on two systems is one password. Lengths are counted in it.
fn normalized(password: &SecretText) -> SecretText {
    let text = password.expose();
    // NFC makes UTF-8 at most three times as long (UAX #15): a buffer that grows would leave unwiped copies behind.
    let mut normalized = String::with_capacity(3 * text.len());
    normalized.extend(text.nfc());
    SecretText::from(normalized)
}
