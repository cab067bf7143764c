//! Usage records: one a request of the relay, written in batches with what they add up to. That something was used is no deed: it
//! leaves no audit entry.

use std::collections::{BTreeMap, BTreeSet};

use diesel::dsl::{SqlTypeOf, sql};
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::announcements;
use super::backend::{Conn, Db, on_conn};
use super::bulk::insert_all;
use super::claude_account::ClaudeAccount;
use super::error::Result;
use super::fields::{askable, distinct};
use super::locks::first_locked;
use super::page::{bounded, keyset};
use super::tables::{claude_accounts, usage_heads, usage_records, usage_rollups};
use super::tx::Tx;
use super::usage_rollup::{self, Dimension, Group, SumColumns, SumRow, UsageTotals, saturating};
use crate::events::News;
use crate::model::{
    ApiKeyId, ClaudeAccountHealthState, ClaudeAccountId, ClientId, Direction, LimitLevel, OrganizationId, Page,
    PageSlice, Permit, Position, Read, SortKey, Timestamp, UsageInterval, UsageRecordId, UserId, ViewUsage,
};

/// A request of the relay, and what it used.
// Whichever columns are null, it is one statement: its text is made and prepared once, not with each record.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable, Insertable)]
#[diesel(treat_none_as_default_value = false)]
#[diesel(table_name = usage_records, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[allow(clippy::struct_excessive_bools, reason = "the columns of a table, each of which says something of its own")]
pub struct UsageRecord {
    /// The id.
    pub id: UsageRecordId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// Its place among the organization's records, from 1; given where it is written.
    pub sequence: i64,
    /// When the request came.
    pub occurred_at: Timestamp,
    /// With which key.
    pub api_key_id: Option<ApiKeyId>,
    /// In whose name.
    pub user_id: Option<UserId>,
    /// For which client.
    pub client_id: Option<ClientId>,
    /// By which account it was answered.
    pub claude_account_id: Option<ClaudeAccountId>,
    /// The model that it is added up as: as the table of prices names it. One that the table has not, and that did not answer, is ''.
    pub model: String,
    /// The model that was asked for, by whatever name.
    pub asked_model: String,
    /// The path.
    pub endpoint: String,
    /// How the caller was answered.
    pub status_code: i32,
    /// What went wrong, by the upstream's name for it.
    pub error_type: Option<String>,
    /// Whether the answer was a stream.
    pub streamed: bool,
    /// Whether the caller left before the end.
    pub interrupted: bool,
    /// How often an upstream was asked.
    pub attempts: i32,
    /// Tokens of the prompt that the cache had no part in.
    pub input_tokens: i64,
    /// Tokens of the answer.
    pub output_tokens: i64,
    /// Tokens that were written to the cache for five minutes.
    pub cache_write_5m_tokens: i64,
    /// Tokens that were written to the cache for an hour.
    pub cache_write_1h_tokens: i64,
    /// Tokens that were read from the cache.
    pub cache_read_tokens: i64,
    /// Searches of the web.
    pub web_searches: i64,
    /// What it cost, in billionths of a dollar.
    pub cost_nano_usd: i64,
    /// Whether tokens had to be guessed, since the upstream did not get to count them.
    pub is_estimated: bool,
    /// Whether the table of prices has the model.
    pub is_known_model: bool,
    /// How long it took.
    pub latency_ms: i32,
    /// How long it took to the first token.
    pub time_to_first_token_ms: Option<i32>,
    /// The request, as the log names it.
    pub request_id: String,
    /// The request, as the upstream names it.
    pub upstream_request_id: Option<String>,
    /// The caller's session.
    pub session_id: Option<String>,
}

impl UsageRecord {
    /// Tokens that were written to the cache.
    #[must_use]
    pub fn cache_creation_tokens(&self) -> i64 {
        self.cache_write_5m_tokens + self.cache_write_1h_tokens
    }

    /// All tokens.
    #[must_use]
    pub fn tokens(&self) -> i64 {
        self.input_tokens + self.output_tokens + self.cache_creation_tokens() + self.cache_read_tokens
    }

    /// Whether the caller was answered with an error, be it in the middle of a stream.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.status_code >= 400 || self.error_type.is_some()
    }
}

/// Whose usage is meant, and the proof that the caller may see it: everybody's, or the caller's own.
#[derive(Debug)]
pub enum WhoseUsage {
    /// Of everybody in the organization.
    Everybodys(Permit<ViewUsage>),
    /// Of this user, who is the caller.
    Own(Permit<Read>, UserId),
}

