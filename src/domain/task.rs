//! Tasks: what is to be done for a client.

use std::collections::HashMap;

use super::client;
use super::context::Cx;
use super::deed::audited;
use super::error::{Error, Result};
use super::user::check_member;
use super::validation::{Checks, Patch, check_search};
use crate::audit::{Changes, Entry, Field, Recorded};
use crate::model::{
    AuditAction, ClientId, DeleteTasks, Direction, Page, PageSlice, ResourceType, TaskId, TaskPriority, TaskStatus,
    Timestamp, UserId, WriteTasks,
};
use crate::store::Tx;
use crate::store::task::{self as tasks, Task, TaskFilter, TaskOrder};

const TITLE_LENGTH: std::ops::RangeInclusive<usize> = 1..=200;
const DESCRIPTION_LENGTH: usize = 10_000;

/// The input of [`create`].
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Create {
    pub client_id: String,
    pub title: String,
    pub description: Option<String>,
    pub status: Option<TaskStatus>,
    pub priority: Option<TaskPriority>,
    pub assignee_id: Option<String>,
    pub due_at: Option<Timestamp>,
}

/// The input of [`update`].
#[derive(Default)]
#[allow(missing_docs, reason = "named and described as in the API")]
pub struct Update {
    pub title: Patch<String>,
    pub description: Patch<String>,
    pub status: Patch<TaskStatus>,
    pub priority: Patch<TaskPriority>,
    pub assignee_id: Patch<String>,
    pub due_at: Patch<Timestamp>,
    pub expected_version: Option<i32>,
}

impl Recorded for Task {
    fn fields(&self) -> Vec<(&'static str, Field)> {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_utc().to_rfc3339());
        vec![
            ("clientId", Field::plain(self.client_id.to_string())),
            ("title", Field::plain(self.title.as_str())),
            ("description", Field::plain(self.description.as_deref())),
            ("status", Field::plain(self.status.as_str())),
            ("priority", Field::plain(self.priority.as_str())),
            ("assigneeId", Field::plain(self.assignee_id.map(|id| id.to_string()))),
            ("dueAt", Field::plain(time(self.due_at))),
            ("completedAt", Field::plain(time(self.completed_at))),
        ]
    }
}

/// A page of the organization's tasks.
///
/// # Errors
/// Where nobody is signed in, or with a cursor of another list.
pub async fn page(
    cx: Cx<'_>,
    filter: &TaskFilter,
    order: (TaskOrder, Direction),
    page: &Page,
) -> Result<PageSlice<Task>> {
    let permit = cx.actor.require()?;
    check_search(filter.search.as_deref())?;
    let mut conn = cx.services.db.list(page, *filter != TaskFilter::default()).await?;
    Ok(tasks::page(&mut conn, &permit, filter, order, page).await?)
}

/// The same page of the tasks of each of the clients.
///
/// # Errors
/// As for [`page`].
pub async fn pages(
    cx: Cx<'_>,
    clients: &[ClientId],
    filter: &TaskFilter,
    order: (TaskOrder, Direction),
    page: &Page,
) -> Result<HashMap<ClientId, PageSlice<Task>>> {
    let permit = cx.actor.require()?;
    Ok(tasks::pages(&mut cx.services.db.scan().await?, &permit, clients, filter, order, page).await?)
}

/// How many of the organization's tasks pass the filter.
///
/// # Errors
/// Where nobody is signed in.
pub async fn count(cx: Cx<'_>, filter: &TaskFilter) -> Result<i64> {
    let permit = cx.actor.require()?;
    Ok(tasks::count(&mut cx.services.db.scan().await?, &permit, filter).await?)
}

/// How many tasks of each of the clients pass the filter; a client without any is left out.
///
/// # Errors
/// Where nobody is signed in.
pub async fn counts(cx: Cx<'_>, clients: &[ClientId], filter: &TaskFilter) -> Result<HashMap<ClientId, i64>> {
    let permit = cx.actor.require()?;
    Ok(tasks::counts(&mut cx.services.db.scan().await?, &permit, clients, filter).await?)
}

/// The tasks among `ids` that belong to the caller's organization, in no order.
///
/// # Errors
/// Where nobody is signed in.
pub async fn find_many(cx: Cx<'_>, ids: &[TaskId]) -> Result<Vec<Task>> {
    let permit = cx.actor.require()?;
    Ok(tasks::find_many(&mut cx.services.db.read().await?, &permit, ids).await?)
}

