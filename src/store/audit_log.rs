//! The audit log: appended to under the organization's lock, each entry hashed together with the hash before it.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::ser::{Serialize, SerializeSeq as _, Serializer};

use super::backend::{Conn, on_conn};
use super::bulk::insert_all;
use super::error::Result;
use super::fields::{askable, distinct};
use super::locks::first_locked;
use super::page::{bounded, is_ascending, keyset};
use super::ranked::ranked;
use super::tables::{audit_heads, audit_logs};
use super::tx::Tx;
use crate::crypto::sha256;
use crate::model::{
    ApiKeyId, AuditAction, AuditLogId, AuditOutcome, CredentialId, Direction, ManageClaudeAccounts, OrganizationId,
    Page, PageSlice, Permit, Read, ResourceType, Timestamp, UserId, ViewAuditLogs,
};

/// The versions of the canonical form: they stand in what is hashed, so that one can be told from the other.
const FORM: i32 = 1;
/// The form of an entry that has an API key.
const FORM_WITH_API_KEY: i32 = 2;
/// The hash before the first entry.
const GENESIS: [u8; 32] = [0; 32];

/// An entry that is about to be appended.
#[derive(Debug, Clone)]
pub struct NewAuditLog {
    /// The id.
    pub id: AuditLogId,
    /// Whose log.
    pub organization_id: OrganizationId,
    /// When the deed was done.
    pub occurred_at: Timestamp,
    /// The kind of deed.
    pub action: AuditAction,
    /// The GraphQL field or the command.
    pub operation: String,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// Why it did not succeed.
    pub error_code: Option<&'static str>,
    /// What kind of thing it was done to.
    pub resource_type: ResourceType,
    /// To which one.
    pub resource_id: Option<String>,
    /// What changed, as JSON; secrets are redacted by whoever made it.
    pub changes: Option<String>,
    /// What else is worth knowing, as JSON.
    pub metadata: Option<String>,
    /// Who did it; none: anonymous, or the system.
    pub user_id: Option<UserId>,
    /// With which API key of that user's.
    pub api_key_id: Option<ApiKeyId>,
    /// Whether it changed who may ask for what, which other servers are told.
    pub changes_access: bool,
    /// From where.
    pub ip_address: Option<String>,
    /// With which program.
    pub user_agent: Option<String>,
    /// In which request.
    pub request_id: String,
}

/// An entry of the log.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_logs, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[allow(missing_docs, reason = "the same fields as in NewAuditLog")]
pub struct AuditLog {
    pub id: AuditLogId,
    pub organization_id: OrganizationId,
    /// Its place in the organization's log, from 1, without gaps.
    pub sequence: i64,
    pub occurred_at: Timestamp,
    pub action: AuditAction,
    pub operation: String,
    pub outcome: AuditOutcome,
    pub error_code: Option<String>,
    pub resource_type: ResourceType,
    pub resource_id: Option<String>,
    pub changes: Option<String>,
    pub metadata: Option<String>,
    pub user_id: Option<UserId>,
    pub api_key_id: Option<ApiKeyId>,
    pub ip_address: Option<String>,
    pub user_agent: Option<String>,
    pub request_id: String,
    /// SHA-256 over the hash before and the canonical form of this entry.
    pub hash: Vec<u8>,
}

impl AuditLog {
    /// SHA-256 over the hash before and the entry's canonical form: a JSON array of the form's version, 1, and the entry's
    /// fields from `id` to `request_id`, times as microseconds since 1970, absent ones as null. An entry that has an API key
    /// is of version 2, in which the key's id stands after the user's; any other has no place for one. Before the first entry
    /// stand 32 zero bytes.
    #[must_use]
    pub fn hash_after(&self, previous: &[u8; 32]) -> [u8; 32] {
        let mut bytes = previous.to_vec();
        Canonical(self).write(&mut bytes);
        sha256(&bytes)
    }
}

/// Writes the canonical form, straight to where it is hashed: a verification does so for each entry.
struct Canonical<'a>(&'a AuditLog);

