//! Usage: each request of the relay is recorded, off its path and in batches, and read again by whoever may. A record that was taken is
//! written within a second, or when the database can again; none is lost by an orderly stop.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::bus;
use super::claude_account;
use super::context::{Cx, Services};
use super::error::Result;
use super::prices::Priced;
use super::usage_report;
use crate::audit::Committed;
use crate::crypto::Random;
use crate::events::News;
use crate::model::{
    ApiKeyId, ClaudeAccountId, ClientId, Clock, Id, OrganizationId, Page, PageSlice, Read, Timestamp, Tokens,
    UsageInterval, UsageRecordId, UserId,
};
use crate::store;
use crate::store::keys::organizations;
use crate::store::usage::{self as records, UsageFilter, UsageRecord, WhoseUsage, Written};

/// How long records gather before they are written.
const GATHERING: Duration = Duration::from_millis(200);
/// How soon it is tried again to write what could not be.
const RETRY: Duration = Duration::from_secs(1);
/// How long an orderly stop waits for a database that fails.
const LAST_TRIES: Duration = Duration::from_secs(5);
/// How often a batch is tried at once that others seem to have begun with: there may be more to it.
const MOST_TRIES: usize = 3;
/// How many records one transaction writes: others that write wait for it on SQLite.
const BATCH: usize = 1_000;
/// How many records wait at most: some tens of megabytes. What comes beyond, while the database fails, is lost, and counted.
const MOST_WAITING: usize = 50_000;
/// The longest text that is kept of what a caller or an upstream names.
const MOST_TEXT: usize = 200;
/// How many records one transaction of the retention removes.
const REMOVED_AT_ONCE: i64 = 2_000;

/// A request of the relay that has ended.
#[derive(Debug, Clone)]
pub struct NewUsageRecord {
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// With which key.
    pub api_key_id: Option<ApiKeyId>,
    /// In whose name.
    pub user_id: Option<UserId>,
    /// For which client.
    pub client_id: Option<ClientId>,
    /// By which account it was answered, or tried last.
    pub claude_account_id: Option<ClaudeAccountId>,
    /// When it came.
    pub occurred_at: Timestamp,
    /// The model that was asked for.
    pub model: String,
    /// The path, as `/v1/messages`.
    pub endpoint: String,
    /// Whether the answer was a stream.
    pub streamed: bool,
    /// How the caller was answered.
    pub status_code: u16,
    /// What went wrong, by the upstream's name for it; also in the middle of a stream.
    pub error_type: Option<String>,
    /// Whether the caller left before the end.
    pub interrupted: bool,
    /// How often an upstream was asked.
    pub attempts: u32,
    /// What was used by the attempt that answered.
    pub tokens: Tokens,
    /// What that costs, by [`Prices::cost`](super::prices::Prices::cost).
    pub priced: Priced,
    /// Whether tokens had to be guessed, since the upstream did not get to count them.
    pub is_estimated: bool,
    /// How long it took.
    pub latency: Duration,
    /// How long it took to the first token.
    pub time_to_first_token: Option<Duration>,
    /// The request, as the log names it.
    pub request_id: String,
    /// The request, as the upstream names it.
    pub upstream_request_id: Option<String>,
    /// The caller's session.
    pub session_id: Option<String>,
}

/// Takes records, and writes them.
pub struct UsageRecorder {
    clock: Clock,
    random: Random,
    waiting: Mutex<VecDeque<UsageRecord>>,
    woken: Notify,
    /// The batch that is written, in the parts that one transaction each writes: as a rule it is one. A part stays as it is until it is
    /// known to be there, so that none is written twice, or to be refused.
    batch: tokio::sync::Mutex<VecDeque<Vec<UsageRecord>>>,
    tally: Tally,
}

/// What became of records on this server.
#[derive(Debug, Default)]
pub struct Tally {
    /// Written.
    pub written: AtomicU64,
    /// Lost: too many waited, or the database does not take them.
    pub lost: AtomicU64,
    /// How often writing has failed.
    pub failures: AtomicU64,
    /// Those that wait.
    pub waiting: AtomicU64,
}

