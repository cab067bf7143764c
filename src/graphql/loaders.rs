//! Loaders: what the rows of one page refer to is read in one statement.
//!
//! They are made for each request and never shared, so a read that is given up takes nobody else's rows with it. Absence and
//! failure are values, since a batch answers for all of its keys.

mod gathering;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_graphql::Context;
use gathering::{Found, Gathering, Read};

use super::context::Caller;
use super::error::Result;
use crate::domain::quota::{self, Window};
use crate::domain::usage_report::{self, Report};
use crate::domain::{self, Cx};
use crate::model::{
    ApiKeyId, AuditLogId, ClaudeAccountId, ClientId, ConversationId, CredentialId, Direction, MessageId,
    NotificationId, OrganizationId, Page, PageSlice, SessionId, TaskId, Timestamp, UsageInterval, UsageRecordId,
    UserId,
};
use crate::store::api_key::{ApiKey, ApiKeyFilter};
use crate::store::audit_log::AuditLog;
use crate::store::claude_account::ClaudeAccount;
use crate::store::client::Client;
use crate::store::conversation::Conversation;
use crate::store::credential::{Credential, CredentialFilter};
use crate::store::message::Message;
use crate::store::notification::Notification;
use crate::store::organization::Organization;
use crate::store::session::Session;
use crate::store::task::{Task, TaskFilter, TaskOrder};
use crate::store::usage::UsageRecord;
use crate::store::user::User;

/// The loaders of one request, made and cleared together.
macro_rules! loaders {
    ($($field:ident: $read:ident),+ $(,)?) => {
        /// The loaders of one request.
        pub(super) struct Loaders {
            now: Timestamp,
            /// How many values of buckets the answer has.
            bucket_values: AtomicU64,
            $($field: Gathering<$read>,)+
        }

        impl Loaders {
            /// Loaders that read as this caller.
            pub(super) fn new(caller: &Arc<Caller>) -> Self {
                let asked = Arc::default();
                let now = caller.services.clock.now();
                Self { now, bucket_values: AtomicU64::default(), $($field: Gathering::new(caller, &asked),)+ }
            }

            /// Forgets what was read.
            pub(super) async fn clear(&self) {
                $(self.$field.clear().await;)+
            }
        }
    };
}

loaders! {
    organizations: Organizations,
    users: Users,
    users_ever: UsersEver,
    sessions: Sessions,
    claude_accounts: ClaudeAccounts,
    clients: Clients,
    tasks: Tasks,
    task_pages: TaskPages,
    task_counts: TaskCounts,
    audit_logs: AuditLogs,
    audit_log_pages: AuditLogPages,
    audit_log_counts: AuditLogCounts,
    credentials: Credentials,
    credential_pages: CredentialPages,
    credential_counts: CredentialCounts,
    api_keys: ApiKeys,
    api_key_client_pages: ApiKeyClientPages,
    api_key_owner_pages: ApiKeyOwnerPages,
    api_key_counts: ApiKeyCounts,
    api_key_quotas: ApiKeyQuotas,
    conversations: Conversations,
    messages: Messages,
    message_pages: MessagePages,
    notifications: Notifications,
    api_key_usage: ApiKeyUsage,
    usage_records: UsageRecords,
}