impl Canonical<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        serde_json::to_writer(to, self).expect("texts and numbers are JSON, and memory takes them");
    }
}

impl Serialize for Canonical<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let entry = self.0;
        let mut list = to.serialize_seq(None)?;
        list.serialize_element(if entry.api_key_id.is_some() { &FORM_WITH_API_KEY } else { &FORM })?;
        list.serialize_element(&format_args!("{}", entry.id))?;
        list.serialize_element(&format_args!("{}", entry.organization_id))?;
        list.serialize_element(&entry.sequence)?;
        list.serialize_element(&entry.occurred_at.micros())?;
        list.serialize_element(entry.action.as_str())?;
        list.serialize_element(&entry.operation)?;
        list.serialize_element(entry.outcome.as_str())?;
        list.serialize_element(&entry.error_code)?;
        list.serialize_element(entry.resource_type.as_str())?;
        list.serialize_element(&entry.resource_id)?;
        list.serialize_element(&entry.changes)?;
        list.serialize_element(&entry.metadata)?;
        match &entry.user_id {
            Some(user) => list.serialize_element(&format_args!("{user}"))?,
            None => list.serialize_element(&())?,
        }
        if let Some(key) = &entry.api_key_id {
            list.serialize_element(&format_args!("{key}"))?;
        }
        list.serialize_element(&entry.ip_address)?;
        list.serialize_element(&entry.user_agent)?;
        list.serialize_element(&entry.request_id)?;
        list.end()
    }
}

/// Which entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditLogFilter {
    /// Of this user.
    pub user_id: Option<UserId>,
    /// With this API key.
    pub api_key_id: Option<ApiKeyId>,
    /// On this thing.
    pub resource_id: Option<String>,
    /// On this credential.
    pub credential_id: Option<CredentialId>,
    /// On things of these kinds.
    pub resource_type: Option<Vec<ResourceType>>,
    /// Of these kinds of deed.
    pub action: Option<Vec<AuditAction>>,
    /// That ended so.
    pub outcome: Option<Vec<AuditOutcome>>,
    /// Not before.
    pub from: Option<Timestamp>,
    /// Before.
    pub to: Option<Timestamp>,
    /// In this request.
    pub request_id: Option<String>,
}

impl AuditLogFilter {
    /// Whether it asks for nothing, or for nothing but the resource.
    #[must_use]
    pub fn is_by_resource(&self) -> bool {
        *self == Self { resource_id: self.resource_id.clone(), ..Self::default() }
    }
}

/// Starts an organization's log.
pub(super) async fn begin_chain(tx: &mut Tx, organization: OrganizationId) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(audit_heads::table)
        .values((
            audit_heads::organization_id.eq(organization),
            audit_heads::sequence.eq(0_i64),
            audit_heads::hash.eq(&GENESIS[..]),
        ))
        .execute(c)
        .await?);
    Ok(())
}

/// Appends an entry and returns its place.
pub(super) async fn append(tx: &mut Tx, new: &NewAuditLog) -> Result<i64> {
    append_all(tx, new.organization_id, std::slice::from_ref(new)).await
}