impl UsageRecorder {
    /// Nothing recorded yet.
    #[must_use]
    pub fn new(clock: Clock, random: Random) -> Self {
        Self {
            clock,
            random,
            waiting: Mutex::default(),
            woken: Notify::new(),
            batch: tokio::sync::Mutex::default(),
            tally: Tally::default(),
        }
    }

    /// Takes a record. It waits for nothing.
    pub fn record(&self, new: NewUsageRecord) -> UsageRecordId {
        let record = row(Id::new(self.clock.now(), &self.random.bytes()), new);
        let id = record.id;
        let mut waiting = lock(&self.waiting);
        if waiting.len() < MOST_WAITING {
            waiting.push_back(record);
            self.tally.waiting.fetch_add(1, Ordering::Relaxed);
            // Who writes is told of the first; what comes after gathers.
            if waiting.len() == 1 {
                self.woken.notify_one();
            }
        } else {
            self.tally.lost.fetch_add(1, Ordering::Relaxed);
        }
        id
    }

    /// What became of records.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Pushing and taking cannot panic half-way.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn row(id: UsageRecordId, new: NewUsageRecord) -> UsageRecord {
    let tokens = new.tokens.bounded();
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let millis = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    UsageRecord {
        id,
        organization_id: new.organization_id,
        sequence: 0,
        occurred_at: new.occurred_at,
        api_key_id: new.api_key_id,
        user_id: new.user_id,
        client_id: new.client_id,
        claude_account_id: new.claude_account_id,
        // Callers name what they like, and sums are for good: a name counts that the table has, or that an upstream has answered to.
        model: match new.priced.model {
            Some(model) => model.to_string(),
            None if new.status_code < 400 => tame(new.model.clone()),
            None => String::new(),
        },
        asked_model: tame(new.model),
        endpoint: tame(new.endpoint),
        status_code: new.status_code.into(),
        error_type: new.error_type.map(tame),
        streamed: new.streamed,
        interrupted: new.interrupted,
        attempts: i32::try_from(new.attempts).unwrap_or(i32::MAX),
        input_tokens: count(tokens.input),
        output_tokens: count(tokens.output),
        cache_write_5m_tokens: count(tokens.cache_write_5m),
        cache_write_1h_tokens: count(tokens.cache_write_1h),
        cache_read_tokens: count(tokens.cache_read),
        web_searches: count(tokens.web_searches),
        cost_nano_usd: new.priced.cost.nanos(),
        is_estimated: new.is_estimated,
        is_known_model: new.priced.is_known,
        latency_ms: millis(new.latency),
        time_to_first_token_ms: new.time_to_first_token.map(millis),
        request_id: tame(new.request_id),
        upstream_request_id: new.upstream_request_id.map(tame),
        session_id: new.session_id.map(tame),
    }
}

/// Callers and upstreams choose such texts: what no database takes is left out, and what is too long is cut.
fn tame(text: String) -> String {
    if text.len() <= MOST_TEXT && !text.contains(char::is_control) {
        return text;
    }
    text.chars().filter(|character| !character.is_control()).take(MOST_TEXT).collect()
}

/// Writes what is recorded, until it is told to stop.
pub async fn write(services: Arc<Services>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = services.usage.woken.notified() => {}
        }
        if stop.run_until_cancelled(tokio::time::sleep(GATHERING)).await.is_none() {
            return;
        }
        while let Err(error) = flush(&services).await {
            let waiting = services.usage.tally.waiting.load(Ordering::Relaxed);
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                waiting,
                "usage was not recorded; it is tried again"
            );
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }
}

/// Writes what is left, where the database lets it, and says how much it did not.
pub async fn finish(services: &Services) {
    let flushing = async {
        while flush(services).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    };
    if tokio::time::timeout(LAST_TRIES, flushing).await.is_err() {
        let lost = services.usage.tally.waiting.load(Ordering::Relaxed);
        tracing::error!(lost, "usage could not be recorded before the stop: it is lost");
    }
}

