//! How much there is of an organization's records.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::error::Result;
use super::tables::{api_keys, claude_accounts, clients, credentials, tasks, users};
use crate::model::{ClientStatus, Permit, TaskStatus, Timestamp, ViewSystem};

/// How many there are of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Users who are not deleted.
    pub users: i64,
    /// Clients that are not archived.
    pub clients: i64,
    /// Claude accounts.
    pub claude_accounts: i64,
    /// API keys that can be used.
    pub active_api_keys: i64,
    /// Tasks that are neither done nor cancelled.
    pub open_tasks: i64,
    /// Credentials.
    pub credentials: i64,
}

/// Counts them.
///
/// # Errors
/// Where the database fails.
pub async fn counts(conn: &mut Conn, permit: &Permit<ViewSystem>, now: Timestamp) -> Result<Counts> {
    let organization = permit.organization();
    on_conn!(conn, |c| Ok(Counts {
        users: users::table
            .filter(users::organization_id.eq(organization).and(users::deleted_at.is_null()))
            .count()
            .get_result(c)
            .await?,
        clients: clients::table
            .filter(clients::organization_id.eq(organization).and(clients::status.ne(ClientStatus::Archived)))
            .count()
            .get_result(c)
            .await?,
        claude_accounts: claude_accounts::table
            .filter(claude_accounts::organization_id.eq(organization))
            .count()
            .get_result(c)
            .await?,
        active_api_keys: api_keys::table
            .filter(api_keys::organization_id.eq(organization))
            .filter(api_keys::revoked_at.is_null().and(api_keys::expires_sort.gt(now)))
            .count()
            .get_result(c)
            .await?,
        open_tasks: tasks::table
            .filter(tasks::organization_id.eq(organization))
            .filter(tasks::status.ne_all([TaskStatus::Done, TaskStatus::Cancelled]))
            .count()
            .get_result(c)
            .await?,
        credentials: credentials::table
            .filter(credentials::organization_id.eq(organization))
            .count()
            .get_result(c)
            .await?,
    }))
}
