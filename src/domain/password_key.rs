//! Passwords that come encrypted: the key pairs that they are encrypted with, and nonces that serve once (docs/security.md).
//!
//! All servers have the same key pairs, sealed in the database. The first is made for whoever first asks. From then on a job makes a new
//! one each day, and removes those whose time is over: what was encrypted with them nobody decrypts any more, not even with the key ring.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::context::{Cx, Services};
use super::error::{Error, Result};
use super::validation::Checks;
use crate::crypto::{Aad, Purpose, RsaKey, Sealed, SecretText, is_same, sha256};
use crate::model::{PasswordKeyId, Timestamp};
use crate::store::password_key::{self as password_keys, PasswordKey};

/// How old the newest key pair gets before another is made.
const ROTATION: TimeDelta = TimeDelta::hours(24);
/// How long a key pair serves. The next one is there well before, though the job were late.
const LIFE: TimeDelta = TimeDelta::hours(26);
/// How long a nonce serves.
const NONCE_LIFE: TimeDelta = TimeDelta::minutes(5);
/// How long a server goes without looking for key pairs that others have made.
const LOOK: Duration = Duration::from_secs(60);
/// How soon it looks again for one that it does not know: anybody may ask for any.
const PAUSE: Duration = Duration::from_secs(1);

/// One text for all that can be wrong.
const NOT_DECRYPTED: &str = "cannot be decrypted: ask for a new passwordKey and encrypt it again";

/// The key pairs that this server knows.
#[derive(Default)]
pub struct PasswordKeys {
    known: Mutex<Known>,
    /// Whose turn it is to make the first.
    making: Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// The newest first.
    keys: Arc<[Arc<Pair>]>,
    read_at: Option<Instant>,
}

impl Known {
    fn forget(&mut self, now: Timestamp) {
        self.keys = self.keys.iter().filter(|pair| pair.serves(now, TimeDelta::zero())).cloned().collect();
    }
}

struct Pair {
    id: PasswordKeyId,
    created_at: Timestamp,
    rsa: RsaKey,
}

impl Pair {
    /// Whether it is, and for so long will be, within its life. One from the future was made under a wrong clock.
    fn serves(&self, now: Timestamp, longer: TimeDelta) -> bool {
        (now - self.created_at).abs() < LIFE - longer
    }
}

/// What a password is to be encrypted with.
pub struct Offer {
    /// Which key pair.
    pub key_id: PasswordKeyId,
    /// Its public key.
    pub public_key_pem: String,
    /// What is to be encrypted with the password.
    pub nonce: String,
    /// Until when that is taken.
    pub expires_at: Timestamp,
}

/// A password as it was given.
pub enum Given {
    /// As it is.
    Plain(SecretText),
    /// Encrypted.
    Encrypted(Encrypted),
}

/// A password that was encrypted by what was offered.
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Encrypted {
    pub key_id: String,
    pub nonce: String,
    pub ciphertext: String,
}

/// What is encrypted.
#[derive(Deserialize)]
struct Content {
    password: String,
    nonce: String,
}

/// What to encrypt a password with. Nothing is kept of it: the nonce carries its own proof. Whoever is the first ever to ask waits until
/// there is a key pair.
///
/// # Errors
/// Where the database fails.
pub async fn offer(cx: Cx<'_>) -> Result<Offer> {
    let now = cx.services.clock.now();
    let pair = match cx.in_time(offered(cx.services, now)).await?? {
        Some(pair) => pair,
        None => cx.in_time(first(cx.services, now)).await??,
    };
    let nonce = Nonce::new(cx.services, pair.id, now + NONCE_LIFE);
    let (public_key_pem, expires_at) = (pair.rsa.public_pem().to_owned(), nonce.expires_at());
    Ok(Offer { key_id: pair.id, public_key_pem, nonce: nonce.to_text(), expires_at })
}

/// The newest key pair that will serve for as long as a nonce.
async fn offered(services: &Services, now: Timestamp) -> Result<Option<Arc<Pair>>> {
    let is_offered = |pair: &Arc<Pair>| pair.serves(now, NONCE_LIFE);
    let known = known(services, |pairs| pairs.iter().any(is_offered)).await?;
    Ok(known.iter().find(|pair| is_offered(pair)).cloned())
}

/// Makes a key pair where there is none: one at a time on a server, however many ask.
async fn first(services: &Services, now: Timestamp) -> Result<Arc<Pair>> {
    let _turn = services.password_keys.making.lock().await;
    renew(services, &password_keys::all(&mut services.db.read().await?).await?).await?;
    services.password_keys.known.lock().await.read_at = None;
    let pair = offered(services, now).await?;
    pair.ok_or_else(|| Error::unavailable("the key pair that was made to encrypt passwords with is not there"))
}

