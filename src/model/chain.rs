//! A point of an organization's hash chain: which entry of the audit log, and the hash there.

use std::fmt;
use std::str::FromStr;

/// A sequence and the hash of the entry that has it, written `SEQ:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainPoint {
    /// The entry's sequence; 0 before the first.
    pub sequence: i64,
    /// The entry's hash.
    pub hash: [u8; 32],
}

/// Not a point of a hash chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not of the form SEQ:HASH, a whole number from 1 and 64 hexadecimal digits")]
pub struct InvalidChainPoint;

impl ChainPoint {
    /// Before the first entry.
    pub const START: Self = Self { sequence: 0, hash: [0; 32] };

    /// From what a row holds; `None` where the hash is none.
    #[must_use]
    pub fn from_row(sequence: i64, hash: &[u8]) -> Option<Self> {
        Some(Self { sequence, hash: hash.try_into().ok()? })
    }
}

impl fmt::Display for ChainPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex::encode(self.hash))
    }
}

impl FromStr for ChainPoint {
    type Err = InvalidChainPoint;

    fn from_str(text: &str) -> Result<Self, InvalidChainPoint> {
        let (sequence, digits) = text.split_once(':').ok_or(InvalidChainPoint)?;
        let sequence = sequence.parse().ok().filter(|sequence| *sequence >= 1).ok_or(InvalidChainPoint)?;
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash).map_err(|_| InvalidChainPoint)?;
        Ok(Self { sequence, hash })
    }
}
