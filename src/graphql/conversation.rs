//! Conversations in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::client::Client;
use super::connection::{Connection, Listed, OrderDirection, PageArguments, ordering};
use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, requires};
use super::error::Result;
use super::inputs::{id_inputs, patch, payloads, searched, target};
use super::loaders::Loaders;
use super::message::{self, Message};
use super::rows::One;
use super::scalars::{DateTime, Json};
use super::user::User;
use crate::domain::Error;
use crate::domain::conversation::{self as deeds, Create, Update};
use crate::store::conversation::{Conversation as Row, ConversationFilter as Filter, ConversationOrder as Order};

/// A conversation with Claude. Only its owner sees it.
pub(super) struct Conversation(pub(super) Arc<Row>);

/// A conversation with Claude. Only its owner sees it.
#[Object(serial)]
impl Conversation {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// What it is about, in a line. Unlike what is said in it, it is not sealed in the database: searches find it.
    async fn title(&self) -> &str {
        &self.0.title
    }

    /// Which model answers; null: the default of the Claude CLI.
    async fn model(&self) -> Option<&str> {
        self.0.model.as_deref()
    }

    /// What the model is told before all messages; null: what the Claude CLI tells it by itself.
    #[expect(clippy::unused_async, reason = "a resolver is async")]
    async fn system_prompt(&self, ctx: &Context<'_>) -> Result<Option<String>> {
        Ok(deeds::system_prompt(ctx.cx(), &self.0)?.map(|text| text.expose().to_owned()))
    }

    /// Whose it is.
    async fn owner(&self, ctx: &Context<'_>) -> Result<One<User>> {
        let owner = Loaders::of(ctx).user_ever(self.0.owner_id).await?;
        Ok(One(User(owner.ok_or_else(|| Error::internal("a conversation has no owner"))?)))
    }

    /// For which client.
    async fn client(&self, ctx: &Context<'_>) -> Result<Option<One<Client>>> {
        match self.0.client_id {
            Some(id) => Ok(Loaders::of(ctx).client(id).await?.map(|row| One(Client(row)))),
            None => Ok(None),
        }
    }

    /// What was attached to it.
    async fn metadata(&self) -> Option<Json> {
        self.0.metadata.as_ref().map(|object| Json(object.to_value()))
    }

    /// What was said, in its order.
    async fn messages(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
    ) -> Result<Connection<Message>> {
        message::of_conversation(ctx, &self.0, PageArguments { first, after, last, before, offset }).await
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed, or something was last said.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }
}

impl Listed for Conversation {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        Ok(deeds::count(ctx.cx(), filter).await?)
    }
}

/// What to sort conversations by; the id breaks ties.
#[derive(InputObject)]
pub(super) struct ConversationOrder {
    /// The field.
    field: ConversationOrderField,
    /// Which way.
    #[graphql(default_with = "OrderDirection::Desc")]
    direction: OrderDirection,
}

/// A field that conversations can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::conversation::ConversationOrder")]
pub(super) enum ConversationOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed, or something was last said.
    UpdatedAt,
    /// Its title, whatever the case.
    Title,
}

/// A new conversation.
#[derive(InputObject)]
pub(super) struct CreateConversationInput {
    /// What it is about, 1 to 200 characters; "New conversation" where left out.
    title: Option<String>,
    /// Which model answers; the default of the Claude CLI where left out.
    model: Option<String>,
    /// What the model is told before all messages, at most 20,000 characters.
    system_prompt: Option<String>,
    /// A client that is not archived, for which it is.
    client_id: Option<ID>,
    /// Anything to attach, a JSON object of at most 64 KiB.
    metadata: Option<Json>,
}

/// Changes to a conversation: what is left out stays, null clears what may be empty.
#[derive(InputObject)]
pub(super) struct UpdateConversationInput {
    /// Which conversation.
    id: ID,
    /// What it is about, 1 to 200 characters.
    title: MaybeUndefined<String>,
    /// Which model answers, from the next message on.
    model: MaybeUndefined<String>,
    /// What the model is told before all messages, from the next message on.
    system_prompt: MaybeUndefined<String>,
    /// Anything to attach, a JSON object of at most 64 KiB.
    metadata: MaybeUndefined<Json>,
}

