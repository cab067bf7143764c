//! An instant as it is kept: UTC, to the microsecond, the finest that every database holds.

use std::ops::{Add, Sub};

use chrono::{DateTime, Datelike, SecondsFormat, SubsecRound, TimeDelta, Utc};

/// An instant, UTC, cut to the microsecond, so that what was written compares equal to what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    /// Later than any that is kept: the end of the year 9999.
    pub const MAX: Self = Self(DateTime::from_timestamp_micros(253_402_300_799_999_999).expect("chrono has that year"));

    /// Microseconds since 1970.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0.timestamp_micros()
    }

    /// The instant so many microseconds after 1970; `None` outside of the years 0 to 9999, which every database holds.
    #[must_use]
    pub fn from_micros(micros: i64) -> Option<Self> {
        DateTime::from_timestamp_micros(micros).filter(|time| (0..=9999).contains(&time.year())).map(Self)
    }

    /// As RFC 3339, in UTC, to the microsecond.
    #[must_use]
    pub fn to_text(self) -> String {
        self.0.to_rfc3339_opts(SecondsFormat::Micros, true)
    }

    /// As chrono's type.
    #[must_use]
    pub fn to_utc(self) -> DateTime<Utc> {
        self.0
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(6))
    }
}

impl Add<TimeDelta> for Timestamp {
    type Output = Self;

    fn add(self, delta: TimeDelta) -> Self {
        Self::from(self.0 + delta)
    }
}

impl Sub for Timestamp {
    type Output = TimeDelta;

    fn sub(self, earlier: Self) -> TimeDelta {
        self.0 - earlier.0
    }
}
