//! Notifications in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, Object, SimpleObject};

use super::connection::{Connection, Edge, Listed, PageArguments, PageInfo};
use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, ResourceType, audits};
use super::error::Result;
use super::feed::{Delivered, Feed};
use super::node::Node;
use super::rows::Rows;
use super::scalars::DateTime;
use crate::domain::notification as deeds;
use crate::store::notification::{Notification as Row, NotificationFilter as Filter};

/// The name of the one order that they have.
const ORDER: &str = "CREATED_AT";

/// Something that a user should know.
pub(super) struct Notification(pub(super) Arc<Row>);

/// What kind of thing a notification tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::NotificationKind")]
pub(super) enum NotificationKind {
    /// A Claude account does not work: told to who has `MANAGE_CLAUDE_ACCOUNTS`.
    ClaudeAccountUnhealthy,
    /// Much of a limit is used up.
    UsageLimitNear,
    /// A limit is used up.
    UsageLimitReached,
    /// An API key ends within a week, and once more within a day: told to its owner, and to who has `MANAGE_API_KEYS`.
    ApiKeyExpiring,
    /// A sign-in from a device that the user has not signed in from before: told to the user. Sign-ins that were refused after too many
    /// attempts, once a day: told to whose address it was, and to who has `MANAGE_USERS`.
    Security,
    /// Something about the server.
    System,
}

/// Something that a user should know.
#[Object(serial)]
impl Notification {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// What kind of thing it tells of.
    async fn kind(&self) -> NotificationKind {
        self.0.kind.into()
    }

    /// What it tells, in a line of plain text.
    async fn title(&self) -> &str {
        &self.0.title
    }

    /// What it tells, as plain text.
    async fn body(&self) -> &str {
        &self.0.body
    }

    /// What it is about, where that still exists: an API key, a session, a user.
    async fn resource(&self, ctx: &Context<'_>) -> Result<Option<Node>> {
        match &self.0.resource_id {
            Some(id) => Node::load(ctx, id).await,
            None => Ok(None),
        }
    }

    /// When it was marked as read.
    async fn read_at(&self) -> Option<DateTime> {
        self.0.read_at.map(DateTime)
    }

    /// When it came to be.
    async fn created_at(&self) -> DateTime {
        self.0.created_at.into()
    }
}

impl Listed for Notification {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        Ok(deeds::count(ctx.cx(), *filter).await?)
    }
}

/// A page of a list.
pub(super) struct NotificationConnection(Connection<Notification>);

/// A page of a list.
#[Object]
impl NotificationConnection {
    /// The rows with their cursors.
    async fn edges(&self) -> Rows<'_, Edge<Notification>> {
        self.0.edge_rows()
    }

    /// The rows.
    async fn nodes(&self) -> Rows<'_, Notification> {
        self.0.node_rows()
    }

    /// Whether there is more.
    async fn page_info(&self) -> PageInfo {
        self.0.info()
    }

    /// How many rows the whole list has. Counted only where it is selected.
    async fn total_count(&self, ctx: &Context<'_>) -> Result<i32> {
        self.0.count(ctx).await
    }

    /// How many of the caller's notifications were not read, whichever are listed. Counted only where it is selected.
    async fn unread_count(&self, ctx: &Context<'_>) -> Result<i32> {
        Ok(number(deeds::count_unread(ctx.cx()).await?))
    }
}

fn number(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What was read.
#[derive(InputObject)]
pub(super) struct MarkNotificationsReadInput {
    /// Which notifications, at most 100; all where it is left out.
    ids: Option<Vec<ID>>,
}

/// It was noted.
#[derive(SimpleObject)]
pub(super) struct MarkNotificationsReadPayload {
    /// How many are left that were not read.
    unread_count: i32,
}

#[derive(Default)]
pub(super) struct NotificationQuery;

#[Object(guard = "Declared")]
impl NotificationQuery {
    /// What the caller should know, newest first: of the last 90 days.
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn notifications(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Only those that were not read.", default_with = "Some(false)")] unread_only: Option<bool>,
    ) -> Result<Option<NotificationConnection>> {
        let page = PageArguments { first, after, last, before, offset }.page(ORDER)?;
        let filter = Filter { unread_only: unread_only.unwrap_or(false) };
        let slice = deeds::page(ctx.cx(), filter, &page).await?;
        Ok(Some(NotificationConnection(Connection::new(slice, ORDER, filter, Row::position))))
    }
}

#[derive(Default)]
pub(super) struct NotificationMutation;

#[Object(guard = "Declared")]
impl NotificationMutation {
    /// Notes that the caller has read notifications. No API key does: it would hide from its owner what was told of its use.
    #[graphql(directive = audits::apply(AuditAction::Update, ResourceType::Notification))]
    async fn mark_notifications_read(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which were read.")] input: MarkNotificationsReadInput,
    ) -> Result<Option<MarkNotificationsReadPayload>> {
        let ids = input.ids.map(|ids| ids.into_iter().map(|id| id.0).collect());
        let left = deeds::mark_read(ctx.cx(), ids).await?;
        Ok(Some(MarkNotificationsReadPayload { unread_count: number(left) }))
    }
}

#[derive(Default)]
pub(super) struct NotificationSubscription;

#[Object(guard = "Declared")]
impl NotificationSubscription {
    /// Each new notification of the caller's, once, in the order in which they came to be.
    async fn notification_added(&self, ctx: &Context<'_>) -> Result<Notification> {
        let feed = Feed::of(ctx);
        // Deeds of any kind tell something.
        let (read, until) = feed.span(ctx.cx(), None).await?;
        match deeds::next(ctx.cx(), (read, until), feed.passed()).await? {
            Some((row, has_more)) => {
                // Where more follows at its place, the place is not read yet.
                let (sequence, passed) = if has_more { (row.sequence - 1, Some(row.id)) } else { (row.sequence, None) };
                feed.deliver(Delivered { sequence, account: None, passed });
                Ok(Notification(row.into()))
            }
            None => Err(feed.nothing_until((read, until))),
        }
    }
}
