//! API keys as their holders have them: `clv_`, 32 random letters and digits, and a checksum of 6.
//!
//! The checksum keeps nothing secret: with it, text that is no key is told without looking it up, by this server and by
//! programs that search for keys which were published by mistake.

use super::random::BASE62;
use super::{Random, SecretText};

/// What every key begins with.
const START: &str = "clv_";
/// How many characters are random: 190 bits.
const RANDOM: usize = 32;
/// How many characters the checksum has: 62^6 is more than 2^32.
const CHECKSUM: usize = 6;
/// How much of a key is shown, to recognise it by.
const SHOWN: usize = 12;

/// A whole key, well formed.
#[derive(Debug, Clone)]
pub struct RawApiKey(SecretText);

/// Text that is no key: mistyped, cut off, or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an API key")]
pub struct MalformedApiKey;

impl RawApiKey {
    /// A new key.
    #[must_use]
    pub fn generate(random: &Random) -> Self {
        let body = random.alphanumeric(RANDOM);
        let checksum = checksum(body.as_bytes());
        let checksum: String = checksum.iter().copied().map(char::from).collect();
        Self(SecretText::from([START, &body, &checksum].concat()))
    }

    /// The key that the text is.
    ///
    /// # Errors
    /// Where it is none.
    pub fn parse(text: SecretText) -> Result<Self, MalformedApiKey> {
        let bytes = text.expose().strip_prefix(START).ok_or(MalformedApiKey)?.as_bytes();
        if bytes.len() != RANDOM + CHECKSUM || !bytes.iter().all(u8::is_ascii_alphanumeric) {
            return Err(MalformedApiKey);
        }
        let (body, sum) = bytes.split_at(RANDOM);
        if sum == checksum(body) { Ok(Self(text)) } else { Err(MalformedApiKey) }
    }

    /// Whether the text may be meant as a key.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with(START)
    }

    /// The start of it, which is no secret.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.0.expose()[..SHOWN]
    }

    /// The whole of it.
    #[must_use]
    pub fn text(&self) -> &SecretText {
        &self.0
    }
}

/// The CRC-32 of the random part, in base 62.
fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let mut rest = crc32fast::hash(body);
    let mut text = [BASE62[0]; CHECKSUM];
    for character in text.iter_mut().rev() {
        *character = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<RawApiKey, MalformedApiKey> {
        RawApiKey::parse(SecretText::from(text.to_owned()))
    }

    #[test]
    fn the_form_never_drifts() {
        let known = "clv_0123456789ABCDEFGHIJKLMNOPQRSTUV";
        let sum = String::from_utf8(checksum(&known.as_bytes()[4..]).to_vec()).unwrap();
        assert_eq!(sum, "1ggZdL");
        assert_eq!(parse(&format!("{known}{sum}")).unwrap().prefix(), "clv_01234567");
    }

    proptest! {
        #[test]
        fn a_generated_key_is_well_formed_and_no_other_by_one_character(place in 0_usize..42, other in "[ -~é]") {
            let key = RawApiKey::generate(&Random::system());
            let text = key.text().expose();
            prop_assert!(parse(text).is_ok());
            let mut changed: Vec<String> = text.chars().map(String::from).collect();
            prop_assume!(changed[place] != other);
            changed[place] = other;
            prop_assert!(parse(&changed.concat()).is_err());
            prop_assert!(parse(&text[..place]).is_err());
            let longer = format!("{text}0");
            prop_assert!(parse(&longer).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in "(clv_)?.{0,50}") {
            let _ = parse(&text);
        }
    }
}
