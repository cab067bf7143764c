//! Conversations with Claude. Each belongs to the user who made it, and nobody else sees it. What is said in one stands in
//! `message.rs`, and how it is answered in `turn.rs`.

use serde_json::Value;

use super::client;
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::validation::{Checks, Patch, check_search};
use crate::audit::{Changes, Entry, Field, Recorded};
use crate::crypto::{Aad, OpenError, Sealed, SecretText};
use crate::model::{AuditAction, ConversationId, Direction, OrganizationId, Page, PageSlice, ResourceType};
use crate::store::Tx;
use crate::store::conversation::{self as conversations, Conversation, ConversationFilter, ConversationOrder, Own};
use crate::store::user as users;

const TITLE_LENGTH: std::ops::RangeInclusive<usize> = 1..=200;
/// What one is called that nobody has named. Nothing is taken from its messages: those are sealed, and a title is not.
const UNTITLED: &str = "New conversation";
pub(super) const MODEL_LENGTH: std::ops::RangeInclusive<usize> = 1..=200;
const PROMPT_LENGTH: usize = 20_000;

/// The input of [`create`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Create {
    pub title: Option<String>,
    pub model: Option<String>,
    pub system_prompt: Option<String>,
    pub client_id: Option<String>,
    pub metadata: Option<Value>,
}

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub title: Patch<String>,
    pub model: Patch<String>,
    pub system_prompt: Patch<String>,
    pub metadata: Patch<Value>,
}

impl Recorded for Conversation {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        // The log is read by others than the owner, and keeps what it has for ever. Where there is none, that is no secret.
        let secret = |bytes: Option<Vec<u8>>| bytes.map_or(Field::Plain(Value::Null), Field::Secret);
        let metadata = self.metadata.as_ref().map(|object| object.to_value().to_string().into_bytes());
        vec![
            ("clientId", Field::plain(self.client_id.map(|id| id.to_string()))),
            ("title", Field::Secret(self.title.clone().into())),
            ("model", Field::plain(self.model.as_deref())),
            ("metadata", secret(metadata)),
            // Sealed anew it has other bytes, which tell one from another without a word of it.
            ("systemPrompt", secret(self.system_prompt.clone())),
        ]
    }
}

/// The caller's, and the proof that the caller may have conversations.
pub(super) fn own(cx: Cx<'_>) -> Result<Own> {
    Ok(cx.actor.conversations()?)
}