/// Makes a task.
///
/// # Errors
/// Without permission, with wrong input, or where the client is archived.
pub async fn create(cx: Cx<'_>, input: Create) -> Result<Task> {
    let permit = cx.actor.require::<WriteTasks>()?;
    let now = cx.services.clock.now();
    let client_id = input.client_id.parse().map_err(|_| Error::not_found("client"))?;
    let mut checks = Checks::new();
    let title = checks.line("title", &input.title, TITLE_LENGTH);
    let description = input.description.and_then(|text| checks.text("description", &text, DESCRIPTION_LENGTH));
    let assignee_id = input.assignee_id.and_then(|id| checks.id("assigneeId", &id));
    checks.finish()?;
    let status = input.status.unwrap_or(TaskStatus::Todo);
    let task = Task {
        id: cx.services.new_id(),
        client_id,
        title: title.unwrap_or_default(),
        description,
        status,
        priority: input.priority.unwrap_or(TaskPriority::Normal),
        assignee_id,
        due_at: input.due_at,
        completed_at: (status == TaskStatus::Done).then_some(now),
        created_by: cx.actor.signed_in().map(|user| user.user),
        created_at: now,
        updated_at: now,
        version: 1,
    };
    audited(cx, async |tx| {
        client::lock_open(tx, &permit, client_id).await?;
        check_assignee(cx, tx, task.assignee_id).await?;
        tasks::insert(tx, &permit, &task).await?;
        let changes = Changes::created(&task);
        let entry = Entry::new(AuditAction::Create, ResourceType::Task).on(&task.id).with(changes);
        Ok((task, entry))
    })
    .await
}

/// Changes a task; what the input leaves out stays.
///
/// # Errors
/// Without permission, with wrong input, where there is no such task, or where it is not at the expected version.
pub async fn update(cx: Cx<'_>, id: TaskId, input: Update) -> Result<Task> {
    let permit = cx.actor.require::<WriteTasks>()?;
    audited(cx, async |tx| {
        let before = tasks::lock(tx, &permit, id).await?.ok_or_else(no_such_task)?;
        if input.expected_version.is_some_and(|version| version != before.version) {
            return Err(Error::conflict("The task is not at the expected version. Read it again."));
        }
        let mut checks = Checks::new();
        let mut task = before.clone();
        let title = std::mem::take(&mut task.title);
        task.title =
            checks.required("title", input.title, title, |checks, text| checks.line("title", &text, TITLE_LENGTH));
        task.description = input
            .description
            .or_keep(task.description.take(), |text| checks.text("description", &text, DESCRIPTION_LENGTH));
        task.status = checks.required("status", input.status, task.status, |_, status| Some(status));
        task.priority = checks.required("priority", input.priority, task.priority, |_, priority| Some(priority));
        task.assignee_id = input.assignee_id.or_keep(task.assignee_id, |id| checks.id("assigneeId", &id));
        task.due_at = input.due_at.or_keep(task.due_at, Some);
        checks.finish()?;
        if task.assignee_id != before.assignee_id {
            check_assignee(cx, tx, task.assignee_id).await?;
        }
        let now = cx.services.clock.now();
        task.completed_at = (task.status == TaskStatus::Done).then(|| task.completed_at.unwrap_or(now));
        let changes = Changes::between(&before, &task);
        if !changes.is_empty() {
            task.version += 1;
            task.updated_at = now;
            tasks::update(tx, &permit, &task).await?;
        }
        Ok((task, Entry::new(AuditAction::Update, ResourceType::Task).on(&id).with(changes)))
    })
    .await
}

/// Deletes a task.
///
/// # Errors
/// Without permission, or where there is no such task.
pub async fn delete(cx: Cx<'_>, id: TaskId) -> Result<()> {
    let permit = cx.actor.require::<DeleteTasks>()?;
    audited(cx, async |tx| {
        let task = tasks::lock(tx, &permit, id).await?.ok_or_else(no_such_task)?;
        tasks::delete(tx, &permit, id).await?;
        let entry = Entry::new(AuditAction::Delete, ResourceType::Task).on(&id);
        Ok(((), entry.with(Changes::deleted(&task))))
    })
    .await
}

async fn check_assignee(cx: Cx<'_>, tx: &mut Tx, assignee: Option<UserId>) -> Result<()> {
    match assignee {
        Some(assignee) => check_member(cx, tx, "assigneeId", assignee).await,
        None => Ok(()),
    }
}

fn no_such_task() -> Error {
    Error::not_found("task")
}
