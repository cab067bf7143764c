//! Reports of usage: sums over any span of time, by any of its dimensions. Whole days and hours come from what the records add up to
//! where they are written, and the parts of an hour at either end from the records themselves: exact, and quick for any number of records.

use std::collections::{BTreeMap, HashMap};

use super::context::Cx;
use super::error::{Error, FieldError, Result};
use super::usage::{by_known_model, whose};
use crate::model::{ApiKeyId, Timestamp, UsageInterval};
use crate::store::usage::{self as records, UsageFilter, WhoseUsage};
use crate::store::usage_rollup::{self as rollups, Dimension, Group, UsageTotals};
use crate::store::{self, Conn};

/// The most buckets that a report has.
const MOST_BUCKETS: usize = 10_000;

/// The most values that the buckets of an answer have, and so the most buckets that it has.
pub const MOST_VALUES: usize = 200_000;

/// The most sums that are read at once: no more than memory bears.
const MOST_SUMS: i64 = 1_000_000;

/// What a report asks for: by what usage is told apart, and over which intervals.
pub type Grouping<'a> = (&'a [Dimension], Option<UsageInterval>);

/// Sums over a span of time.
#[derive(Debug, Clone)]
pub struct Report {
    /// Not before.
    pub from: Timestamp,
    /// Before.
    pub to: Timestamp,
    /// Of everything.
    pub total: UsageTotals,
    /// By what was asked for: in the order of time, then the dearest first. None, where nothing was asked for.
    pub buckets: Vec<Bucket>,
}

impl Report {
    /// Of nothing.
    #[must_use]
    pub fn empty(from: Timestamp, to: Timestamp) -> Self {
        Self { from, to, total: UsageTotals::default(), buckets: Vec::new() }
    }
}

/// Sums of one interval and one group.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// The beginning of the interval, which may lie before that of the report; none: of all of its time.
    pub start: Option<Timestamp>,
    /// Of what.
    pub group: Group,
    /// The sums.
    pub totals: UsageTotals,
}

/// A report on the organization's usage, or on the caller's own.
///
/// # Errors
/// Where nobody is signed in, where the span ends before it begins, or where there would be too many buckets.
pub async fn report(
    cx: Cx<'_>,
    filter: &UsageFilter,
    span: (Timestamp, Timestamp),
    grouping: Grouping<'_>,
) -> Result<Report> {
    report_of(cx, filter, span, grouping, MOST_BUCKETS).await?.ok_or_else(too_many)
}

/// That a report would have too many buckets.
#[must_use]
pub fn too_many() -> Error {
    wrong(vec!["interval"], "makes more than 10,000 buckets: ask for a shorter span, or for longer intervals")
}

fn too_many_together() -> Error {
    let message = "makes more buckets than an answer may have: ask for fewer keys, a shorter span, or longer intervals";
    wrong(vec!["interval"], message)
}

/// The same, with so many buckets at most; none: there would be more.
pub(super) async fn report_of(
    cx: Cx<'_>,
    filter: &UsageFilter,
    span: (Timestamp, Timestamp),
    grouping: Grouping<'_>,
    most: usize,
) -> Result<Option<Report>> {
    let (whose, filter) = (whose(cx)?, &by_known_model(cx.services, filter));
    let (from, to) = span;
    if to < from {
        return Err(wrong(vec!["to"], "must not be before from"));
    }
    let mut conn = cx.services.db.scan().await?;
    let rows = cx.in_time(rows(&mut conn, &whose, filter, span, grouping, most)).await??;
    drop(conn);
    let Some(rows) = rows else { return Ok(None) };
    let mut total = UsageTotals::default();
    let mut sums: BTreeMap<(Option<Timestamp>, Group), UsageTotals> = BTreeMap::new();
    for (group, start, totals) in rows {
        total.add(&totals);
        sums.entry((grouping.1.map(|interval| interval.start(start)), group)).or_default().add(&totals);
    }
    if grouping.0.is_empty() && grouping.1.is_none() {
        sums.clear();
    }
    if sums.len() > most {
        return Ok(None);
    }
    let mut buckets: Vec<_> =
        sums.into_iter().map(|((start, group), totals)| Bucket { start, group, totals }).collect();
    let rank = |bucket: &Bucket| (bucket.start, -bucket.totals.cost_nano_usd, -bucket.totals.requests);
    buckets.sort_by_key(rank);
    Ok(Some(Report { from, to, total, buckets }))
}