impl Loaders {
    /// The request's loaders.
    pub(super) fn of<'a>(ctx: &Context<'a>) -> &'a Self {
        ctx.data_unchecked()
    }

    /// The time that a whole request is answered for: lists that are asked for together are of one moment.
    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// Counts so many more values of buckets; returns how many they are.
    pub(super) fn add_bucket_values(&self, more: u64) -> u64 {
        self.bucket_values.fetch_add(more, Ordering::Relaxed).saturating_add(more)
    }

    /// The caller's organization, by its id.
    pub(super) async fn organization(&self, id: OrganizationId) -> Found<Arc<Organization>> {
        self.organizations.load(id).await
    }

    /// One of the caller's sessions that is alive.
    pub(super) async fn session(&self, id: SessionId) -> Found<Arc<Session>> {
        self.sessions.load(id).await
    }

    /// A user of the caller's organization.
    pub(super) async fn user(&self, id: UserId) -> Found<Arc<User>> {
        self.users.load(id).await
    }

    /// A user of the caller's organization, deleted or not: for what remembers who it was.
    pub(super) async fn user_ever(&self, id: UserId) -> Found<Arc<User>> {
        self.users_ever.load(id).await
    }

    /// A Claude account of the caller's organization.
    pub(super) async fn claude_account(&self, id: ClaudeAccountId) -> Found<Arc<ClaudeAccount>> {
        self.claude_accounts.load(id).await
    }

    /// A client of the caller's organization.
    pub(super) async fn client(&self, id: ClientId) -> Found<Arc<Client>> {
        self.clients.load(id).await
    }

    /// A task of the caller's organization.
    pub(super) async fn task(&self, id: TaskId) -> Found<Arc<Task>> {
        self.tasks.load(id).await
    }

    /// A page of a client's tasks.
    pub(super) async fn task_page(&self, key: TaskPage) -> Result<PageSlice<Arc<Task>>> {
        let page = key.page.clone();
        Ok(self.task_pages.load(key).await?.unwrap_or_else(|| page.slice(Vec::new())))
    }

    /// How many tasks pass the filter.
    pub(super) async fn task_count(&self, filter: TaskFilter) -> Result<i64> {
        Ok(self.task_counts.load(filter).await?.unwrap_or_default())
    }

    /// An entry of the organization's audit log.
    pub(super) async fn audit_log(&self, id: AuditLogId) -> Found<Arc<AuditLog>> {
        self.audit_logs.load(id).await
    }

    /// A page of the entries on one resource.
    pub(super) async fn audit_log_page(&self, resource: String, page: Page) -> Result<PageSlice<Arc<AuditLog>>> {
        let key = (resource, page);
        let empty = key.1.slice(Vec::new());
        Ok(self.audit_log_pages.load(key).await?.unwrap_or(empty))
    }

    /// How many entries there are on one resource.
    pub(super) async fn audit_log_count(&self, resource: String) -> Result<i64> {
        Ok(self.audit_log_counts.load(resource).await?.unwrap_or_default())
    }

    /// A credential of the caller's organization.
    pub(super) async fn credential(&self, id: CredentialId) -> Found<Arc<Credential>> {
        self.credentials.load(id).await
    }

    /// A page of a client's credentials, newest first.
    pub(super) async fn credential_page(&self, client: ClientId, page: Page) -> Result<PageSlice<Arc<Credential>>> {
        let found = self.credential_pages.load((client, page.clone())).await?;
        Ok(found.unwrap_or_else(|| page.slice(Vec::new())))
    }

    /// How many credentials pass the filter.
    pub(super) async fn credential_count(&self, filter: CredentialFilter) -> Result<i64> {
        Ok(self.credential_counts.load(filter).await?.unwrap_or_default())
    }

    /// An API key that the caller may see.
    pub(super) async fn api_key(&self, id: ApiKeyId) -> Found<Arc<ApiKey>> {
        self.api_keys.load(id).await
    }

    /// A page of the API keys for a client, newest first.
    pub(super) async fn api_key_client_page(&self, client: ClientId, page: Page) -> Result<PageSlice<Arc<ApiKey>>> {
        let found = self.api_key_client_pages.load((client, page.clone())).await?;
        Ok(found.unwrap_or_else(|| page.slice(Vec::new())))
    }

    /// A page of a user's API keys, newest first.
    pub(super) async fn api_key_owner_page(&self, owner: UserId, page: Page) -> Result<PageSlice<Arc<ApiKey>>> {
        let found = self.api_key_owner_pages.load((owner, page.clone())).await?;
        Ok(found.unwrap_or_else(|| page.slice(Vec::new())))
    }

    /// One of the caller's conversations.
    pub(super) async fn conversation(&self, id: ConversationId) -> Found<Arc<Conversation>> {
        self.conversations.load(id).await
    }

    /// A message of one of the caller's conversations.
    pub(super) async fn message(&self, id: MessageId) -> Found<Arc<Message>> {
        self.messages.load(id).await
    }

    /// A page of a conversation's messages.
    pub(super) async fn message_page(&self, of: ConversationId, page: Page) -> Result<PageSlice<Arc<Message>>> {
        let found = self.message_pages.load((of, page.clone())).await?;
        Ok(found.unwrap_or_else(|| page.slice(Vec::new())))
    }

    /// One of the caller's notifications.
    pub(super) async fn notification(&self, id: NotificationId) -> Found<Arc<Notification>> {
        self.notifications.load(id).await
    }

    /// What an API key has used.
    pub(super) async fn api_key_usage(&self, key: UsageOfKey) -> Result<Report> {
        let (from, to) = key.span;
        let report = self.api_key_usage.load(key).await?.unwrap_or_else(|| Some(Report::empty(from, to)));
        Ok(report.ok_or_else(usage_report::too_many)?)
    }

    /// What is left of an API key's limits.
    pub(super) async fn api_key_quota(&self, key: Arc<ApiKey>) -> Result<Vec<Window>> {
        Ok(self.api_key_quotas.load(KeyOfQuota(key)).await?.unwrap_or_default())
    }

    /// A usage record that the caller may see.
    pub(super) async fn usage_record(&self, id: UsageRecordId) -> Found<Arc<UsageRecord>> {
        self.usage_records.load(id).await
    }

    /// How many API keys pass the filter.
    pub(super) async fn api_key_count(&self, filter: ApiKeyFilter) -> Result<i64> {
        Ok(self.api_key_counts.load(filter).await?.unwrap_or_default())
    }
}

