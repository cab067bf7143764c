//! What becomes of a request: one usage record, and what was reserved for it settled, however it ends; also where its caller leaves.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::Relay;
use super::bodies::Owner;
use super::caller::{Admitted, Caller};
use super::error::{Refusal, Result};
use super::meter::Meter;
use super::pool::Lease;
use super::request::{Head, session_id};
use super::weight::{self, Weight};
use crate::domain::budget::{Estimate, NotReserved, OverBudget, Reservation, Used};
use crate::domain::quota::QuotaKind;
use crate::domain::relay_account::RelayAccount;
use crate::domain::usage::NewUsageRecord;
use crate::model::{MicroUsd, Timestamp, Tokens};
use crate::store::api_key::FoundApiKey;
use crate::upstream::Progress;
use crate::workers::Spender;

/// What stands in the record of a caller who left before there was an answer.
const LEFT: u16 = 499;

/// What takes longer than a moment to read.
const LARGE: usize = 1024 * 1024;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Messages,
    CountTokens,
    ChatCompletions,
}

impl Endpoint {
    /// The path by which callers ask.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::ChatCompletions => "/v1/chat/completions",
        }
    }

    /// Whether it uses tokens.
    pub(super) fn is_charged(self) -> bool {
        self != Self::CountTokens
    }
}

/// A request, from when something was reserved for it until it is settled, which is when this is dropped.
pub(super) struct Tally {
    relay: Arc<Relay>,
    pub(super) meter: Meter,
    endpoint: Endpoint,
    key: Arc<FoundApiKey>,
    model: String,
    is_streamed: bool,
    request_id: String,
    session: Option<String>,
    occurred_at: Timestamp,
    started: Instant,
    /// The body, until the upstream has told how much it is.
    body: Option<Bytes>,
    /// How long its prompt is, as a rule, where it was read for that.
    about: Option<u64>,
    /// How long the answer may be.
    most_output: u64,
    reservation: Option<Reservation>,
    /// Where it counts for the turn of a conversation.
    spender: Option<Spender>,
    /// The account that it was at last.
    account: Option<Arc<RelayAccount>>,
    /// As long as it is there.
    lease: Option<Arc<Lease>>,
    attempts: u32,
    /// How far the attempt has come that is under way, or was answered.
    progress: Progress,
    /// Whether an attempt was lost sight of that the upstream may have done.
    is_lost: bool,
    /// Bytes of an answer that came and was not read, since it is not whole.
    cut_off: usize,
    status: Option<StatusCode>,
    error_type: Option<String>,
    upstream_request_id: Option<String>,
    first_token: Option<Duration>,
    /// Whether the caller has the answer, as far as there is one.
    is_answered: bool,
}