/// Appends entries to one organization's log, in their order. The lock on the log's end holds to the commit, so that the chain
/// has one order. Returns the place of the last. Only data that is made by the thousand comes so; every other entry comes with a commit.
///
/// # Errors
/// Where the database fails.
pub async fn append_all(tx: &mut Tx, organization: OrganizationId, new: &[NewAuditLog]) -> Result<i64> {
    let conn = tx.conn().await?;
    let head = audit_heads::table.find(organization).select((audit_heads::sequence, audit_heads::hash));
    let (mut sequence, previous): (i64, Vec<u8>) = first_locked!(conn, head)?;
    let mut previous: [u8; 32] = previous.try_into().map_err(|_| not_a_hash())?;
    let mut entries = Vec::with_capacity(new.len());
    for new in new {
        sequence += 1;
        let mut entry = AuditLog {
            id: new.id,
            organization_id: organization,
            sequence,
            occurred_at: new.occurred_at,
            action: new.action,
            operation: new.operation.clone(),
            outcome: new.outcome,
            error_code: new.error_code.map(str::to_owned),
            resource_type: new.resource_type,
            resource_id: new.resource_id.clone(),
            changes: new.changes.clone(),
            metadata: new.metadata.clone(),
            user_id: new.user_id,
            api_key_id: new.api_key_id,
            ip_address: new.ip_address.clone(),
            user_agent: new.user_agent.clone(),
            request_id: new.request_id.clone(),
            hash: Vec::new(),
        };
        previous = entry.hash_after(&previous);
        entry.hash = previous.to_vec();
        entries.push(entry);
    }
    insert_all!(conn, audit_logs::table, &entries, |entry| entry);
    on_conn!(conn, |c| {
        diesel::update(audit_heads::table.find(organization))
            .set((audit_heads::sequence.eq(sequence), audit_heads::hash.eq(&previous[..])))
            .execute(c)
            .await?;
    });
    Ok(sequence)
}

fn not_a_hash() -> diesel::result::Error {
    diesel::result::Error::DeserializationError("the end of the hash chain is not 32 bytes".into())
}

macro_rules! filtered {
    ($backend:ident, $permit:expr, $filter:expr) => {{
        let filter: &AuditLogFilter = $filter;
        let mut query =
            audit_logs::table.filter(audit_logs::organization_id.eq($permit.organization())).into_boxed::<$backend>();
        if let Some(user) = filter.user_id {
            query = query.filter(audit_logs::user_id.eq(user));
        }
        if let Some(key) = filter.api_key_id {
            query = query.filter(audit_logs::api_key_id.eq(key));
        }
        if let Some(resource) = &filter.resource_id {
            query = query.filter(audit_logs::resource_id.eq_any(askable(resource)));
        }
        if let Some(credential) = filter.credential_id {
            query = query
                .filter(audit_logs::resource_type.eq(ResourceType::Credential))
                .filter(audit_logs::resource_id.eq(credential.to_string()));
        }
        if let Some(types) = &filter.resource_type {
            query = query.filter(audit_logs::resource_type.eq_any(distinct(types)));
        }
        if let Some(actions) = &filter.action {
            query = query.filter(audit_logs::action.eq_any(distinct(actions)));
        }
        if let Some(outcomes) = &filter.outcome {
            query = query.filter(audit_logs::outcome.eq_any(distinct(outcomes)));
        }
        if let Some(from) = filter.from {
            query = query.filter(audit_logs::occurred_at.ge(from));
        }
        if let Some(to) = filter.to {
            query = query.filter(audit_logs::occurred_at.lt(to));
        }
        if let Some(request) = &filter.request_id {
            query = query.filter(audit_logs::request_id.eq_any(askable(request)));
        }
        query
    }};
}

/// The entry after the place `after`, up to `until`, that passes the filter.
///
/// # Errors
/// Where the database fails.
pub async fn next(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    filter: &AuditLogFilter,
    (after, until): (i64, i64),
) -> Result<Option<AuditLog>> {
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, permit, filter)
        .filter(audit_logs::sequence.gt(after).and(audit_logs::sequence.le(until)))
        .order(audit_logs::sequence)
        .select(AuditLog::as_select())
        .first(c)
        .await
        .optional()?))
}

/// The next entry after the place `after`, up to `until`, that may have changed a Claude account which there still may be: its
/// place, and which account. A test may have changed no more than the message of the last error, which is not written down.
///
/// # Errors
/// Where the database fails.
pub async fn next_account_change(
    conn: &mut Conn,
    permit: &Permit<ManageClaudeAccounts>,
    (after, until): (i64, i64),
) -> Result<Option<(i64, Option<String>)>> {
    use audit_logs as t;
    Ok(on_conn!(conn, |c| t::table
        .filter(t::organization_id.eq(permit.organization()))
        .filter(t::sequence.gt(after).and(t::sequence.le(until)))
        .filter(t::resource_type.eq(ResourceType::ClaudeAccount).and(t::outcome.eq(AuditOutcome::Success)))
        .filter(t::action.ne(AuditAction::Delete))
        .filter(t::changes.is_not_null().or(t::action.eq(AuditAction::Test)))
        .order(t::sequence)
        .select((t::sequence, t::resource_id))
        .first(c)
        .await
        .optional()?))
}

