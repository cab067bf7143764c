//! Budgets that several servers share: how much of its limits an API key has used, and what servers hold of them. Bookkeeping of the
//! relay: there is no deed and no permit.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, Db, on_conn};
use super::error::Result;
use super::locks::first_locked;
use super::tables::{budget_holds, budgets};
use super::tx::Tx;
use crate::model::{ApiKeyId, OrganizationId, Timestamp, UsageInterval};

/// How much of its limits a key has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = budgets, primary_key(api_key_id), check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct Ledger {
    /// Which key.
    pub api_key_id: ApiKeyId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// The version of the key that it was last made to agree with: what was used while there was no limit is not counted here.
    pub key_version: i32,
    /// The day that tokens are counted of.
    pub day: Timestamp,
    /// Tokens that were used in it.
    pub tokens: i64,
    /// The month that costs are counted of.
    pub month: Timestamp,
    /// What was spent in it, in billionths of a dollar.
    pub cost_nano_usd: i64,
}

/// Which day's tokens and which month's costs something is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period {
    /// The beginning of the day.
    pub day: Timestamp,
    /// The beginning of the month.
    pub month: Timestamp,
}

impl Period {
    /// Of this moment.
    #[must_use]
    pub fn of(at: Timestamp) -> Self {
        Self { day: UsageInterval::Day.start(at), month: UsageInterval::Month.start(at) }
    }
}

impl Ledger {
    /// The day and the month that it counts.
    #[must_use]
    pub fn period(&self) -> Period {
        Period { day: self.day, month: self.month }
    }

    /// Counts what was used in a period, where it does not count a later one by now.
    pub fn charge(&mut self, period: Period, tokens: i64, cost_nano_usd: i64) {
        if self.day <= period.day {
            self.tokens = self.tokens.saturating_add(tokens);
        }
        if self.month <= period.month {
            self.cost_nano_usd = self.cost_nano_usd.saturating_add(cost_nano_usd);
        }
    }
}

/// What is held for requests that run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Queryable, Selectable, AsChangeset)]
#[diesel(table_name = budget_holds, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct Held {
    /// How many requests run.
    pub requests: i64,
    /// How many tokens they may take.
    pub tokens: i64,
    /// What they may cost, in billionths of a dollar.
    pub cost_nano_usd: i64,
}

impl Held {
    /// Holds more.
    pub fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.tokens += more.tokens;
        self.cost_nano_usd += more.cost_nano_usd;
    }

    /// Holds less, where it still holds so much.
    pub fn give_back(&mut self, less: &Self) {
        self.requests = (self.requests - less.requests).max(0);
        self.tokens = (self.tokens - less.tokens).max(0);
        self.cost_nano_usd = (self.cost_nano_usd - less.cost_nano_usd).max(0);
    }
}

/// Who holds something.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// Its name, which no other has or will have.
    pub name: &'a str,
    /// How often it has said by now that it is there.
    pub beat: i64,
}

/// A key's budget, as it is while nobody else changes it.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// What was used.
    pub ledger: Ledger,
    /// What this server holds.
    pub own: Held,
    /// What all the others hold.
    pub others: Held,
}

/// Looks at a key's budget and changes what was used and what this server holds, while nobody else does. `start` is what was used
/// where it has none yet.
///
/// # Errors
/// [`Error::Duplicate`](super::Error::Duplicate) where another has begun with it at the same moment.
pub async fn change<T>(db: &Db, server: Server<'_>, start: &Ledger, apply: impl FnOnce(&mut Budget) -> T) -> Result<T> {
    Tx::bookkeeping(db, async |tx| change_locked(tx, server, start, apply).await).await
}