/// Loaders of one noun by its ids.
macro_rules! by_id {
    ($($loader:ident: $id:ident => $row:ident by $module:ident),+ $(,)?) => {$(
        enum $loader {}

        impl Read for $loader {
            type Key = $id;
            type Value = Arc<$row>;

            async fn read(cx: Cx<'_>, ids: &[$id]) -> domain::Result<HashMap<$id, Arc<$row>>> {
                let rows = domain::$module::find_many(cx, ids).await?;
                Ok(rows.into_iter().map(|row| (row.id, Arc::new(row))).collect())
            }
        }
    )+};
}

by_id! {
    Organizations: OrganizationId => Organization by organization,
    Users: UserId => User by user,
    Sessions: SessionId => Session by session,
    ClaudeAccounts: ClaudeAccountId => ClaudeAccount by claude_account,
    Clients: ClientId => Client by client,
    Tasks: TaskId => Task by task,
    AuditLogs: AuditLogId => AuditLog by audit_log,
    Credentials: CredentialId => Credential by credential,
    ApiKeys: ApiKeyId => ApiKey by api_key,
    Conversations: ConversationId => Conversation by conversation,
    Messages: MessageId => Message by message,
    Notifications: NotificationId => Notification by notification,
    UsageRecords: UsageRecordId => UsageRecord by usage,
}

/// What an API key has used in a span of time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct UsageOfKey {
    pub(super) key: ApiKeyId,
    pub(super) span: (Timestamp, Timestamp),
    pub(super) interval: Option<UsageInterval>,
}

enum ApiKeyUsage {}

impl Read for ApiKeyUsage {
    type Key = UsageOfKey;
    /// None: there would be too many buckets.
    type Value = Option<Report>;

    async fn read(cx: Cx<'_>, asked: &[UsageOfKey]) -> domain::Result<HashMap<UsageOfKey, Option<Report>>> {
        let mut found = HashMap::new();
        let asked = grouped(asked, |asked| (asked.span, asked.interval), |asked| asked.key);
        // However many spans are asked for, they are one answer.
        let most = usage_report::MOST_VALUES / asked.len().max(1);
        for ((span, interval), keys) in asked {
            let reports = usage_report::reports_by_key(cx, &keys, span, interval, most).await?;
            found.extend(reports.into_iter().map(|(key, report)| (UsageOfKey { key, span, interval }, report)));
        }
        Ok(found)
    }
}

/// An API key, told apart by its id and its version.
#[derive(Debug, Clone)]
struct KeyOfQuota(Arc<ApiKey>);

