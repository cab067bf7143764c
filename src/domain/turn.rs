//! One turn of a conversation: its owner says something, and Claude answers through a process of the pool. Both are kept together, or
//! neither: a turn that fails, or that a server's end cuts off, has not been.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answering::Answering;
use super::context::{Cx, Record, Services};
use super::conversation::{self, MODEL_LENGTH, no_such};
use super::deed::{audited, record_failure};
use super::error::{Error, FieldError, Result};
use super::message::{blocks, seal, text_block};
use super::validation::Checks;
use super::{client, worker};
use crate::audit::{Changes, Entry, Origin};
use crate::crypto::SecretText;
use crate::identity::{Actor, Loan};
use crate::model::{AuditAction, ConversationId, JsonObject, MessageRole, ResourceType, Timestamp};
use crate::settings::Settings;
use crate::store::conversation::{self as conversations, Conversation, Own};
use crate::store::conversation_lease::{self as leases, ConversationLease};
use crate::store::message::{self as messages, Message};
use crate::workers::{Answer, Context, Event, Failure, MOST_KEPT, NoPlace, Opening, Place, Said, Spending, Turn};

const TEXT_LENGTH: usize = 100_000;
/// How many messages a conversation has at most: a process that is started for it is told all of them.
const MOST_MESSAGES: i32 = 1_000;
/// How many bytes they are together, sealed, when one more may be said. What Claude takes at once is about that.
const MOST_BYTES: i64 = 1024 * 1024;
/// How much of an answer may wait to be read, in bytes: who leaves more has left.
const MOST_UNREAD: usize = 1024 * 1024;
/// How long before its request must be answered an answer ends as it is: it takes its time to end, and to be kept.
const BEFORE_DEADLINE: Duration = Duration::from_secs(7);
/// When it is worth to ask again that was refused for too many ask.
const AGAIN: Duration = Duration::from_secs(5);

/// What turns may do, by the settings.
#[derive(Debug, Clone)]
pub struct TurnLimits {
    /// The tools that may be used.
    pub tools: Vec<String>,
    /// How many tokens an answer may use.
    budget: u64,
}

impl From<&Settings> for TurnLimits {
    fn from(settings: &Settings) -> Self {
        Self { tools: settings.claude_tools.clone(), budget: settings.turn_token_budget.into() }
    }
}

/// The input of [`send`] and [`stream`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Send {
    /// A new one is made where it is left out.
    pub conversation_id: Option<String>,
    pub text: SecretText,
    pub model: Option<String>,
    pub tools: Vec<String>,
}

/// What happens while an answer is given.
#[derive(Debug)]
pub enum TurnEvent {
    /// A piece of its text.
    Text(String),
    /// A tool is used.
    ToolUse {
        /// The tool.
        name: String,
        /// What it is given.
        input: Value,
    },
    /// It is kept. Nothing follows.
    Kept(Box<Kept>),
    /// There is none. Nothing follows.
    Failed(Error),
}

/// An answer that is kept, and the conversation that it stands in.
pub type Kept = (Conversation, Message);

/// Says something and waits for the whole answer; or, where the request must be answered before, or nobody waits any more, for what
/// there is of it by then.
///
/// # Errors
/// Without permission, with wrong input, where something is being answered in the conversation already, or where there is no answer.
pub async fn send(cx: Cx<'_>, left: &CancellationToken, input: Send) -> Result<Kept> {
    run(cx, input, &End::before(cx, left.clone(), cx.deadline), None).await
}

/// What ends an answer as it is.
struct End {
    /// Whoever asked has left.
    left: CancellationToken,
    /// The server stops.
    stopping: CancellationToken,
    /// The request must be answered soon.
    at: Option<Instant>,
}

impl End {
    fn before(cx: Cx<'_>, left: CancellationToken, deadline: Option<Instant>) -> Self {
        let at = deadline.map(|deadline| {
            // Of a short time most is left to the answer.
            let time = deadline.saturating_duration_since(Instant::now());
            deadline - BEFORE_DEADLINE.min(time / 4)
        });
        Self { left, stopping: cx.services.workers.stopping().clone(), at }
    }