id_inputs! {
    /// Which conversation to delete.
    DeleteConversationInput,
}

payloads! {
    conversation: Conversation(Row):
    /// The new conversation.
    CreateConversationPayload,
    /// The changed conversation.
    UpdateConversationPayload,
}

/// The conversation is gone.
#[derive(SimpleObject)]
pub(super) struct DeleteConversationPayload {
    /// Its id.
    deleted_id: ID,
}

#[derive(Default)]
pub(super) struct ConversationQuery;

#[Object(guard = "Declared")]
impl ConversationQuery {
    /// A conversation of one's own; null where there is none with this id.
    #[graphql(directive = requires::apply(Permission::UseConversations))]
    async fn conversation(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The conversation's id.")] id: ID,
    ) -> Result<Option<One<Conversation>>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        Ok(Loaders::of(ctx).conversation(id).await?.map(|row| One(Conversation(row))))
    }

    /// One's own conversations, newest first unless asked otherwise. `search` finds text in the title, whatever the case.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    #[graphql(directive = requires::apply(Permission::UseConversations))]
    async fn conversations(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Text to find, at most 200 characters.")] search: Option<String>,
        #[graphql(desc = "What to sort by.")] order_by: Option<ConversationOrder>,
    ) -> Result<Option<Connection<Conversation>>> {
        let filter = Filter { search: searched(search) };
        let order_by = order_by.map(|order| (order.field, order.direction));
        let default = (ConversationOrderField::CreatedAt, OrderDirection::Desc);
        let (order, direction, name) = ordering::<_, Order>(order_by, default);
        let page = PageArguments { first, after, last, before, offset }.page(&name)?;
        let slice = deeds::page(ctx.cx(), &filter, (order, direction), &page).await?;
        Ok(Some(Connection::new(slice, &name, filter, move |row| order.position(row))))
    }
}

#[derive(Default)]
pub(super) struct ConversationMutation;

#[Object(guard = "Declared")]
impl ConversationMutation {
    /// Makes a conversation, in which nothing is said yet.
    #[graphql(
        directive = requires::apply(Permission::UseConversations),
        directive = audits::apply(AuditAction::Create, ResourceType::Conversation),
        directive = open_to_api_keys::apply()
    )]
    async fn create_conversation(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The new conversation.")] input: CreateConversationInput,
    ) -> Result<Option<CreateConversationPayload>> {
        let input = Create {
            title: input.title,
            model: input.model,
            system_prompt: input.system_prompt,
            client_id: input.client_id.map(|id| id.0),
            metadata: input.metadata.map(|json| json.0),
        };
        Ok(Some(deeds::create(ctx.cx(), input).await?.into()))
    }

    /// Changes a conversation of one's own.
    #[graphql(
        directive = requires::apply(Permission::UseConversations),
        directive = audits::apply(AuditAction::Update, ResourceType::Conversation),
        directive = open_to_api_keys::apply()
    )]
    async fn update_conversation(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateConversationInput,
    ) -> Result<Option<UpdateConversationPayload>> {
        let id = target(&input.id, "conversation")?;
        let input = Update {
            title: patch(input.title, |text| text),
            model: patch(input.model, |text| text),
            system_prompt: patch(input.system_prompt, |text| text),
            metadata: patch(input.metadata, |json| json.0),
        };
        Ok(Some(deeds::update(ctx.cx(), id, input).await?.into()))
    }

    /// Deletes a conversation of one's own, with all that was said in it.
    #[graphql(
        directive = requires::apply(Permission::UseConversations),
        directive = audits::apply(AuditAction::Delete, ResourceType::Conversation),
        directive = open_to_api_keys::apply()
    )]
    async fn delete_conversation(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which conversation.")] input: DeleteConversationInput,
    ) -> Result<Option<DeleteConversationPayload>> {
        deeds::delete(ctx.cx(), target(&input.id, "conversation")?).await?;
        Ok(Some(DeleteConversationPayload { deleted_id: input.id }))
    }
}