impl PartialEq for KeyOfQuota {
    fn eq(&self, other: &Self) -> bool {
        (self.0.id, self.0.version) == (other.0.id, other.0.version)
    }
}

impl Eq for KeyOfQuota {}

impl Hash for KeyOfQuota {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

enum ApiKeyQuotas {}

impl Read for ApiKeyQuotas {
    type Key = KeyOfQuota;
    type Value = Vec<Window>;

    async fn read(cx: Cx<'_>, asked: &[KeyOfQuota]) -> domain::Result<HashMap<KeyOfQuota, Vec<Window>>> {
        let keys: Vec<&ApiKey> = asked.iter().map(|KeyOfQuota(key)| &**key).collect();
        let found = quota::of_api_keys(cx, &keys).await?;
        Ok(asked.iter().cloned().zip(found).collect())
    }
}

/// A page of a client's tasks; the filter names no client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TaskPage {
    pub(super) client: ClientId,
    pub(super) filter: TaskFilter,
    pub(super) order: TaskOrder,
    pub(super) direction: Direction,
    pub(super) page: Page,
}

enum TaskPages {}

impl Read for TaskPages {
    type Key = TaskPage;
    type Value = PageSlice<Arc<Task>>;

    async fn read(cx: Cx<'_>, keys: &[TaskPage]) -> domain::Result<HashMap<TaskPage, PageSlice<Arc<Task>>>> {
        let mut found = HashMap::new();
        let alike = |key: &TaskPage| (key.filter.clone(), key.order, key.direction, key.page.clone());
        for ((filter, order, direction, page), clients) in grouped(keys, alike, |key| key.client) {
            let pages = domain::task::pages(cx, &clients, &filter, (order, direction), &page).await?;
            found.extend(pages.into_iter().map(|(client, slice)| {
                (TaskPage { client, filter: filter.clone(), order, direction, page: page.clone() }, slice.shared())
            }));
        }
        Ok(found)
    }
}

enum UsersEver {}

impl Read for UsersEver {
    type Key = UserId;
    type Value = Arc<User>;

    async fn read(cx: Cx<'_>, ids: &[UserId]) -> domain::Result<HashMap<UserId, Arc<User>>> {
        let rows = domain::user::find_many_ever(cx, ids).await?;
        Ok(rows.into_iter().map(|row| (row.id, Arc::new(row))).collect())
    }
}

/// Loaders of counts by a filter, in which those that differ by the client alone are one statement.
macro_rules! counts_by_client {
    ($($loader:ident: $filter:ident by $module:ident),+ $(,)?) => {$(
        enum $loader {}

        impl Read for $loader {
            type Key = $filter;
            type Value = i64;

            async fn read(cx: Cx<'_>, filters: &[$filter]) -> domain::Result<HashMap<$filter, i64>> {
                let mut found = HashMap::new();
                let alike = |filter: &$filter| $filter { client_id: None, ..filter.clone() };
                for (filter, clients) in grouped(filters, alike, |filter| filter.client_id) {
                    if clients.contains(&None) {
                        found.insert(filter.clone(), domain::$module::count(cx, &filter).await?);
                    }
                    let clients: Vec<_> = clients.into_iter().flatten().collect();
                    if !clients.is_empty() {
                        let counts = domain::$module::counts(cx, &clients, &filter).await?;
                        let with = |client| $filter { client_id: Some(client), ..filter.clone() };
                        found.extend(counts.into_iter().map(|(client, count)| (with(client), count)));
                    }
                }
                Ok(found)
            }
        }
    )+};
}

counts_by_client! {
    TaskCounts: TaskFilter by task,
    CredentialCounts: CredentialFilter by credential,
}

enum AuditLogPages {}

impl Read for AuditLogPages {
    type Key = (String, Page);
    type Value = PageSlice<Arc<AuditLog>>;

