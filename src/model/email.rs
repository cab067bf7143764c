//! Email addresses, normalized once, at the edge.

use std::fmt;
use std::str::FromStr;

use email_address::{EmailAddress, Options};
use unicode_normalization::UnicodeNormalization;

use super::text::is_invisible;

/// A valid address: trimmed, lower case, NFC, without a character that shows as nothing. Two spellings of one address
/// compare equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Email(String);

/// Not an email address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a valid email address")]
pub struct InvalidEmail;

impl Email {
    /// The longest address that SMTP can carry (RFC 5321, 4.5.3.1.3, less the angle brackets).
    pub const MAX_LENGTH: usize = 254;

    /// The normalized address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Email {
    type Err = InvalidEmail;

    fn from_str(text: &str) -> Result<Self, InvalidEmail> {
        let lower = text.trim().to_lowercase();
        let normalized = if lower.is_ascii() { lower } else { lower.nfc().collect() };
        // `admin@localhost` is an address: the first administrator's where nothing else is set.
        let options = Options::default().without_display_text().without_domain_literal();
        let is_clear = !normalized.contains(is_invisible);
        if !is_clear
            || normalized.len() > Self::MAX_LENGTH
            || EmailAddress::parse_with_options(&normalized, options).is_err()
        {
            return Err(InvalidEmail);
        }
        Ok(Self(normalized))
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
