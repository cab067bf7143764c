//! Budgets that several servers share: how much of its limits an API key has used, and what servers hold of them. Bookkeeping of the
//! relay: there is no deed and no permit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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
    /// Whether it has a row for that, empty or not: none, where another server has counted it as used.
    pub has_row: bool,
    /// The number of the newest transaction by which this server has changed the budget, as its row has it; none: it has no row.
    pub newest: Option<i64>,
    /// What all the others hold.
    pub others: Held,
}

impl Budget {
    /// One of which nothing is held.
    #[must_use]
    pub fn begun(ledger: Ledger) -> Self {
        Self { ledger, own: Held::default(), has_row: false, newest: None, others: Held::default() }
    }
}

/// Looks at a key's budget and changes what was used and what this server holds, while nobody else does, in a transaction that this
/// server gives a number. `start` is what was used where it has none yet.
///
/// # Errors
/// [`Error::Duplicate`](super::Error::Duplicate) where another has begun with it at the same moment.
pub async fn change(
    db: &Db,
    server: Server<'_>,
    number: i64,
    start: &Ledger,
    apply: impl FnOnce(&mut Budget),
) -> Result<()> {
    Tx::bookkeeping(db, async |tx| change_locked(tx, server, number, start, apply).await).await
}

async fn change_locked(
    tx: &mut Tx,
    server: Server<'_>,
    number: i64,
    start: &Ledger,
    apply: impl FnOnce(&mut Budget),
) -> Result<()> {
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
    for (holder, newest, held) in &holds {
        if holder == server.name {
            own = Some((*newest, *held));
        } else {
            others.add(held);
        }
    }
    let (newest, own) = own.unzip();
    let before = Budget { ledger, own: own.unwrap_or_default(), has_row: own.is_some(), newest, others };
    let mut budget = before;
    apply(&mut budget);
    on_conn!(conn, |c| {
        if budget.ledger != before.ledger {
            diesel::update(budgets::table.find(key)).set(&budget.ledger).execute(c).await?;
        }
        // What was charged without a row, since that was counted as used, makes none.
        if budget.has_row && (budget.ledger, budget.own) != (before.ledger, before.own) {
            let held = (&budget.own, h::beat.eq(server.beat), h::transaction_number.eq(number));
            let changed = diesel::update(h::table.find((key, server.name))).set(held).execute(c).await?;
            if changed == 0 {
                let Held { requests, tokens, cost_nano_usd } = budget.own;
                diesel::insert_into(h::table)
                    .values((
                        (h::api_key_id.eq(key), h::server.eq(server.name), h::beat.eq(server.beat)),
                        (h::organization_id.eq(ledger.organization_id), h::transaction_number.eq(number)),
                        (h::requests.eq(requests), h::tokens.eq(tokens), h::cost_nano_usd.eq(cost_nano_usd)),
                    ))
                    .execute(c)
                    .await?;
            }
        }
    });
    Ok(())
}

async fn holds(conn: &mut Conn, key: ApiKeyId) -> Result<Vec<(String, i64, Held)>> {
    use budget_holds as h;
    Ok(on_conn!(conn, |c| h::table
        .filter(h::api_key_id.eq(key))
        .select((h::server, h::transaction_number, Held::as_select()))
        .load(c)
        .await?))
}

/// The budgets of keys, to look at. One that nothing was held against yet has none.
///
/// # Errors
/// Where the database fails.
pub async fn find(conn: &mut Conn, keys: &[ApiKeyId]) -> Result<HashMap<ApiKeyId, (Ledger, Held)>> {
    use budget_holds as h;
    let ledgers: Vec<Ledger> = on_conn!(conn, |c| budgets::table
        .filter(budgets::api_key_id.eq_any(keys))
        .select(Ledger::as_select())
        .load(c)
        .await?);
    let holds: Vec<(ApiKeyId, Held)> = on_conn!(conn, |c| h::table
        .filter(h::api_key_id.eq_any(keys))
        .select((h::api_key_id, Held::as_select()))
        .load(c)
        .await?);
    let mut found: HashMap<_, _> =
        ledgers.into_iter().map(|ledger| (ledger.api_key_id, (ledger, Held::default()))).collect();
    for (key, of_server) in holds {
        if let Some((_, held)) = found.get_mut(&key) {
            held.add(&of_server);
        }
    }
    Ok(found)
}