/// Reports on API keys, one each, read together. A key that has used nothing is left out, and one has none that would have too many
/// buckets: each has as many as it would have alone, as long as they have no more than `most` together.
///
/// # Errors
/// As for [`report`], where all of them together have too many buckets for any answer.
pub async fn reports_by_key(
    cx: Cx<'_>,
    keys: &[ApiKeyId],
    span: (Timestamp, Timestamp),
    interval: Option<UsageInterval>,
    most: usize,
) -> Result<HashMap<ApiKeyId, Option<Report>>> {
    let (from, to) = span;
    let filter = UsageFilter { api_key_ids: Some(keys.to_vec()), ..UsageFilter::default() };
    let grouping: Grouping<'_> = (&[Dimension::ApiKey], interval);
    let report = report_of(cx, &filter, span, grouping, most).await?.ok_or_else(too_many_together)?;
    let mut reports = HashMap::new();
    for bucket in report.buckets {
        let Ok(key) = bucket.group[Dimension::ApiKey as usize].parse() else { continue };
        let report: &mut Report = reports.entry(key).or_insert_with(|| Report::empty(from, to));
        report.total.add(&bucket.totals);
        if bucket.start.is_some() {
            report.buckets.push(bucket);
        }
    }
    let bounded =
        |(key, report): (_, Report)| (key, Some(report).filter(|report| report.buckets.len() <= MOST_BUCKETS));
    Ok(reports.into_iter().map(bounded).collect())
}

/// What everything adds up to.
pub(super) async fn total(
    conn: &mut Conn,
    whose: &WhoseUsage,
    filter: &UsageFilter,
    span: (Timestamp, Timestamp),
) -> store::Result<UsageTotals> {
    let mut total = UsageTotals::default();
    // A row for each piece of the span: no limit is reached.
    for (.., totals) in rows(conn, whose, filter, span, (&[], None), usize::MAX).await?.unwrap_or_default() {
        total.add(&totals);
    }
    Ok(total)
}

fn wrong(path: Vec<&'static str>, message: &'static str) -> Error {
    Error::bad_input(vec![FieldError { path, message: message.into() }])
}

/// The sums that a report is made of, each with a time of its interval. Several may be of one bucket. None: they are of more than `most`
/// buckets, and were not all read.
pub(super) async fn rows(
    conn: &mut Conn,
    whose: &WhoseUsage,
    filter: &UsageFilter,
    span: (Timestamp, Timestamp),
    (by, interval): Grouping<'_>,
    most: usize,
) -> store::Result<Option<Vec<(Group, Timestamp, UsageTotals)>>> {
    let mut rows = Vec::new();
    // How many of a piece may be of one bucket: hours of a day, days of a month.
    let of_bucket = match interval {
        None | Some(UsageInterval::Hour) => 1,
        Some(UsageInterval::Day) => 24,
        Some(UsageInterval::Month) => 31,
    };
    // One more tells that there are more.
    let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_mul(of_bucket).min(MOST_SUMS) + 1;
    for Piece { source, from, to } in pieces(span, interval) {
        let filter = UsageFilter { from: Some(from), to: Some(to), ..filter.clone() };
        let before = rows.len();
        match source {
            Source::Records => {
                let sums = records::sums(conn, whose, &filter, by, limit).await?;
                rows.extend(sums.into_iter().map(|(group, totals)| (group, from, totals)));
            }
            Source::Rollup(unit) => {
                rows.extend(rollups::sums(conn, whose, &filter, unit, (by, interval.is_some()), limit).await?);
            }
        }
        if i64::try_from(rows.len() - before).is_ok_and(|found| found >= limit) {
            return Ok(None);
        }
    }
    Ok(Some(rows))
}

