//! The messages of conversations in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, Object};

use super::connection::{Connection, Listed, PageArguments};
use super::context::ContextExt;
use super::error::Result;
use super::loaders::Loaders;
use super::scalars::{DateTime, Json};
use crate::domain::message::{self as deeds, text_of};
use crate::store::conversation::Conversation;
use crate::store::message::Message as Row;

/// The order of the messages in a conversation, by name.
const ORDER: &str = "Message Ordinal Ascending";

/// Something that was said in a conversation.
pub(super) struct Message(pub(super) Arc<Row>);

/// Who has said something in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::MessageRole")]
pub(super) enum MessageRole {
    /// The owner of the conversation.
    User,
    /// Claude.
    Assistant,
}

/// Something that was said in a conversation.
#[Object(serial)]
impl Message {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// Who has said it.
    async fn role(&self) -> MessageRole {
        self.0.role.into()
    }

    /// Its text: that of its blocks of text.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn text(&self, ctx: &Context<'_>) -> Result<String> {
        Ok(text_of(&deeds::content(ctx.cx(), &self.0)?))
    }

    /// Its blocks, as Anthropic's Messages API has them: `text`, `tool_use` and what tools answered, `tool_result`.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn content(&self, ctx: &Context<'_>) -> Result<Json> {
        Ok(Json(deeds::content(ctx.cx(), &self.0)?))
    }

    /// What an answer has used: `inputTokens`, `outputTokens`, `cacheCreationTokens`, `cacheReadTokens`, `model`, and `interrupted`
    /// where it was cut short. Null for what the owner has said.
    async fn usage(&self) -> Option<Json> {
        self.0.usage.as_ref().map(|object| Json(object.to_value()))
    }

    /// When it was said.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }
}

impl Listed for Message {
    /// How many there are: a conversation knows.
    type Filter = i64;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(_: &Context<'_>, count: &i64) -> Result<i64> {
        Ok(*count)
    }
}

/// A page of the messages of one conversation: with those of all that the query asks for, in one statement.
pub(super) async fn of_conversation(
    ctx: &Context<'_>,
    conversation: &Conversation,
    page: PageArguments,
) -> Result<Connection<Message>> {
    let slice = Loaders::of(ctx).message_page(conversation.id, page.page(ORDER)?).await?;
    Ok(Connection::new(slice, ORDER, conversation.message_count.into(), Row::position))
}