async fn change_locked<T>(
    tx: &mut Tx,
    server: Server<'_>,
    start: &Ledger,
    apply: impl FnOnce(&mut Budget) -> T,
) -> Result<T> {
    use budget_holds as h;
    let conn = tx.conn().await?;
    let key = start.api_key_id;
    let found = first_locked!(conn, budgets::table.find(key).select(Ledger::as_select())).optional()?;
    if found.is_none() {
        on_conn!(conn, |c| diesel::insert_into(budgets::table).values(start).execute(c).await?);
    }
    let ledger = found.unwrap_or(*start);
    let holds = holds(conn, key).await?;
    let (mut own, mut others) = (None, Held::default());
    for (holder, held) in &holds {
        if holder == server.name {
            own = Some(*held);
        } else {
            others.add(held);
        }
    }
    let before = Budget { ledger, own: own.unwrap_or_default(), others };
    let mut budget = before;
    let value = apply(&mut budget);
    on_conn!(conn, |c| {
        if budget.ledger != before.ledger {
            diesel::update(budgets::table.find(key)).set(&budget.ledger).execute(c).await?;
        }
        if budget.own != before.own {
            let held = (&budget.own, h::beat.eq(server.beat));
            let changed = diesel::update(h::table.find((key, server.name))).set(held).execute(c).await?;
            if changed == 0 {
                let Held { requests, tokens, cost_nano_usd } = budget.own;
                diesel::insert_into(h::table)
                    .values((
                        (h::api_key_id.eq(key), h::server.eq(server.name), h::beat.eq(server.beat)),
                        h::organization_id.eq(ledger.organization_id),
                        (h::requests.eq(requests), h::tokens.eq(tokens), h::cost_nano_usd.eq(cost_nano_usd)),
                    ))
                    .execute(c)
                    .await?;
            }
        }
    });
    Ok(value)
}

async fn holds(conn: &mut Conn, key: ApiKeyId) -> Result<Vec<(String, Held)>> {
    use budget_holds as h;
    Ok(on_conn!(conn, |c| h::table
        .filter(h::api_key_id.eq(key))
        .select((h::server, Held::as_select()))
        .load(c)
        .await?))
}

/// A key's budget, to look at: none, where nothing was held against it yet.
///
/// # Errors
/// Where the database fails.
pub async fn find(conn: &mut Conn, key: ApiKeyId) -> Result<Option<(Ledger, Held)>> {
    let ledger = on_conn!(conn, |c| budgets::table.find(key).select(Ledger::as_select()).first(c).await.optional()?);
    let mut held = Held::default();
    for (_, of_server) in holds(conn, key).await? {
        held.add(&of_server);
    }
    Ok(ledger.map(|ledger| (ledger, held)))
}

/// Says that a server is there: what it holds is not to be given back.
///
/// # Errors
/// Where the database fails.
pub async fn beat(db: &Db, server: Server<'_>) -> Result<()> {
    use budget_holds as h;
    write(db, async |conn| {
        // Nothing is held by most of them, most of the time.
        remove_empty(conn, server.name).await?;
        let own = h::table.filter(h::server.eq(server.name));
        on_conn!(conn, |c| diesel::update(own).set(h::beat.eq(server.beat)).execute(c).await?);
        Ok(())
    })
    .await
}

async fn remove_empty(conn: &mut Conn, server: &str) -> Result<()> {
    use budget_holds as h;
    let empty = h::table
        .filter(h::server.eq(server))
        .filter(h::requests.eq(0).and(h::tokens.eq(0)).and(h::cost_nano_usd.eq(0)));
    on_conn!(conn, |c| diesel::delete(empty).execute(c).await?);
    Ok(())
}

/// The servers that hold something, each with how often it has said that it is there. Rows come and go, and a server is heard of by
/// the newest that it has written.
///
/// # Errors
/// Where the database fails.
pub async fn servers(conn: &mut Conn) -> Result<Vec<(String, i64)>> {
    use budget_holds as h;
    let mut beats: BTreeMap<String, i64> = BTreeMap::new();
    let rows: Vec<(String, i64)> = on_conn!(conn, |c| h::table.select((h::server, h::beat)).load(c).await?);
    for (server, beat) in rows {
        let newest = beats.entry(server).or_insert(beat);
        *newest = beat.max(*newest);
    }
    Ok(beats.into_iter().collect())
}