/// A page of the caller's conversations.
///
/// # Errors
/// Without permission, or with a cursor of another list.
pub async fn page(
    cx: Cx<'_>,
    filter: &ConversationFilter,
    order: (ConversationOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Conversation>> {
    let own = own(cx)?;
    check_search(filter.search.as_deref())?;
    let mut conn = cx.services.db.list(page, *filter != ConversationFilter::default()).await?;
    Ok(conversations::page(&mut conn, &own, filter, order, page).await?)
}

/// How many of the caller's conversations pass the filter.
///
/// # Errors
/// Without permission.
pub async fn count(cx: Cx<'_>, filter: &ConversationFilter) -> Result<i64> {
    Ok(conversations::count(&mut cx.services.db.scan().await?, &own(cx)?, filter).await?)
}

/// The caller's conversations among `ids`, in no order.
///
/// # Errors
/// Without permission.
pub async fn find_many(cx: Cx<'_>, ids: &[ConversationId]) -> Result<Vec<Conversation>> {
    Ok(conversations::find_many(&mut cx.services.db.read().await?, &own(cx)?, ids).await?)
}

/// What is checked of a new conversation, before anything is written.
pub(super) fn prepare(cx: Cx<'_>, own: &Own, input: Create) -> Result<Conversation> {
    let client_id = match input.client_id {
        Some(id) => Some(id.parse().map_err(|_| Error::not_found("client"))?),
        None => None,
    };
    let mut checks = Checks::new();
    let title = input.title.as_deref().unwrap_or(UNTITLED);
    let title = checks.line("title", title, TITLE_LENGTH);
    let model = input.model.and_then(|text| checks.line("model", &text, MODEL_LENGTH));
    let prompt = input.system_prompt.and_then(|text| checks.text("systemPrompt", &text, PROMPT_LENGTH));
    let metadata = input.metadata.and_then(|value| checks.object("metadata", value));
    checks.finish()?;
    let now = cx.services.clock.now();
    let mut conversation = Conversation {
        id: cx.services.new_id(),
        owner_id: own.user(),
        client_id,
        title: title.unwrap_or_default(),
        model,
        system_prompt: None,
        key_version: None,
        prompt_version: 0,
        metadata,
        message_count: 0,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    set_prompt(cx, own.organization(), &mut conversation, prompt.map(SecretText::from))?;
    Ok(conversation)
}

/// Makes a conversation.
///
/// # Errors
/// Without permission, with wrong input, or where the client is archived.
pub async fn create(cx: Cx<'_>, input: Create) -> Result<Conversation> {
    let own = own(cx)?;
    let conversation = prepare(cx, &own, input)?;
    audited(cx, async |tx| {
        if let Some(client) = conversation.client_id {
            client::lock_open(tx, own.permit(), client).await?;
        }
        insert(tx, &own, &conversation).await?;
        let changes = Changes::created(&conversation);
        let entry = Entry::new(AuditAction::Create, ResourceType::Conversation).on(&conversation.id).with(changes);
        Ok((conversation, entry))
    })
    .await
}

/// Inserts a conversation of the caller's, who is still there when it is committed: what a deleted user had was deleted before.
pub(super) async fn insert(tx: &mut Tx, own: &Own, conversation: &Conversation) -> Result<()> {
    // What refers to them may be made meanwhile: else one who tells them of something waits for this, and this for that one.
    users::lock_many(tx, own.permit(), &[own.user()]).await?.pop().ok_or_else(Error::unauthenticated)?;
    Ok(conversations::insert(tx, own, conversation).await?)
}

/// Changes a conversation; what the input leaves out stays. Model and system prompt hold from the next message on.
///
/// # Errors
/// Without permission, with wrong input, or where the caller has no such conversation.
pub async fn update(cx: Cx<'_>, id: ConversationId, input: Update) -> Result<Conversation> {
    let own = own(cx)?;
    audited(cx, async |tx| {
        let before = conversations::lock(tx, &own, id).await?.ok_or_else(no_such)?;
        let mut conversation = before.clone();
        let mut checks = Checks::new();
        let title = std::mem::take(&mut conversation.title);
        conversation.title =
            checks.required("title", input.title, title, |checks, text| checks.line("title", &text, TITLE_LENGTH));
        conversation.model =
            input.model.or_keep(conversation.model.take(), |text| checks.line("model", &text, MODEL_LENGTH));
        conversation.metadata =
            input.metadata.or_keep(conversation.metadata.take(), |value| checks.object("metadata", value));
        let prompt = match input.system_prompt {
            Patch::Keep => None,
            Patch::Clear => Some(None),
            Patch::Set(text) => Some(checks.text("systemPrompt", &text, PROMPT_LENGTH).map(SecretText::from)),
        };
        checks.finish()?;
        if let Some(prompt) = prompt {
            set_prompt(cx, own.organization(), &mut conversation, prompt)?;
        }
        let changes = Changes::between(&before, &conversation);
        if !changes.is_empty() {
            conversation.version += 1;
            conversation.updated_at = cx.services.clock.now();
            conversations::update(tx, &own, &conversation).await?;
        }
        Ok((conversation, Entry::new(AuditAction::Update, ResourceType::Conversation).on(&id).with(changes)))
    })
    .await
}

/// Deletes a conversation with its messages.
///
/// # Errors
/// Without permission, or where the caller has no such conversation.
pub async fn delete(cx: Cx<'_>, id: ConversationId) -> Result<()> {
    let own = own(cx)?;
    audited(cx, async |tx| {
        let conversation = conversations::lock(tx, &own, id).await?.ok_or_else(no_such)?;
        conversations::delete(tx, &own, id).await?;
        let entry = Entry::new(AuditAction::Delete, ResourceType::Conversation).on(&id);
        Ok(((), entry.with(Changes::deleted(&conversation))))
    })
    .await?;
    cx.services.workers.forget(|known| known.conversation == id);
    Ok(())
}

/// What the model is told before all messages.
///
/// # Errors
/// Where it does not open.
pub fn system_prompt(cx: Cx<'_>, conversation: &Conversation) -> Result<Option<SecretText>> {
    let organization = own(cx)?.organization();
    open_prompt(cx, organization, conversation).map_err(Error::internal)
}

pub(super) fn no_such() -> Error {
    Error::not_found("conversation")
}

fn aad(organization: OrganizationId, conversation: &Conversation) -> Aad {
    let Conversation { id, owner_id, prompt_version, .. } = conversation;
    Aad {
        organization: organization.to_string(),
        record: format!("{owner_id} {id}"),
        field: "systemPrompt",
        secret_version: *prompt_version,
    }
}

/// Replaces the system prompt. One that was there before opens no more.
fn set_prompt(
    cx: Cx<'_>,
    organization: OrganizationId,
    conversation: &mut Conversation,
    prompt: Option<SecretText>,
) -> Result<()> {
    conversation.prompt_version += 1;
    seal_prompt(cx, organization, conversation, prompt)
}

fn seal_prompt(
    cx: Cx<'_>,
    organization: OrganizationId,
    conversation: &mut Conversation,
    prompt: Option<SecretText>,
) -> Result<()> {
    let aad = aad(organization, conversation);
    let seal = |text: SecretText| cx.services.keys.seal(&cx.services.random, &aad, &text).map_err(Error::internal);
    let sealed = prompt.map(seal).transpose()?;
    (conversation.system_prompt, conversation.key_version) =
        sealed.map(|sealed| (sealed.bytes, sealed.key_version)).unzip();
    Ok(())
}

fn open_prompt(
    cx: Cx<'_>,
    organization: OrganizationId,
    conversation: &Conversation,
) -> Result<Option<SecretText>, OpenError> {
    let (Some(bytes), Some(key_version)) = (conversation.system_prompt.clone(), conversation.key_version.clone())
    else {
        return Ok(None);
    };
    let sealed = Sealed { key_version, bytes };
    cx.services.keys.open(&aad(organization, conversation), &sealed).map(Some)
}

/// Seals the system prompt with the newest key of the ring.
pub(super) fn reseal(cx: Cx<'_>, organization: OrganizationId, conversation: &mut Conversation) -> Result<()> {
    let prompt = open_prompt(cx, organization, conversation).map_err(Error::internal)?;
    seal_prompt(cx, organization, conversation, prompt)
}