    async fn comes(&self) {
        let in_time = async {
            match self.at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.left.cancelled() => {}
            () = self.stopping.cancelled() => {}
            () = in_time => {}
        }
    }

    fn has_come(&self) -> bool {
        self.left.is_cancelled() || self.stopping.is_cancelled() || self.is_late()
    }

    fn is_late(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    /// Why nothing was answered before it.
    fn error(&self) -> Error {
        if self.is_late() {
            Error::timeout()
        } else if self.stopping.is_cancelled() {
            no_place(NoPlace::Stopping)
        } else {
            nobody_waits()
        }
    }
}

/// An answer as it comes. Dropped, it ends as it is.
pub struct Streamed {
    events: mpsc::UnboundedReceiver<(TurnEvent, usize)>,
    next: Option<TurnEvent>,
    unread: Arc<AtomicUsize>,
    _left: DropGuard,
}

/// Where an answer is told. It never waits for whoever reads it: with it would wait a process, which others need.
struct Teller {
    events: mpsc::UnboundedSender<(TurnEvent, usize)>,
    unread: Arc<AtomicUsize>,
}

impl Teller {
    /// Whether somebody is there who reads.
    fn tell(&self, event: TurnEvent) -> bool {
        let told = match &event {
            TurnEvent::Text(text) => text.len(),
            TurnEvent::ToolUse { name, input } => name.len() + input.to_string().len(),
            TurnEvent::Kept(_) | TurnEvent::Failed(_) => 0,
        };
        let size = told + size_of::<TurnEvent>();
        // What comes at once may be larger: that nobody reads shows at the next.
        self.unread.fetch_add(size, Ordering::Relaxed) <= MOST_UNREAD && self.events.send((event, size)).is_ok()
    }

    /// Whoever has left knows.
    fn end(&self, event: TurnEvent) {
        let _ = self.events.send((event, 0));
    }
}

impl std::fmt::Debug for Streamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Streamed")
    }
}

impl Streamed {
    /// What happens next; text that is there already at once. None: nothing does any more. Given up, nothing is lost.
    pub async fn next(&mut self) -> Option<TurnEvent> {
        let first = if let Some(event) = self.next.take() {
            event
        } else {
            let (event, size) = self.events.recv().await?;
            self.unread.fetch_sub(size, Ordering::Relaxed);
            event
        };
        let TurnEvent::Text(mut text) = first else { return Some(first) };
        while let Ok((event, size)) = self.events.try_recv() {
            self.unread.fetch_sub(size, Ordering::Relaxed);
            match event {
                TurnEvent::Text(more) => text += &more,
                other => {
                    self.next = Some(other);
                    break;
                }
            }
        }
        Some(TurnEvent::Text(text))
    }
}

/// Who asks for an answer as it comes: it is finished though they have left.
#[derive(Clone)]
pub struct Asking {
    /// What it is done with.
    pub services: Arc<Services>,
    /// Who asks.
    pub actor: Actor,
    /// From where.
    pub origin: Origin,
    /// By which field or path.
    pub operation: String,
}

/// Says something, and tells what is answered as it comes. No mutation: it sees to its entry in the audit log by itself.
#[must_use]
pub fn stream(asking: Asking, input: Send) -> Streamed {
    let (to_caller, events) = mpsc::unbounded_channel();
    let unread = Arc::<AtomicUsize>::default();
    let teller = Teller { events: to_caller, unread: unread.clone() };
    let left = CancellationToken::new();
    let has_left = left.clone();
    let turns = asking.services.turns.clone();
    turns.spawn(async move {
        let Asking { services, actor, origin, operation } = &asking;
        let record = Record::default();
        let cx = Cx { services, actor, origin, operation, record: &record, deadline: None };
        let end = End::before(cx, has_left, None);
        let done = run(cx, input, &end, Some(&teller)).await;
        if let Err(error) = &done
            && let Err(error) = record_failure(cx, AuditAction::Update, ResourceType::Conversation, error).await
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "that a turn has failed stands not in the audit log"
            );
        }
        teller.end(done.map_or_else(TurnEvent::Failed, |kept| TurnEvent::Kept(Box::new(kept))));
    });
    Streamed { events, next: None, unread, _left: left.drop_guard() }
}

