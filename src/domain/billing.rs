//! What a month has cost: by model, by client and by API key.

use std::collections::BTreeMap;

use chrono::{NaiveDate, NaiveTime};

use super::context::Cx;
use super::error::{Error, FieldError, Result};
use super::usage_report::{Bucket, Report, report_of};
use crate::model::{Permit, Timestamp, UsageInterval, ViewUsage};
use crate::store::usage::UsageFilter;
use crate::store::usage_rollup::{Dimension, Group, UsageTotals};

/// How many lines a bill has at most: more than an organization has keys and models, and no more than memory bears.
const MOST_LINES: usize = 1_000_000;

/// What a month has cost.
#[derive(Debug, Clone)]
pub struct Billing {
    /// Of everything.
    pub total: UsageTotals,
    /// For each client, key and model, the dearest first.
    pub lines: Vec<Bucket>,
}

/// What the organization's month has cost.
///
/// # Errors
/// Without permission, or where there is no such month.
pub async fn of_month(cx: Cx<'_>, year: i32, month: i32) -> Result<Billing> {
    let _: Permit<ViewUsage> = cx.actor.require()?;
    let from = beginning(year, month)?;
    let span = (from, UsageInterval::Month.end(from));
    let by = [Dimension::Client, Dimension::ApiKey, Dimension::Model];
    let report = report_of(cx, &UsageFilter::default(), span, (&by, None), MOST_LINES).await?;
    let Some(Report { total, buckets, .. }) = report else {
        let message = "has more than a million lines, of clients, keys and models: ask for its usage by fewer of them";
        return Err(Error::bad_input(vec![FieldError { path: vec!["month"], message: message.into() }]));
    };
    Ok(Billing { total, lines: buckets })
}

impl Billing {
    /// The same by one dimension alone, the dearest first.
    #[must_use]
    pub fn by(&self, dimension: Dimension) -> Vec<Bucket> {
        let place = dimension as usize;
        let mut sums: BTreeMap<&str, UsageTotals> = BTreeMap::new();
        for line in &self.lines {
            sums.entry(&line.group[place]).or_default().add(&line.totals);
        }
        let bucket = |(value, totals): (&str, UsageTotals)| {
            let mut group = Group::default();
            value.clone_into(&mut group[place]);
            Bucket { start: None, group, totals }
        };
        let mut buckets: Vec<_> = sums.into_iter().map(bucket).collect();
        buckets.sort_by_key(|bucket| (-bucket.totals.cost_nano_usd, -bucket.totals.requests));
        buckets
    }
}

fn beginning(year: i32, month: i32) -> Result<Timestamp> {
    /// No server is older, and the calendar of databases is not longer.
    const YEARS: std::ops::RangeInclusive<i32> = 2000..=9998;
    let wrong = |field, message: &'static str| {
        Error::bad_input(vec![FieldError { path: vec![field], message: message.into() }])
    };
    if !YEARS.contains(&year) {
        return Err(wrong("year", "must be from 2000 to 9998"));
    }
    let first = u32::try_from(month).ok().and_then(|month| NaiveDate::from_ymd_opt(year, month, 1));
    let first = first.ok_or_else(|| wrong("month", "must be from 1 to 12"))?;
    Ok(first.and_time(NaiveTime::MIN).and_utc().into())
}
