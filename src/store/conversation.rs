//! Conversations with Claude: what is known of each. What was said in them stands in `message.rs`.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::{Error, Result};
use super::fields::fold;
use super::locks::first_locked;
use super::page::{bounded, keyset};
use super::sealed::resealing;
use super::search::searched;
use super::tables::conversations;
use super::tx::Tx;
use crate::model::{
    ClientId, ConversationId, Direction, JsonObject, OrganizationId, Page, PageSlice, Permit, Position, SortKey,
    Timestamp, UseConversations, UserId,
};

/// A conversation.
#[derive(Debug, Clone, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = conversations, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct Conversation {
    /// The id.
    pub id: ConversationId,
    /// Whose it is.
    pub owner_id: UserId,
    /// For which client.
    pub client_id: Option<ClientId>,
    /// What it is about, in a line.
    pub title: String,
    /// Which model answers, where it says so.
    pub model: Option<String>,
    /// What the model is told before all messages, sealed.
    pub system_prompt: Option<Vec<u8>>,
    /// Which key of the ring sealed it.
    pub key_version: Option<String>,
    /// The how-manieth it is.
    pub prompt_version: i32,
    /// What callers have attached.
    pub metadata: Option<JsonObject>,
    /// How many messages there are.
    pub message_count: i32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed, or something was last said.
    pub updated_at: Timestamp,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// Columns that follow from others.
#[derive(Insertable, AsChangeset)]
#[diesel(table_name = conversations)]
struct Derived {
    title_folded: String,
    search_text: String,
}

impl Conversation {
    fn derived(&self) -> Derived {
        Derived { title_folded: fold(&self.title), search_text: fold(&self.title) }
    }
}

/// Whose conversations are meant: the caller's, and nobody else's.
#[derive(Debug)]
pub struct Own {
    permit: Permit<UseConversations>,
    user: UserId,
}

impl Own {
    /// Those of the user who has the permit. Called where the two are known to belong together: of an actor
    /// (`tests/it/architecture.rs` holds that nothing else does).
    #[must_use]
    pub fn of(permit: Permit<UseConversations>, user: UserId) -> Self {
        Self { permit, user }
    }

    /// The proof.
    #[must_use]
    pub fn permit(&self) -> &Permit<UseConversations> {
        &self.permit
    }

    /// The organization.
    #[must_use]
    pub fn organization(&self) -> OrganizationId {
        self.permit.organization()
    }

    /// The user, who is the caller.
    #[must_use]
    pub fn user(&self) -> UserId {
        self.user
    }
}

/// Which conversations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConversationFilter {
    /// With this in the title, whatever the case.
    pub search: Option<String>,
}

/// What conversations are sorted by; the id breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum ConversationOrder {
    CreatedAt,
    UpdatedAt,
    Title,
}

impl ConversationOrder {
    /// Where a conversation stands in this ordering.
    #[must_use]
    pub fn position(self, conversation: &Conversation) -> Position {
        let key = match self {
            Self::CreatedAt => SortKey::Number(conversation.created_at.micros()),
            Self::UpdatedAt => SortKey::Number(conversation.updated_at.micros()),
            Self::Title => SortKey::Text(fold(&conversation.title)),
        };
        Position { key, id: conversation.id.to_string() }
    }
}

macro_rules! own {
    ($own:expr) => {{
        use conversations as t;
        t::table.filter(t::organization_id.eq($own.organization()).and(t::owner_id.eq($own.user())))
    }};
}

/// A page of a user's conversations.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the ordering.
pub async fn page(
    conn: &mut Conn,
    own: &Own,
    filter: &ConversationFilter,
    (order, direction): (ConversationOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Conversation>> {
    use conversations as t;
    let search = searched!(conn, conversations, filter);
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = own!(own).into_boxed::<Backend>().select(Conversation::as_select());
        if let Some(search) = search {
            query = query.filter(search);
        }
        match order {
            ConversationOrder::CreatedAt => keyset!(query, page, direction, t::created_at, t::id, Timestamp),
            ConversationOrder::UpdatedAt => keyset!(query, page, direction, t::updated_at, t::id, Timestamp),
            ConversationOrder::Title => keyset!(query, page, direction, t::title_folded, t::id, String),
        }
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// How many of a user's conversations pass the filter.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, own: &Own, filter: &ConversationFilter) -> Result<i64> {
    let search = searched!(conn, conversations, filter);
    Ok(on_conn!(conn, |c: Backend| {
        let mut query = own!(own).into_boxed::<Backend>();
        if let Some(search) = search {
            query = query.filter(search);
        }
        query.count().get_result(c).await?
    }))
}

/// A user's conversations among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, own: &Own, ids: &[ConversationId]) -> Result<Vec<Conversation>> {
    Ok(on_conn!(conn, |c| own!(own)
        .filter(conversations::id.eq_any(ids))
        .select(Conversation::as_select())
        .load(c)
        .await?))
}

/// One of a user's conversations, locked to the end of the transaction. Its messages are only written under this lock.
///
/// # Errors
/// Where the database fails.
pub async fn lock(tx: &mut Tx, own: &Own, id: ConversationId) -> Result<Option<Conversation>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(conn, own!(own).filter(conversations::id.eq(id)).select(Conversation::as_select())).optional()?)
}

/// Inserts a conversation of the user's.
///
/// # Errors
/// Where the database fails.
pub async fn insert(tx: &mut Tx, own: &Own, conversation: &Conversation) -> Result<()> {
    let derived = conversation.derived();
    let of = conversations::organization_id.eq(own.organization());
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(conversations::table)
        .values((conversation, of, &derived))
        .execute(c)
        .await?);
    Ok(())
}

/// Replaces a conversation as it was at the version before.
///
/// # Errors
/// [`Error::Stale`] where it is not at that version.
pub async fn update(tx: &mut Tx, own: &Own, conversation: &Conversation) -> Result<()> {
    let derived = conversation.derived();
    let target = own!(own)
        .filter(conversations::id.eq(conversation.id).and(conversations::version.eq(conversation.version - 1)));
    let conn = tx.conn().await?;
    let changed = on_conn!(conn, |c| diesel::update(target).set((conversation, &derived)).execute(c).await?);
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Deletes a conversation with its messages.
///
/// # Errors
/// Where the database fails.
pub async fn delete(tx: &mut Tx, own: &Own, id: ConversationId) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::delete(own!(own).filter(conversations::id.eq(id))).execute(c).await?);
    Ok(())
}

resealing!(conversations, Conversation, ConversationId, system_prompt);
