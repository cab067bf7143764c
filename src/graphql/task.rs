//! Tasks in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, MaybeUndefined, Object, SimpleObject};

use super::client::Client;
use super::connection::{Connection, DateTimeRange, Listed, OrderDirection, PageArguments, ordering};
use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, audits, open_to_api_keys, requires};
use super::error::Result;
use super::inputs::{filter_id, id_inputs, patch, payloads, searched, target};
use super::loaders::{Loaders, TaskPage};
use super::rows::One;
use super::scalars::DateTime;
use super::user::{self, User};
use crate::domain::task::{self as deeds, Create, Update};
use crate::domain::{self, Error};
use crate::model::{self, ClientId, Direction, Timestamp};
use crate::store::task::{Task as Row, TaskFilter as Filter, TaskOrder as Order};

/// Something to do for a client.
pub(super) struct Task(pub(super) Arc<Row>);

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::TaskStatus")]
pub(super) enum TaskStatus {
    /// Not begun.
    Todo,
    /// Begun.
    InProgress,
    /// Waiting for something else.
    Blocked,
    /// Done.
    Done,
    /// Not to be done any more.
    Cancelled,
}

/// How urgent a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::TaskPriority")]
pub(super) enum TaskPriority {
    /// When there is time.
    Low,
    /// In its turn.
    Normal,
    /// Before others.
    High,
    /// Now.
    Urgent,
}

/// Something to do for a client.
#[Object(serial)]
impl Task {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// For whom it is done.
    async fn client(&self, ctx: &Context<'_>) -> Result<One<Client>> {
        let client = Loaders::of(ctx).client(self.0.client_id).await?;
        Ok(One(Client(client.ok_or_else(|| Error::internal("a task has no client"))?)))
    }

    /// What is to be done, in a line.
    async fn title(&self) -> &str {
        &self.0.title
    }

    /// What is to be done, at length.
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }

    /// How far it is.
    async fn status(&self) -> TaskStatus {
        self.0.status.into()
    }

    /// How urgent it is.
    async fn priority(&self) -> TaskPriority {
        self.0.priority.into()
    }

    /// Who does it.
    async fn assignee(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by(ctx, self.0.assignee_id).await
    }

    /// By when.
    async fn due_at(&self) -> Option<DateTime> {
        self.0.due_at.map(DateTime)
    }

    /// When it was done; null while its status is another than DONE.
    async fn completed_at(&self) -> Option<DateTime> {
        self.0.completed_at.map(DateTime)
    }

    /// Who made it.
    async fn created_by(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by(ctx, self.0.created_by).await
    }

    /// When it was made.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }

    /// When it was last changed.
    async fn updated_at(&self) -> DateTime {
        self.0.updated_at.into()
    }

    /// Counts the changes, from 1; `expectedVersion` compares with it.
    async fn version(&self) -> i32 {
        self.0.version
    }
}

impl Listed for Task {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        Loaders::of(ctx).task_count(filter.clone()).await
    }
}

/// Which tasks; all of what is named must hold.
#[derive(Default, InputObject)]
pub(super) struct TaskFilter {
    /// Of this client.
    client_id: Option<ID>,
    /// In one of these states.
    status: Option<Vec<TaskStatus>>,
    /// Of one of these priorities.
    priority: Option<Vec<TaskPriority>>,
    /// That this user does.
    assignee_id: Option<ID>,
    /// True: past due and neither done nor cancelled; false: the others.
    overdue: Option<bool>,
    /// Due in this span of time.
    due_at: Option<DateTimeRange>,
}

impl TaskFilter {
    fn read(self, search: Option<String>, now: Timestamp) -> domain::Result<Filter> {
        let span = self.due_at;
        Ok(Filter {
            client_id: filter_id("clientId", self.client_id)?,
            status: self.status.map(|statuses| statuses.into_iter().map(model::TaskStatus::from).collect()),
            priority: self.priority.map(|names| names.into_iter().map(model::TaskPriority::from).collect()),
            assignee_id: filter_id("assigneeId", self.assignee_id)?,
            overdue: self.overdue.map(|overdue| (overdue, now)),
            due_from: span.as_ref().and_then(|span| span.from).map(|time| time.0),
            due_to: span.and_then(|span| span.to).map(|time| time.0),
            search: searched(search),
        })
    }
}

/// What to sort tasks by; the id breaks ties.
#[derive(InputObject)]
pub(super) struct TaskOrder {
    /// The field.
    field: TaskOrderField,
    /// Which way.
    #[graphql(default_with = "OrderDirection::Desc")]
    direction: OrderDirection,
}

/// A field that tasks can be sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::store::task::TaskOrder")]
pub(super) enum TaskOrderField {
    /// When it was made.
    CreatedAt,
    /// When it was last changed.
    UpdatedAt,
    /// When it is due; those without a date count as due at the end of time.
    DueAt,
    /// How urgent it is.
    Priority,
    /// Its title, whatever the case.
    Title,
}

/// The ordering, its name in cursors.
fn ordered(order: Option<TaskOrder>) -> (Order, Direction, String) {
    ordering(order.map(|order| (order.field, order.direction)), (TaskOrderField::CreatedAt, OrderDirection::Desc))
}

/// A page of the tasks of one client: with those of all clients that the query asks for, in one statement.
pub(super) async fn of_client(
    ctx: &Context<'_>,
    client: ClientId,
    filter: Option<TaskFilter>,
    order: Option<TaskOrder>,
    page: PageArguments,
) -> Result<Connection<Task>> {
    let mut filter = filter.unwrap_or_default().read(None, Loaders::of(ctx).now())?;
    let (order, direction, name) = ordered(order);
    let page = page.page(&name)?;
    let is_of_another = filter.client_id.is_some_and(|of| of != client);
    filter.client_id = None;
    let slice = if is_of_another {
        page.slice(Vec::new())
    } else {
        let key = TaskPage { client, filter: filter.clone(), order, direction, page };
        Loaders::of(ctx).task_page(key).await?
    };
    // Nothing passes both this client and another.
    filter.status = if is_of_another { Some(Vec::new()) } else { filter.status };
    filter.client_id = Some(client);
    Ok(Connection::new(slice, &name, filter, move |row| order.position(row)))
}

