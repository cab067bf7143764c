//! What an API key may be used for: its scopes, from which addresses, for which models.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use super::UnknownName;
use super::enums::names;

names! {
    /// What an API key opens.
    ApiKeyScope { Relay = "RELAY", AdminRead = "ADMIN_READ", AdminWrite = "ADMIN_WRITE" }

    /// Whether an API key can be used.
    ApiKeyStatus { Active = "ACTIVE", Expired = "EXPIRED", Revoked = "REVOKED" }

    /// What asking for an API key came to.
    ApiKeyVerificationCode {
        Valid = "VALID",
        Malformed = "MALFORMED",
        NotFound = "NOT_FOUND",
        Expired = "EXPIRED",
        Revoked = "REVOKED",
        IpNotAllowed = "IP_NOT_ALLOWED",
        RateLimited = "RATE_LIMITED",
        OwnerSuspended = "OWNER_SUSPENDED",
    }
}

/// The scopes of an API key, each once. As text their names, with spaces between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ApiKeyScopes(u8);

impl ApiKeyScopes {
    /// Whether the scope is one of them.
    #[must_use]
    pub fn has(self, scope: ApiKeyScope) -> bool {
        self.0 & bit(scope) != 0
    }

    /// Whether all of `others` are among them. What may write may also read.
    #[must_use]
    pub fn include(self, others: Self) -> bool {
        let writes = self.has(ApiKeyScope::AdminWrite);
        others.iter().all(|scope| self.has(scope) || (scope == ApiKeyScope::AdminRead && writes))
    }

    /// In the order of their declaration.
    pub fn iter(self) -> impl Iterator<Item = ApiKeyScope> {
        ApiKeyScope::ALL.iter().copied().filter(move |scope| self.has(*scope))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

fn bit(scope: ApiKeyScope) -> u8 {
    1 << scope as u8
}

impl FromIterator<ApiKeyScope> for ApiKeyScopes {
    fn from_iter<I: IntoIterator<Item = ApiKeyScope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | bit(scope)))
    }
}

impl fmt::Display for ApiKeyScopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(ApiKeyScope::as_str).collect::<Vec<_>>().join(" "))
    }
}

impl FromStr for ApiKeyScopes {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        text.split_whitespace().map(str::parse).collect()
    }
}

/// A list that is not as it must be; the message follows the field's name in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAllowed {
    /// Longer than it may be.
    #[error("must not have more than {MAX_ALLOWED} members")]
    TooMany,
    /// One member stands there twice.
    #[error("names {0} twice")]
    Twice(String),
    /// Not a block of addresses.
    #[error("has {0:?}, which is not an address or a CIDR block like 192.0.2.0/24")]
    NotABlock(String),
    /// Not the id of a model.
    #[error("has {0:?}, which is not the id of a model of at most {MAX_PATTERN} characters, with * for any")]
    NotAPattern(String),
}

/// The most members of a list.
const MAX_ALLOWED: usize = 100;
/// The most characters of a pattern.
const MAX_PATTERN: usize = 100;

/// The blocks of addresses that an API key may be used from; empty: from any. As text, with spaces between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedIps(Vec<IpNet>);

impl AllowedIps {
    /// Reads blocks in CIDR notation; an address alone is a block of one.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn parse(texts: &[impl AsRef<str>]) -> Result<Self, InvalidAllowed> {
        let mut blocks = Vec::new();
        for text in bounded(texts)? {
            let block =
                block(text).ok_or_else(|| InvalidAllowed::NotABlock(text.chars().take(MAX_PATTERN).collect()))?;
            if blocks.contains(&block) {
                return Err(InvalidAllowed::Twice(block.to_string()));
            }
            blocks.push(block);
        }
        Ok(Self(blocks))
    }

    /// Whether the key may be used from the address. One of IPv4 in the clothes of IPv6 is one of IPv4.
    #[must_use]
    pub fn allow(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.is_empty() || self.0.iter().any(|block| block.contains(&address))
    }

    /// Whether every address that `narrower` allows is allowed here too.
    #[must_use]
    pub fn include(&self, narrower: &Self) -> bool {
        self.0.is_empty()
            || (!narrower.0.is_empty() && narrower.0.iter().all(|block| self.0.iter().any(|own| own.contains(block))))
    }

    /// The blocks, as they were given.
    pub fn iter(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(ToString::to_string)
    }
}

/// A block without the bits that it says nothing of, of IPv4 where it can be written so.
fn block(text: &str) -> Option<IpNet> {
    /// How many bits the prefix `::ffff:0:0/96` has, behind which IPv6 writes addresses of IPv4.
    const MAPPED: u8 = 96;
    let block = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    let block: IpNet = match (block, block.network().to_canonical()) {
        (IpNet::V6(block), IpAddr::V4(address)) if block.prefix_len() >= MAPPED => {
            Ipv4Net::new(address, block.prefix_len() - MAPPED).ok()?.into()
        }
        (block, _) => block,
    };
    Some(block.trunc())
}

impl fmt::Display for AllowedIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join(" "))
    }
}

impl FromStr for AllowedIps {
    type Err = InvalidAllowed;

    fn from_str(text: &str) -> Result<Self, InvalidAllowed> {
        Self::parse(&text.split_whitespace().collect::<Vec<_>>())
    }
}

/// The ids of the models that an API key may use, with `*` for any text; empty: all. As text, with spaces between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedModels(Vec<String>);