impl WhoseUsage {
    /// The organization.
    #[must_use]
    pub fn organization(&self) -> OrganizationId {
        match self {
            Self::Everybodys(permit) => permit.organization(),
            Self::Own(permit, _) => permit.organization(),
        }
    }

    /// The one user, where only that one's usage is meant.
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        match self {
            Self::Everybodys(_) => None,
            Self::Own(_, user) => Some(*user),
        }
    }
}

/// Which usage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// With one of these keys.
    pub api_key_ids: Option<Vec<ApiKeyId>>,
    /// In the name of this user.
    pub user_id: Option<UserId>,
    /// For this client.
    pub client_id: Option<ClientId>,
    /// By this account.
    pub claude_account_id: Option<ClaudeAccountId>,
    /// Of this model.
    pub model: Option<String>,
}

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Written {
    /// How far the organizations' records are by now.
    pub ends: Vec<(OrganizationId, i64)>,
    /// The accounts of which it is to be noted that they are near their limit or at it, or no longer.
    pub to_follow: Vec<(OrganizationId, ClaudeAccountId)>,
}

/// Writes records, what they add up to, and what they use of their accounts' months, at once and all of it or nothing. Accounts count
/// what was used in the month of `now`. Gives the records their places.
///
/// # Errors
/// [`Error::Duplicate`](super::Error::Duplicate) where the records are there already, or another server has begun with the
/// organization's at the same moment.
pub async fn write(db: &Db, records: &mut [UsageRecord], now: Timestamp) -> Result<Written> {
    Tx::bookkeeping(db, async |tx| write_all(tx, records, now).await).await
}

async fn write_all(tx: &mut Tx, records: &mut [UsageRecord], now: Timestamp) -> Result<Written> {
    // In order, as are rollups and accounts below: two that lock in different orders would wait for each other.
    let organizations: BTreeSet<_> = records.iter().map(|record| record.organization_id).collect();
    let mut written = Written::default();
    for organization in organizations {
        let mut sequence = lock_head(tx, organization).await?;
        for record in records.iter_mut().filter(|record| record.organization_id == organization) {
            sequence += 1;
            record.sequence = sequence;
        }
        let conn = tx.conn().await?;
        let head = usage_heads::table.find(organization);
        on_conn!(conn, |c| diesel::update(head).set(usage_heads::sequence.eq(sequence)).execute(c).await?);
        written.ends.push((organization, sequence));
    }
    let conn = tx.conn().await?;
    insert_all!(conn, usage_records::table, &*records, |record| record);
    usage_rollup::add(tx, records).await?;
    written.to_follow = charge_accounts(tx, records, now).await?;
    for (organization, sequence) in &written.ends {
        let news = News::Used { organization: *organization, sequence: *sequence };
        announcements::tell_news(tx, news).await?;
    }
    Ok(written)
}

/// Whether what a record would change can be changed at all: changes nothing, where it could.
///
/// # Errors
/// Where the database is away, or is not as it was meant to be.
pub async fn takes_changes(db: &Db, record: &UsageRecord) -> Result<()> {
    use usage_records as t;
    use usage_rollups as r;
    Tx::bookkeeping(db, async |tx| {
        let conn = tx.conn().await?;
        let rollups = r::table.filter(r::organization_id.eq(record.organization_id));
        let none = rollups.filter(r::span.eq(UsageInterval::Hour).and(r::start_at.eq(Timestamp::MAX)));
        on_conn!(conn, |c| {
            let head = diesel::update(usage_heads::table.find(record.organization_id));
            head.set(usage_heads::sequence.eq(usage_heads::sequence)).execute(c).await?;
            diesel::update(none).set(r::requests.eq(r::requests)).execute(c).await?;
            diesel::update(t::table.find(record.id)).set(t::sequence.eq(t::sequence)).execute(c).await?;
        });
        Ok(())
    })
    .await
}

/// How far an organization's records are; nobody else adds to them until the transaction ends.
async fn lock_head(tx: &mut Tx, organization: OrganizationId) -> Result<i64> {
    let conn = tx.conn().await?;
    let head = usage_heads::table.find(organization).select(usage_heads::sequence);
    if let Some(sequence) = first_locked!(conn, head).optional()? {
        return Ok(sequence);
    }
    let first = (usage_heads::organization_id.eq(organization), usage_heads::sequence.eq(0_i64));
    on_conn!(conn, |c| diesel::insert_into(usage_heads::table).values(first).execute(c).await?);
    Ok(0)
}