impl Tally {
    /// Reserves what the request may take.
    ///
    /// # Errors
    /// Where that is more than the key has left, or the turn of a conversation.
    pub(super) async fn begin(
        relay: &Arc<Relay>,
        caller: &Caller,
        admitted: &Admitted,
        endpoint: Endpoint,
        (head, headers, body): (&Head<'_>, &HeaderMap, &Bytes),
    ) -> Result<Self> {
        let (services, started) = (&relay.services, Instant::now());
        let occurred_at = services.clock.now();
        let spender = match &admitted.spending {
            Some(spending) if endpoint.is_charged() => Some(spending.request().ok_or_else(turn_is_spent)?),
            _ => None,
        };
        let key = &admitted.key;
        let has_budget = key.key.token_limit_per_day.is_some() || key.key.cost_limit_micro_usd_per_month.is_some();
        let mut known = None;
        let estimate = if has_budget && endpoint.is_charged() {
            let Weight { input, searches, about } = at_most(body).await?;
            // The API refuses a request that does not say it; what is compatible with it may make it up.
            let output = head.max_tokens.unwrap_or(weight::LONGEST_ANSWER);
            known = Some(about);
            let cost = services.prices.estimate(&head.model, input, output, occurred_at);
            let searches = Tokens { web_searches: searches, ..Tokens::default() };
            let searches = services.prices.cost(&head.model, &searches, occurred_at).cost.rounded_up();
            let cost = MicroUsd::from_micros(cost.micros().saturating_add(searches.micros()));
            Estimate { tokens: input.saturating_add(output), cost }
        } else {
            Estimate::default()
        };
        let reserved = services.budgets.reserve(services, key, estimate).await;
        let reservation = reserved.map_err(|error| match error {
            NotReserved::Over(over) => over_budget(&over, occurred_at),
            NotReserved::Unavailable(error) => crate::domain::Error::from(error).into(),
        })?;
        Ok(Self {
            relay: relay.clone(),
            meter: Meter::default(),
            endpoint,
            key: key.clone(),
            model: head.model.clone().into_owned(),
            is_streamed: head.stream.unwrap_or(false),
            request_id: caller.request_id.clone(),
            session: session_id(headers, &admitted.raw),
            occurred_at,
            started,
            body: endpoint.is_charged().then(|| body.clone()),
            about: known,
            most_output: head.max_tokens.unwrap_or(u64::MAX),
            reservation: Some(reservation),
            spender,
            account: None,
            lease: None,
            attempts: 0,
            progress: Progress::default(),
            is_lost: false,
            cut_off: 0,
            status: None,
            error_type: None,
            upstream_request_id: None,
            first_token: None,
            is_answered: false,
        })
    }

    pub(super) fn relay(&self) -> &Arc<Relay> {
        &self.relay
    }

    /// Whose answer it is.
    pub(super) fn owner(&self) -> Owner {
        (self.key.key.organization_id, self.key.key.id)
    }

    /// The account that it is at.
    pub(super) fn lease(&self) -> Option<&Arc<Lease>> {
        self.lease.as_ref()
    }

    /// An account is asked. How far that comes is to be noted.
    pub(super) fn attempt(&mut self, lease: Arc<Lease>) -> &mut Progress {
        self.attempts += 1;
        self.account = Some(lease.account.clone());
        self.lease = Some(lease);
        self.progress = Progress::default();
        &mut self.progress
    }

    /// It has said that it does not do it.
    pub(super) fn attempt_failed(&mut self) {
        self.lease = None;
        self.progress = Progress::default();
    }

    /// It may have done it, and nobody knows.
    pub(super) fn attempt_lost(&mut self) {
        self.attempt_failed();
        self.is_lost = true;
    }

    /// A whole answer came only in part.
    pub(super) fn cuts_off(&mut self, received: usize) {
        self.cut_off = received;
    }

    /// How the upstream answers, or the relay in its place.
    pub(super) fn answers(&mut self, status: StatusCode, upstream_request_id: Option<&str>) {
        self.status = Some(status);
        self.upstream_request_id = upstream_request_id.map(str::to_owned);
    }

    /// The caller has an answer that is no success.
    pub(super) fn fails(&mut self, status: StatusCode, error_type: &str) {
        self.status = Some(status);
        self.error_type = Some(error_type.to_owned());
        self.is_answered = true;
    }

    /// The relay answers by itself.
    pub(super) fn refuses(&mut self, refusal: &Refusal) {
        self.fails(refusal.status(), refusal.kind());
    }

    /// Something went wrong in the middle of an answer.
    pub(super) fn breaks(&mut self, error_type: &str) {
        self.error_type = Some(error_type.to_owned());
        self.is_answered = true;
    }

    /// Something of a stream came by.
    pub(super) fn reads(&mut self, events: &[u8]) {
        self.meter.read_events(events);
        self.spend(self.meter.tokens().0);
        if self.first_token.is_none() && self.meter.has_content() {
            self.first_token = Some(self.started.elapsed());
        }
        // What begins with an error was never begun.
        let is_refused = self.meter.error.is_some() && self.meter.model.is_none() && !self.meter.has_content();
        if self.body.is_some() && (self.meter.is_told() || is_refused) {
            self.body = None;
        }
    }

    /// The whole answer is there.
    pub(super) fn reads_whole(&mut self, body: &[u8]) {
        if self.endpoint.is_charged() {
            at_leisure(body.len(), || self.meter.read_whole(body));
            self.spend(self.meter.tokens().0);
        }
    }

    /// Before the process that asks has all of it: who sees the end of a turn sees what it has used.
    fn spend(&self, tokens: Tokens) {
        if let Some(spender) = &self.spender {
            spender.counts(tokens);
        }
    }

    /// The caller has all of it.
    pub(super) fn ends(&mut self) {
        self.is_answered = true;
        if let Some(lease) = &self.lease {
            lease.completed();
        }
    }

    /// What was used, and whether some of that is a guess.
    fn used(&self) -> (Tokens, bool) {
        let (mut tokens, mut is_guess) = self.meter.tokens();
        // The upstream was at work, and has not told on what. It is none of its work to wait for it, or for a connection.
        let was_at_work = self.is_lost || self.progress.has_connection();
        if let Some(body) = &self.body
            && was_at_work
            && !self.meter.is_told()
        {
            let output = (self.cut_off as u64).div_ceil(weight::CHARACTERS).min(self.most_output);
            let input = self.about.unwrap_or_else(|| about(body));
            (tokens.input, tokens.output) = (input, tokens.output.max(output));
            is_guess = true;
        }
        (tokens, is_guess)
    }

    fn settle(&mut self) {
        let (tokens, is_estimated) = self.used();
        self.spend(tokens);
        let services = &self.relay.services;
        let mut priced = services.prices.cost(&self.model, &tokens, self.occurred_at);
        // It may have been asked for by a name that is only the upstream's.
        if let Some(model) = self.meter.model.as_deref().filter(|_| !priced.is_known) {
            let by_answer = services.prices.cost(model, &tokens, self.occurred_at);
            if by_answer.is_known {
                priced = by_answer;
            }
        }
        let used = Used { tokens: tokens.total(), cost: priced.cost };
        let account = self.account.as_ref();
        if let Some(account) = account {
            account.count(used.tokens);
        }
        let key = &self.key.key;
        // A caller that has read the last event need not wait for the end.
        let is_interrupted = !self.is_answered && !self.meter.is_complete();
        let error = self.error_type.take().or(self.meter.error.as_ref().map(|error| error.kind.clone()));
        services.usage.record(NewUsageRecord {
            organization_id: key.organization_id,
            api_key_id: self.key.recorded(),
            user_id: Some(key.owner_id),
            client_id: key.client_id,
            claude_account_id: account.map(|account| account.id()),
            occurred_at: self.occurred_at,
            model: std::mem::take(&mut self.model),
            endpoint: self.endpoint.path().to_owned(),
            streamed: self.is_streamed,
            status_code: self.status.map_or(LEFT, |status| status.as_u16()),
            error_type: error,
            interrupted: is_interrupted,
            attempts: self.attempts,
            tokens,
            priced,
            is_estimated,
            latency: self.started.elapsed(),
            time_to_first_token: self.first_token,
            request_id: std::mem::take(&mut self.request_id),
            upstream_request_id: self.upstream_request_id.take(),
            session_id: self.session.take(),
        });
        let Some(reservation) = self.reservation.take() else { return };
        let mut settling = Box::pin(reservation.settle(used));
        // Where nothing is to be waited for, it is done by now.
        if (&mut settling).now_or_never().is_none() {
            self.relay.tasks.spawn(settling);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.settle();
    }
}

/// How much a prompt is, as a rule. Many callers may leave at once.
fn about(body: &Bytes) -> u64 {
    at_leisure(body.len(), || weight::of(body).about)
}

/// Reads so many bytes. Where that takes longer than a moment, what runs beside it goes on.
pub(super) fn at_leisure<T>(bytes: usize, read: impl FnOnce() -> T) -> T {
    if bytes < LARGE { read() } else { tokio::task::block_in_place(read) }
}

/// How much a request is at most.
async fn at_most(body: &Bytes) -> Result<Weight> {
    if body.len() < LARGE {
        return Ok(weight::of(body));
    }
    let body = body.clone();
    let weighed = tokio::task::spawn_blocking(move || weight::of(&body)).await;
    weighed.map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "The request could not be read."))
}

