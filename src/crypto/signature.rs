//! Signatures: Ed25519, by a key pair that is derived from each key of the ring, so that what the server has said can be
//! checked by whoever has the public key, and by nobody forged who has not the ring.

use ring::hkdf;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::KeyRing;

/// Part of the derivation: changing it makes every signature worthless.
const LABEL: &[u8] = b"claviger/signature";

/// A signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Which key of the ring made it.
    pub key_version: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The key that made it is not in the ring.
    #[error("the key {0} is not in the key ring")]
    UnknownKey(String),
    /// The key of that version has not made it, or not for this text.
    #[error("the signature is not this server's")]
    Wrong,
}

impl KeyRing {
    /// Signs, by the newest key, the text that is made for its version.
    #[must_use]
    pub fn sign(&self, text: impl FnOnce(&str) -> String) -> Signature {
        let key = self.newest();
        let text = text(&key.version);
        Signature { key_version: key.version.clone(), bytes: key.signer.sign(text.as_bytes()).as_ref().to_vec() }
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// Where the ring lacks the key, or the signature is not of this text.
    pub fn check(&self, text: &str, signature: &Signature) -> Result<(), SignatureError> {
        let key = self
            .key(&signature.key_version)
            .ok_or_else(|| SignatureError::UnknownKey(signature.key_version.clone()))?;
        UnparsedPublicKey::new(&ED25519, key.signer.public_key())
            .verify(text.as_bytes(), &signature.bytes)
            .map_err(|_| SignatureError::Wrong)
    }

    /// The public key of each version, as 32 bytes.
    #[must_use]
    pub fn public_keys(&self) -> Vec<(String, Vec<u8>)> {
        self.keys().iter().map(|key| (key.version.clone(), key.signer.public_key().as_ref().to_vec())).collect()
    }
}

/// The key pair of a key of the ring.
pub(super) fn key_pair(pseudorandom: &hkdf::Prk) -> Option<Ed25519KeyPair> {
    let mut seed = Zeroizing::new([0; 32]);
    pseudorandom.expand(&[LABEL], hkdf::HKDF_SHA256).ok()?.fill(&mut *seed).ok()?;
    Ed25519KeyPair::from_seed_unchecked(&*seed).ok()
}