/// Gives back all that a server holds: it stops.
///
/// # Errors
/// Where the database fails.
pub async fn release(db: &Db, server: &str) -> Result<()> {
    use budget_holds as h;
    write(db, async |conn| {
        on_conn!(conn, |c| diesel::delete(h::table.filter(h::server.eq(server))).execute(c).await?);
        Ok(())
    })
    .await
}

/// Counts all that a server holds as used: it is gone, and what its requests took nobody will ever say.
///
/// # Errors
/// Where the database fails: what is left is held on.
pub async fn seize(db: &Db, server: &str) -> Result<()> {
    use budget_holds as h;
    let mut conn = db.read().await?;
    let keys: Vec<ApiKeyId> = on_conn!(&mut conn, |c| h::table
        .filter(h::server.eq(server))
        .order(h::api_key_id)
        .select(h::api_key_id)
        .load(c)
        .await?);
    drop(conn);
    for key in keys {
        write(db, async |conn| seize_one(conn, key, server).await).await?;
    }
    Ok(())
}

async fn seize_one(conn: &mut Conn, key: ApiKeyId, server: &str) -> Result<()> {
    use budget_holds as h;
    // Who changes a key's budget has its ledger locked: another server that does the same finds nothing any more.
    let ledger = first_locked!(conn, budgets::table.find(key).select(Ledger::as_select())).optional()?;
    on_conn!(conn, |c| {
        let row = h::table.find((key, server));
        let held = row.select(Held::as_select()).first(c).await.optional()?;
        if let (Some(ledger), Some(held)) = (ledger, held) {
            let used = (
                budgets::tokens.eq(ledger.tokens.saturating_add(held.tokens)),
                budgets::cost_nano_usd.eq(ledger.cost_nano_usd.saturating_add(held.cost_nano_usd)),
            );
            diesel::update(budgets::table.find(key)).set(used).execute(c).await?;
        }
        diesel::delete(row).execute(c).await?;
    });
    Ok(())
}

/// What requests took that had held nothing, by the key and the time that they were of: where the key is counted by now, it counts.
///
/// # Errors
/// Where the database fails: nothing of it counts then.
pub async fn charge(db: &Db, used: &BTreeMap<(ApiKeyId, Period), (i64, i64)>) -> Result<()> {
    use budgets as b;
    let keys: BTreeSet<ApiKeyId> = used.keys().map(|(key, _)| *key).collect();
    let mut conn = db.read().await?;
    // Most keys have no limits, and are not counted: only those that are cost a transaction.
    let counted: BTreeSet<ApiKeyId> =
        on_conn!(&mut conn, |c| b::table.filter(b::api_key_id.eq_any(keys)).select(b::api_key_id).load(c).await?)
            .into_iter()
            .collect();
    drop(conn);
    if counted.is_empty() {
        return Ok(());
    }
    write(db, async |conn| {
        for ((key, period), (tokens, cost)) in used.iter().filter(|((key, _), _)| counted.contains(key)) {
            on_conn!(conn, |c| {
                let of_day = b::table.filter(b::api_key_id.eq(key).and(b::day.le(period.day)));
                diesel::update(of_day).set(b::tokens.eq(b::tokens + tokens)).execute(c).await?;
                let of_month = b::table.filter(b::api_key_id.eq(key).and(b::month.le(period.month)));
                diesel::update(of_month).set(b::cost_nano_usd.eq(b::cost_nano_usd + cost)).execute(c).await?;
            });
        }
        Ok(())
    })
    .await
}

/// Commits what no caller has done.
async fn write(db: &Db, statements: impl AsyncFnOnce(&mut Conn) -> Result<()>) -> Result<()> {
    Tx::bookkeeping(db, async |tx| statements(tx.conn().await?).await).await
}
