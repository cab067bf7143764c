//! Tasks: what is to be done for a client.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::backend::{Conn, on_conn};
use super::bulk::insert_all;
use super::error::{Error, Result};
use super::fields::{distinct, fold};
use super::locks::first_locked;
use super::page::{bounded, keyset};
use super::ranked::ranked;
use super::search::searched;
use super::tables::tasks;
use super::tx::Tx;
use crate::model::{
    ClientId, DeleteTasks, Direction, Grant, Page, PageSlice, Permit, Position, Read, SortKey, TaskId, TaskPriority,
    TaskStatus, Timestamp, UserId, WriteTasks,
};

/// Something to do.
#[derive(Debug, Clone, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = tasks, check_for_backend(diesel::pg::Pg, diesel::sqlite::Sqlite))]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
pub struct Task {
    /// The id.
    pub id: TaskId,
    /// For whom it is done.
    pub client_id: ClientId,
    /// What is to be done, in a line.
    pub title: String,
    /// What is to be done, at length.
    pub description: Option<String>,
    /// How far it is.
    pub status: TaskStatus,
    /// How urgent it is.
    pub priority: TaskPriority,
    /// Who does it.
    pub assignee_id: Option<UserId>,
    /// By when.
    pub due_at: Option<Timestamp>,
    /// When it was done.
    pub completed_at: Option<Timestamp>,
    /// Who made it.
    pub created_by: Option<UserId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts the changes, from 1.
    pub version: i32,
}

/// Columns that follow from others.
#[derive(Insertable, AsChangeset)]
#[diesel(table_name = tasks)]
struct Derived {
    title_folded: String,
    search_text: String,
    priority_rank: i32,
    due_sort: Timestamp,
}

impl Task {
    fn derived(&self) -> Derived {
        let title_folded = fold(&self.title);
        let description = self.description.as_deref().map(fold).unwrap_or_default();
        Derived {
            search_text: format!("{title_folded}\n{description}"),
            title_folded,
            priority_rank: rank(self.priority),
            due_sort: self.due_at.unwrap_or(Timestamp::MAX),
        }
    }
}

/// How urgent, from 1.
fn rank(priority: TaskPriority) -> i32 {
    match priority {
        TaskPriority::Low => 1,
        TaskPriority::Normal => 2,
        TaskPriority::High => 3,
        TaskPriority::Urgent => 4,
    }
}

/// Which tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TaskFilter {
    /// Of this client.
    pub client_id: Option<ClientId>,
    /// In these states.
    pub status: Option<Vec<TaskStatus>>,
    /// Of these priorities.
    pub priority: Option<Vec<TaskPriority>>,
    /// That this user does.
    pub assignee_id: Option<UserId>,
    /// Due before this and open, or not so.
    pub overdue: Option<(bool, Timestamp)>,
    /// Due not before.
    pub due_from: Option<Timestamp>,
    /// Due before.
    pub due_to: Option<Timestamp>,
    /// With this in the title or the description, whatever the case.
    pub search: Option<String>,
}

/// What tasks are sorted by; the id breaks ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "named like the fields")]
pub enum TaskOrder {
    CreatedAt,
    UpdatedAt,
    DueAt,
    Priority,
    Title,
}

impl TaskOrder {
    /// Where a task stands in this ordering.
    #[must_use]
    pub fn position(self, task: &Task) -> Position {
        let key = match self {
            Self::CreatedAt => SortKey::Number(task.created_at.micros()),
            Self::UpdatedAt => SortKey::Number(task.updated_at.micros()),
            Self::DueAt => SortKey::Number(task.due_at.unwrap_or(Timestamp::MAX).micros()),
            Self::Priority => SortKey::Number(rank(task.priority).into()),
            Self::Title => SortKey::Text(fold(&task.title)),
        };
        Position { key, id: task.id.to_string() }
    }
}

const CLOSED: [TaskStatus; 2] = [TaskStatus::Done, TaskStatus::Cancelled];