/// The passwords that were given for these fields.
///
/// # Errors
/// `BAD_USER_INPUT` for each that cannot be decrypted, with one text and after the same work, whatever is wrong with it: its key, its
/// nonce, or what was encrypted. The nonce is used up in any case.
pub async fn open<const N: usize>(cx: Cx<'_>, given: [(&'static str, Given); N]) -> Result<[SecretText; N]> {
    let mut checks = Checks::new();
    let mut passwords = std::array::from_fn(|_| SecretText::from(String::new()));
    for (password, (field, given)) in passwords.iter_mut().zip(given) {
        let opened = match given {
            Given::Plain(text) => Some(text),
            Given::Encrypted(encrypted) => decrypt(cx, encrypted).await?,
        };
        match opened {
            Some(text) => *password = text,
            None => checks.fail(field, NOT_DECRYPTED),
        }
    }
    checks.finish()?;
    Ok(passwords)
}

/// None, after the same work, where anything is wrong.
async fn decrypt(cx: Cx<'_>, sent: Encrypted) -> Result<Option<SecretText>> {
    let Encrypted { key_id, nonce, ciphertext } = sent;
    let now = cx.services.clock.now();
    let is_meant = |pair: &&Arc<Pair>| pair.id.to_string() == key_id && pair.serves(now, TimeDelta::zero());
    let known = cx.in_time(known(cx.services, |pairs| pairs.iter().any(|pair| is_meant(&pair)))).await??;
    let meant = known.iter().find(is_meant).cloned();
    // Of a key that is none nothing was encrypted: the work is done with another.
    let Some(pair) = meant.clone().or_else(|| known.first().cloned()) else { return Ok(None) };
    // What is no base 64 is no ciphertext either, and is worked on as such.
    let ciphertext = STANDARD.decode(ciphertext).unwrap_or_default();
    let decrypting = tokio::task::spawn_blocking(move || pair.rsa.decrypt(&ciphertext));
    let text = cx.in_time(decrypting).await?.map_err(Error::internal)?;
    let content = text.and_then(|text| serde_json::from_slice::<Content>(&text).ok());
    let content = content.map(|content| (SecretText::from(content.password), content.nonce));
    let genuine = meant.and_then(|pair| Nonce::read(cx.services, pair.id, &nonce)).map(|nonce| nonce.expires_at());
    let in_time = genuine.filter(|expires_at| *expires_at > now);
    // Used up before it is said whether it was good, and for good, whatever becomes of the deed.
    let until = in_time.unwrap_or(now + NONCE_LIFE);
    let is_first = cx.in_time(password_keys::use_nonce(&cx.services.db, &sha256(nonce.as_bytes()), until)).await??;
    let password =
        content.filter(|(_, sealed)| is_same(sealed.as_bytes(), nonce.as_bytes())).map(|(password, _)| password);
    Ok(password.filter(|_| in_time.is_some() && is_first))
}

/// The key pairs that are known, read anew where they are not enough, but not again and again.
async fn known(services: &Services, is_enough: impl Fn(&[Arc<Pair>]) -> bool) -> Result<Arc<[Arc<Pair>]>> {
    let mut known = services.password_keys.known.lock().await;
    let wait = if is_enough(&known.keys) { LOOK } else { PAUSE };
    if known.read_at.is_none_or(|at| at.elapsed() >= wait) {
        let rows = password_keys::all(&mut services.db.read().await?).await?;
        let before = known.keys.clone();
        let pair = |row: PasswordKey| match before.iter().find(|pair| pair.id == row.id) {
            Some(pair) => Some(pair.clone()),
            None => unsealed(services, &row).map(Arc::new),
        };
        known.keys = rows.into_iter().filter_map(pair).collect();
        known.read_at = Some(Instant::now());
    }
    Ok(known.keys.clone())
}

/// None where it does not open: the job makes another.
fn unsealed(services: &Services, row: &PasswordKey) -> Option<Pair> {
    let sealed = Sealed { key_version: row.key_version.clone(), bytes: row.sealed.clone() };
    let text = services
        .keys
        .open(&aad(row.id), &sealed)
        .inspect_err(|error| tracing::warn!(key = %row.id, error = error as &dyn std::error::Error, "a password key does not open"))
        .ok()?;
    let rsa = RsaKey::parse(&text)
        .inspect_err(
            |error| tracing::error!(key = %row.id, error = error as &dyn std::error::Error, "a password key is none"),
        )
        .ok()?;
    Some(Pair { id: row.id, created_at: row.created_at, rsa })
}

/// It is no organization's.
fn aad(id: PasswordKeyId) -> Aad {
    Aad { organization: String::new(), record: id.to_string(), field: "password_key", secret_version: 1 }
}