/// The place of the last entry.
///
/// # Errors
/// Where the database fails.
pub async fn end(conn: &mut Conn, permit: &Permit<Read>) -> Result<i64> {
    let end = audit_heads::table.find(permit.organization()).select(audit_heads::sequence);
    Ok(on_conn!(conn, |c| end.first(c).await?))
}

/// The place of the last entry of each organization.
///
/// # Errors
/// Where the database fails.
pub async fn ends(conn: &mut Conn) -> Result<Vec<(OrganizationId, i64)>> {
    Ok(on_conn!(conn, |c| audit_heads::table
        .select((audit_heads::organization_id, audit_heads::sequence))
        .load(c)
        .await?))
}

/// The same of those organizations that are named.
///
/// # Errors
/// Where the database fails.
pub async fn ends_of(conn: &mut Conn, organizations: &[OrganizationId]) -> Result<Vec<(OrganizationId, i64)>> {
    Ok(on_conn!(conn, |c| audit_heads::table
        .filter(audit_heads::organization_id.eq_any(organizations))
        .select((audit_heads::organization_id, audit_heads::sequence))
        .load(c)
        .await?))
}

/// The query of a page, in a function that answers with this module's `Result`.
macro_rules! listed {
    ($backend:ident, $permit:expr, $filter:expr, $page:expr) => {{
        let mut query = filtered!($backend, $permit, $filter).select(AuditLog::as_select());
        keyset!(query, $page, Direction::Descending, audit_logs::sequence, audit_logs::id, i64);
        // No two entries of a log have one sequence. With the id behind it, only the index by sequence would be in this order,
        // and SQLite would walk all of it for the entries of one user.
        let query = if is_ascending($page, Direction::Descending) {
            query.order(audit_logs::sequence.asc())
        } else {
            query.order(audit_logs::sequence.desc())
        };
        bounded(query, $page)
    }};
}

/// A page of the log, newest first.
///
/// # Errors
/// Where the database fails, or a cursor is not one of this list.
pub async fn page(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    filter: &AuditLogFilter,
    page: &Page,
) -> Result<PageSlice<AuditLog>> {
    let rows = on_conn!(conn, |c: Backend| listed!(Backend, permit, filter, page).load(c).await?);
    Ok(page.slice(rows))
}

/// The same page of the entries on each of the resources, in one statement.
///
/// # Errors
/// As for [`page`].
pub async fn pages(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    resources: &[String],
    page: &Page,
) -> Result<HashMap<String, PageSlice<AuditLog>>> {
    use audit_logs as t;
    let rows: Vec<(AuditLog, i64)> = on_conn!(conn, |c: Backend| {
        let query = t::table.filter(t::organization_id.eq(permit.organization())).into_boxed::<Backend>();
        let row = AuditLog::as_select();
        ranked!(query, row, page, Direction::Descending, t::resource_id => resources, t::sequence, t::id, i64)
            .load(c)
            .await?
    });
    let rows = rows.into_iter().filter_map(|(entry, _)| Some((entry.resource_id.clone()?, entry)));
    Ok(page.slices(resources, rows))
}

/// How many entries there are on each of the resources, in one statement. One without any is left out.
///
/// # Errors
/// Where the database fails.
pub async fn counts(
    conn: &mut Conn,
    permit: &Permit<ViewAuditLogs>,
    resources: &[String],
) -> Result<HashMap<String, i64>> {
    let resources: Vec<_> = resources.iter().filter_map(|resource| askable(resource)).collect();
    let rows: Vec<(Option<String>, i64)> = on_conn!(conn, |c| audit_logs::table
        .filter(audit_logs::organization_id.eq(permit.organization()))
        .filter(audit_logs::resource_id.eq_any(resources))
        .group_by(audit_logs::resource_id)
        .select((audit_logs::resource_id, diesel::dsl::count_star()))
        .load(c)
        .await?);
    Ok(rows.into_iter().filter_map(|(resource, count)| Some((resource?, count))).collect())
}