/// Adds to the accounts' usage of the month. Returns those whose state does not say any more how far their limit is used up.
async fn charge_accounts(
    tx: &mut Tx,
    records: &[UsageRecord],
    now: Timestamp,
) -> Result<Vec<(OrganizationId, ClaudeAccountId)>> {
    use claude_accounts as a;
    let month = UsageInterval::Month.start(now);
    let mut used: BTreeMap<(OrganizationId, ClaudeAccountId), (i64, Timestamp)> = BTreeMap::new();
    for record in records {
        if let Some(id) = record.claude_account_id {
            let (tokens, last) = used.entry((record.organization_id, id)).or_insert((0, record.occurred_at));
            // What comes late is not the new month's.
            *tokens = tokens.saturating_add(if record.occurred_at >= month { record.tokens() } else { 0 });
            *last = record.occurred_at.max(*last);
        }
    }
    if used.is_empty() {
        return Ok(Vec::new());
    }
    let conn = tx.conn().await?;
    on_conn!(conn, |c| {
        for ((organization, id), (tokens, last)) in &used {
            let account = a::table.filter(a::id.eq(id).and(a::organization_id.eq(organization)));
            let counted = diesel::update(account.filter(a::usage_resets_at.gt(now)))
                .set((a::current_usage.eq(saturating!(a::current_usage, *tokens)), a::last_used_at.eq(Some(last))))
                .execute(c)
                .await?;
            if counted == 0 {
                // The month that it counts is over, or it is gone.
                diesel::update(account)
                    .set((
                        a::current_usage.eq(tokens),
                        a::usage_resets_at.eq(UsageInterval::Month.end(now)),
                        a::last_used_at.eq(Some(last)),
                    ))
                    .execute(c)
                    .await?;
            }
        }
    });
    let charged: Vec<(OrganizationId, ClaudeAccount)> = on_conn!(conn, |c| a::table
        .filter(a::id.eq_any(used.keys().map(|(_, id)| id)))
        .order(a::id)
        .select((a::organization_id, ClaudeAccount::as_select()))
        .load(c)
        .await?);
    // Whose they are is looked at as where they were charged.
    let is_to_follow = |(organization, account): &(OrganizationId, ClaudeAccount)| {
        let level = account.limit_level();
        let is_exhausted = account.health_state == ClaudeAccountHealthState::Exhausted;
        used.contains_key(&(*organization, account.id))
            && (is_exhausted != (level == LimitLevel::Reached) || account.is_near_limit != (level >= LimitLevel::Near))
    };
    Ok(charged.iter().filter(|charged| is_to_follow(charged)).map(|(whose, account)| (*whose, account.id)).collect())
}

/// A column, by which an index may be chosen.
macro_rules! indexed {
    ($column:ident) => {
        usage_records::$column
    };
}

/// The same where no index may be chosen by it: what is found by its place is found by that alone, and not by all that its user has.
macro_rules! unindexed {
    ($column:ident) => {
        sql::<SqlTypeOf<usage_records::$column>>(concat!(
            "coalesce(usage_records.",
            stringify!($column),
            ", usage_records.",
            stringify!($column),
            ")"
        ))
    };
}

macro_rules! filtered {
    ($backend:ident, $whose:expr, $filter:expr) => {
        filtered!($backend, usage_records::table, $whose, $filter, indexed)
    };
    ($backend:ident, $from:expr, $whose:expr, $filter:expr, $column:ident) => {{
        use usage_records as t;
        let filter: &UsageFilter = $filter;
        let mut query = $from.filter(t::organization_id.eq($whose.organization())).into_boxed::<$backend>();
        if let Some(user) = $whose.user() {
            query = query.filter($column!(user_id).eq(user));
        }
        if let Some(from) = filter.from {
            query = query.filter($column!(occurred_at).ge(from));
        }
        if let Some(to) = filter.to {
            query = query.filter($column!(occurred_at).lt(to));
        }
        if let Some(keys) = &filter.api_key_ids {
            query = match keys.as_slice() {
                // PostgreSQL does not see that a list of one leaves the rows in the order of the index.
                [key] => query.filter($column!(api_key_id).eq(*key)),
                keys => query.filter($column!(api_key_id).eq_any(distinct(keys))),
            };
        }
        if let Some(user) = filter.user_id {
            query = query.filter($column!(user_id).eq(user));
        }
        if let Some(client) = filter.client_id {
            query = query.filter($column!(client_id).eq(client));
        }
        if let Some(account) = filter.claude_account_id {
            query = query.filter($column!(claude_account_id).eq(account));
        }
        if let Some(model) = &filter.model {
            query = match askable(model) {
                Some(model) => query.filter($column!(model).eq(model)),
                None => query.filter(diesel::dsl::sql::<diesel::sql_types::Bool>("1 = 0")),
            };
        }
        query
    }};
}