impl AllowedModels {
    /// Reads patterns.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn parse(texts: &[impl AsRef<str>]) -> Result<Self, InvalidAllowed> {
        let mut patterns: Vec<String> = Vec::new();
        for text in bounded(texts)? {
            let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@*".contains(&byte);
            if !(1..=MAX_PATTERN).contains(&text.len()) || !text.bytes().all(is_known) {
                return Err(InvalidAllowed::NotAPattern(text.chars().take(MAX_PATTERN).collect()));
            }
            if patterns.iter().any(|pattern| pattern == text) {
                return Err(InvalidAllowed::Twice(text.to_owned()));
            }
            patterns.push(text.to_owned());
        }
        Ok(Self(patterns))
    }

    /// Whether every model that `narrower` allows is allowed here too. A `*` of a narrower pattern is taken as a character:
    /// only a `*` matches it, which then matches whatever it stands for.
    #[must_use]
    pub fn include(&self, narrower: &Self) -> bool {
        let has = |pattern: &String| self.0.iter().any(|own| matches(own.as_bytes(), pattern.as_bytes()));
        self.0.is_empty() || (!narrower.0.is_empty() && narrower.0.iter().all(has))
    }

    /// Whether the key may use the model.
    #[must_use]
    pub fn allow(&self, model: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| matches(pattern.as_bytes(), model.as_bytes()))
    }

    /// The patterns, as they were given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// Whether the text is as the pattern says. Takes time by the product of their lengths at most.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last `*` stands, and where the text goes on after what it stands for.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, from));
            at += 1;
        } else if pattern.get(at) == Some(&text[from]) {
            at += 1;
            from += 1;
        } else if let Some((place, taken)) = star {
            star = Some((place, taken + 1));
            at = place + 1;
            from = taken + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

impl fmt::Display for AllowedModels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl FromStr for AllowedModels {
    type Err = InvalidAllowed;

    fn from_str(text: &str) -> Result<Self, InvalidAllowed> {
        Self::parse(&text.split_whitespace().collect::<Vec<_>>())
    }
}

fn bounded(texts: &[impl AsRef<str>]) -> Result<impl Iterator<Item = &str>, InvalidAllowed> {
    if texts.len() > MAX_ALLOWED {
        return Err(InvalidAllowed::TooMany);
    }
    Ok(texts.iter().map(|text| text.as_ref().trim()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ips(texts: &[&str]) -> AllowedIps {
        AllowedIps::parse(texts).unwrap()
    }

    fn models(texts: &[&str]) -> AllowedModels {
        AllowedModels::parse(texts).unwrap()
    }

    #[test]
    fn addresses_are_matched_by_their_canonical_form() {
        for (blocks, address, allowed) in [
            (&[][..], "203.0.113.9", true),
            (&["10.0.0.0/8"], "10.255.0.1", true),
            (&["10.0.0.0/8"], "11.0.0.1", false),
            (&["10.0.0.0/8"], "::ffff:10.0.0.1", true),
            (&["::ffff:10.0.0.0/104"], "10.1.2.3", true),
            (&["192.0.2.7"], "192.0.2.7", true),
            (&["192.0.2.7"], "192.0.2.8", false),
            (&["2001:db8::/32", "192.0.2.7"], "2001:db8:1::1", true),
            (&["2001:db8::1"], "2001:db8::2", false),
        ] {
            assert_eq!(ips(blocks).allow(address.parse().unwrap()), allowed, "{blocks:?} {address}");
        }
        assert_eq!(ips(&["10.1.2.3/8", "::ffff:192.0.2.7"]).to_string(), "10.0.0.0/8 192.0.2.7/32");
        for wrong in [&["10.0.0.0/33"][..], &["x"], &[""], &["10.1.0.0/8", "10.0.0.0/8"]] {
            assert!(AllowedIps::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_narrower_is_told() {
        for (wide, narrow, is_included) in [
            (&[][..], &[][..], true),
            (&[], &["10.0.0.0/8"], true),
            (&["10.0.0.0/8"], &[], false),
            (&["10.0.0.0/8"], &["10.2.0.0/16", "10.9.9.9"], true),
            (&["10.0.0.0/8"], &["10.2.0.0/16", "11.0.0.1"], false),
            (&["10.2.0.0/16"], &["10.0.0.0/8"], false),
        ] {
            assert_eq!(ips(wide).include(&ips(narrow)), is_included, "{wide:?} {narrow:?}");
        }
        for (wide, narrow, is_included) in [
            (&[][..], &["claude-*"][..], true),
            (&["claude-*"], &[], false),
            (&["claude-*"], &["claude-haiku-*", "claude-opus-4-5"], true),
            (&["claude-haiku-*"], &["claude-*"], false),
            (&["claude-haiku-4-5"], &["claude-haiku-4*5"], false),
            (&["*"], &["*", "a*b*c"], true),
            (&["*-latest"], &["claude-*-latest"], true),
        ] {
            assert_eq!(models(wide).include(&models(narrow)), is_included, "{wide:?} {narrow:?}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_with_stars_in_any_text_matches_it(parts in prop::collection::vec("[a-c]{0,3}", 1..5), between in "[a-c]{0,4}") {
            prop_assert!(matches(parts.join("*").as_bytes(), parts.join(&between).as_bytes()));
            let text = parts.concat();
            let (around, before) = (format!("*{text}*"), format!("{between}{text}"));
            prop_assert!(matches(around.as_bytes(), before.as_bytes()));
            let longer = format!("{text}d");
            prop_assert!(!matches(text.as_bytes(), longer.as_bytes()));
        }

        #[test]
        fn scopes_are_kept_as_text(bits in 0_u8..8) {
            let scopes = ApiKeyScopes(bits);
            prop_assert_eq!(scopes.to_string().parse::<ApiKeyScopes>().unwrap(), scopes);
            prop_assert_eq!(scopes.iter().collect::<ApiKeyScopes>(), scopes);
        }
    }
}