/// What is to be said, checked.
struct Turned {
    own: Own,
    conversation: Conversation,
    is_new: bool,
    text: SecretText,
    model: Option<String>,
    tools: Vec<String>,
    at: Timestamp,
}

async fn run(cx: Cx<'_>, input: Send, end: &End, told: Option<&Teller>) -> Result<Kept> {
    let turned = prepare(cx, input).await?;
    if cx.services.workers.program().is_none() || cx.services.workers.base_url().is_none() {
        cx.services.workers.note_missing(turned.own.organization());
        return Err(Error::away(worker::NO_CLI));
    }
    if turned.is_new {
        return answer_and_keep(cx, turned, None, end, told).await;
    }
    let Conversation { id, message_count, .. } = turned.conversation;
    let answering = Answering::begin(cx, id, message_count).await?.ok_or_else(busy)?;
    let work = Box::pin(answer_and_keep(cx, turned, answering.lease(), end, told));
    let done = answering.while_it_lasts(cx, work).await;
    match &done {
        Ok(_) => answering.ended(),
        Err(_) => answering.give_up().await,
    }
    done
}

async fn answer_and_keep(
    cx: Cx<'_>,
    turned: Turned,
    lease: Option<&ConversationLease>,
    end: &End,
    told: Option<&Teller>,
) -> Result<Kept> {
    // The time is up for an answer, not for its commit: whoever is told that there is none finds none.
    let (answer, turn) = Box::pin(cx.in_time(answered(cx, &turned, end, told))).await??;
    let context = context(cx, &turned, turned.conversation.message_count + 2);
    let kept = commit(cx, turned, answer, lease).await?;
    turn.keep(context);
    Ok(kept)
}

/// Whose conversations somebody may say something in.
///
/// # Errors
/// Where that is nobody's.
pub fn may_say(actor: &Actor) -> Result<Own> {
    // A query for an API key that only reads, but for what it does. Asked first: a key that may neither is told the scope that it needs.
    actor.access().ok_or_else(Error::unauthenticated)?.may_write()?;
    Ok(actor.conversations()?)
}

async fn prepare(cx: Cx<'_>, input: Send) -> Result<Turned> {
    let own = may_say(cx.actor)?;
    cx.record.begin(input.conversation_id.clone());
    let mut checks = Checks::new();
    let text = input.text.expose();
    if text.trim().is_empty() || text.chars().count() > TEXT_LENGTH {
        checks.fail("text", format!("must have 1 to {TEXT_LENGTH} characters"));
    }
    let model = input.model.and_then(|text| checks.line("model", &text, MODEL_LENGTH));
    let mut tools = input.tools;
    tools.sort_unstable();
    tools.dedup();
    if tools.iter().any(|tool| !cx.services.turn_limits.tools.contains(tool)) {
        checks.fail("tools", "has one that CLAUDE_TOOLS does not allow");
    }
    checks.finish()?;
    let (conversation, is_new) = if let Some(id) = input.conversation_id {
        let id: ConversationId = id.parse().map_err(|_| no_such())?;
        let mut conn = cx.services.db.read().await?;
        let found = conversations::find_many(&mut conn, &own, &[id]).await?.pop().ok_or_else(no_such)?;
        if found.message_count >= MOST_MESSAGES || messages::size(&mut conn, &own, id).await? >= MOST_BYTES {
            return Err(full());
        }
        (found, false)
    } else {
        let input = conversation::Create { model: model.clone(), ..conversation::Create::default() };
        (conversation::prepare(cx, &own, input)?, true)
    };
    let model = model.or_else(|| conversation.model.clone());
    Ok(Turned { own, conversation, is_new, text: input.text, model, tools, at: cx.services.clock.now() })
}