/// Where the sums of a part of the span come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Records,
    Rollup(UsageInterval),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    source: Source,
    from: Timestamp,
    to: Timestamp,
}

/// The span in pieces: as much of it as can be in whole days, or hours where it is told apart by them.
fn pieces((from, to): (Timestamp, Timestamp), interval: Option<UsageInterval>) -> Vec<Piece> {
    use UsageInterval::{Day, Hour};
    let mut pieces = Vec::new();
    let mut piece = |source, from, to| {
        if from < to {
            pieces.push(Piece { source, from, to });
        }
    };
    // No piece of records goes over the end of an hour.
    let (first, last) = (up(Hour, from).min(to), Hour.start(to).max(from));
    piece(Source::Records, from, first);
    if first < last {
        let (first_day, last_day) = (up(Day, first).min(last), Day.start(last).max(first));
        if interval == Some(Hour) || first_day >= last_day {
            piece(Source::Rollup(Hour), first, last);
        } else {
            piece(Source::Rollup(Hour), first, first_day);
            piece(Source::Rollup(Day), first_day, last_day);
            piece(Source::Rollup(Hour), last_day, last);
        }
    }
    piece(Source::Records, last.max(first), to);
    pieces
}

/// The instant, or the beginning of the next interval where it is none.
fn up(interval: UsageInterval, at: Timestamp) -> Timestamp {
    if interval.start(at) == at { at } else { interval.end(at) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000_000;
    const DAY: i64 = 24 * HOUR;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(1_767_225_600_000_000 + micros).unwrap()
    }

    #[test]
    fn a_span_is_whole_days_and_what_is_left() {
        use Source::{Records, Rollup};
        use UsageInterval::{Day, Hour};
        for (from, to, interval, expected) in [
            (0, 31 * DAY, None, vec![(Rollup(Day), 0, 31 * DAY)]),
            (0, DAY, Some(Hour), vec![(Rollup(Hour), 0, DAY)]),
            (1, HOUR - 1, None, vec![(Records, 1, HOUR - 1)]),
            (1, HOUR + 1, None, vec![(Records, 1, HOUR), (Records, HOUR, HOUR + 1)]),
            (5, 5, None, vec![]),
            (
                HOUR / 2,
                3 * DAY + 90 * HOUR / 60,
                Some(Day),
                vec![
                    (Records, HOUR / 2, HOUR),
                    (Rollup(Hour), HOUR, DAY),
                    (Rollup(Day), DAY, 3 * DAY),
                    (Rollup(Hour), 3 * DAY, 3 * DAY + HOUR),
                    (Records, 3 * DAY + HOUR, 3 * DAY + 90 * HOUR / 60),
                ],
            ),
            (20 * HOUR, 30 * HOUR, None, vec![(Rollup(Hour), 20 * HOUR, 30 * HOUR)]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(source, from, to)| Piece { source, from: at(from), to: at(to) }).collect();
            assert_eq!(pieces((at(from), at(to)), interval), expected);
        }
    }

    proptest! {
        #[test]
        fn pieces_are_the_span_without_gaps(from in 0..40 * DAY, length in 0..40 * DAY, by_hour: bool) {
            let (from, to) = (at(from), at(from + length));
            let pieces = pieces((from, to), by_hour.then_some(UsageInterval::Hour));
            let mut reached = from;
            for piece in pieces {
                prop_assert_eq!(piece.from, reached);
                prop_assert!(piece.from < piece.to);
                match piece.source {
                    Source::Records => prop_assert!(piece.to <= UsageInterval::Hour.end(piece.from)),
                    Source::Rollup(unit) => {
                        prop_assert!(unit.start(piece.from) == piece.from && unit.start(piece.to) == piece.to);
                    }
                }
                reached = piece.to;
            }
            prop_assert_eq!(reached, to);
        }
    }
}
