//! What requests of the relay use: tokens of each kind, and the spans of time that usage is added up over.

use std::str::FromStr;

use chrono::{Datelike, Months, NaiveTime, TimeDelta, Timelike};

use super::Timestamp;
use super::enums::names;

names! {
    /// A span of time that usage is added up over, in UTC.
    UsageInterval { Hour = "HOUR", Day = "DAY", Month = "MONTH" }
}

impl UsageInterval {
    /// The beginning of the span that the instant lies in.
    #[must_use]
    pub fn start(self, at: Timestamp) -> Timestamp {
        let at = at.to_utc();
        let midnight = at.date_naive().and_time(NaiveTime::MIN).and_utc();
        let start = match self {
            Self::Hour => midnight + TimeDelta::hours(at.hour().into()),
            Self::Day => midnight,
            Self::Month => midnight - TimeDelta::days(at.day0().into()),
        };
        start.into()
    }

    /// The beginning of the span after the one that the instant lies in.
    #[must_use]
    pub fn end(self, at: Timestamp) -> Timestamp {
        let start = self.start(at);
        match self {
            Self::Hour => start + TimeDelta::hours(1),
            Self::Day => start + TimeDelta::days(1),
            Self::Month => Timestamp::from(start.to_utc() + Months::new(1)),
        }
    }
}

/// How far a limit is used up, as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitLevel {
    /// Less than four fifths of it.
    Below,
    /// Four fifths of it, or more.
    Near,
    /// All of it.
    Reached,
}

impl LimitLevel {
    /// How far so much uses a limit up; none: any number is below.
    #[must_use]
    pub fn of(used: i64, limit: Option<i64>) -> Self {
        match limit {
            Some(limit) if used >= limit => Self::Reached,
            // A fifth is rounded down, so that four of them are rounded up; and no product outgrows the type.
            Some(limit) if used >= limit - limit / 5 => Self::Near,
            Some(_) | None => Self::Below,
        }
    }
}

/// Tokens of a request, and what else is paid for, as the upstream counts them. Those of a prompt that the cache has written or read
/// are not among `input`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompt, but for those that the cache has written or read.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
    /// Of the prompt, written to the cache for five minutes.
    pub cache_write_5m: u64,
    /// Of the prompt, written to the cache for an hour.
    pub cache_write_1h: u64,
    /// Of the prompt, read from the cache.
    pub cache_read: u64,
    /// Searches of the web.
    pub web_searches: u64,
}

/// More than any request has of one kind. What an upstream says beyond that is not believed: a sum of such numbers would outgrow what
/// a database can add up.
const MOST: u64 = 100_000_000;
/// The same of searches.
const MOST_SEARCHES: u64 = 10_000;

impl Tokens {
    /// Splits what was written to the cache as the upstream reports it: a total, and how much of it is for how long. What the split
    /// leaves open is for five minutes, the upstream's default; nothing is counted twice.
    #[must_use]
    pub fn with_cache_writes(self, total: u64, for_1h: u64) -> Self {
        let for_1h = for_1h.min(total);
        Self { cache_write_5m: total - for_1h, cache_write_1h: for_1h, ..self }
    }

    /// The same, within what is believed.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            input: self.input.min(MOST),
            output: self.output.min(MOST),
            cache_write_5m: self.cache_write_5m.min(MOST),
            cache_write_1h: self.cache_write_1h.min(MOST),
            cache_read: self.cache_read.min(MOST),
            web_searches: self.web_searches.min(MOST_SEARCHES),
        }
    }

    /// All of the prompt's: what prices go by the length of.
    #[must_use]
    pub fn prompt(&self) -> u64 {
        let Self { input, cache_write_5m, cache_write_1h, cache_read, .. } = self.bounded();
        input + cache_write_5m + cache_write_1h + cache_read
    }

    /// All, of the prompt and of the answer: what limits count.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.prompt() + self.output.min(MOST)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from(chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc())
    }

    #[test]
    fn spans_begin_and_end_in_utc() {
        let (leap, end) = (at("2028-02-29T23:59:59.999999Z"), at("2026-12-31T23:30:00Z"));
        for (interval, instant, start, next) in [
            (UsageInterval::Hour, leap, "2028-02-29T23:00:00Z", "2028-03-01T00:00:00Z"),
            (UsageInterval::Day, leap, "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
            (UsageInterval::Month, leap, "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
            (UsageInterval::Month, end, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (UsageInterval::Month, at("2026-12-01T00:00:00Z"), "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!((interval.start(instant), interval.end(instant)), (at(start), at(next)), "{interval:?}");
        }
    }

    #[test]
    fn a_limit_is_near_from_four_fifths_on() {
        use LimitLevel::{Below, Near, Reached};
        for (used, limit, expected) in [
            (0, None, Below),
            (79, Some(100), Below),
            (80, Some(100), Near),
            (99, Some(100), Near),
            (100, Some(100), Reached),
            (i64::MAX, Some(100), Reached),
            (5, Some(7), Below),
            (6, Some(7), Near),
            (0, Some(1), Below),
            (i64::MAX - 1, Some(i64::MAX), Near),
        ] {
            assert_eq!(LimitLevel::of(used, limit), expected, "{used} of {limit:?}");
        }
    }

    #[test]
    fn cache_writes_are_counted_once() {
        for (total, for_1h, expected) in [(100, 30, (70, 30)), (100, 0, (100, 0)), (100, 100, (0, 100)), (5, 9, (0, 5))]
        {
            let tokens = Tokens::default().with_cache_writes(total, for_1h);
            assert_eq!((tokens.cache_write_5m, tokens.cache_write_1h), expected);
            assert_eq!(tokens.total(), total);
        }
        assert_eq!(Tokens { output: u64::MAX, input: u64::MAX, ..Tokens::default() }.total(), 2 * MOST);
    }
}
