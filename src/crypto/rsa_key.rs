//! RSA key pairs that others encrypt with for the server: OAEP with SHA-256, 3072 bits.

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::SecretText;

/// How many bytes a ciphertext has.
const CIPHERTEXT: usize = 3072 / 8;
/// How many characters a line of PEM has.
const LINE: usize = 64;

/// A key pair, ready to decrypt.
pub struct RsaKey {
    private: OaepPrivateDecryptingKey,
    public_pem: String,
}

/// Why there is no key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RsaKeyError {
    /// None could be made.
    #[error("no RSA key pair could be made")]
    NotMade,
    /// The text is none.
    #[error("the text is no RSA key pair")]
    Malformed,
}

impl RsaKey {
    /// A new private key: PKCS#8 in base64. That takes a core for a good part of a second.
    ///
    /// # Errors
    /// Where the library cannot.
    pub fn generate() -> Result<SecretText, RsaKeyError> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa3072).map_err(|_| RsaKeyError::NotMade)?;
        let pkcs8: Pkcs8V1Der<'_> = key.as_der().map_err(|_| RsaKeyError::NotMade)?;
        Ok(SecretText::from(STANDARD.encode(pkcs8.as_ref())))
    }

    /// The key pair of a private key.
    ///
    /// # Errors
    /// Where it is none, or not of 3072 bits.
    pub fn parse(text: &SecretText) -> Result<Self, RsaKeyError> {
        let pkcs8 = Zeroizing::new(STANDARD.decode(text.expose()).map_err(|_| RsaKeyError::Malformed)?);
        let key = PrivateDecryptingKey::from_pkcs8(&pkcs8).map_err(|_| RsaKeyError::Malformed)?;
        if key.key_size_bytes() != CIPHERTEXT {
            return Err(RsaKeyError::Malformed);
        }
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| RsaKeyError::Malformed)?;
        let public_pem = pem("PUBLIC KEY", public.as_ref());
        Ok(Self { private: OaepPrivateDecryptingKey::new(key).map_err(|_| RsaKeyError::Malformed)?, public_pem })
    }

    /// The public key: SPKI in PEM.
    #[must_use]
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// What was encrypted. Whatever is wrong is answered alike; what has not even the length of a ciphertext is worked on too.
    #[must_use]
    pub fn decrypt(&self, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let has_length = ciphertext.len() == CIPHERTEXT;
        let ciphertext = if has_length { ciphertext } else { &[1; CIPHERTEXT] };
        let mut text = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let length = self.private.decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut text, None).ok()?.len();
        text.truncate(length);
        has_length.then_some(text)
    }
}

impl std::fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base 64 is ASCII.
        let (line, more) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + &format!("-----END {label}-----\n")
}
