//! Randomness, passed in.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::SecretText;

/// Characters of a generated password: no look-alikes. 32 of them, so that a byte maps without bias.
const READABLE: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Digits and letters, in the order of their values in base 62.
pub(super) const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A source of unpredictable bytes.
#[derive(Clone)]
pub struct Random(Arc<dyn SecureRandom + Send + Sync>);

impl Random {
    /// The operating system's.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the operating system for randomness")]
    pub fn system() -> Self {
        Self(Arc::new(SystemRandom::new()))
    }

    /// So many random bytes.
    ///
    /// # Panics
    /// Where the operating system has no randomness: nothing secret can be made then, so nothing may go on.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes).expect("the operating system gives randomness");
        bytes
    }

    /// 256 random bits as URL-safe text.
    #[must_use]
    pub fn token(&self) -> SecretText {
        SecretText::from(URL_SAFE_NO_PAD.encode(Zeroizing::new(self.bytes::<32>())))
    }

    /// So many letters and digits, each as likely as any other.
    #[must_use]
    pub fn alphanumeric(&self, length: usize) -> Zeroizing<String> {
        /// Bytes from here on would make some characters likelier than others: 248 is four times 62.
        const FAIR: u8 = 248;
        let mut text = Zeroizing::new(String::with_capacity(length));
        while text.len() < length {
            let bytes = Zeroizing::new(self.bytes::<32>());
            let fair = bytes.iter().filter(|byte| **byte < FAIR);
            let missing = length - text.len();
            text.extend(fair.take(missing).map(|byte| char::from(BASE62[usize::from(byte % 62)])));
        }
        text
    }

    /// A password of five times four characters (100 bits) that a person can read and type.
    #[must_use]
    pub fn password(&self) -> SecretText {
        let bytes = Zeroizing::new(self.bytes::<20>());
        let mut password = Zeroizing::new(String::with_capacity(24));
        for (place, byte) in bytes.iter().enumerate() {
            if place > 0 && place % 4 == 0 {
                password.push('-');
            }
            password.push(char::from(READABLE[usize::from(byte % 32)]));
        }
        SecretText::from(std::mem::take(&mut *password))
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
