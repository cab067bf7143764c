//! Notifications: what users should know. One row for each user who is told; it comes to be with the commit of what it tells of, and has
//! that one's place in the organization's log.

use std::collections::HashSet;

use diesel::dsl::max;
use diesel::prelude::*;
use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::bulk::insert_all;
use super::error::Result;
use super::page::{bounded, keyset};
use super::tables::{api_keys, audit_logs, notifications, users};
use super::tx::Tx;
use crate::model::{
    ApiKeyId, Direction, ManageOneself, NotificationId, NotificationKind, OrganizationId, Page, PageSlice, Permission,
    Permit, Position, Read, ResourceType, Role, SortKey, Timestamp, UserId, UserStatus,
};

/// Something that a user should know.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = notifications, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_default_value = false)]
pub struct Notification {
    /// The id.
    pub id: NotificationId,
    /// The user's organization.
    pub organization_id: OrganizationId,
    /// Who is told.
    pub user_id: UserId,
    /// The place in the organization's log of what it was committed with.
    pub sequence: i64,
    /// What kind of thing it tells of.
    pub kind: NotificationKind,
    /// What it tells, in a line.
    pub title: String,
    /// What it tells, at length.
    pub body: String,
    /// What it is about.
    pub resource_id: Option<String>,
    /// What its reader must be allowed to do, where it was told to all who may do so.
    pub needs: Option<Permission>,
    /// What is told to a user once only.
    pub said: String,
    /// When the user has read it.
    pub read_at: Option<Timestamp>,
    /// When it came to be.
    pub created_at: Timestamp,
}

impl Notification {
    /// Where it stands among a user's, by time; the id breaks ties.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { key: SortKey::Number(self.created_at.micros()), id: self.id.to_string() }
    }
}

/// Whose notifications are meant: of a user, those that the user may read as things are now.
#[derive(Debug)]
pub struct Own<G> {
    /// The proof.
    pub permit: Permit<G>,
    /// The user, who is the caller.
    pub user: UserId,
    /// What the caller may do.
    pub permissions: Vec<Permission>,
}

/// Which notifications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NotificationFilter {
    /// Only those that were not read.
    pub unread_only: bool,
}

macro_rules! own {
    ($own:expr) => {{
        use notifications as n;
        n::table
            .filter(n::organization_id.eq($own.permit.organization()).and(n::user_id.eq($own.user)))
            .filter(n::needs.is_null().or(n::needs.eq_any(&$own.permissions)))
    }};
}

macro_rules! filtered {
    ($backend:ident, $own:expr, $filter:expr) => {{
        let mut query = own!($own).into_boxed::<$backend>();
        if $filter.unread_only {
            query = query.filter(notifications::read_at.is_null());
        }
        query
    }};
}

/// A page of a user's notifications, newest first.
///
/// # Errors
/// Where the database fails, or a cursor is not one of this list.
pub async fn page(
    conn: &mut Conn,
    own: &Own<Read>,
    filter: NotificationFilter,
    page: &Page,
) -> Result<PageSlice<Notification>> {
    use notifications as n;
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, own, filter).select(Notification::as_select());
        keyset!(query, page, Direction::Descending, n::created_at, n::id, Timestamp);
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// How many there are.
///
/// # Errors
/// Where the database fails.
pub async fn count<G>(conn: &mut Conn, own: &Own<G>, filter: NotificationFilter) -> Result<i64> {
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, own, filter).count().get_result(c).await?))
}

/// Those of a user's notifications among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many<G>(conn: &mut Conn, own: &Own<G>, ids: &[NotificationId]) -> Result<Vec<Notification>> {
    Ok(on_conn!(conn, |c| own!(own)
        .filter(notifications::id.eq_any(ids))
        .select(Notification::as_select())
        .load(c)
        .await?))
}

/// The next one or two that were committed after the place `after`, up to `until`; at the first place behind `after` only those beyond
/// `passed`.
///
/// # Errors
/// Where the database fails.
pub async fn next(
    conn: &mut Conn,
    own: &Own<Read>,
    (after, until): (i64, i64),
    passed: Option<NotificationId>,
) -> Result<Vec<Notification>> {
    use notifications as n;
    // No id comes before the empty one.
    let passed = passed.map(|id| id.to_string()).unwrap_or_default();
    Ok(on_conn!(conn, |c| own!(own)
        .filter(n::sequence.gt(after).and(n::sequence.le(until)))
        .filter(n::sequence.gt(after + 1).or(n::id.gt(&passed)))
        .order((n::sequence, n::id))
        .limit(2)
        .select(Notification::as_select())
        .load(c)
        .await?))
}

/// Notes that a user has read some of the notifications, or all. Returns how many had not been read.
///
/// # Errors
/// Where the database fails.
pub async fn mark_read(
    tx: &mut Tx,
    own: &Own<ManageOneself>,
    ids: Option<&[NotificationId]>,
    now: Timestamp,
) -> Result<usize> {
    use notifications as n;
    let conn = tx.conn().await?;
    let unread = || {
        n::table
            .filter(n::organization_id.eq(own.permit.organization()).and(n::user_id.eq(own.user)))
            .filter(n::read_at.is_null())
    };
    let set = n::read_at.eq(Some(now));
    Ok(match ids {
        None => on_conn!(conn, |c| diesel::update(unread()).set(set).execute(c).await?),
        Some(ids) => {
            on_conn!(conn, |c| diesel::update(unread().filter(n::id.eq_any(ids))).set(set).execute(c).await?)
        }
    })
}

