//! Any record by its id.

use async_graphql::{Context, ID, Interface, Object, PathSegment};

use super::api_key::ApiKey;
use super::audit_log::AuditLog;
use super::claude_account::ClaudeAccount;
use super::client::Client;
use super::context::ContextExt;
use super::conversation::Conversation;
use super::credential::Credential;
use super::declarations::Declared;
use super::error::Result;
use super::loaders::Loaders;
use super::message::Message;
use super::notification::Notification;
use super::organization::Organization;
use super::session::Session;
use super::task::Task;
use super::usage::UsageRecord;
use super::user::User;
use super::worker::Worker;
use crate::domain;
use crate::model::{
    ApiKeyId, AuditLogId, ClaudeAccountId, ClientId, ConversationId, CredentialId, MessageId, NotificationId,
    OrganizationId, SessionId, TaskId, UsageRecordId, UserId, WorkerId,
};

/// The most ids that `nodes` takes.
const MAX_IDS: usize = 100;

/// A record that has an id, unique over all types.
#[derive(Interface)]
#[graphql(field(name = "id", ty = "ID", desc = "The id, unique over all types."))]
pub(super) enum Node {
    /// An organization.
    Organization(Organization),
    /// A user.
    User(User),
    /// A session of one's own.
    Session(Session),
    /// A Claude account.
    ClaudeAccount(ClaudeAccount),
    /// A client.
    Client(Client),
    /// A task.
    Task(Task),
    /// A credential, without its secret.
    Credential(Credential),
    /// An API key, without the key itself.
    ApiKey(ApiKey),
    /// A conversation of one's own.
    Conversation(Conversation),
    /// A message of a conversation of one's own.
    Message(Message),
    /// A process that answers the organization's conversations.
    Worker(Worker),
    /// An entry of the audit log.
    AuditLog(AuditLog),
    /// A notification of one's own.
    Notification(Notification),
    /// A request of the relay, and what it used.
    UsageRecord(UsageRecord),
}

impl Node {
    /// The record with the id, if the caller may see it and it exists: the id's prefix says of which type it is.
    pub(super) async fn load(ctx: &Context<'_>, id: &str) -> Result<Option<Self>> {
        if let Ok(id) = id.parse::<OrganizationId>() {
            return Ok(Loaders::of(ctx).organization(id).await?.map(|row| Self::Organization(Organization(row))));
        }
        if let Ok(id) = id.parse::<UserId>() {
            return Ok(Loaders::of(ctx).user(id).await?.map(|row| Self::User(User(row))));
        }
        if let Ok(id) = id.parse::<SessionId>() {
            let current = ctx.cx().actor.signed_in().and_then(|user| user.session());
            let found = Loaders::of(ctx).session(id).await?;
            return Ok(found.map(|row| Self::Session(Session { row, current })));
        }
        if let Ok(id) = id.parse::<ClaudeAccountId>() {
            return Ok(Loaders::of(ctx).claude_account(id).await?.map(|row| Self::ClaudeAccount(ClaudeAccount(row))));
        }
        if let Ok(id) = id.parse::<ClientId>() {
            return Ok(Loaders::of(ctx).client(id).await?.map(|row| Self::Client(Client(row))));
        }
        if let Ok(id) = id.parse::<TaskId>() {
            return Ok(Loaders::of(ctx).task(id).await?.map(|row| Self::Task(Task(row))));
        }
        if let Ok(id) = id.parse::<CredentialId>() {
            return Ok(Loaders::of(ctx).credential(id).await?.map(|row| Self::Credential(Credential(row))));
        }
        if let Ok(id) = id.parse::<ApiKeyId>() {
            return Ok(Loaders::of(ctx).api_key(id).await?.map(|row| Self::ApiKey(ApiKey(row))));
        }
        if let Ok(id) = id.parse::<ConversationId>() {
            return Ok(Loaders::of(ctx).conversation(id).await?.map(|row| Self::Conversation(Conversation(row))));
        }
        if let Ok(id) = id.parse::<MessageId>() {
            return Ok(Loaders::of(ctx).message(id).await?.map(|row| Self::Message(Message(row))));
        }
        if let Ok(id) = id.parse::<WorkerId>() {
            return Ok(domain::worker::find(ctx.cx(), id)?.map(|row| Self::Worker(Worker(row))));
        }
        if let Ok(id) = id.parse::<AuditLogId>() {
            return Ok(Loaders::of(ctx).audit_log(id).await?.map(|row| Self::AuditLog(AuditLog(row))));
        }
        if let Ok(id) = id.parse::<NotificationId>() {
            return Ok(Loaders::of(ctx).notification(id).await?.map(|row| Self::Notification(Notification(row))));
        }
        if let Ok(id) = id.parse::<UsageRecordId>() {
            return Ok(Loaders::of(ctx).usage_record(id).await?.map(|row| Self::UsageRecord(UsageRecord(row))));
        }
        Ok(None)
    }
}

#[derive(Default)]
pub(super) struct NodeQuery;

#[Object(guard = "Declared")]
impl NodeQuery {
    /// The record with an id, of whatever type; null where the caller's organization has none.
    async fn node(&self, ctx: &Context<'_>, #[graphql(desc = "The id.")] id: ID) -> Result<Option<Node>> {
        Node::load(ctx, &id).await
    }

    /// The records with the ids, at most 100, in the order of the ids; null, with an error, for one that may not be seen.
    async fn nodes(&self, ctx: &Context<'_>, #[graphql(desc = "The ids.")] ids: Vec<ID>) -> Result<Vec<Option<Node>>> {
        if ids.len() > MAX_IDS {
            return Err(domain::Error::bad_input(vec![domain::FieldError {
                path: vec!["ids"],
                message: "must not have more than 100 members".into(),
            }])
            .into());
        }
        // Together, so that the loaders see all of them at once.
        let found = futures_util::future::join_all(ids.iter().map(|id| Node::load(ctx, id))).await;
        let or_null = |(place, found): (usize, Result<Option<Node>>)| {
            found.unwrap_or_else(|failure| {
                let error = async_graphql::Error::from(failure).into_server_error(ctx.item.pos);
                let mut error = ctx.set_error_path(error);
                error.path.push(PathSegment::Index(place));
                ctx.add_error(error);
                None
            })
        };
        Ok(found.into_iter().enumerate().map(or_null).collect())
    }
}
