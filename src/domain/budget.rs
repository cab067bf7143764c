//! What API keys may still do on the relay: requests at once, tokens a day, costs a month. A request reserves what it may take before
//! it starts, and settles what it took after: so no limit is overrun, however many race.
//!
//! On PostgreSQL, which several servers share, budgets are rows of it; on SQLite, which one server has, they are in memory, and are
//! read from the records when they are first asked for (docs/decisions/budgets.md).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget_notices::{BudgetNotices, Limited};
use super::budget_watch::Watch;
use super::context::Services;
use super::quota::QuotaKind;
use super::usage;
use crate::model::{ApiKeyId, Clock, MicroUsd, NanoUsd, Timestamp, UsageInterval};
use crate::store::api_key::{ApiKey, FoundApiKey};
use crate::store::budget::{self as store_budget, Budget, Held, Ledger, Period, Server};
use crate::store::{self, Db, usage_rollup};

/// How often a server says that it is there.
const BEAT: Duration = Duration::from_secs(10);
/// How often it is looked for what is to be settled: what could not be yet, and what was used without a limit.
const SETTLING: Duration = Duration::from_secs(1);
/// How far the clocks of servers may lie apart. What is counted of a later time was begun by a clock that was wrong.
const LEEWAY: TimeDelta = TimeDelta::hours(1);

/// What a request may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens, of the prompt and of the longest answer.
    pub tokens: u64,
    /// What they cost.
    pub cost: MicroUsd,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// All tokens.
    pub tokens: u64,
    /// What they cost.
    pub cost: NanoUsd,
}

impl Used {
    fn tokens(&self) -> i64 {
        i64::try_from(self.tokens).unwrap_or(i64::MAX)
    }
}

/// A limit that a request does not fit under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget {
    /// Which.
    pub kind: QuotaKind,
    /// How much there may be.
    pub limit: i64,
    /// When all of it is there again; of requests at once: now.
    pub resets_at: Timestamp,
    /// Whether it would fit if the requests that run now took nothing: then it may fit as soon as one of them ends.
    pub is_held_by_others: bool,
}

impl OverBudget {
    /// The limit that what was asked for does not fit under, whatever runs.
    fn by_itself(&self) -> Option<Limited> {
        match self.kind {
            _ if self.is_held_by_others => None,
            QuotaKind::TokensPerDay => Some(Limited::Tokens),
            QuotaKind::CostMicroUsdPerMonth => Some(Limited::Cost),
            QuotaKind::ConcurrentRequests | QuotaKind::RequestsPerMinute | QuotaKind::RequestsPerHour => None,
        }
    }
}

/// Why nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub enum NotReserved {
    /// A limit is reached.
    #[error("a limit of the key is reached")]
    Over(OverBudget),
    /// The database cannot be asked, and nothing is spent that cannot be counted.
    #[error(transparent)]
    Unavailable(#[from] store::Error),
}

/// How much there may be, of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests at once.
    pub requests: Option<i64>,
    /// Tokens a day.
    pub tokens: Option<i64>,
    /// Costs a month.
    pub cost: Option<MicroUsd>,
}

impl From<&ApiKey> for Limits {
    fn from(key: &ApiKey) -> Self {
        Self {
            requests: key.concurrency_limit.map(i64::from),
            tokens: key.token_limit_per_day,
            cost: key.cost_limit_micro_usd_per_month.map(MicroUsd::from_micros),
        }
    }
}

impl Limits {
    pub(super) fn are_none(&self) -> bool {
        self.requests.is_none() && self.tokens.is_none() && self.cost.is_none()
    }

