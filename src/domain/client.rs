//! Clients: whom the organization works for.

use serde_json::Value;

use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::user::check_member;
use super::validation::{Checks, Patch, check_search};
use crate::audit::{Changes, Entry, Field, Recorded};
use crate::model::{
    ArchiveClients, AuditAction, ClientId, ClientStatus, Direction, Email, Grant, JsonObject, Page, PageSlice,
    ResourceType, UserId, WriteClients,
};
use crate::store::Tx;
use crate::store::client::{self as clients, Client, ClientFilter, ClientOrder};

const NAME_LENGTH: std::ops::RangeInclusive<usize> = 1..=200;
const PHONE_LENGTH: std::ops::RangeInclusive<usize> = 1..=50;
const NOTES_LENGTH: usize = 10_000;

/// The input of [`create`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Create {
    pub name: String,
    pub company: Option<String>,
    pub email: Option<String>,
    pub phone: Option<String>,
    pub notes: Option<String>,
    pub status: Option<ClientStatus>,
    pub owner_id: Patch<String>,
    pub metadata: Option<Value>,
}

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub name: Patch<String>,
    pub company: Patch<String>,
    pub email: Patch<String>,
    pub phone: Patch<String>,
    pub notes: Patch<String>,
    pub status: Patch<ClientStatus>,
    pub owner_id: Patch<String>,
    pub metadata: Patch<Value>,
    pub expected_version: Option<i32>,
}

impl Recorded for Client {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        vec![
            ("name", Field::plain(self.name.as_str())),
            ("company", Field::plain(self.company.as_deref())),
            ("email", Field::plain(self.email.as_ref().map(Email::as_str))),
            ("phone", Field::plain(self.phone.as_deref())),
            ("notes", Field::plain(self.notes.as_deref())),
            ("status", Field::plain(self.shown_status().as_str())),
            ("ownerId", Field::plain(self.owner_id.map(|id| id.to_string()))),
            ("metadata", Field::plain(self.metadata.as_ref().map(JsonObject::to_value))),
        ]
    }
}