/// What a process is told whose turn has nothing left: to ask again is of no use.
fn turn_is_spent() -> Refusal {
    Refusal::bad_request("This answer has used the tokens that it may (TURN_TOKEN_BUDGET).").for_good()
}

/// What a caller is told whose key has nothing left.
fn over_budget(over: &OverBudget, now: Timestamp) -> Refusal {
    let limit = over.limit;
    // What requests hold that run now may be free in a moment; what is spent stays so until its time is over.
    let refuse = |message: String| {
        if over.is_held_by_others {
            Refusal::rate_limited(message, Duration::from_secs(1))
        } else {
            let wait = (over.resets_at - now).to_std().unwrap_or_default();
            Refusal::rate_limited(message, wait).for_good()
        }
    };
    match over.kind {
        QuotaKind::ConcurrentRequests => {
            refuse(format!("This API key may have {limit} requests at once, and has. Wait until one ends."))
        }
        QuotaKind::TokensPerDay => {
            refuse(format!("This API key may use {limit} tokens a day, and this request may need more than are left."))
        }
        QuotaKind::CostMicroUsdPerMonth => {
            let limit = MicroUsd::from_micros(limit);
            refuse(format!("This API key may cost {limit} USD a month, and this request may cost more than is left."))
        }
        QuotaKind::RequestsPerMinute | QuotaKind::RequestsPerHour => {
            refuse("This API key has sent too many requests. Try again later.".to_owned())
        }
    }
}
