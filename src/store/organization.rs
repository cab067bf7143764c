//! Organizations: the tenants.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::audit_log;
use super::backend::{Conn, on_conn};
use super::error::Result;
use super::locks::first_locked_but_for_references;
use super::tables::organizations;
use super::tx::Tx;
use crate::model::{Grant, JsonObject, ManageOrganization, OrganizationId, Permit, Plan, Read, Timestamp};

/// A tenant.
#[derive(Debug, Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = organizations, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
pub struct Organization {
    /// Its id.
    pub id: OrganizationId,
    /// Its name.
    pub name: String,
    /// What it has booked.
    pub plan: Plan,
    /// Settings of its own, a JSON object.
    pub settings: JsonObject,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Inserts an organization, with the start of its audit log.
///
/// # Errors
/// Where the database refuses it.
pub async fn insert(tx: &mut Tx, organization: &Organization) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(organizations::table).values(organization).execute(c).await?);
    audit_log::begin_chain(tx, organization.id).await
}

/// The caller's organization.
///
/// # Errors
/// Where the database fails.
pub async fn find(conn: &mut Conn, permit: &Permit<Read>) -> Result<Option<Organization>> {
    Ok(on_conn!(conn, |c| organizations::table
        .find(permit.organization())
        .select(Organization::as_select())
        .first(c)
        .await
        .optional()?))
}

/// The permit's organization, locked to the end of the transaction. It is locked before any of its users.
///
/// # Errors
/// Where the database fails.
pub async fn lock<G: Grant>(tx: &mut Tx, permit: &Permit<G>) -> Result<Option<Organization>> {
    let conn = tx.conn().await?;
    Ok(first_locked_but_for_references!(
        conn,
        organizations::table.find(permit.organization()).select(Organization::as_select())
    )
    .optional()?)
}

/// Writes the name and the settings of an organization that is locked already.
///
/// # Errors
/// Where the database fails.
pub async fn update(tx: &mut Tx, permit: &Permit<ManageOrganization>, organization: &Organization) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::update(organizations::table.find(permit.organization()))
        .set((
            organizations::name.eq(&organization.name),
            organizations::settings.eq(&organization.settings),
            organizations::updated_at.eq(organization.updated_at),
        ))
        .execute(c)
        .await?);
    Ok(())
}

/// The organization that was made first: the operator's own, which also keeps the audit entries of deeds that belong to
/// none, like a sign-in with an unknown address.
///
/// # Errors
/// Where the database fails.
pub async fn first(conn: &mut Conn) -> Result<Option<OrganizationId>> {
    Ok(on_conn!(conn, |c| organizations::table
        .order((organizations::created_at, organizations::id))
        .select(organizations::id)
        .first(c)
        .await
        .optional()?))
}

/// Lets one server at a time make an organization, to the end of the transaction.
///
/// # Errors
/// Where the database fails.
pub async fn lock_making(tx: &mut Tx) -> Result<()> {
    tx.conn().await?.lock_alone().await
}
