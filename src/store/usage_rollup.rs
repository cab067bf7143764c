//! What usage adds up to, by the hour and by the day: written with the records, so that it is exact at any moment, however late a
//! record comes.

use std::collections::{BTreeMap, HashMap};

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::budget::Period;
use super::error::Result;
use super::fields::{UtcTimestamp, askable, distinct};
use super::tables::usage_rollups;
use super::tx::Tx;
use super::usage::{UsageFilter, UsageRecord, WhoseUsage};
use crate::model::{ApiKeyId, ClaudeAccountId, ClientId, NanoUsd, OrganizationId, Timestamp, UsageInterval, UserId};

/// What usage can be told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum Dimension {
    ApiKey,
    User,
    Client,
    ClaudeAccount,
    Model,
}

impl Dimension {
    /// Every one, in the order of [`Group`].
    pub const ALL: [Self; 5] = [Self::ApiKey, Self::User, Self::Client, Self::ClaudeAccount, Self::Model];

    fn column(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key_id",
            Self::User => "user_id",
            Self::Client => "client_id",
            Self::ClaudeAccount => "claude_account_id",
            Self::Model => "model",
        }
    }
}

/// What is added up: a value for each of [`Dimension::ALL`], empty where there is none or it is not told apart by that.
pub type Group = [String; 5];

/// What usage adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageTotals {
    /// Requests.
    pub requests: i64,
    /// Those of them that failed.
    pub failed_requests: i64,
    /// Tokens of prompts that the cache had no part in.
    pub input_tokens: i64,
    /// Tokens of answers.
    pub output_tokens: i64,
    /// Tokens that were written to the cache.
    pub cache_creation_tokens: i64,
    /// Tokens that were read from the cache.
    pub cache_read_tokens: i64,
    /// What it cost, in billionths of a dollar.
    pub cost_nano_usd: i64,
    /// How long the requests took, all together.
    pub latency_ms: i64,
}

impl UsageTotals {
    /// Adds more. What outgrows a number stays at the largest: nobody else's sums wait for it.
    pub fn add(&mut self, more: &Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.failed_requests = self.failed_requests.saturating_add(more.failed_requests);
        self.input_tokens = self.input_tokens.saturating_add(more.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(more.output_tokens);
        self.cache_creation_tokens = self.cache_creation_tokens.saturating_add(more.cache_creation_tokens);
        self.cache_read_tokens = self.cache_read_tokens.saturating_add(more.cache_read_tokens);
        self.cost_nano_usd = self.cost_nano_usd.saturating_add(more.cost_nano_usd);
        self.latency_ms = self.latency_ms.saturating_add(more.latency_ms);
    }

    /// All tokens.
    #[must_use]
    pub fn tokens(&self) -> i64 {
        let of_prompts = [self.input_tokens, self.cache_creation_tokens, self.cache_read_tokens];
        of_prompts.into_iter().fold(self.output_tokens, i64::saturating_add)
    }

    /// What it cost.
    #[must_use]
    pub fn cost(&self) -> NanoUsd {
        NanoUsd::from_nanos(self.cost_nano_usd)
    }
}

impl From<&UsageRecord> for UsageTotals {
    fn from(record: &UsageRecord) -> Self {
        Self {
            requests: 1,
            failed_requests: record.is_failed().into(),
            input_tokens: record.input_tokens,
            output_tokens: record.output_tokens,
            cache_creation_tokens: record.cache_creation_tokens(),
            cache_read_tokens: record.cache_read_tokens,
            cost_nano_usd: record.cost_nano_usd,
            latency_ms: record.latency_ms.into(),
        }
    }
}

/// What a record is told apart by, as it stands in the record.
type Parts<'a> = (Option<ApiKeyId>, Option<UserId>, Option<ClientId>, Option<ClaudeAccountId>, &'a str);

fn parts_of(record: &UsageRecord) -> Parts<'_> {
    (record.api_key_id, record.user_id, record.client_id, record.claude_account_id, &record.model)
}

fn group_of((key, user, client, account, model): Parts<'_>) -> Group {
    fn text(id: Option<impl ToString>) -> String {
        id.map(|id| id.to_string()).unwrap_or_default()
    }
    [text(key), text(user), text(client), text(account), model.to_owned()]
}

/// A column and something that is not negative, or the largest number there is: no database adds beyond it.
macro_rules! saturating {
    ($column:expr, $more:expr) => {
        diesel::dsl::case_when(
            $column.gt(i64::MAX - $more),
            diesel::IntoSql::into_sql::<diesel::sql_types::BigInt>(i64::MAX),
        )
        .otherwise($column + $more)
    };
}
pub(super) use saturating;