macro_rules! filtered {
    ($backend:ident, $permit:expr, $filter:expr, $search:expr) => {
        filtered!($backend, tasks::table, $permit, $filter, $search)
    };
    ($backend:ident, $from:expr, $permit:expr, $filter:expr, $search:expr) => {{
        let filter: &TaskFilter = $filter;
        let mut query = $from.filter(tasks::organization_id.eq($permit.organization())).into_boxed::<$backend>();
        if let Some(client) = filter.client_id {
            query = query.filter(tasks::client_id.eq(client));
        }
        if let Some(statuses) = &filter.status {
            query = query.filter(tasks::status.eq_any(distinct(statuses)));
        }
        if let Some(priorities) = &filter.priority {
            query = query.filter(tasks::priority.eq_any(distinct(priorities)));
        }
        if let Some(assignee) = filter.assignee_id {
            query = query.filter(tasks::assignee_id.eq(assignee));
        }
        match filter.overdue {
            Some((true, now)) => query = query.filter(tasks::due_sort.lt(now).and(tasks::status.ne_all(CLOSED))),
            Some((false, now)) => query = query.filter(tasks::due_sort.ge(now).or(tasks::status.eq_any(CLOSED))),
            None => {}
        }
        if let Some(from) = filter.due_from {
            query = query.filter(tasks::due_at.ge(from));
        }
        if let Some(to) = filter.due_to {
            query = query.filter(tasks::due_at.lt(to));
        }
        if let Some(search) = $search {
            query = query.filter(search);
        }
        query
    }};
}

