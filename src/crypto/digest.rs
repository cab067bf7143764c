//! Digests: keyed ones, each purpose with a key of its own, so that who can write the database can plant nothing; and the
//! plain SHA-256 of the audit chain.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{digest, hkdf, hmac};

use super::{KeyRing, SecretText};

/// What a keyed digest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Tells whether two accounts have one upstream API key.
    UpstreamKeyFingerprint,
    /// Finds a refresh token.
    RefreshToken,
    /// Makes the refresh token that follows another.
    RefreshSuccessor,
    /// Finds an invitation.
    Invitation,
    /// Finds what verifies an address.
    EmailVerification,
    /// Finds what sets a new password.
    PasswordReset,
    /// Tells a key of the ring from another.
    KeyFingerprint,
    /// Finds an API key.
    ApiKey,
    /// Names the bucket of a rate limit.
    RateLimit,
    /// Proves that a nonce is one of this server's.
    PasswordNonce,
    /// Knows a device.
    Device,
}

impl Purpose {
    pub(super) const ALL: [Self; 11] = [
        Self::UpstreamKeyFingerprint,
        Self::RefreshToken,
        Self::RefreshSuccessor,
        Self::Invitation,
        Self::EmailVerification,
        Self::PasswordReset,
        Self::KeyFingerprint,
        Self::ApiKey,
        Self::RateLimit,
        Self::PasswordNonce,
        Self::Device,
    ];

    /// Part of the derivation: changing it makes every stored digest of the purpose useless.
    fn label(self) -> &'static [u8] {
        match self {
            Self::UpstreamKeyFingerprint => b"claviger/upstream-key-fingerprint",
            Self::RefreshToken => b"claviger/refresh-token",
            Self::RefreshSuccessor => b"claviger/refresh-successor",
            Self::Invitation => b"claviger/invitation",
            Self::EmailVerification => b"claviger/email-verification",
            Self::PasswordReset => b"claviger/password-reset",
            Self::KeyFingerprint => b"claviger/key-fingerprint",
            Self::ApiKey => b"claviger/api-key",
            Self::RateLimit => b"claviger/rate-limit",
            Self::PasswordNonce => b"claviger/password-nonce",
            Self::Device => b"claviger/device",
        }
    }
}

/// A keyed digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The bytes that are stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    copy(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Whether two texts are one, in a time that does not tell where they differ.
#[must_use]
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// The purpose's HMAC-SHA-256 key, derived by HKDF.
pub(super) fn derive(pseudorandom: &hkdf::Prk, purpose: Purpose) -> hmac::Key {
    let info = [purpose.label()];
    let material = pseudorandom.expand(&info, hmac::HMAC_SHA256).expect("32 bytes are less than HKDF's limit");
    hmac::Key::from(material)
}

impl KeyRing {
    /// The digest under the newest key: the one to store.
    #[must_use]
    pub fn digest(&self, purpose: Purpose, bytes: &[u8]) -> Digest {
        sign(&self.newest().macs[purpose as usize], bytes)
    }

    /// The digests under every key: those to look for, since the stored one may be older than the newest key.
    #[must_use]
    pub fn digests(&self, purpose: Purpose, bytes: &[u8]) -> Vec<Digest> {
        self.keys().iter().map(|key| sign(&key.macs[purpose as usize], bytes)).collect()
    }

    /// What tells each version's key from any other.
    #[must_use]
    pub fn fingerprints(&self) -> Vec<(String, Digest)> {
        let fingerprint = |key: &super::key_ring::Key| sign(&key.macs[Purpose::KeyFingerprint as usize], b"");
        self.keys().iter().map(|key| (key.version.clone(), fingerprint(key))).collect()
    }

    /// The refresh token that follows `token`: the same each time, so that a retry gets what the first try got. A key that
    /// is added in between changes it, and the retry is answered with a token that does not exist: its holder signs in again.
    #[must_use]
    pub fn refresh_successor(&self, token: &SecretText) -> SecretText {
        let digest = self.digest(Purpose::RefreshSuccessor, token.expose().as_bytes());
        SecretText::from(URL_SAFE_NO_PAD.encode(digest.0))
    }
}

fn sign(key: &hmac::Key, bytes: &[u8]) -> Digest {
    Digest(copy(hmac::sign(key, bytes).as_ref()))
}

fn copy(bytes: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(bytes);
    array
}