/// Those of an organization who are active and are this user, or have one of the roles.
///
/// # Errors
/// Where the database fails.
pub async fn recipients(
    tx: &mut Tx,
    organization: OrganizationId,
    user: Option<UserId>,
    roles: &[Role],
) -> Result<Vec<UserId>> {
    use users as u;
    let conn = tx.conn().await?;
    // Nobody has no id.
    let user = user.map(|id| id.to_string()).unwrap_or_default();
    Ok(on_conn!(conn, |c| u::table
        .filter(u::organization_id.eq(organization).and(u::status.eq(UserStatus::Active)))
        .filter(u::deleted_at.is_null())
        .filter(u::id.eq(&user).or(u::role.eq_any(roles)))
        .order(u::id)
        .select(u::id)
        .load(c)
        .await?))
}

/// What was said already, of this.
///
/// # Errors
/// Where the database fails.
pub async fn said(conn: &mut Conn, what: &[String]) -> Result<HashSet<String>> {
    use notifications as n;
    let said: Vec<String> =
        on_conn!(conn, |c| n::table.filter(n::said.eq_any(what)).select(n::said).distinct().load(c).await?);
    Ok(said.into_iter().collect())
}

/// Inserts what the transaction has to tell, at the place of the entry that it is committed with: the end of the log is locked by then,
/// so that of two that say the same to somebody the second sees the first.
pub(super) async fn insert_pending(tx: &mut Tx, organization: OrganizationId, sequence: i64) -> Result<()> {
    use notifications as n;
    let mut pending = tx.take_notifications();
    if pending.is_empty() {
        return Ok(());
    }
    let (users, what): (Vec<_>, Vec<_>) = pending.iter().map(|one| (one.user_id, one.said.clone())).unzip();
    let conn = tx.conn().await?;
    let said: Vec<(UserId, String)> = on_conn!(conn, |c| n::table
        .filter(n::said.eq_any(&what).and(n::user_id.eq_any(&users)))
        .select((n::user_id, n::said))
        .load(c)
        .await?);
    let mut said: HashSet<_> = said.into_iter().collect();
    pending.retain(|one| said.insert((one.user_id, one.said.clone())));
    for one in &mut pending {
        one.organization_id = organization;
        one.sequence = sequence;
    }
    insert_all!(conn, n::table, &pending, |one| one);
    Ok(())
}

/// An API key that ends soon.
#[derive(Debug, Clone, Queryable)]
pub struct ExpiringApiKey {
    /// The id.
    pub id: ApiKeyId,
    /// Whose it is.
    pub organization_id: OrganizationId,
    /// In whose name it acts.
    pub owner_id: UserId,
    /// What people call it.
    pub name: String,
    /// How the raw key begins.
    pub key_prefix: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
}

/// The next API keys, of all organizations, that can still be used at the first time and end by the second, in the order of their ends.
///
/// # Errors
/// Where the database fails.
pub async fn expiring_api_keys(
    conn: &mut Conn,
    (from, to): (Timestamp, Timestamp),
    after: Option<&ExpiringApiKey>,
    most: i64,
) -> Result<Vec<ExpiringApiKey>> {
    use api_keys as k;
    let (end, id) = after.map_or((from, String::new()), |key| (key.expires_at, key.id.to_string()));
    Ok(on_conn!(conn, |c| k::table
        .filter(k::revoked_at.is_null().and(k::expires_sort.gt(from)).and(k::expires_sort.le(to)))
        .filter(k::expires_sort.gt(end).or(k::expires_sort.eq(end).and(k::id.gt(&id))))
        .order((k::expires_sort, k::id))
        .limit(most)
        .select((k::id, k::organization_id, k::owner_id, k::name, k::key_prefix, k::expires_sort, k::created_at))
        .load(c)
        .await?))
}

/// The users whose sign-ins were refused since a time for there had been too many attempts, each once, with their organizations and when
/// that last was; the latest first.
///
/// # Errors
/// Where the database fails.
pub async fn refused_sign_ins(
    conn: &mut Conn,
    since: Timestamp,
    most: i64,
) -> Result<Vec<(OrganizationId, Option<String>, Option<Timestamp>)>> {
    use audit_logs as a;
    // As it stands in the index: a database does not see that a value which is bound is the same.
    let is_refused = || diesel::dsl::sql::<Bool>("error_code = 'RATE_LIMITED'");
    Ok(on_conn!(conn, |c| a::table
        .filter(is_refused())
        .filter(a::occurred_at.ge(since).and(a::operation.eq("signIn")))
        .filter(a::resource_type.eq(ResourceType::User))
        .group_by((a::organization_id, a::resource_id))
        .order(max(a::occurred_at).desc())
        .limit(most)
        .select((a::organization_id, a::resource_id, max(a::occurred_at)))
        .load(c)
        .await?))
}