/// A new task.
#[derive(InputObject)]
pub(super) struct CreateTaskInput {
    /// For which client.
    client_id: ID,
    /// What is to be done, 1 to 200 characters.
    title: String,
    /// The same at length, at most 10,000 characters.
    description: Option<String>,
    /// How far it is; TODO where left out.
    status: Option<TaskStatus>,
    /// How urgent it is; NORMAL where left out.
    priority: Option<TaskPriority>,
    /// A user of the organization who does it.
    assignee_id: Option<ID>,
    /// By when.
    due_at: Option<DateTime>,
}

/// Changes to a task: what is left out stays, null clears what may be empty.
#[derive(InputObject)]
pub(super) struct UpdateTaskInput {
    /// Which task.
    id: ID,
    /// What is to be done, 1 to 200 characters.
    title: MaybeUndefined<String>,
    /// The same at length, at most 10,000 characters.
    description: MaybeUndefined<String>,
    /// How far it is.
    status: MaybeUndefined<TaskStatus>,
    /// How urgent it is.
    priority: MaybeUndefined<TaskPriority>,
    /// A user of the organization who does it.
    assignee_id: MaybeUndefined<ID>,
    /// By when.
    due_at: MaybeUndefined<DateTime>,
    /// Refuse with CONFLICT unless the task is at this version.
    expected_version: Option<i32>,
}

id_inputs! {
    /// Which task to delete.
    DeleteTaskInput,
}

payloads! {
    task: Task(Row):
    /// The new task.
    CreateTaskPayload,
    /// The changed task.
    UpdateTaskPayload,
}

/// The task is gone.
#[derive(SimpleObject)]
pub(super) struct DeleteTaskPayload {
    /// Its id.
    deleted_id: ID,
}

#[derive(Default)]
pub(super) struct TaskQuery;

#[Object(guard = "Declared")]
impl TaskQuery {
    /// A task; null where there is none with this id.
    async fn task(&self, ctx: &Context<'_>, #[graphql(desc = "The task's id.")] id: ID) -> Result<Option<One<Task>>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        Ok(Loaders::of(ctx).task(id).await?.map(|row| One(Task(row))))
    }

    /// The organization's tasks, newest first unless asked otherwise. `search` finds text in the title and the description,
    /// whatever the case.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn tasks(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Text to find, at most 200 characters.")] search: Option<String>,
        #[graphql(desc = "Which tasks.")] filter: Option<TaskFilter>,
        #[graphql(desc = "What to sort by.")] order_by: Option<TaskOrder>,
    ) -> Result<Option<Connection<Task>>> {
        let filter = filter.unwrap_or_default().read(search, Loaders::of(ctx).now())?;
        let (order, direction, name) = ordered(order_by);
        let page = PageArguments { first, after, last, before, offset }.page(&name)?;
        let slice = deeds::page(ctx.cx(), &filter, (order, direction), &page).await?;
        Ok(Some(Connection::new(slice, &name, filter, move |row| order.position(row))))
    }
}

#[derive(Default)]
pub(super) struct TaskMutation;

#[Object(guard = "Declared")]
impl TaskMutation {
    /// Makes a task for a client that is not archived.
    #[graphql(
        directive = requires::apply(Permission::WriteTasks),
        directive = audits::apply(AuditAction::Create, ResourceType::Task),
        directive = open_to_api_keys::apply()
    )]
    async fn create_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The new task.")] input: CreateTaskInput,
    ) -> Result<Option<CreateTaskPayload>> {
        let input = Create {
            client_id: input.client_id.0,
            title: input.title,
            description: input.description,
            status: input.status.map(Into::into),
            priority: input.priority.map(Into::into),
            assignee_id: input.assignee_id.map(|id| id.0),
            due_at: input.due_at.map(|time| time.0),
        };
        Ok(Some(deeds::create(ctx.cx(), input).await?.into()))
    }

    /// Changes a task. `completedAt` follows its status.
    #[graphql(
        directive = requires::apply(Permission::WriteTasks),
        directive = audits::apply(AuditAction::Update, ResourceType::Task),
        directive = open_to_api_keys::apply()
    )]
    async fn update_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The changes.")] input: UpdateTaskInput,
    ) -> Result<Option<UpdateTaskPayload>> {
        let id = target(&input.id, "task")?;
        let input = Update {
            title: patch(input.title, |text| text),
            description: patch(input.description, |text| text),
            status: patch(input.status, Into::into),
            priority: patch(input.priority, Into::into),
            assignee_id: patch(input.assignee_id, |id| id.0),
            due_at: patch(input.due_at, |time| time.0),
            expected_version: input.expected_version,
        };
        Ok(Some(deeds::update(ctx.cx(), id, input).await?.into()))
    }

    /// Deletes a task.
    #[graphql(
        directive = requires::apply(Permission::DeleteTasks),
        directive = audits::apply(AuditAction::Delete, ResourceType::Task),
        directive = open_to_api_keys::apply()
    )]
    async fn delete_task(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which task.")] input: DeleteTaskInput,
    ) -> Result<Option<DeleteTaskPayload>> {
        deeds::delete(ctx.cx(), target(&input.id, "task")?).await?;
        Ok(Some(DeleteTaskPayload { deleted_id: input.id }))
    }
}