/// Makes a key pair where the newest is a day old, another key of the ring has sealed it than the newest, or it does not open; removes those
/// whose time is over. Where nobody has asked for one yet, none is made.
///
/// # Errors
/// Where the database fails.
pub async fn rotate(services: &Services) -> Result<()> {
    let rows = password_keys::all(&mut services.db.read().await?).await?;
    if rows.is_empty() { Ok(()) } else { renew(services, &rows).await }
}

async fn renew(services: &Services, rows: &[PasswordKey]) -> Result<()> {
    let now = services.clock.now();
    let is_new = |row: &PasswordKey| {
        let is_young = (now - row.created_at).abs() < ROTATION;
        is_young && row.key_version == services.keys.newest_version() && unsealed(services, row).is_some()
    };
    if !rows.iter().any(is_new) {
        let text =
            tokio::task::spawn_blocking(RsaKey::generate).await.map_err(Error::internal)?.map_err(Error::internal)?;
        let id = services.new_id();
        let sealed = services.keys.seal(&services.random, &aad(id), &text).map_err(Error::internal)?;
        let row =
            PasswordKey { id, sealed: sealed.bytes, key_version: sealed.key_version, created_at: services.clock.now() };
        password_keys::insert(&services.db, &row).await?;
        tracing::info!(key = %id, "a key pair was made to encrypt passwords with");
    }
    if rows.iter().any(|row| (now - row.created_at).abs() >= LIFE) {
        // By both clocks, be this server's ahead or behind: the others offer what they made by theirs.
        let [behind, ahead] = services.both_clocks().await?;
        password_keys::remove_all_but(&services.db, (behind + -LIFE, ahead + LIFE)).await?;
    }
    Ok(())
}

/// Lets go of key pairs whose time is over, which a server that nobody asks would keep in memory.
pub async fn forget(services: &Services) {
    let mut known = services.password_keys.known.lock().await;
    known.forget(services.clock.now());
}

/// What serves once: when it ends, chance, and the proof that a server of this ring has made it for a key pair. Short, so that a
/// password of 256 characters goes into one block of RSA with it.
struct Nonce([u8; NONCE]);

const NONCE: usize = END + CHANCE + PROOF;
const END: usize = 4;
const CHANCE: usize = 8;
const PROOF: usize = 12;

impl Nonce {
    fn new(services: &Services, key: PasswordKeyId, expires_at: Timestamp) -> Self {
        let mut bytes = [0; NONCE];
        // In whole seconds, to the year 2106.
        let end = u32::try_from(expires_at.to_utc().timestamp()).unwrap_or(u32::MAX);
        bytes[..END].copy_from_slice(&end.to_be_bytes());
        bytes[END..END + CHANCE].copy_from_slice(&services.random.bytes::<CHANCE>());
        let digest = services.keys.digest(Purpose::PasswordNonce, &proved(key, &bytes));
        bytes[END + CHANCE..].copy_from_slice(&digest.as_bytes()[..PROOF]);
        Self(bytes)
    }

    /// The nonce that the text is, if a server of this ring has made it for the key pair.
    fn read(services: &Services, key: PasswordKeyId, text: &str) -> Option<Self> {
        let bytes: [u8; NONCE] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let digests = services.keys.digests(Purpose::PasswordNonce, &proved(key, &bytes));
        let is_proof = digests.iter().any(|digest| is_same(&digest.as_bytes()[..PROOF], &bytes[END + CHANCE..]));
        is_proof.then_some(Self(bytes))
    }

    fn expires_at(&self) -> Timestamp {
        let [a, b, c, d, ..] = self.0;
        DateTime::from_timestamp(u32::from_be_bytes([a, b, c, d]).into(), 0).unwrap_or_default().into()
    }

    fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// What a nonce's proof is of.
fn proved(key: PasswordKeyId, bytes: &[u8; NONCE]) -> Vec<u8> {
    [key.to_string().as_bytes(), &bytes[..END + CHANCE]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Clock, Id};

    #[test]
    fn a_key_pair_whose_time_is_over_is_not_kept_in_memory() {
        let now = Clock::system().now();
        let pair = |age: TimeDelta| {
            let rsa = RsaKey::parse(&RsaKey::generate().unwrap()).unwrap();
            Arc::new(Pair { id: Id::new(now, &[0; 10]), created_at: now + -age, rsa })
        };
        let mut known = Known { keys: [pair(TimeDelta::hours(25)), pair(LIFE)].into(), read_at: None };
        let dropped = Arc::downgrade(&known.keys[1]);
        known.forget(now);
        assert_eq!((known.keys.len(), dropped.strong_count()), (1, 0));
    }
}