/// Where a record stands in the list.
#[must_use]
pub fn position(record: &UsageRecord) -> Position {
    Position { key: SortKey::Number(record.occurred_at.micros()), id: record.id.to_string() }
}

/// A page of records, the newest first.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the list.
pub async fn page(
    conn: &mut Conn,
    whose: &WhoseUsage,
    filter: &UsageFilter,
    page: &Page,
) -> Result<PageSlice<UsageRecord>> {
    use usage_records as t;
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, whose, filter).select(UsageRecord::as_select());
        keyset!(query, page, Direction::Descending, t::occurred_at, t::id, Timestamp);
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// At most so many sums of the records that pass the filter, by what is asked for: of a part of an hour, since they are all read.
///
/// # Errors
/// Where the database fails.
pub async fn sums(
    conn: &mut Conn,
    whose: &WhoseUsage,
    filter: &UsageFilter,
    by: &[Dimension],
    most: i64,
) -> Result<Vec<(Group, UsageTotals)>> {
    let failed = "CASE WHEN status_code >= 400 OR error_type IS NOT NULL THEN 1 ELSE 0 END";
    let created = "cache_write_5m_tokens + cache_write_1h_tokens";
    let numbers =
        ["1", failed, "input_tokens", "output_tokens", created, "cache_read_tokens", "cost_nano_usd", "latency_ms"];
    let (selected, grouped) = usage_rollup::columns(by, numbers, "occurred_at", false);
    let rows: Vec<SumRow> = on_conn!(conn, |c: Backend| {
        let from = usage_records::table.group_by(sql::<Text>(&grouped)).select(sql::<SumColumns>(&selected));
        filtered!(Backend, from, whose, filter, indexed).limit(most).load(c).await?
    });
    Ok(rows.into_iter().map(usage_rollup::sum_of).map(|(group, _, totals)| (group, totals)).collect())
}

/// The records among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, whose: &WhoseUsage, ids: &[UsageRecordId]) -> Result<Vec<UsageRecord>> {
    let any = UsageFilter::default();
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, whose, &any)
        .filter(usage_records::id.eq_any(ids))
        .select(UsageRecord::as_select())
        .load(c)
        .await?))
}

/// Whether a record was written.
///
/// # Errors
/// Where the database fails.
pub async fn is_there(conn: &mut Conn, id: UsageRecordId) -> Result<bool> {
    let found: Option<i64> =
        on_conn!(conn, |c| usage_records::table.find(id).select(usage_records::sequence).first(c).await.optional()?);
    Ok(found.is_some())
}

macro_rules! next_of {
    ($backend:ident, $whose:expr, $filter:expr, $after:expr, $until:expr) => {{
        use usage_records as t;
        filtered!($backend, t::table, $whose, $filter, unindexed)
            .filter(t::sequence.gt($after).and(t::sequence.le($until)))
            .order(t::sequence)
            .limit(1)
            .select(UsageRecord::as_select())
    }};
}

/// The record after the place `after`, up to `until`, that passes the filter.
///
/// # Errors
/// Where the database fails.
pub async fn next(
    conn: &mut Conn,
    whose: &WhoseUsage,
    filter: &UsageFilter,
    (after, until): (i64, i64),
) -> Result<Option<UsageRecord>> {
    Ok(on_conn!(conn, |c: Backend| next_of!(Backend, whose, filter, after, until).load(c).await?).pop())
}

/// How far an organization's records are.
///
/// # Errors
/// Where the database fails.
pub async fn end(conn: &mut Conn, whose: &WhoseUsage) -> Result<i64> {
    Ok(ends_of(conn, &[whose.organization()]).await?.into_iter().next().map_or(0, |(_, end)| end))
}