/// Writes all that was recorded so far.
///
/// # Errors
/// Where the database fails: what was not written waits on.
pub async fn flush(services: &Services) -> store::Result<()> {
    let recorder = &services.usage;
    let mut batch = recorder.batch.lock().await;
    // What comes meanwhile gathers: written at once, it would be in as many transactions as the database can do.
    let mut left = lock(&recorder.waiting).len();
    loop {
        if batch.is_empty() {
            let mut waiting = lock(&recorder.waiting);
            let count = waiting.len().min(left).min(BATCH);
            if count == 0 {
                // Of what has come meanwhile nobody was told who writes.
                if !waiting.is_empty() {
                    recorder.woken.notify_one();
                }
                return Ok(());
            }
            left -= count;
            batch.push_back(waiting.drain(..count).collect());
        }
        // Who flushes may leave at any time: a part stays in the batch until it is known what has become of it.
        while let Some(part) = batch.front_mut() {
            let written = write_part(services, part).await;
            let count = part.len() as u64;
            if let Err(error) = written {
                recorder.tally.failures.fetch_add(1, Ordering::Relaxed);
                if !is_refused(services, part, &error).await {
                    return Err(error);
                }
                if count > 1 {
                    let parts = split(std::mem::take(part));
                    batch.pop_front();
                    for part in parts.into_iter().rev() {
                        batch.push_front(part);
                    }
                    continue;
                }
                lose(part, &error);
                recorder.tally.lost.fetch_add(count, Ordering::Relaxed);
            } else {
                recorder.tally.written.fetch_add(count, Ordering::Relaxed);
            }
            recorder.tally.waiting.fetch_sub(count, Ordering::Relaxed);
            batch.pop_front();
        }
    }
}

/// Whether it is the records that the database does not take, and not that it takes none.
async fn is_refused(services: &Services, part: &[UsageRecord], error: &store::Error) -> bool {
    match (error, part) {
        (store::Error::Unavailable(_) | store::Error::Deadlock(_), _) => false,
        (_, [only]) => records::takes_changes(&services.db, only).await.is_ok(),
        // Nothing is lost by writing it in smaller parts.
        _ => true,
    }
}

/// By organization, so that nobody waits for another's; one organization's in halves, so that few have to be written one by one.
fn split(mut part: Vec<UsageRecord>) -> Vec<Vec<UsageRecord>> {
    let first = part[0].organization_id;
    if part.iter().all(|record| record.organization_id == first) {
        let half = part.split_off(part.len() / 2);
        return vec![part, half];
    }
    let mut parts: BTreeMap<OrganizationId, Vec<UsageRecord>> = BTreeMap::new();
    for record in part {
        parts.entry(record.organization_id).or_default().push(record);
    }
    parts.into_values().collect()
}

fn lose(part: &[UsageRecord], error: &store::Error) {
    for record in part {
        let (id, organization) = (record.id, record.organization_id);
        let error = error as &dyn std::error::Error;
        tracing::error!(error, %id, %organization, "the database does not take a usage record: it is lost");
    }
}

async fn write_part(services: &Services, part: &mut [UsageRecord]) -> store::Result<()> {
    let mut tries = 0;
    let written = loop {
        tries += 1;
        match records::write(&services.db, part, services.clock.now()).await {
            Err(store::Error::Duplicate) if tries < MOST_TRIES => {
                // Either they are there, and it was the answer that was lost; or another server has begun with the organization's
                // records at the same moment.
                if records::is_there(&mut services.db.read().await?, part[0].id).await? {
                    services.bus.told.anything();
                    return Ok(());
                }
            }
            written => break written?,
        }
    };
    tell(services, written).await;
    Ok(())
}

/// Says what was written, here and to other servers. What is to be noted of an account is found again by a job, should it fail.
async fn tell(services: &Services, Written { ends, to_follow }: Written) {
    for (organization, sequence) in ends {
        services.usage_commits.publish(Committed { organization, sequence, resource_type: None });
        bus::tell(services, News::Used { organization, sequence }).await;
    }
    for (organization, account) in to_follow {
        if let Err(error) = claude_account::follow_usage(services, organization, account).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, %account, "how far an account's limit is used up was not noted");
        }
    }
}