/// What a process has to know to go on: with another model, prompt or caller it would be another.
fn context(cx: Cx<'_>, turned: &Turned, messages: i32) -> Context {
    let Turned { own, conversation, model, tools, .. } = turned;
    let mut profile = DefaultHasher::new();
    (model, tools, &conversation.system_prompt, conversation.client_id, cx.actor.api_key()).hash(&mut profile);
    let (organization, user) = (own.organization(), own.user());
    Context { conversation: conversation.id, organization, user, messages, profile: profile.finish() }
}

async fn answered(cx: Cx<'_>, turned: &Turned, end: &End, mut told: Option<&Teller>) -> Result<(Answer, Turn)> {
    let budget = cx.services.turn_limits.budget;
    let context = context(cx, turned, turned.conversation.message_count);
    if end.has_come() {
        return Err(end.error());
    }
    loop {
        let place = tokio::select! {
            biased;
            // What has a place begins, and ends with what there is.
            place = cx.services.workers.place(context.clone()) => place.map_err(no_place)?,
            () = end.comes() => return Err(end.error()),
        };
        let (mut turn, is_warm) = match place {
            Place::Warm(place) => match place.say(turned.text.clone(), budget).await {
                Some(turn) => (turn, true),
                None => continue,
            },
            Place::Cold(place) => (place.start(opening(cx, turned).await?, turned.text.clone(), budget), false),
        };
        let mut has_begun = false;
        let over = loop {
            let event = tokio::select! {
                event = turn.next() => event,
                () = end.comes(), if !turn.is_interrupted() => {
                    turn.interrupt();
                    continue;
                }
            };
            let event = match event {
                Event::Over(over) => break over,
                Event::Begun => None,
                Event::Text(text) => Some(TurnEvent::Text(text)),
                Event::ToolUse { name, input } => Some(TurnEvent::ToolUse { name, input }),
            };
            has_begun = true;
            let Some(event) = event else { continue };
            if told.is_some_and(|told| !told.tell(event)) {
                turn.interrupt();
                told = None;
            }
        };
        match over {
            Ok(answer) => return Ok((answer, turn)),
            // It has died while it waited: nothing was answered or is to be paid for, and another can answer.
            Err(Failure::Ended(_)) if is_warm && !has_begun => {}
            Err(Failure::Left) => return Err(end.error()),
            Err(failure) => return Err(failed(failure)),
        }
    }
}

/// What a process is told that is started.
async fn opening(cx: Cx<'_>, turned: &Turned) -> Result<Opening> {
    let Turned { own, conversation, model, tools, .. } = turned;
    let organization = own.organization();
    let mut history = Vec::new();
    if !turned.is_new {
        let said = messages::all(&mut cx.services.db.read().await?, own, conversation.id).await?;
        for message in said {
            let Value::Array(blocks) = blocks(cx, organization, &message)? else { continue };
            history.push(Said { role: message.role, blocks, at: message.created_at });
        }
    }
    let services = cx.services;
    let spending = Arc::<Spending>::default();
    let key = services.authenticator.lend(
        &services.random,
        Loan {
            organization,
            user: own.user(),
            api_key: cx.actor.api_key(),
            client: conversation.client_id,
            spending: spending.clone(),
        },
    );
    Ok(Opening {
        history,
        system_prompt: conversation::system_prompt(cx, conversation)?,
        model: model.clone(),
        tools: tools.clone(),
        key: key.text().clone(),
        base_url: services.workers.base_url().unwrap_or_default().to_owned(),
        spending,
        held: Box::new(key),
    })
}