/// Says that a server is there: what it holds does not count as used.
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

/// Gives back all that a server holds, but of these keys: it stops.
///
/// # Errors
/// Where the database fails.
pub async fn release(db: &Db, server: &str, but: &BTreeSet<ApiKeyId>) -> Result<()> {
    use budget_holds as h;
    write(db, async |conn| {
        let held = h::table.filter(h::server.eq(server).and(h::api_key_id.ne_all(but)));
        on_conn!(conn, |c| diesel::delete(held).execute(c).await?);
        Ok(())
    })
    .await
}

/// The keys that a server holds something of.
///
/// # Errors
/// Where the database fails.
pub async fn held_by(conn: &mut Conn, server: &str) -> Result<Vec<ApiKeyId>> {
    use budget_holds as h;
    Ok(on_conn!(conn, |c| h::table
        .filter(h::server.eq(server))
        .order(h::api_key_id)
        .select(h::api_key_id)
        .load(c)
        .await?))
}

/// Counts what a server holds of a key as used: it is gone, and what its requests took nobody will ever say. Returns what that was;
/// none: another server has done it.
///
/// # Errors
/// Where the database fails.
pub async fn seize(db: &Db, key: ApiKeyId, server: &str) -> Result<Option<Held>> {
    use budget_holds as h;
    write(db, async |conn| {
        // Who changes a key's budget has its ledger locked: another server that does the same finds nothing any more.
        let ledger = first_locked!(conn, budgets::table.find(key).select(Ledger::as_select())).optional()?;
        let row = h::table.find((key, server));
        let held = on_conn!(conn, |c| row.select(Held::as_select()).first(c).await.optional()?);
        on_conn!(conn, |c| {
            if let (Some(ledger), Some(held)) = (ledger, held) {
                let used = (
                    budgets::tokens.eq(ledger.tokens.saturating_add(held.tokens)),
                    budgets::cost_nano_usd.eq(ledger.cost_nano_usd.saturating_add(held.cost_nano_usd)),
                );
                diesel::update(budgets::table.find(key)).set(used).execute(c).await?;
            }
            diesel::delete(row).execute(c).await?;
        });
        Ok(held)
    })
    .await
}

/// Those of some keys that are counted: most have no limits, and are not.
///
/// # Errors
/// Where the database fails.
pub async fn ledgers(db: &Db, keys: &BTreeSet<ApiKeyId>) -> Result<BTreeSet<ApiKeyId>> {
    let mut conn = db.read().await?;
    let counted: Vec<ApiKeyId> = on_conn!(&mut conn, |c| budgets::table
        .filter(budgets::api_key_id.eq_any(keys))
        .select(budgets::api_key_id)
        .load(c)
        .await?);
    Ok(counted.into_iter().collect())
}

/// Counts what requests took that had held nothing, where their key is counted by now: so many tokens, and so much of a dollar.
///
/// # Errors
/// Where the database fails: nothing of it counts then.
pub async fn charge(db: &Db, key: ApiKeyId, period: Period, (tokens, cost): (i64, i64)) -> Result<()> {
    write(db, async |conn| {
        let ledger = first_locked!(conn, budgets::table.find(key).select(Ledger::as_select())).optional()?;
        if let Some(mut ledger) = ledger {
            ledger.charge(period, tokens, cost);
            on_conn!(conn, |c| diesel::update(budgets::table.find(key)).set(&ledger).execute(c).await?);
        }
        Ok(())
    })
    .await
}

/// Commits what no caller has done.
async fn write<T>(db: &Db, statements: impl AsyncFnOnce(&mut Conn) -> Result<T>) -> Result<T> {
    Tx::bookkeeping(db, async |tx| statements(tx.conn().await?).await).await
}
