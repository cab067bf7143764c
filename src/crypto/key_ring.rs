//! The server's keys by version: the newest seals and digests, all open and compare.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::signature::Ed25519KeyPair;
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

use super::digest::{Purpose, derive};
use super::signature::key_pair;
use super::{Random, SecretText};

/// How many bytes a key has.
const LENGTH: usize = 32;

/// A key ring: at least one key, the newest first.
pub struct KeyRing(Vec<Key>);

/// One version: the key that wraps data keys, and the keys for digests and signatures that are derived from it.
pub(super) struct Key {
    pub(super) version: String,
    pub(super) aead: LessSafeKey,
    pub(super) macs: [hmac::Key; Purpose::ALL.len()],
    pub(super) signer: Ed25519KeyPair,
}

/// A text that is no key ring. It never holds the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// No key at all.
    #[error("needs at least one key")]
    Empty,
    /// Not `v1:base64`.
    #[error("entry {0} is not of the form v1:base64, with 32 bytes in the base64")]
    Malformed(usize),
    /// One version twice.
    #[error("entry {0} has a version that stands there already")]
    Repeated(usize),
    /// One key under two versions: a change from the one to the other would change nothing.
    #[error("entry {0} has the key of another version")]
    SameKey(usize),
}

impl KeyRing {
    /// Reads `v2:base64,v1:base64`, the newest first.
    ///
    /// # Errors
    /// Names the entry that is wrong, counted from 1, never what it holds.
    pub fn parse(text: &SecretText) -> Result<Self, KeyRingError> {
        let mut keys: Vec<Key> = Vec::new();
        let mut known: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        for (place, entry) in text.expose().split(',').map(str::trim).enumerate().filter(|(_, entry)| !entry.is_empty())
        {
            let malformed = || KeyRingError::Malformed(place + 1);
            let (version, key) = entry.split_once(':').ok_or_else(malformed)?;
            let digits = version.strip_prefix('v').ok_or_else(malformed)?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(malformed());
            }
            if keys.iter().any(|key| key.version == version) {
                return Err(KeyRingError::Repeated(place + 1));
            }
            let bytes = Zeroizing::new(STANDARD.decode(key).map_err(|_| malformed())?);
            keys.push(Key::new(version, &bytes).ok_or_else(malformed)?);
            if known.contains(&bytes) {
                return Err(KeyRingError::SameKey(place + 1));
            }
            known.push(bytes);
        }
        if keys.is_empty() { Err(KeyRingError::Empty) } else { Ok(Self(keys)) }
    }

    /// The text of a ring with one new key.
    #[must_use]
    pub fn generate(random: &Random) -> SecretText {
        let key = Zeroizing::new(STANDARD.encode(Zeroizing::new(random.bytes::<32>())));
        SecretText::from(["v1:", &key].concat())
    }

    /// The version of the key that seals.
    #[must_use]
    pub fn newest_version(&self) -> &str {
        &self.newest().version
    }

    /// Whether what this version has sealed can be opened.
    #[must_use]
    pub fn has(&self, version: &str) -> bool {
        self.key(version).is_some()
    }

    pub(super) fn newest(&self) -> &Key {
        &self.0[0]
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.0
    }

    pub(super) fn key(&self, version: &str) -> Option<&Key> {
        self.0.iter().find(|key| key.version == version)
    }
}

impl Key {
    /// What seals, what digests and what signs are keys of their own, derived from the one that is configured.
    fn new(version: &str, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LENGTH {
            return None;
        }
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, b"claviger").extract(bytes);
        let sealing = pseudorandom.expand(&[b"claviger/seal"], &AES_256_GCM).ok()?;
        Some(Self {
            version: version.to_owned(),
            aead: LessSafeKey::new(UnboundKey::from(sealing)),
            macs: Purpose::ALL.map(|purpose| derive(&pseudorandom, purpose)),
            signer: key_pair(&pseudorandom)?,
        })
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.version)).finish()
    }
}
