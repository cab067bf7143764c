//! What servers on the same database tell each other: that something was committed, whether that changed who may do what, and that
//! usage was recorded.
//!
//! Hints, no more. Whoever hears one asks the database: a hint that is lost, forged or too old costs a look, and nothing that
//! it says is believed. No secret stands in one.

use std::fmt;
use std::str::FromStr;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::model::{OrganizationId, ResourceType};

/// The channel that servers speak on.
pub const CHANNEL: &str = "claviger";

/// What one server tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Which server tells it. It hears itself too.
    pub from: String,
    /// What it tells.
    pub news: News,
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// An organization's log has grown.
    Committed {
        /// Whose log.
        organization: OrganizationId,
        /// The place of the last entry.
        sequence: i64,
        /// What that entry is about.
        about: ResourceType,
        /// Whether it changed who may do what.
        changes_access: bool,
    },
    /// Usage of an organization was recorded.
    Used {
        /// Whose.
        organization: OrganizationId,
        /// The place of the last record.
        sequence: i64,
    },
    /// Something was not told: anything may have happened.
    Missed,
    /// Nothing: who tells it wants to hear it.
    Probe(u64),
}

/// Not a message that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a message that this version knows")]
pub struct UnknownMessage;

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.news {
            News::Committed { organization, sequence, about, changes_access } => {
                let access = if changes_access { "access" } else { "-" };
                write!(f, "{} committed {organization} {sequence} {} {access}", self.from, about.as_str())
            }
            News::Used { organization, sequence } => write!(f, "{} used {organization} {sequence}", self.from),
            News::Missed => write!(f, "{} missed", self.from),
            News::Probe(number) => write!(f, "{} probe {number}", self.from),
        }
    }
}

impl FromStr for Message {
    type Err = UnknownMessage;

    fn from_str(text: &str) -> Result<Self, UnknownMessage> {
        let words: Vec<_> = text.split(' ').collect();
        let (from, news) = match words[..] {
            [from, "committed", organization, sequence, about, access] => {
                let changes_access = match access {
                    "access" => true,
                    "-" => false,
                    _ => return Err(UnknownMessage),
                };
                let organization = organization.parse().map_err(|_| UnknownMessage)?;
                let sequence = sequence.parse().map_err(|_| UnknownMessage)?;
                let about = about.parse().map_err(|_| UnknownMessage)?;
                (from, News::Committed { organization, sequence, about, changes_access })
            }
            [from, "used", organization, sequence] => {
                let organization = organization.parse().map_err(|_| UnknownMessage)?;
                let sequence = sequence.parse().map_err(|_| UnknownMessage)?;
                (from, News::Used { organization, sequence })
            }
            [from, "missed"] => (from, News::Missed),
            [from, "probe", number] => (from, News::Probe(number.parse().map_err(|_| UnknownMessage)?)),
            _ => return Err(UnknownMessage),
        };
        Ok(Self { from: from.to_owned(), news })
    }
}

/// By what messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// PostgreSQL's LISTEN and NOTIFY, which come with the commit.
    Postgres,
    /// Redis.
    Redis,
}

/// By which of them, in the metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct By {
    transport: &'static str,
}

/// How it goes, for the metrics.
#[derive(Debug, Clone, Default)]
pub struct Measures {
    /// Whether other servers are heard: 1, or 0. Empty where there is nothing to hear them by.
    pub connected: Family<By, Gauge>,
    /// How often they were no longer heard.
    pub interruptions: Family<By, Counter>,
}

impl Measures {
    /// Begins to measure: both numbers are there from then on, since of one that appears with the first interruption nobody could tell
    /// that it has grown.
    pub fn begin(&self, transport: Transport) {
        self.hears(transport, false);
        drop(self.interruptions.get_or_create(&transport.label()));
    }

    /// Notes whether other servers are heard.
    pub fn hears(&self, transport: Transport, does: bool) {
        self.connected.get_or_create(&transport.label()).set(does.into());
    }

    /// Notes that they are no longer.
    pub fn interrupted(&self, transport: Transport) {
        self.hears(transport, false);
        self.interruptions.get_or_create(&transport.label()).inc();
    }
}

impl Transport {
    fn label(self) -> By {
        let transport = match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        };
        By { transport }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Id, Timestamp};

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let organization = Id::new(Timestamp::MAX, &[7; 10]);
        let from = "12-ab".to_owned();
        for news in [
            News::Missed,
            News::Probe(u64::MAX),
            News::Committed { organization, sequence: i64::MAX, about: ResourceType::User, changes_access: true },
            News::Committed { organization, sequence: 1, about: ResourceType::Client, changes_access: false },
            News::Used { organization, sequence: 7 },
        ] {
            let message = Message { from: from.clone(), news };
            assert_eq!(message.to_string().parse(), Ok(message));
        }
    }

    #[test]
    fn what_is_no_message_is_none() {
        let organization = Id::<crate::model::kind::Organization>::new(Timestamp::MAX, &[7; 10]);
        for text in [
            String::new(),
            "a".to_owned(),
            "a missed b".to_owned(),
            "a probe".to_owned(),
            "a probe -1".to_owned(),
            format!("a committed {organization} 1 CLIENT"),
            format!("a committed {organization} x CLIENT -"),
            format!("a committed {organization} 1 NOTHING -"),
            format!("a committed {organization} 1 CLIENT perhaps"),
            "a committed org_1 1 CLIENT -".to_owned(),
            format!("a used {organization}"),
            format!("a used {organization} x"),
        ] {
            assert_eq!(text.parse::<Message>(), Err(UnknownMessage), "{text}");
        }
    }
}