/// Adds records to what they add up to. Whoever calls has the organizations' heads locked: nobody else makes the same row.
pub(super) async fn add(tx: &mut Tx, records: &[UsageRecord]) -> Result<()> {
    use usage_rollups as t;
    let mut hours: BTreeMap<(OrganizationId, Timestamp, Parts<'_>), UsageTotals> = BTreeMap::new();
    for record in records {
        let hour = UsageInterval::Hour.start(record.occurred_at);
        hours.entry((record.organization_id, hour, parts_of(record))).or_default().add(&record.into());
    }
    let mut sums: BTreeMap<(OrganizationId, &str, Timestamp, Parts<'_>), UsageTotals> = BTreeMap::new();
    for ((organization, hour, parts), sum) in hours {
        for span in [UsageInterval::Day, UsageInterval::Hour] {
            sums.entry((organization, span.as_str(), span.start(hour), parts)).or_default().add(&sum);
        }
    }
    let conn = tx.conn().await?;
    for ((organization, span, start, parts), sum) in sums {
        let [key, user, client, account, model] = group_of(parts);
        on_conn!(conn, |c| {
            let row = t::table.find((organization, span, start, &key, &user, &client, &account, &model));
            let added = diesel::update(row)
                .set((
                    t::requests.eq(saturating!(t::requests, sum.requests)),
                    t::failed_requests.eq(saturating!(t::failed_requests, sum.failed_requests)),
                    t::input_tokens.eq(saturating!(t::input_tokens, sum.input_tokens)),
                    t::output_tokens.eq(saturating!(t::output_tokens, sum.output_tokens)),
                    t::cache_creation_tokens.eq(saturating!(t::cache_creation_tokens, sum.cache_creation_tokens)),
                    t::cache_read_tokens.eq(saturating!(t::cache_read_tokens, sum.cache_read_tokens)),
                    t::cost_nano_usd.eq(saturating!(t::cost_nano_usd, sum.cost_nano_usd)),
                    t::latency_ms.eq(saturating!(t::latency_ms, sum.latency_ms)),
                ))
                .execute(c)
                .await?;
            if added == 0 {
                diesel::insert_into(t::table)
                    .values((
                        (t::organization_id.eq(organization), t::span.eq(span), t::start_at.eq(start)),
                        (t::api_key_id.eq(&key), t::user_id.eq(&user), t::client_id.eq(&client)),
                        (t::claude_account_id.eq(&account), t::model.eq(&model)),
                        (t::requests.eq(sum.requests), t::failed_requests.eq(sum.failed_requests)),
                        (t::input_tokens.eq(sum.input_tokens), t::output_tokens.eq(sum.output_tokens)),
                        t::cache_creation_tokens.eq(sum.cache_creation_tokens),
                        t::cache_read_tokens.eq(sum.cache_read_tokens),
                        (t::cost_nano_usd.eq(sum.cost_nano_usd), t::latency_ms.eq(sum.latency_ms)),
                    ))
                    .execute(c)
                    .await?;
            }
        });
    }
    Ok(())
}

/// What sums are selected as: what they are told apart by, the beginning, and the numbers of [`UsageTotals`].
pub(super) type SumColumns = (Text, Text, Text, Text, Text, UtcTimestamp, Numbers);
type Numbers = (BigInt, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt);

/// [`SumColumns`], read.
pub(super) type SumRow = (String, String, String, String, String, Timestamp, Sums);
type Sums = (i64, i64, i64, i64, i64, i64, i64, i64);

/// The columns of [`UsageTotals`].
const NUMBERS: [&str; 8] = [
    "requests",
    "failed_requests",
    "input_tokens",
    "output_tokens",
    "cache_creation_tokens",
    "cache_read_tokens",
    "cost_nano_usd",
    "latency_ms",
];

/// What is selected, and by what it is grouped. None of it comes from a caller.
pub(super) fn columns(by: &[Dimension], numbers: [&str; 8], start: &str, is_by_start: bool) -> (String, String) {
    let wanted = |dimension: Dimension| format!("COALESCE({}, '')", dimension.column());
    let mut selected: Vec<String> = Dimension::ALL
        .into_iter()
        .map(|dimension| if by.contains(&dimension) { wanted(dimension) } else { "CAST('' AS text)".to_owned() })
        .collect();
    selected.push(format!("MIN({start})"));
    // PostgreSQL adds whole numbers up to a decimal.
    selected.extend(numbers.map(|number| format!("CAST(SUM({number}) AS bigint)")));
    // Always by something: a sum over everything would be a row although there is nothing.
    let mut grouped = vec!["organization_id"];
    grouped
        .extend(Dimension::ALL.iter().filter(|dimension| by.contains(dimension)).map(|dimension| dimension.column()));
    if is_by_start {
        grouped.push(start);
    }
    (selected.join(", "), grouped.join(", "))
}

/// A row of sums.
pub(super) fn sum_of((key, user, client, account, model, start, sums): SumRow) -> (Group, Timestamp, UsageTotals) {
    let totals = UsageTotals {
        requests: sums.0,
        failed_requests: sums.1,
        input_tokens: sums.2,
        output_tokens: sums.3,
        cache_creation_tokens: sums.4,
        cache_read_tokens: sums.5,
        cost_nano_usd: sums.6,
        latency_ms: sums.7,
    };
    ([key, user, client, account, model], start, totals)
}

/// At most so many sums of hours or days that begin in the filter's span: by what is asked for, and by hour or day where `is_by_start`.
///
/// # Errors
/// Where the database fails.
pub async fn sums(
    conn: &mut Conn,
    whose: &WhoseUsage,
    filter: &UsageFilter,
    span: UsageInterval,
    (by, is_by_start): (&[Dimension], bool),
    most: i64,
) -> Result<Vec<(Group, Timestamp, UsageTotals)>> {
    use usage_rollups as t;
    let (selected, grouped) = columns(by, NUMBERS, "start_at", is_by_start);
    let rows: Vec<SumRow> = on_conn!(conn, |c: Backend| {
        let mut query = t::table
            .group_by(sql::<Text>(&grouped))
            .select(sql::<SumColumns>(&selected))
            .filter(t::organization_id.eq(whose.organization()).and(t::span.eq(span)))
            .into_boxed::<Backend>();
        if let Some(user) = whose.user() {
            query = query.filter(t::user_id.eq(user.to_string()));
        }
        if let Some(from) = filter.from {
            query = query.filter(t::start_at.ge(from));
        }
        if let Some(to) = filter.to {
            query = query.filter(t::start_at.lt(to));
        }
        if let Some(keys) = &filter.api_key_ids {
            query = query.filter(t::api_key_id.eq_any(distinct(keys).into_iter().map(|key| key.to_string())));
        }
        if let Some(user) = filter.user_id {
            query = query.filter(t::user_id.eq(user.to_string()));
        }
        if let Some(client) = filter.client_id {
            query = query.filter(t::client_id.eq(client.to_string()));
        }
        if let Some(account) = filter.claude_account_id {
            query = query.filter(t::claude_account_id.eq(account.to_string()));
        }
        if let Some(model) = &filter.model {
            query = query.filter(t::model.eq_any(askable(model)));
        }
        query.limit(most).load(c).await?
    });
    Ok(rows.into_iter().map(sum_of).collect())
}

/// What keys of an organization have used of a day and of a month: tokens and billionths of a dollar. One that has used nothing is left
/// out. No permit: it is asked for where a key's limits are judged.
///
/// # Errors
/// Where the database fails.
pub async fn used_by_keys(
    conn: &mut Conn,
    organization: OrganizationId,
    keys: &[ApiKeyId],
    period: Period,
) -> Result<HashMap<ApiKeyId, (i64, i64)>> {
    use usage_rollups as t;
    type Tokens = (i64, i64, i64, i64);
    let keys: BTreeMap<String, ApiKeyId> = keys.iter().map(|key| (key.to_string(), *key)).collect();
    let days: Vec<(String, Timestamp, Tokens, i64)> = on_conn!(conn, |c| t::table
        .filter(t::organization_id.eq(organization).and(t::api_key_id.eq_any(keys.keys())))
        .filter(t::span.eq(UsageInterval::Day).and(t::start_at.ge(period.month)))
        .select((
            t::api_key_id,
            t::start_at,
            (t::input_tokens, t::output_tokens, t::cache_creation_tokens, t::cache_read_tokens),
            t::cost_nano_usd,
        ))
        .load(c)
        .await?);
    let mut used: HashMap<ApiKeyId, (i64, i64)> = HashMap::new();
    for (key, start, (input, output, created, read), cost) in days {
        let Some(key) = keys.get(&key) else { continue };
        let (tokens, costs) = used.entry(*key).or_default();
        if start >= period.day {
            *tokens = [input, output, created, read].into_iter().fold(*tokens, i64::saturating_add);
        }
        *costs = costs.saturating_add(cost);
    }
    Ok(used)
}