/// How far the records of organizations are; those without any are left out. It names nothing of them.
///
/// # Errors
/// Where the database fails.
pub async fn ends_of(conn: &mut Conn, organizations: &[OrganizationId]) -> Result<Vec<(OrganizationId, i64)>> {
    use usage_heads as h;
    Ok(on_conn!(conn, |c| h::table
        .filter(h::organization_id.eq_any(organizations))
        .select((h::organization_id, h::sequence))
        .load(c)
        .await?))
}

/// How far the records of all organizations are. It names nothing of them.
///
/// # Errors
/// Where the database fails.
pub async fn ends(conn: &mut Conn) -> Result<Vec<(OrganizationId, i64)>> {
    use usage_heads as h;
    let heads = h::table.select((h::organization_id, h::sequence));
    Ok(on_conn!(conn, |c| RunQueryDsl::load(heads, c).await?))
}

/// When the oldest record that is there occurred.
///
/// # Errors
/// Where the database fails.
pub async fn oldest(conn: &mut Conn, whose: &WhoseUsage) -> Result<Option<Timestamp>> {
    use usage_records as t;
    Ok(on_conn!(conn, |c| t::table
        .filter(t::organization_id.eq(whose.organization()))
        .order((t::occurred_at, t::id))
        .select(t::occurred_at)
        .first(c)
        .await
        .optional()?))
}

/// Removes at most so many of an organization's records from before a time, the oldest first. Returns how many it were. What they
/// added up to stays.
///
/// # Errors
/// Where the database fails.
pub async fn remove(db: &Db, organization: OrganizationId, before: Timestamp, most: i64) -> Result<usize> {
    Tx::bookkeeping(db, async |tx| delete(tx, organization, before, most).await).await
}

async fn delete(tx: &mut Tx, organization: OrganizationId, before: Timestamp, most: i64) -> Result<usize> {
    use usage_records as t;
    let conn = tx.conn().await?;
    let old = t::table.filter(t::organization_id.eq(organization).and(t::occurred_at.lt(before)));
    Ok(on_conn!(conn, |c| {
        let ids: Vec<UsageRecordId> = old.order((t::occurred_at, t::id)).limit(most).select(t::id).load(c).await?;
        diesel::delete(t::table.filter(t::id.eq_any(&ids))).execute(c).await?
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use std::time::Duration;

    use diesel::sqlite::Sqlite;

    use super::*;
    use crate::model::{Access, Id, Kind, Role};
    use crate::settings::DatabaseUrl;

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    fn id<K: Kind>() -> Id<K> {
        Id::new(Timestamp::MAX, &[7; 10])
    }

    /// However many records its user, key or model has.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_next_record_is_found_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let db = Db::open(&url, 1, Duration::from_secs(1)).await.unwrap();
        db.migrate_up().await.unwrap();
        let access = |role| Access::new(id(), role);
        let own = WhoseUsage::Own(access(Role::ReadOnly).require().unwrap(), id());
        let all = WhoseUsage::Everybodys(access(Role::Admin).require().unwrap());
        let any = UsageFilter::default;
        for (whose, filter) in [
            (&own, any()),
            (&all, any()),
            (&all, UsageFilter { from: Some(Timestamp::MAX), to: Some(Timestamp::MAX), ..any() }),
            (&all, UsageFilter { api_key_ids: Some(vec![id()]), ..any() }),
            (&all, UsageFilter { user_id: Some(id()), ..any() }),
            (&all, UsageFilter { client_id: Some(id()), ..any() }),
            (&all, UsageFilter { claude_account_id: Some(id()), ..any() }),
            (&all, UsageFilter { model: Some("m".to_owned()), ..any() }),
        ] {
            let query = next_of!(Sqlite, whose, &filter, 1_i64, 2_i64);
            let text = diesel::debug_query::<Sqlite, _>(&query).to_string();
            let (query, _) = text.split_once(" -- binds").unwrap();
            let mut conn = db.read().await.unwrap();
            let steps: Vec<Step> = on_conn!(&mut conn, |c| diesel::sql_query(format!("EXPLAIN QUERY PLAN {query}"))
                .load(c)
                .await
                .unwrap());
            let plan: Vec<_> = steps.into_iter().map(|step| step.detail).collect();
            assert_eq!(plan.len(), 1, "{plan:?}");
            assert!(
                plan[0].contains("USING INDEX usage_records_by_sequence (organization_id=? AND sequence>?"),
                "{plan:?}"
            );
        }
    }
}