    async fn read(cx: Cx<'_>, keys: &[Self::Key]) -> domain::Result<HashMap<Self::Key, Self::Value>> {
        let mut found = HashMap::new();
        for (page, resources) in grouped(keys, |(_, page)| page.clone(), |(resource, _)| resource.clone()) {
            let pages = domain::audit_log::pages(cx, &resources, &page).await?;
            found.extend(pages.into_iter().map(|(resource, slice)| ((resource, page.clone()), slice.shared())));
        }
        Ok(found)
    }
}

/// Loaders of pages by their parents.
macro_rules! pages_by_parent {
    ($($loader:ident: $parent:ident => $row:ident by $module:ident::$read:ident),+ $(,)?) => {$(
        enum $loader {}

        impl Read for $loader {
            type Key = ($parent, Page);
            type Value = PageSlice<Arc<$row>>;

            async fn read(cx: Cx<'_>, keys: &[Self::Key]) -> domain::Result<HashMap<Self::Key, Self::Value>> {
                let mut found = HashMap::new();
                for (page, parents) in grouped(keys, |(_, page)| page.clone(), |(parent, _)| *parent) {
                    let pages = domain::$module::$read(cx, &parents, &page).await?;
                    found.extend(pages.into_iter().map(|(parent, slice)| ((parent, page.clone()), slice.shared())));
                }
                Ok(found)
            }
        }
    )+};
}

pages_by_parent! {
    CredentialPages: ClientId => Credential by credential::pages,
    ApiKeyClientPages: ClientId => ApiKey by api_key::pages_by_client,
    ApiKeyOwnerPages: UserId => ApiKey by api_key::pages_by_owner,
    MessagePages: ConversationId => Message by message::pages,
}

enum ApiKeyCounts {}

impl Read for ApiKeyCounts {
    type Key = ApiKeyFilter;
    type Value = i64;

    /// Those that differ by the client or by the owner alone are one statement.
    async fn read(cx: Cx<'_>, filters: &[ApiKeyFilter]) -> domain::Result<HashMap<ApiKeyFilter, i64>> {
        let mut found = HashMap::new();
        let alike = |filter: &ApiKeyFilter| ApiKeyFilter { client_id: None, owner_id: None, ..filter.clone() };
        for (filter, parents) in grouped(filters, alike, |filter| (filter.owner_id, filter.client_id)) {
            let clients: Vec<_> = parents.iter().filter_map(|of| of.1.filter(|_| of.0.is_none())).collect();
            let owners: Vec<_> = parents.iter().filter_map(|of| of.0.filter(|_| of.1.is_none())).collect();
            if !clients.is_empty() {
                let counts = domain::api_key::counts_by_client(cx, &clients, &filter).await?;
                let with = |client| ApiKeyFilter { client_id: Some(client), ..filter.clone() };
                found.extend(counts.into_iter().map(|(client, count)| (with(client), count)));
            }
            if !owners.is_empty() {
                let counts = domain::api_key::counts_by_owner(cx, &owners, &filter).await?;
                let with = |owner| ApiKeyFilter { owner_id: Some(owner), ..filter.clone() };
                found.extend(counts.into_iter().map(|(owner, count)| (with(owner), count)));
            }
            for (owner_id, client_id) in parents.into_iter().filter(|of| of.0.is_some() == of.1.is_some()) {
                let filter = ApiKeyFilter { owner_id, client_id, ..filter.clone() };
                let count = domain::api_key::count(cx, &filter).await?;
                found.insert(filter, count);
            }
        }
        Ok(found)
    }
}

enum AuditLogCounts {}

impl Read for AuditLogCounts {
    type Key = String;
    type Value = i64;

    async fn read(cx: Cx<'_>, resources: &[String]) -> domain::Result<HashMap<String, i64>> {
        domain::audit_log::counts(cx, resources).await
    }
}

/// The parents of the keys that ask for the same: each group is one statement.
fn grouped<K, G: Eq + Hash, P>(keys: &[K], alike: impl Fn(&K) -> G, parent: impl Fn(&K) -> P) -> HashMap<G, Vec<P>> {
    let mut groups: HashMap<G, Vec<P>> = HashMap::new();
    for key in keys {
        groups.entry(alike(key)).or_default().push(parent(key));
    }
    groups
}