    /// Whether so much more fits.
    fn check(&self, budget: &Budget, more: &Held, now: Timestamp) -> Result<(), OverBudget> {
        let mut held = budget.own;
        held.add(&budget.others);
        let over =
            |kind, limit: i64, resets_at, is_held_by_others| OverBudget { kind, limit, resets_at, is_held_by_others };
        if let Some(limit) = self.requests
            && held.requests + more.requests > limit
        {
            return Err(over(QuotaKind::ConcurrentRequests, limit, now, true));
        }
        if let Some(limit) = self.tokens {
            let wanted = budget.ledger.tokens.saturating_add(more.tokens);
            if wanted.saturating_add(held.tokens) > limit {
                let end = UsageInterval::Day.end(now);
                return Err(over(QuotaKind::TokensPerDay, limit, end, wanted <= limit));
            }
        }
        if let Some(limit) = self.cost {
            let most = NanoUsd::from(limit).nanos();
            let wanted = budget.ledger.cost_nano_usd.saturating_add(more.cost_nano_usd);
            if wanted.saturating_add(held.cost_nano_usd) > most {
                let end = UsageInterval::Month.end(now);
                return Err(over(QuotaKind::CostMicroUsdPerMonth, limit.micros(), end, wanted <= most));
            }
        }
        Ok(())
    }
}

/// How much of its limits a key has used, with what is held for requests that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Requests that run.
    pub requests: i64,
    /// Tokens of the day.
    pub tokens: i64,
    /// Costs of the month.
    pub cost: NanoUsd,
}

/// The budgets of API keys.
pub struct Budgets(Arc<Inner>);

struct Inner {
    place: Place,
    clock: Clock,
    notices: BudgetNotices,
    /// What could not be given back yet.
    owed: Mutex<Vec<Settlement>>,
    /// What requests have used that held nothing, since their key had no limits when they came: it may have some by now.
    unheld: Mutex<BTreeMap<(ApiKeyId, Period), (i64, i64)>>,
    woken: Notify,
    /// What is finished though nobody waits for it any more.
    tasks: TaskTracker,
}

enum Place {
    Memory(Mutex<HashMap<ApiKeyId, Budget>>),
    Database {
        db: Db,
        server: String,
        /// How often this server has said that it is there.
        beat: AtomicI64,
        /// The keys that this server has seen to be counted in the database.
        counted: Mutex<HashMap<ApiKeyId, Ledger>>,
    },
}

/// What is given back, and what was used of it.
#[derive(Debug, Clone, Copy)]
struct Settlement {
    /// What the key had used when it was reserved: of the day and the month that it is settled in.
    start: Ledger,
    limits: Limits,
    held: Held,
    used: Used,
}