/// How many entries there are.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, permit: &Permit<ViewAuditLogs>, filter: &AuditLogFilter) -> Result<i64> {
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, permit, filter).count().get_result(c).await?))
}

/// The entries among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, permit: &Permit<ViewAuditLogs>, ids: &[AuditLogId]) -> Result<Vec<AuditLog>> {
    Ok(on_conn!(conn, |c| audit_logs::table
        .filter(audit_logs::organization_id.eq(permit.organization()).and(audit_logs::id.eq_any(ids)))
        .select(AuditLog::as_select())
        .load(c)
        .await?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use std::time::Duration;

    use diesel::sql_types::Text;
    use diesel::sqlite::Sqlite;

    use super::*;
    use crate::model::{Access, Id, Kind, Position, Role, SortKey, Window};
    use crate::settings::DatabaseUrl;
    use crate::store::Db;

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    fn id<K: Kind>() -> Id<K> {
        Id::new(Timestamp::MAX, &[7; 10])
    }

    fn sql(filter: &AuditLogFilter, window: Window) -> Result<String> {
        let permit = Access::new(id(), Role::Admin).require::<ViewAuditLogs>().unwrap();
        let page = &Page { size: 20, window };
        let query = listed!(Sqlite, &permit, filter, page);
        Ok(diesel::debug_query::<Sqlite, _>(&query).to_string())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_page_is_found_by_the_index_of_what_it_is_filtered_by() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(folder.path().join("test.db"));
        let db = Db::open(&url, 1, Duration::from_secs(1)).await.unwrap();
        db.migrate_up().await.unwrap();
        let none = AuditLogFilter::default;
        let place = || Some(Position { key: SortKey::Number(9), id: id::<crate::model::kind::AuditLog>().to_string() });
        let resource = Some("x".to_owned());
        for (filter, index) in [
            (none(), "audit_logs_by_sequence"),
            (AuditLogFilter { user_id: Some(id()), ..none() }, "audit_logs_by_user"),
            (AuditLogFilter { api_key_id: Some(id()), ..none() }, "audit_logs_by_api_key"),
            (AuditLogFilter { resource_id: resource.clone(), ..none() }, "audit_logs_by_resource"),
            (AuditLogFilter { credential_id: Some(id()), ..none() }, "audit_logs_by_resource"),
            (AuditLogFilter { request_id: resource, ..none() }, "audit_logs_by_request"),
            (AuditLogFilter { from: Some(Timestamp::MAX), ..none() }, "audit_logs_by_time"),
            (AuditLogFilter { to: Some(Timestamp::MAX), ..none() }, "audit_logs_by_time"),
        ] {
            for window in [Window::After(None), Window::After(place()), Window::Before(None), Window::Before(place())] {
                let text = sql(&filter, window.clone()).unwrap();
                let (query, _) = text.split_once(" -- binds").unwrap();
                let mut conn = db.read().await.unwrap();
                let steps: Vec<Step> =
                    on_conn!(&mut conn, |c| diesel::sql_query(format!("EXPLAIN QUERY PLAN {query}"))
                        .load(c)
                        .await
                        .unwrap());
                // Where a page begins at a place, the sequence finds that as well as the time does.
                let is_placed = matches!(window, Window::After(Some(_)) | Window::Before(Some(_)));
                let is_by_time = index == "audit_logs_by_time";
                let is_meant = |step: &Step| {
                    step.detail.contains(&format!("USING INDEX {index} "))
                        || is_by_time && is_placed && step.detail.contains("USING INDEX audit_logs_by_sequence ")
                };
                assert!(
                    steps.iter().any(is_meant),
                    "{index}: {:?}: {query}",
                    steps.iter().map(|step| &step.detail).collect::<Vec<_>>()
                );
            }
        }
    }
}