/// Whose usage the caller may see: everybody's with `VIEW_USAGE`, else the caller's own.
pub(super) fn whose(cx: Cx<'_>) -> Result<WhoseUsage> {
    let permit = cx.actor.require::<Read>()?;
    match (cx.actor.require(), cx.actor.signed_in()) {
        (Ok(all), _) => Ok(WhoseUsage::Everybodys(all)),
        (Err(_), Some(user)) => Ok(WhoseUsage::Own(permit, user.user)),
        (Err(denied), None) => Err(denied.into()),
    }
}

/// The same filter by the model's own name: it may be asked for by another, and records are added up under one.
pub(super) fn by_known_model(services: &Services, filter: &UsageFilter) -> UsageFilter {
    let known = |model: String| services.prices.known(&model).map_or(model, ToString::to_string);
    UsageFilter { model: filter.model.clone().map(known), ..filter.clone() }
}

/// A page of the organization's records, or of the caller's own, the newest first.
///
/// # Errors
/// Where nobody is signed in, or with a cursor of another list.
pub async fn page(cx: Cx<'_>, filter: &UsageFilter, page: &Page) -> Result<PageSlice<UsageRecord>> {
    let (whose, filter) = (whose(cx)?, &by_known_model(cx.services, filter));
    let is_filtered = whose.user().is_some() || *filter != UsageFilter::default();
    let mut conn = cx.services.db.list(page, is_filtered).await?;
    Ok(records::page(&mut conn, &whose, filter, page).await?)
}

/// How many records there are: by what they add up to, however many they are. The retention removes whole hours.
///
/// # Errors
/// Where nobody is signed in.
pub async fn count(cx: Cx<'_>, filter: &UsageFilter) -> Result<i64> {
    let (whose, filter) = (whose(cx)?, &by_known_model(cx.services, filter));
    let mut conn = cx.services.db.scan().await?;
    let Some(oldest) = records::oldest(&mut conn, &whose).await? else { return Ok(0) };
    let oldest = UsageInterval::Hour.start(oldest);
    let from = filter.from.map_or(oldest, |from| from.max(oldest));
    let to = filter.to.unwrap_or(Timestamp::MAX);
    Ok(usage_report::total(&mut conn, &whose, filter, (from, to)).await?.requests)
}

/// The records among `ids` that the caller may see, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[UsageRecordId]) -> Result<Vec<UsageRecord>> {
    Ok(records::find_many(&mut cx.services.db.read().await?, &whose(cx)?, ids).await?)
}

/// The next record after a place, up to another, that passes the filter and that the caller may see.
///
/// # Errors
/// Where nobody is signed in.
pub async fn next(cx: Cx<'_>, filter: &UsageFilter, span: (i64, i64)) -> Result<Option<UsageRecord>> {
    let filter = by_known_model(cx.services, filter);
    Ok(records::next(&mut cx.services.db.scan().await?, &whose(cx)?, &filter, span).await?)
}

/// How far the organization's records are.
///
/// # Errors
/// Where nobody is signed in.
pub async fn end(cx: Cx<'_>) -> Result<i64> {
    Ok(records::end(&mut cx.services.db.read().await?, &whose(cx)?).await?)
}

/// Removes records that are older than so many days, also by the database's clock, by whole hours. What they added up to stays, and
/// reports with it. Returns how many they were.
///
/// # Errors
/// Where the database fails; what was removed so far stays so.
pub async fn remove_old(services: &Services, days: u32) -> Result<usize> {
    let before = UsageInterval::Hour.start(services.cautious_now().await? + -TimeDelta::days(days.into()));
    let organizations = organizations(&mut services.db.scan().await?).await?;
    let mut removed = 0;
    for organization in organizations {
        loop {
            let count = records::remove(&services.db, organization, before, REMOVED_AT_ONCE).await?;
            removed += count;
            if i64::try_from(count).is_ok_and(|count| count < REMOVED_AT_ONCE) {
                break;
            }
        }
    }
    Ok(removed)
}
