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