/// Keeps what was said and answered.
async fn commit(cx: Cx<'_>, turned: Turned, answer: Answer, lease: Option<&ConversationLease>) -> Result<Kept> {
    let Turned { own, conversation: before, is_new, text, model, tools, at } = turned;
    let organization = own.organization();
    let answered_at = cx.services.clock.now();
    let new = |role, ordinal, usage, created_at| Message {
        id: cx.services.new_id(),
        owner_id: own.user(),
        conversation_id: before.id,
        ordinal,
        role,
        sealed: Vec::new(),
        key_version: String::new(),
        usage,
        created_at,
    };
    let mut said = new(MessageRole::User, before.message_count + 1, None, at);
    seal(cx, organization, &mut said, &Value::from(vec![text_block(text.expose())]).to_string().into())?;
    let usage = JsonObject::try_from(usage(&answer)).ok();
    let mut answered = new(MessageRole::Assistant, before.message_count + 2, usage, answered_at);
    seal(cx, organization, &mut answered, &Value::from(answer.blocks).to_string().into())?;
    audited(cx, async |tx| {
        let mut conversation = if is_new {
            if let Some(client) = before.client_id {
                client::lock_open(tx, own.permit(), client).await?;
            }
            conversation::insert(tx, &own, &before).await?;
            before
        } else {
            let now = conversations::lock(tx, &own, before.id).await?.ok_or_else(no_such)?;
            if now.message_count != before.message_count {
                return Err(busy());
            }
            now
        };
        let action = if is_new { AuditAction::Create } else { AuditAction::Update };
        let changes = if is_new { Changes::created(&conversation) } else { Changes::default() };
        messages::insert(tx, &own, &[said, answered.clone()]).await?;
        conversation.message_count += 2;
        conversation.version += 1;
        conversation.updated_at = conversation.updated_at.max(answered_at);
        conversations::update(tx, &own, &conversation).await?;
        if let Some(lease) = lease {
            leases::end(tx, lease).await?;
        }
        let noted = json!({ "messages": 2, "model": model, "tools": tools, "interrupted": answer.is_interrupted });
        let entry = Entry::new(action, ResourceType::Conversation).on(&conversation.id).with(changes).noting(noted);
        Ok(((conversation, answered), entry))
    })
    .await
}

fn usage(answer: &Answer) -> Value {
    json!({
        "inputTokens": answer.usage.input,
        "outputTokens": answer.usage.output,
        "cacheCreationTokens": answer.usage.cache_write_5m.saturating_add(answer.usage.cache_write_1h),
        "cacheReadTokens": answer.usage.cache_read,
        "model": answer.model,
        "interrupted": answer.is_interrupted,
    })
}

fn busy() -> Error {
    Error::conflict("Something is being answered in this conversation. Wait for the answer.")
}

fn full() -> Error {
    let mebibytes = MOST_BYTES / (1024 * 1024);
    let message =
        format!("has {MOST_MESSAGES} messages, or messages of {mebibytes} MiB, and takes no more: begin another")
            .into();
    Error::bad_input(vec![FieldError { path: vec!["input", "conversationId"], message }])
}

fn nobody_waits() -> Error {
    Error::conflict("Nobody waited for the answer.")
}

fn no_place(why: NoPlace) -> Error {
    match why {
        NoPlace::Busy => busy(),
        NoPlace::Full => Error::rate_limited("Too many conversations wait for an answer. Try again later.", AGAIN),
        NoPlace::Stopping => Error::away("The server is stopping."),
    }
}

fn failed(failure: Failure) -> Error {
    match failure {
        Failure::Left => nobody_waits(),
        Failure::Hung => Error::too_long("Claude took longer to answer than it may."),
        Failure::Spent => Error::refused_elsewhere(
            "The answer used more tokens than TURN_TOKEN_BUDGET allows before it said anything.".to_owned(),
        ),
        Failure::TooLong => Error::refused_elsewhere(format!(
            "The answer had more than {} MiB with what tools have answered, and is not kept.",
            MOST_KEPT / (1024 * 1024)
        )),
        Failure::NotStarted(_) => Error::away_by("The Claude CLI does not start on the server.", failure),
        Failure::Ended(_) | Failure::Garbled => Error::away_by("The Claude CLI broke off. Try again.", failure),
        Failure::Refused { status: Some(429), .. } => {
            Error::rate_limited("Claude, or a limit of yours, allows no more for now. Try again later.", AGAIN)
        }
        Failure::Refused { status: Some(400..=428), message } => {
            Error::refused_elsewhere(format!("Claude has refused: {message}"))
        }
        Failure::Refused { message, .. } => Error::away(format!("Claude could not answer: {message}")),
    }
}
