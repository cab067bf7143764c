//! Sealed values: AES-256-GCM with a data key for each, itself sealed with the ring's key. Both are bound to the place that
//! the value belongs in, so that a row copied onto another does not open.

use ring::aead::{AES_256_GCM, Aad as RingAad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{KeyRing, Random, SecretText};

/// The first byte of a sealed value: which format it has.
const FORMAT: u8 = 1;
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const WRAPPED_LEN: usize = NONCE_LEN + KEY_LEN + TAG_LEN;

/// Where a value belongs.
#[derive(Debug, Clone)]
pub struct Aad {
    /// The organization's id.
    pub organization: String,
    /// The record's id.
    pub record: String,
    /// The field's name.
    pub field: &'static str,
    /// The how-manieth secret of that field.
    pub secret_version: i32,
}

impl Aad {
    /// Each part with its length before it, so that no two places have one text.
    fn bytes(&self, key_version: &str) -> Vec<u8> {
        let version = self.secret_version.to_string();
        let parts = [self.organization.as_str(), &self.record, self.field, &version, key_version];
        parts.iter().flat_map(|part| [&(part.len() as u64).to_be_bytes(), part.as_bytes()].concat()).collect()
    }
}

/// A sealed value: `format ‖ nonce ‖ sealed data key ‖ nonce ‖ sealed text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Which key of the ring sealed it.
    pub key_version: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Sealing failed: the text is longer than AES-GCM can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the text cannot be sealed")]
pub struct SealError;

/// Why a value does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key that sealed it is not in the ring.
    #[error("the key {0} is not in the key ring")]
    UnknownKey(String),
    /// It was changed, or belongs somewhere else.
    #[error("the sealed value does not open here")]
    Corrupt,
}

impl KeyRing {
    /// Seals a text with the newest key.
    ///
    /// # Errors
    /// Where it is longer than 64 GiB.
    pub fn seal(&self, random: &Random, aad: &Aad, text: &SecretText) -> Result<Sealed, SealError> {
        let key = self.newest();
        let aad = aad.bytes(&key.version);
        let data_key = Zeroizing::new(random.bytes::<KEY_LEN>());
        let mut bytes = vec![FORMAT];
        encrypt(&key.aead, random, &aad, &*data_key, &mut bytes)?;
        let data_key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*data_key).map_err(|_| SealError)?);
        encrypt(&data_key, random, &aad, text.expose().as_bytes(), &mut bytes)?;
        Ok(Sealed { key_version: key.version.clone(), bytes })
    }

    /// Opens a sealed value.
    ///
    /// # Errors
    /// Names the key that is missing; says nothing more of what else is wrong.
    pub fn open(&self, aad: &Aad, sealed: &Sealed) -> Result<SecretText, OpenError> {
        let key = self.key(&sealed.key_version).ok_or_else(|| OpenError::UnknownKey(sealed.key_version.clone()))?;
        let aad = aad.bytes(&key.version);
        let Some((&FORMAT, rest)) = sealed.bytes.split_first() else { return Err(OpenError::Corrupt) };
        let (wrapped, text) = rest.split_at_checked(WRAPPED_LEN).ok_or(OpenError::Corrupt)?;
        let data_key = decrypt(&key.aead, &aad, wrapped)?;
        let data_key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &data_key).map_err(|_| OpenError::Corrupt)?);
        let text = decrypt(&data_key, &aad, text)?;
        let text = std::str::from_utf8(&text).map_err(|_| OpenError::Corrupt)?;
        Ok(SecretText::from(text.to_owned()))
    }
}

/// Appends the nonce and the ciphertext with its tag.
fn encrypt(key: &LessSafeKey, random: &Random, aad: &[u8], text: &[u8], to: &mut Vec<u8>) -> Result<(), SealError> {
    let nonce = random.bytes::<NONCE_LEN>();
    to.extend_from_slice(&nonce);
    let start = to.len();
    // The plaintext is encrypted where it stands, so the buffer must not move and leave a copy behind.
    to.reserve_exact(text.len() + TAG_LEN);
    to.extend_from_slice(text);
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), RingAad::from(aad), &mut to[start..])
        .map_err(|_| SealError)?;
    to.extend_from_slice(tag.as_ref());
    Ok(())
}

fn decrypt(key: &LessSafeKey, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or(OpenError::Corrupt)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Corrupt)?;
    let mut text = Zeroizing::new(text.to_vec());
    let length = key.open_in_place(nonce, RingAad::from(aad), &mut text).map_err(|_| OpenError::Corrupt)?.len();
    text.truncate(length);
    Ok(text)
}
