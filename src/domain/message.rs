//! What was said in conversations: the blocks of the API's messages, sealed.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::context::Cx;
use super::conversation::own;
use super::error::{Error, Result};
use crate::crypto::{Aad, OpenError, Sealed, SecretText};
use crate::model::{ConversationId, MessageId, OrganizationId, Page, PageSlice};
use crate::store::message::{self as messages, Message};

/// The same page of the messages of each of the caller's conversations, as they were said.
///
/// # Errors
/// Without permission, or with a cursor of another list.
pub async fn pages(
    cx: Cx<'_>,
    conversations: &[ConversationId],
    page: &Page,
) -> Result<HashMap<ConversationId, PageSlice<Message>>> {
    Ok(messages::pages(&mut cx.services.db.scan().await?, &own(cx)?, conversations, page).await?)
}

/// The caller's messages among `ids`, in no order.
///
/// # Errors
/// Without permission.
pub async fn find_many(cx: Cx<'_>, ids: &[MessageId]) -> Result<Vec<Message>> {
    Ok(messages::find_many(&mut cx.services.db.read().await?, &own(cx)?, ids).await?)
}

/// The blocks of a message.
///
/// # Errors
/// Where it does not open.
pub fn content(cx: Cx<'_>, message: &Message) -> Result<Value> {
    blocks(cx, own(cx)?.organization(), message)
}

pub(super) fn blocks(cx: Cx<'_>, organization: OrganizationId, message: &Message) -> Result<Value> {
    let text = open(cx, organization, message).map_err(Error::internal)?;
    serde_json::from_str(text.expose()).map_err(Error::internal)
}

/// A block of text.
#[must_use]
pub fn text_block(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// What the blocks of text say.
#[must_use]
pub fn text_of(content: &Value) -> String {
    let is_text = |block: &&Value| block["type"] == "text";
    let texts = content.as_array().into_iter().flatten().filter(is_text).filter_map(|block| block["text"].as_str());
    texts.collect::<Vec<_>>().join("\n\n")
}

/// It opens nowhere else: not in another conversation, nor as another's, as somebody else's words, or in another place.
fn aad(organization: OrganizationId, message: &Message) -> Aad {
    let Message { id, owner_id, conversation_id, ordinal, role, .. } = message;
    Aad {
        organization: organization.to_string(),
        record: format!("{owner_id} {conversation_id} {id} {}", role.as_str()),
        field: "content",
        secret_version: *ordinal,
    }
}

pub(super) fn seal(cx: Cx<'_>, organization: OrganizationId, message: &mut Message, text: &SecretText) -> Result<()> {
    let aad = aad(organization, message);
    let sealed = cx.services.keys.seal(&cx.services.random, &aad, text).map_err(Error::internal)?;
    message.sealed = sealed.bytes;
    message.key_version = sealed.key_version;
    Ok(())
}

fn open(cx: Cx<'_>, organization: OrganizationId, message: &Message) -> Result<SecretText, OpenError> {
    let sealed = Sealed { key_version: message.key_version.clone(), bytes: message.sealed.clone() };
    cx.services.keys.open(&aad(organization, message), &sealed)
}

/// Seals a message with the newest key of the ring.
pub(super) fn reseal(cx: Cx<'_>, organization: OrganizationId, message: &mut Message) -> Result<()> {
    let text = open(cx, organization, message).map_err(Error::internal)?;
    seal(cx, organization, message, &text)
}
