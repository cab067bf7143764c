//! Messages that are sent and answered, in the API.

use std::sync::Arc;

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, Union};

use super::context::{Caller, ContextExt};
use super::conversation::Conversation;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, requires};
use super::error::Result;
use super::feed::{Feed, Told};
use super::message::Message;
use super::scalars::Json;
use crate::crypto::SecretText;
use crate::domain::turn::{self as deeds, Asking, Send};

/// Something to say.
#[derive(InputObject)]
pub(super) struct SendMessageInput {
    /// In which conversation of one's own; a new one is made where it is left out.
    conversation_id: Option<ID>,
    /// What to say, at most 100,000 characters.
    text: String,
    /// Which model answers this time; that of the conversation where left out.
    model: Option<String>,
    /// The tools that may be used for the answer, of those that `tools` has as enabled; none where left out.
    tools: Option<Vec<String>>,
}

impl SendMessageInput {
    fn read(self) -> Send {
        Send {
            conversation_id: self.conversation_id.map(|id| id.0),
            text: SecretText::from(self.text),
            model: self.model,
            tools: self.tools.unwrap_or_default(),
        }
    }
}

/// What was answered.
#[derive(SimpleObject)]
pub(super) struct SendMessagePayload {
    /// The conversation, as it is now.
    conversation: Conversation,
    /// The answer.
    message: Message,
}

/// What happens while an answer is given.
#[derive(Union)]
pub(super) enum MessageEvent {
    /// A piece of its text.
    MessageDelta(MessageDelta),
    /// A tool is used.
    ToolUse(ToolUse),
    /// The answer is whole.
    MessageCompleted(MessageCompleted),
}

/// A piece of an answer's text.
#[derive(SimpleObject)]
pub(super) struct MessageDelta {
    /// What follows.
    text: String,
}

/// A tool is used for an answer.
#[derive(SimpleObject)]
pub(super) struct ToolUse {
    /// The tool.
    name: String,
    /// What it is given.
    input: Json,
}

/// The answer is whole, and kept. Nothing follows.
#[derive(SimpleObject)]
pub(super) struct MessageCompleted {
    /// The conversation, as it is now.
    conversation: Conversation,
    /// The answer: what its pieces add up to, unless Claude had to begin again.
    message: Message,
}

#[derive(Default)]
pub(super) struct TurnMutation;

#[Object(guard = "Declared")]
impl TurnMutation {
    /// Says something in a conversation and waits for the whole answer, no longer than a request may take; `messageStream` tells it as
    /// it comes. What was said and the answer are kept together: where there is no answer, neither is.
    #[graphql(
        directive = requires::apply(Permission::UseConversations),
        directive = audits::apply(AuditAction::Update, ResourceType::Conversation),
        directive = open_to_api_keys::apply()
    )]
    async fn send_message(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to say.")] input: SendMessageInput,
    ) -> Result<Option<SendMessagePayload>> {
        let (conversation, message) = Box::pin(deeds::send(ctx.cx(), ctx.left(), input.read())).await?;
        Ok(Some(SendMessagePayload {
            conversation: Conversation(conversation.into()),
            message: Message(message.into()),
        }))
    }
}

#[derive(Default)]
pub(super) struct TurnSubscription;

#[Object(guard = "Declared")]
impl TurnSubscription {
    /// Says something in a conversation and tells the answer as it comes; the last event is `MessageCompleted`. Whoever ends it before
    /// ends the answer, which is kept as far as it has come. It leaves its entry in the audit log as a mutation does.
    #[graphql(directive = requires::apply(Permission::UseConversations))]
    async fn message_stream(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "What to say.")] input: SendMessageInput,
    ) -> Result<MessageEvent> {
        let feed = Feed::of(ctx);
        if feed.begins_turn() {
            let caller: &Arc<Caller> = ctx.data_unchecked();
            let asking = Asking {
                services: caller.services.clone(),
                actor: caller.actor,
                origin: caller.origin.clone(),
                operation: "messageStream".to_owned(),
            };
            feed.follow_turn(deeds::stream(asking, input.read())).await;
        }
        Ok(match feed.turn()? {
            Told::Text(text) => MessageEvent::MessageDelta(MessageDelta { text }),
            Told::ToolUse { name, input } => MessageEvent::ToolUse(ToolUse { name, input: Json(input) }),
            Told::Kept(conversation, message) => MessageEvent::MessageCompleted(MessageCompleted {
                conversation: Conversation(conversation),
                message: Message(message),
            }),
        })
    }
}
