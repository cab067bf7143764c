//! What the server signs of a hash chain: a checkpoint for the log stream, and the seal in the place of what was removed.

use std::fmt;
use std::str::FromStr;

use crate::crypto::{KeyRing, Signature, SignatureError};
use crate::model::{ChainPoint, OrganizationId, Timestamp};

/// What a statement says. It stands in what is signed: whoever has seen a checkpoint can make no seal of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The log ended here.
    Checkpoint,
    /// The log up to here was removed when its time was over.
    Seal,
}

/// A signed statement about an organization's log: that it said this, at a time, of a point of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What it says.
    pub subject: Subject,
    /// Of whose log.
    pub organization: OrganizationId,
    /// Of which point.
    pub point: ChainPoint,
    /// When it was said.
    pub time: Timestamp,
    /// By which key, and the proof.
    pub signature: Signature,
}

/// Not a signed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a signed checkpoint as the log stream has it")]
pub struct InvalidStatement;

impl Subject {
    fn label(self) -> &'static str {
        match self {
            Self::Checkpoint => "claviger-audit-checkpoint",
            Self::Seal => "claviger-audit-seal",
        }
    }
}

impl Statement {
    /// Signs it with the newest key.
    #[must_use]
    pub fn sign(
        keys: &KeyRing,
        subject: Subject,
        organization: OrganizationId,
        point: ChainPoint,
        time: Timestamp,
    ) -> Self {
        let signature = keys.sign(|key_version| text(subject, organization, point, time, key_version));
        Self { subject, organization, point, time, signature }
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// Where the ring lacks the key, or the signature is not of this statement.
    pub fn check(&self, keys: &KeyRing) -> Result<(), SignatureError> {
        keys.check(&self.text(), &self.signature)
    }

    fn text(&self) -> String {
        text(self.subject, self.organization, self.point, self.time, &self.signature.key_version)
    }
}

/// What is signed: the subject, the organization, the sequence, the hash, the time in microseconds since 1970 and the version
/// of the key, with colons between.
fn text(
    subject: Subject,
    organization: OrganizationId,
    point: ChainPoint,
    time: Timestamp,
    key_version: &str,
) -> String {
    format!("{}:{organization}:{point}:{}:{key_version}", subject.label(), time.micros())
}

/// What is signed, a colon, and the signature in hexadecimal.
impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.text(), hex::encode(&self.signature.bytes))
    }
}

/// Reads a checkpoint. A seal is read from its row alone.
impl FromStr for Statement {
    type Err = InvalidStatement;

    fn from_str(text: &str) -> Result<Self, InvalidStatement> {
        let parts: Vec<&str> = text.split(':').collect();
        let [label, organization, sequence, hash, time, key_version, signature] = parts[..] else {
            return Err(InvalidStatement);
        };
        if label != Subject::Checkpoint.label() {
            return Err(InvalidStatement);
        }
        Ok(Self {
            subject: Subject::Checkpoint,
            organization: organization.parse().map_err(|_| InvalidStatement)?,
            point: format!("{sequence}:{hash}").parse().map_err(|_| InvalidStatement)?,
            time: time.parse().ok().and_then(Timestamp::from_micros).ok_or(InvalidStatement)?,
            signature: Signature {
                key_version: key_version.to_owned(),
                bytes: hex::decode(signature).map_err(|_| InvalidStatement)?,
            },
        })
    }
}
