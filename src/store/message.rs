//! What was said in conversations, sealed.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::bulk::insert_all;
use super::conversation::Own;
use super::error::Result;
use super::ranked::ranked;
use super::sealed::resealing;
use super::tables::messages;
use super::tx::Tx;
use crate::model::{
    ConversationId, Direction, JsonObject, MessageId, MessageRole, Page, PageSlice, Position, SortKey, Timestamp,
    UserId,
};

/// Something that was said.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = messages, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_default_value = false)]
pub struct Message {
    /// The id.
    pub id: MessageId,
    /// Whose conversation it is said in.
    pub owner_id: UserId,
    /// In which conversation.
    pub conversation_id: ConversationId,
    /// Its place there, from 1.
    pub ordinal: i32,
    /// Who has said it.
    pub role: MessageRole,
    /// The blocks of its content as JSON, sealed.
    pub sealed: Vec<u8>,
    /// Which key of the ring sealed it.
    pub key_version: String,
    /// What it has used.
    pub usage: Option<JsonObject>,
    /// When it was said.
    pub created_at: Timestamp,
}

impl Message {
    /// Where it stands among the messages of its conversation.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { key: SortKey::Number(self.ordinal.into()), id: self.id.to_string() }
    }
}

macro_rules! own {
    ($own:expr) => {{
        use messages as t;
        t::table.filter(t::organization_id.eq($own.organization()).and(t::owner_id.eq($own.user())))
    }};
}

/// The same page of the messages of each of the conversations, as they were said, in one statement.
///
/// # Errors
/// Where the database fails, or a cursor is not one of this list.
pub async fn pages(
    conn: &mut Conn,
    own: &Own,
    conversations: &[ConversationId],
    page: &Page,
) -> Result<HashMap<ConversationId, PageSlice<Message>>> {
    use messages as t;
    let rows: Vec<(Message, i64)> = on_conn!(conn, |c: Backend| {
        let query = own!(own).into_boxed::<Backend>();
        let row = Message::as_select();
        ranked!(query, row, page, Direction::Ascending, t::conversation_id => conversations, t::ordinal, t::id, i32)
            .load(c)
            .await?
    });
    Ok(page.slices(conversations, rows.into_iter().map(|(message, _)| (message.conversation_id, message))))
}

/// A user's messages among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, own: &Own, ids: &[MessageId]) -> Result<Vec<Message>> {
    Ok(on_conn!(conn, |c| own!(own).filter(messages::id.eq_any(ids)).select(Message::as_select()).load(c).await?))
}

/// How many bytes the messages of a conversation are, sealed. None of them is read for that.
///
/// # Errors
/// Where the database fails.
pub async fn size(conn: &mut Conn, own: &Own, conversation: ConversationId) -> Result<i64> {
    let size = || diesel::dsl::sql::<BigInt>("COALESCE(SUM(LENGTH(sealed)), 0)");
    Ok(on_conn!(conn, |c| own!(own)
        .filter(messages::conversation_id.eq(conversation))
        .select(size())
        .get_result(c)
        .await?))
}

/// All messages of a conversation, as they were said.
///
/// # Errors
/// Where the database fails.
pub async fn all(conn: &mut Conn, own: &Own, conversation: ConversationId) -> Result<Vec<Message>> {
    Ok(on_conn!(conn, |c| own!(own)
        .filter(messages::conversation_id.eq(conversation))
        .order(messages::ordinal)
        .select(Message::as_select())
        .load(c)
        .await?))
}

/// Adds messages to a conversation that is locked.
///
/// # Errors
/// Where the database fails.
pub async fn insert(tx: &mut Tx, own: &Own, messages: &[Message]) -> Result<()> {
    let conn = tx.conn().await?;
    insert_all!(conn, messages::table, messages, |message| (message, messages::organization_id.eq(own.organization())));
    Ok(())
}

resealing!(messages, Message, MessageId, sealed);