/// A page of tasks.
///
/// # Errors
/// Where the database fails, or a cursor does not belong to the ordering.
pub async fn page(
    conn: &mut Conn,
    permit: &Permit<Read>,
    filter: &TaskFilter,
    (order, direction): (TaskOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Task>> {
    use tasks as t;
    let search = searched!(conn, tasks, filter);
    let rows = on_conn!(conn, |c: Backend| {
        let mut query = filtered!(Backend, permit, filter, search).select(Task::as_select());
        match order {
            TaskOrder::CreatedAt => keyset!(query, page, direction, t::created_at, t::id, Timestamp),
            TaskOrder::UpdatedAt => keyset!(query, page, direction, t::updated_at, t::id, Timestamp),
            TaskOrder::DueAt => keyset!(query, page, direction, t::due_sort, t::id, Timestamp),
            TaskOrder::Priority => keyset!(query, page, direction, t::priority_rank, t::id, i32),
            TaskOrder::Title => keyset!(query, page, direction, t::title_folded, t::id, String),
        }
        bounded(query, page).load(c).await?
    });
    Ok(page.slice(rows))
}

/// The same page of the tasks of each of the clients, in one statement.
///
/// # Errors
/// As for [`page`].
pub async fn pages(
    conn: &mut Conn,
    permit: &Permit<Read>,
    clients: &[ClientId],
    filter: &TaskFilter,
    (order, direction): (TaskOrder, Direction),
    page: &Page,
) -> Result<HashMap<ClientId, PageSlice<Task>>> {
    use tasks as t;
    let search = searched!(conn, tasks, filter);
    let rows: Vec<(Task, i64)> = on_conn!(conn, |c: Backend| {
        let query = filtered!(Backend, permit, filter, search);
        let row = Task::as_select();
        match order {
            TaskOrder::CreatedAt => {
                ranked!(query, row, page, direction, t::client_id => clients, t::created_at, t::id, Timestamp)
            }
            TaskOrder::UpdatedAt => {
                ranked!(query, row, page, direction, t::client_id => clients, t::updated_at, t::id, Timestamp)
            }
            TaskOrder::DueAt => {
                ranked!(query, row, page, direction, t::client_id => clients, t::due_sort, t::id, Timestamp)
            }
            TaskOrder::Priority => {
                ranked!(query, row, page, direction, t::client_id => clients, t::priority_rank, t::id, i32)
            }
            TaskOrder::Title => {
                ranked!(query, row, page, direction, t::client_id => clients, t::title_folded, t::id, String)
            }
        }
        .load(c)
        .await?
    });
    Ok(page.slices(clients, rows.into_iter().map(|(task, _)| (task.client_id, task))))
}

/// How many tasks there are.
///
/// # Errors
/// Where the database fails.
pub async fn count(conn: &mut Conn, permit: &Permit<Read>, filter: &TaskFilter) -> Result<i64> {
    let search = searched!(conn, tasks, filter);
    Ok(on_conn!(conn, |c: Backend| filtered!(Backend, permit, filter, search).count().get_result(c).await?))
}

/// How many tasks each of the clients has, in one statement. A client without any is left out.
///
/// # Errors
/// Where the database fails.
pub async fn counts(
    conn: &mut Conn,
    permit: &Permit<Read>,
    clients: &[ClientId],
    filter: &TaskFilter,
) -> Result<HashMap<ClientId, i64>> {
    let search = searched!(conn, tasks, filter);
    let by_client = tasks::table.group_by(tasks::client_id).select((tasks::client_id, diesel::dsl::count_star()));
    let rows: Vec<(ClientId, i64)> = on_conn!(conn, |c: Backend| filtered!(Backend, by_client, permit, filter, search)
        .filter(tasks::client_id.eq_any(clients))
        .load(c)
        .await?);
    Ok(rows.into_iter().collect())
}

/// The tasks among `ids`, in no order.
///
/// # Errors
/// Where the database fails.
pub async fn find_many(conn: &mut Conn, permit: &Permit<Read>, ids: &[TaskId]) -> Result<Vec<Task>> {
    Ok(on_conn!(conn, |c| tasks::table
        .filter(tasks::organization_id.eq(permit.organization()).and(tasks::id.eq_any(ids)))
        .select(Task::as_select())
        .load(c)
        .await?))
}

/// One task, locked to the end of the transaction.
///
/// # Errors
/// Where the database fails.
pub async fn lock<G: Grant>(tx: &mut Tx, permit: &Permit<G>, id: TaskId) -> Result<Option<Task>> {
    let conn = tx.conn().await?;
    Ok(first_locked!(
        conn,
        tasks::table
            .filter(tasks::organization_id.eq(permit.organization()).and(tasks::id.eq(id)))
            .select(Task::as_select())
    )
    .optional()?)
}

/// Inserts a task into the permit's organization.
///
/// # Errors
/// Where the database fails.
pub async fn insert(tx: &mut Tx, permit: &Permit<WriteTasks>, task: &Task) -> Result<()> {
    let derived = task.derived();
    let own = tasks::organization_id.eq(permit.organization());
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::insert_into(tasks::table).values((task, own, &derived)).execute(c).await?);
    Ok(())
}

/// Inserts many tasks into the permit's organization.
///
/// # Errors
/// Where the database fails.
pub async fn insert_all(tx: &mut Tx, permit: &Permit<WriteTasks>, tasks: &[Task]) -> Result<()> {
    let conn = tx.conn().await?;
    insert_all!(conn, tasks::table, tasks, |task| (
        task,
        tasks::organization_id.eq(permit.organization()),
        task.derived()
    ));
    Ok(())
}

/// Replaces a task as it was at the version before.
///
/// # Errors
/// [`Error::Stale`] where it is not at that version.
pub async fn update(tx: &mut Tx, permit: &Permit<WriteTasks>, task: &Task) -> Result<()> {
    let derived = task.derived();
    let target = tasks::table.filter(
        tasks::organization_id
            .eq(permit.organization())
            .and(tasks::id.eq(task.id))
            .and(tasks::version.eq(task.version - 1)),
    );
    let conn = tx.conn().await?;
    let changed = on_conn!(conn, |c| diesel::update(target).set((task, &derived)).execute(c).await?);
    if changed == 0 { Err(Error::Stale) } else { Ok(()) }
}

/// Deletes a task.
///
/// # Errors
/// Where the database fails.
pub async fn delete(tx: &mut Tx, permit: &Permit<DeleteTasks>, id: TaskId) -> Result<()> {
    let conn = tx.conn().await?;
    on_conn!(conn, |c| diesel::delete(
        tasks::table.filter(tasks::organization_id.eq(permit.organization()).and(tasks::id.eq(id)))
    )
    .execute(c)
    .await?);
    Ok(())
}