impl Budgets {
    /// Of a server with this name: in memory, or in a database that several servers share.
    #[must_use]
    pub fn new(db: &Db, clock: Clock, server: &str) -> Self {
        // By which servers can tell each other something is what they share.
        let place = if db.can_notify() {
            let beat = AtomicI64::default();
            Place::Database { db: db.clone(), server: server.to_owned(), beat, counted: Mutex::default() }
        } else {
            Place::Memory(Mutex::default())
        };
        Self(Arc::new(Inner {
            place,
            clock,
            notices: BudgetNotices::default(),
            owed: Mutex::default(),
            unheld: Mutex::default(),
            woken: Notify::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Reserves what a request may take, under the limits of the key and no others.
    ///
    /// # Errors
    /// Where it does not fit, or the database cannot be asked.
    pub async fn reserve(
        &self,
        services: &Services,
        key: &FoundApiKey,
        estimate: Estimate,
    ) -> Result<Reservation, NotReserved> {
        let key = &key.key;
        let limits = Limits::from(key);
        if limits.are_none() {
            let claim = Claim::Unheld(key.id, Period::of(self.0.clock.now()));
            return Ok(Reservation { budgets: self.0.clone(), claim: Some(claim) });
        }
        let held = Held {
            requests: 1,
            tokens: i64::try_from(estimate.tokens).unwrap_or(i64::MAX),
            cost_nano_usd: NanoUsd::from(estimate.cost).nanos(),
        };
        let mut known = self.0.known(key);
        loop {
            let (start, is_new) = match known {
                Some(ledger) => (ledger, false),
                None => (self.counted(services, key).await?, true),
            };
            let reserving = self.0.clone().reserve(Settlement { start, limits, held, used: Used::default() }, is_new);
            let reserved = match &self.0.place {
                Place::Memory(_) => reserving.await,
                // Begun, it is waited for: what is reserved for somebody who has left is given back with the task's answer.
                Place::Database { .. } => match self.0.tasks.spawn(reserving).await {
                    Ok(reserved) => reserved,
                    Err(broken) => Err(NotReserved::Unavailable(store::Error::Unavailable(broken.into()))),
                },
            };
            match reserved? {
                Some(reservation) => return Ok(reservation),
                // What is counted is of another day or month: it begins with what the records have of this one.
                None => known = None,
            }
        }
    }

    /// How much of its limits a key has used.
    ///
    /// # Errors
    /// Where the database cannot be asked.
    pub async fn level(&self, services: &Services, key: &ApiKey) -> store::Result<Level> {
        let found = match &self.0.place {
            Place::Memory(budgets) => lock(budgets).get(&key.id).map(|budget| (budget.ledger, budget.own)),
            Place::Database { db, .. } => store_budget::find(&mut db.read().await?, key.id).await?,
        };
        let now = self.0.clock.now();
        let (ledger, held) = match found {
            Some((ledger, held)) if ledger.key_version >= key.version && is_of(&ledger, now) => (ledger, held),
            Some((mut ledger, held)) => {
                agree(&mut ledger, &self.counted(services, key).await?, now);
                (ledger, held)
            }
            None => (self.counted(services, key).await?, Held::default()),
        };
        Ok(Level {
            requests: held.requests,
            tokens: ledger.tokens.saturating_add(held.tokens),
            cost: NanoUsd::from_nanos(ledger.cost_nano_usd.saturating_add(held.cost_nano_usd)),
        })
    }

    /// What a key has used by the records.
    async fn counted(&self, services: &Services, key: &ApiKey) -> store::Result<Ledger> {
        // What waits to be written was used too.
        usage::flush(services).await?;
        let Period { day, month } = Period::of(self.0.clock.now());
        let mut conn = services.db.read().await?;
        let (tokens, cost_nano_usd) =
            usage_rollup::used_by_key(&mut conn, key.organization_id, key.id, (day, month)).await?;
        Ok(Ledger {
            api_key_id: key.id,
            organization_id: key.organization_id,
            key_version: key.version,
            day,
            tokens,
            month,
            cost_nano_usd,
        })
    }

    /// What is to be told of limits.
    pub(super) fn notices(&self) -> &BudgetNotices {
        &self.0.notices
    }

    /// Gives back what could not be given back at once, and counts what was used without a limit.
    ///
    /// # Errors
    /// Where the database fails: what is left is tried again.
    pub async fn settle_owed(&self) -> store::Result<()> {
        if let Place::Database { db, .. } = &self.0.place {
            let unheld = std::mem::take(&mut *lock(&self.0.unheld));
            if !unheld.is_empty()
                && let Err(error) = store_budget::charge(db, &unheld).await
            {
                for ((key, period), (tokens, cost)) in unheld {
                    self.0.add_unheld(key, period, (tokens, cost));
                }
                return Err(error);
            }
        }
        while let Some(settlement) = self.0.next_owed() {
            if let Err(error) = self.0.settle(&settlement).await {
                lock(&self.0.owed).push(settlement);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Says to other servers that this one is there.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn beat(&self) -> store::Result<()> {
        let Place::Database { db, server, beat, .. } = &self.0.place else { return Ok(()) };
        // Of the server, and not of what it holds: that comes and goes.
        let beat = beat.fetch_add(1, Ordering::Relaxed) + 1;
        store_budget::beat(db, Server { name: server, beat }).await
    }

    /// Gives back all that this server holds: it stops.
    ///
    /// # Errors
    /// Where the database fails. Then others do, when this server has been silent for a while.
    pub async fn finish(&self) -> store::Result<()> {
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.settle_owed().await?;
        match &self.0.place {
            Place::Memory(_) => Ok(()),
            Place::Database { db, server, .. } => store_budget::release(db, server).await,
        }
    }
}

impl Inner {
    /// What is known of a key's use without counting it again.
    fn known(&self, key: &ApiKey) -> Option<Ledger> {
        let known = match &self.place {
            Place::Memory(budgets) => lock(budgets).get(&key.id).map(|budget| budget.ledger),
            Place::Database { counted, .. } => lock(counted).get(&key.id).copied(),
        };
        known.filter(|known| known.key_version >= key.version)
    }

    /// None: what is counted is not of now, and is to be counted anew.
    async fn reserve(
        self: Arc<Self>,
        mut settlement: Settlement,
        is_new: bool,
    ) -> Result<Option<Reservation>, NotReserved> {
        let Settlement { start, limits, held, .. } = settlement;
        let now = self.clock.now();
        let reserved = self.change(&start, |budget| {
            if is_new {
                agree(&mut budget.ledger, &start, now);
            }
            if !is_of(&budget.ledger, now) {
                return Ok(None);
            }
            limits.check(budget, &held, now).map_err(|over| (over, budget.ledger))?;
            budget.own.add(&held);
            Ok(Some(budget.ledger))
        });
        settlement.start = match reserved.await? {
            Ok(Some(ledger)) => ledger,
            Ok(None) => return Ok(None),
            Err((over, ledger)) => {
                self.notices.look(&limits, &ledger, over.by_itself());
                return Err(NotReserved::Over(over));
            }
        };
        if let Place::Database { counted, .. } = &self.place
            && is_new
        {
            lock(counted).insert(start.api_key_id, start);
        }
        Ok(Some(Reservation { budgets: self, claim: Some(Claim::Held(settlement)) }))
    }

    async fn change<T>(&self, start: &Ledger, mut apply: impl FnMut(&mut Budget) -> T) -> store::Result<T> {
        match &self.place {
            Place::Memory(budgets) => {
                let nothing = || Budget { ledger: *start, own: Held::default(), others: Held::default() };
                Ok(apply(lock(budgets).entry(start.api_key_id).or_insert_with(nothing)))
            }
            Place::Database { db, server, beat, .. } => loop {
                let server = Server { name: server, beat: beat.load(Ordering::Relaxed) };
                match store_budget::change(db, server, start, &mut apply).await {
                    // Another server has begun with the key at the same moment: now there is one.
                    Err(store::Error::Duplicate) => {}
                    done => return done,
                }
            },
        }
    }

    async fn settle(&self, settlement: &Settlement) -> store::Result<()> {
        let Settlement { start, limits, held, used } = settlement;
        let settled = self.change(start, |budget| {
            budget.own.give_back(held);
            budget.ledger.charge(start.period(), used.tokens(), used.cost.nanos());
            budget.ledger
        });
        self.notices.look(limits, &settled.await?, None);
        Ok(())
    }

    fn add_unheld(&self, key: ApiKeyId, period: Period, (tokens, cost): (i64, i64)) {
        match &self.place {
            Place::Memory(budgets) => {
                if let Some(budget) = lock(budgets).get_mut(&key) {
                    budget.ledger.charge(period, tokens, cost);
                }
            }
            Place::Database { .. } => {
                let mut unheld = lock(&self.unheld);
                let sum = unheld.entry((key, period)).or_default();
                *sum = (sum.0.saturating_add(tokens), sum.1.saturating_add(cost));
            }
        }
    }

    fn owe(&self, settlement: Settlement) {
        lock(&self.owed).push(settlement);
        self.woken.notify_one();
    }

    fn next_owed(&self) -> Option<Settlement> {
        lock(&self.owed).pop()
    }
}

/// Whether a ledger counts the day and the month of now. By a clock that is behind it may be ahead, but no further than clocks lie apart.
fn is_of(ledger: &Ledger, now: Timestamp) -> bool {
    let (from, to) = (Period::of(now), Period::of(now + LEEWAY));
    (from.day..=to.day).contains(&ledger.day) && (from.month..=to.month).contains(&ledger.month)
}

/// Makes a ledger agree with the records. Where it counts another day or month, a past one or one that has not come, it begins with
/// theirs; and while a key had no limits, nobody has counted here what it used.
fn agree(ledger: &mut Ledger, counted: &Ledger, now: Timestamp) {
    let (is_new, latest) = (ledger.key_version < counted.key_version, Period::of(now + LEEWAY));
    ledger.key_version = ledger.key_version.max(counted.key_version);
    if ledger.day < counted.day || ledger.day > latest.day {
        (ledger.day, ledger.tokens) = (counted.day, counted.tokens);
    } else if is_new && ledger.day == counted.day {
        ledger.tokens = ledger.tokens.max(counted.tokens);
    }
    if ledger.month < counted.month || ledger.month > latest.month {
        (ledger.month, ledger.cost_nano_usd) = (counted.month, counted.cost_nano_usd);
    } else if is_new && ledger.month == counted.month {
        ledger.cost_nano_usd = ledger.cost_nano_usd.max(counted.cost_nano_usd);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever is done to it is done by assignments, which cannot panic half-way.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was reserved for a request. Dropped, it is given back, as though the request had taken nothing.
#[must_use = "what is reserved is given back when it is dropped"]
pub struct Reservation {
    budgets: Arc<Inner>,
    /// None: it was settled.
    claim: Option<Claim>,
}

enum Claim {
    Held(Settlement),
    /// Nothing: the key had no limits at that time.
    Unheld(ApiKeyId, Period),
}

impl Reservation {
    /// Gives back what was reserved, but for what was used. Where the database fails, it is done as soon as that can be. Record the
    /// request first: a key that is asked for its budget for the first time reads it from the records.
    pub async fn settle(mut self, used: Used) {
        let settlement = match self.claim.take() {
            Some(Claim::Held(settlement)) => Settlement { used, ..settlement },
            Some(Claim::Unheld(key, period)) => {
                return self.budgets.add_unheld(key, period, (used.tokens(), used.cost.nanos()));
            }
            None => return,
        };
        let budgets = self.budgets.clone();
        let settling = async move {
            if let Err(error) = budgets.settle(&settlement).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what a request has used was not settled; it is tried again");
                budgets.owe(settlement);
            }
        };
        match &self.budgets.place {
            Place::Memory(_) => settling.await,
            // Done, whatever becomes of who waits for it.
            Place::Database { .. } => drop(self.budgets.tasks.spawn(settling).await),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(Claim::Held(settlement)) = self.claim.take() else { return };
        match &self.budgets.place {
            Place::Memory(budgets) => {
                if let Some(budget) = lock(budgets).get_mut(&settlement.start.api_key_id) {
                    budget.own.give_back(&settlement.held);
                }
            }
            Place::Database { .. } => self.budgets.owe(settlement),
        }
    }
}

/// Says that this server is there, settles what it owes, and what servers hold that have gone silent, until it is told to stop.
pub async fn keep(services: Arc<Services>, stop: CancellationToken) {
    let inner = &services.budgets.0;
    let Place::Database { .. } = &inner.place else { return };
    let (mut watch, mut next_beat) = (Watch::default(), Instant::now());
    loop {
        if let Err(error) = services.budgets.settle_owed().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what requests have used was not settled; it is tried again");
        }
        if Instant::now() >= next_beat {
            next_beat = Instant::now() + BEAT;
            let kept = async {
                services.budgets.beat().await?;
                watch.look(&services).await
            };
            if let Err(error) = kept.await {
                tracing::warn!(error = &error as &dyn std::error::Error, "budgets were not looked after");
            }
        }
        let wait = next_beat.saturating_duration_since(Instant::now()).min(SETTLING);
        tokio::select! {
            () = stop.cancelled() => return,
            () = inner.woken.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}