/// A page of the organization's clients.
///
/// # Errors
/// Where nobody is signed in, or with a cursor of another list.
pub async fn page(
    cx: Cx<'_>,
    filter: &ClientFilter,
    order: (ClientOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Client>> {
    let permit = cx.actor.require()?;
    check_search(filter.search.as_deref())?;
    let all = ClientFilter { include_archived: true, ..ClientFilter::default() };
    let mut conn = cx.services.db.list(page, *filter != all).await?;
    Ok(clients::page(&mut conn, &permit, filter, order, page).await?)
}

/// How many of the organization's clients pass the filter.
///
/// # Errors
/// Where nobody is signed in.
pub async fn count(cx: Cx<'_>, filter: &ClientFilter) -> Result<i64> {
    let permit = cx.actor.require()?;
    Ok(clients::count(&mut cx.services.db.scan().await?, &permit, filter).await?)
}

/// The clients among `ids` that belong to the caller's organization, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[ClientId]) -> Result<Vec<Client>> {
    let permit = cx.actor.require()?;
    Ok(clients::find_many(&mut cx.services.db.read().await?, &permit, ids).await?)
}

/// Makes a client.
///
/// # Errors
/// Without permission, or with wrong input.
pub async fn create(cx: Cx<'_>, input: Create) -> Result<Client> {
    let permit = cx.actor.require::<WriteClients>()?;
    let now = cx.services.clock.now();
    let mut checks = Checks::new();
    let name = checks.line("name", &input.name, NAME_LENGTH);
    let company = input.company.and_then(|text| checks.line("company", &text, NAME_LENGTH));
    let email = input.email.and_then(|text| checks.email("email", &text));
    let phone = input.phone.and_then(|text| checks.line("phone", &text, PHONE_LENGTH));
    let notes = input.notes.and_then(|text| checks.text("notes", &text, NOTES_LENGTH));
    let status = input.status.and_then(|status| check_status(&mut checks, status));
    let caller = cx.actor.signed_in().map(|user| user.user);
    let owner_id = input.owner_id.or_keep(caller, |id| checks.id("ownerId", &id));
    let metadata = input.metadata.and_then(|value| checks.object("metadata", value));
    checks.finish()?;
    let client = Client {
        id: cx.services.new_id(),
        name: name.unwrap_or_default(),
        company,
        email,
        phone,
        notes,
        status: status.unwrap_or(ClientStatus::Active),
        owner_id,
        metadata,
        archived_at: None,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    audited(cx, async |tx| {
        check_owner(cx, tx, client.owner_id).await?;
        clients::insert(tx, &permit, &client).await?;
        let changes = Changes::created(&client);
        let entry = Entry::new(AuditAction::Create, ResourceType::Client).on(&client.id).with(changes);
        Ok((client, entry))
    })
    .await
}

/// Changes a client; what the input leaves out stays.
///
/// # Errors
/// Without permission, with wrong input, where there is no such client, it is archived, or it is not at the expected version.
pub async fn update(cx: Cx<'_>, id: ClientId, input: Update) -> Result<Client> {
    change::<WriteClients>(cx, id, AuditAction::Update, async |tx, client| {
        if input.expected_version.is_some_and(|version| version != client.version) {
            return Err(Error::conflict("The client is not at the expected version. Read it again."));
        }
        if client.archived_at.is_some() {
            return Err(archived());
        }
        let mut checks = Checks::new();
        let name = std::mem::take(&mut client.name);
        client.name = checks.required("name", input.name, name, |checks, text| checks.line("name", &text, NAME_LENGTH));
        client.company =
            input.company.or_keep(client.company.take(), |text| checks.line("company", &text, NAME_LENGTH));
        client.email = input.email.or_keep(client.email.take(), |text| checks.email("email", &text));
        client.phone = input.phone.or_keep(client.phone.take(), |text| checks.line("phone", &text, PHONE_LENGTH));
        client.notes = input.notes.or_keep(client.notes.take(), |text| checks.text("notes", &text, NOTES_LENGTH));
        client.status = checks.required("status", input.status, client.status, check_status);
        let owner_id = input.owner_id.or_keep(client.owner_id, |id| checks.id("ownerId", &id));
        client.metadata = input.metadata.or_keep(client.metadata.take(), |value| checks.object("metadata", value));
        checks.finish()?;
        if owner_id != client.owner_id {
            check_owner(cx, tx, owner_id).await?;
            client.owner_id = owner_id;
        }
        Ok(())
    })
    .await
}

/// Puts a client away. One that is archived stays so.
///
/// # Errors
/// Without permission, or where there is no such client.
pub async fn archive(cx: Cx<'_>, id: ClientId) -> Result<Client> {
    change::<ArchiveClients>(cx, id, AuditAction::Archive, async |_, client| {
        client.archived_at = client.archived_at.or_else(|| Some(cx.services.clock.now()));
        Ok(())
    })
    .await
}

/// Takes a client out again, in the state that it was in before.
///
/// # Errors
/// Without permission, or where there is no such client.
pub async fn restore(cx: Cx<'_>, id: ClientId) -> Result<Client> {
    change::<ArchiveClients>(cx, id, AuditAction::Restore, async |_, client| {
        client.archived_at = None;
        Ok(())
    })
    .await
}

/// The client, locked, for adding something to it.
///
/// # Errors
/// Where there is no such client, or it is archived.
pub(super) async fn lock_open<G: Grant>(tx: &mut Tx, permit: &crate::model::Permit<G>, id: ClientId) -> Result<Client> {
    let client = clients::lock(tx, permit, id).await?.ok_or_else(no_such_client)?;
    if client.archived_at.is_some() { Err(archived()) } else { Ok(client) }
}

/// Changes a locked client and writes it, unless nothing has changed.
async fn change<G: Grant>(
    cx: Cx<'_>,
    id: ClientId,
    action: AuditAction,
    apply: impl AsyncFnOnce(&mut Tx, &mut Client) -> Result<()>,
) -> Result<Client> {
    let permit = cx.actor.require::<G>()?;
    audited(cx, async |tx| {
        let before = clients::lock(tx, &permit, id).await?.ok_or_else(no_such_client)?;
        let mut client = before.clone();
        apply(tx, &mut client).await?;
        let changes = Changes::between(&before, &client);
        if !changes.is_empty() {
            client.version += 1;
            client.updated_at = cx.services.clock.now();
            clients::update(tx, &permit, &client).await?;
        }
        Ok((client, Entry::new(action, ResourceType::Client).on(&id).with(changes)))
    })
    .await
}

async fn check_owner(cx: Cx<'_>, tx: &mut Tx, owner: Option<UserId>) -> Result<()> {
    match owner {
        Some(owner) => check_member(cx, tx, "ownerId", owner).await,
        None => Ok(()),
    }
}

fn check_status(checks: &mut Checks, status: ClientStatus) -> Option<ClientStatus> {
    if status == ClientStatus::Archived {
        checks.fail("status", "cannot be ARCHIVED here: use archiveClient");
        None
    } else {
        Some(status)
    }
}

fn no_such_client() -> Error {
    Error::not_found("client")
}

fn archived() -> Error {
    Error::conflict("The client is archived. Restore it first.")
}
