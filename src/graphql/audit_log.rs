//! The audit log in the API.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, InputObject, InputType, Name, Object, Value};

use super::api_key::ApiKey;
use super::connection::{Connection, DateTimeRange, Listed, PageArguments};
use super::context::ContextExt;
use super::declarations::{AuditAction, Declared, Permission, ResourceType, requires};
use super::error::Result;
use super::feed::{Delivered, Feed};
use super::inputs::filter_id;
use super::loaders::Loaders;
use super::node::Node;
use super::rows::One;
use super::scalars::{BigInt, DateTime, Json};
use super::user::{self, User};
use crate::domain::{self, audit_integrity};
use crate::model::{self, PageSlice, Position, SortKey};
use crate::store::audit_log::{AuditLog as Row, AuditLogFilter as Filter};

/// The name of the one order that the log has.
const ORDER: &str = "SEQUENCE";

/// An entry of the audit log: one deed, whatever its outcome.
pub(super) struct AuditLog(pub(super) Arc<Row>);

/// How a deed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::AuditOutcome")]
pub(super) enum AuditOutcome {
    /// It was done.
    Success,
    /// The caller was turned away.
    Denied,
    /// It could not be done.
    Failed,
}

/// How the audit log is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::domain::audit_integrity::Fault")]
pub(super) enum AuditLogFault {
    /// The entry is not what was appended.
    Altered,
    /// One or more entries are missing before the entry; without an id, the entry itself and all after it.
    Missing,
    /// The entry stands where none may stand.
    OutOfPlace,
    /// The noted end of the log is not the hash of its last entry.
    HeadMismatch,
    /// What stands in the place of removed entries was not signed by a key of this server.
    SealForged,
    /// The key that has signed what stands in the place of removed entries is not in this server's key ring.
    SealKeyMissing,
    /// The entry is not the one that was expected.
    NotAsExpected,
    /// The log ends before the entry that was expected.
    CutOff,
    /// The log is whole, but the retention has removed the entry that was expected: it cannot be compared.
    ExpectedRemoved,
}

/// Whether the audit log is whole.
pub(super) struct AuditLogIntegrity(audit_integrity::Integrity);

/// Whether the audit log is whole.
#[Object(serial)]
impl AuditLogIntegrity {
    /// Whether every entry is there and as it was appended, as far as the log can show by itself, and what was expected too.
    async fn intact(&self) -> bool {
        self.0.broken.is_none()
    }

    /// How many entries are whole: all, or those before the first that is broken.
    async fn entries(&self) -> BigInt {
        BigInt(self.0.entries)
    }

    /// The sequence of the last of them; null: there is none. Where the retention has removed all, that of the last removed.
    async fn head_sequence(&self) -> Option<BigInt> {
        self.0.head.map(|head| BigInt(head.sequence))
    }

    /// Its hash, in hexadecimal: kept elsewhere, it shows later whether the log was rewritten or cut off.
    async fn head_hash(&self) -> Option<String> {
        self.0.head.map(|head| hex::encode(head.hash))
    }

    /// The first entry that is broken; null: none is, or it is gone.
    async fn first_broken_id(&self) -> Option<ID> {
        self.0.broken.as_ref()?.id.clone().map(ID)
    }

    /// The sequence of the first entry that is broken or gone.
    async fn first_broken_sequence(&self) -> Option<BigInt> {
        self.0.broken.as_ref().map(|broken| BigInt(broken.sequence))
    }

    /// How it is broken.
    async fn fault(&self) -> Option<AuditLogFault> {
        self.0.broken.as_ref().map(|broken| broken.fault.into())
    }
}

/// The values of `extensions.code` of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
pub(super) enum ErrorCode {
    /// Nobody is signed in, or the sign-in is not good.
    Unauthenticated,
    /// The caller lacks the permission.
    Forbidden,
    /// The input is wrong; `extensions.fields` names every field that is.
    BadUserInput,
    /// There is no such thing in the caller's organization.
    NotFound,
    /// It collides with what is there.
    Conflict,
    /// Too many requests; `extensions.retryAfter` says how many seconds to wait.
    RateLimited,
    /// The query costs more than one request may.
    QueryTooComplex,
    /// The hash of a persisted query is not known: send the query with it.
    PersistedQueryNotFound,
    /// The query is not GraphQL.
    GraphqlParseFailed,
    /// The query does not fit the schema.
    GraphqlValidationFailed,
    /// The request took longer than it may.
    Timeout,
    /// Something that the server needs is away: try again.
    ServiceUnavailable,
    /// A fault of the server; its log has the cause under the request's id.
    InternalServerError,
}

/// An entry of the audit log: one deed, whatever its outcome.
#[Object(serial)]
impl AuditLog {
    /// Its id.
    pub(super) async fn id(&self) -> ID {
        self.0.id.to_string().into()
    }

    /// When the deed was done.
    async fn occurred_at(&self) -> DateTime {
        self.0.occurred_at.into()
    }

    /// The kind of deed.
    async fn action(&self) -> AuditAction {
        self.0.action.into()
    }

    /// The GraphQL field or the command that did it.
    async fn operation(&self) -> &str {
        &self.0.operation
    }

    /// How it ended.
    async fn outcome(&self) -> AuditOutcome {
        self.0.outcome.into()
    }

    /// Why it did not succeed; null where it did.
    async fn error_code(&self) -> Option<ErrorCode> {
        let code = self.0.error_code.clone()?;
        ErrorCode::parse(Some(Value::Enum(Name::new(code)))).ok()
    }

    /// What kind of thing it was done to.
    async fn resource_type(&self) -> ResourceType {
        self.0.resource_type.into()
    }

    /// To which one.
    async fn resource_id(&self) -> Option<ID> {
        self.0.resource_id.clone().map(ID)
    }

    /// The thing itself, where it still exists.
    async fn resource(&self, ctx: &Context<'_>) -> Result<Option<Node>> {
        match &self.0.resource_id {
            Some(id) => Node::load(ctx, id).await,
            None => Ok(None),
        }
    }

    /// What changed: `{ field: { from, to } }`; of something new only `to`, of something deleted only `from`. A secret shows
    /// as `[redacted]` on both sides.
    async fn changes(&self) -> Option<Json> {
        json(self.0.changes.as_deref())
    }

    /// What else is worth knowing.
    async fn metadata(&self) -> Option<Json> {
        json(self.0.metadata.as_deref())
    }

    /// Who did it, though the user be deleted since; null: nobody was signed in, or it was the system.
    async fn user(&self, ctx: &Context<'_>) -> Result<Option<One<User>>> {
        user::by_ever(ctx, self.0.user_id).await
    }

    /// With which API key of that user's; null: the user had signed in, or there was none.
    async fn api_key(&self, ctx: &Context<'_>) -> Result<Option<One<ApiKey>>> {
        match self.0.api_key_id {
            Some(id) => Ok(Loaders::of(ctx).api_key(id).await?.map(|row| One(ApiKey(row)))),
            None => Ok(None),
        }
    }

    /// From which address.
    async fn ip_address(&self) -> Option<&str> {
        self.0.ip_address.as_deref()
    }

    /// With which program.
    async fn user_agent(&self) -> Option<&str> {
        self.0.user_agent.as_deref()
    }

    /// In which request; the server's log names it too.
    async fn request_id(&self) -> &str {
        &self.0.request_id
    }

    /// SHA-256 over this entry and the hash before it, in hexadecimal.
    async fn hash(&self) -> String {
        hex::encode(&self.0.hash)
    }
}

fn json(text: Option<&str>) -> Option<Json> {
    serde_json::from_str(text?).ok().map(Json)
}

impl Listed for AuditLog {
    type Filter = Filter;
    type Row = Row;

    fn of(row: Arc<Row>) -> Self {
        Self(row)
    }

    fn row(&self) -> &Row {
        &self.0
    }

    async fn count(ctx: &Context<'_>, filter: &Filter) -> Result<i64> {
        match &filter.resource_id {
            Some(resource) if filter.is_by_resource() => Loaders::of(ctx).audit_log_count(resource.clone()).await,
            _ => Ok(domain::audit_log::count(ctx.cx(), filter).await?),
        }
    }
}

/// Which entries; all of what is named must hold.
#[derive(Default, InputObject)]
pub(super) struct AuditLogFilter {
    /// By this user.
    user_id: Option<ID>,
    /// With this API key.
    api_key_id: Option<ID>,
    /// On this thing.
    resource_id: Option<ID>,
    /// On this credential.
    credential_id: Option<ID>,
    /// On things of one of these kinds.
    resource_type: Option<Vec<ResourceType>>,
    /// Of one of these kinds of deed.
    action: Option<Vec<AuditAction>>,
    /// That ended in one of these ways.
    outcome: Option<Vec<AuditOutcome>>,
    /// In this span of time.
    occurred_at: Option<DateTimeRange>,
    /// In this request.
    request_id: Option<String>,
}

impl AuditLogFilter {
    /// The filter.
    ///
    /// # Errors
    /// Where it names something by what is no id of its kind.
    fn read(self) -> domain::Result<Filter> {
        let span = self.occurred_at;
        Ok(Filter {
            user_id: filter_id("userId", self.user_id)?,
            api_key_id: filter_id("apiKeyId", self.api_key_id)?,
            resource_id: self.resource_id.map(|id| id.0),
            credential_id: filter_id("credentialId", self.credential_id)?,
            resource_type: self.resource_type.map(|types| types.into_iter().map(model::ResourceType::from).collect()),
            action: self.action.map(|actions| actions.into_iter().map(model::AuditAction::from).collect()),
            outcome: self.outcome.map(|outcomes| outcomes.into_iter().map(model::AuditOutcome::from).collect()),
            from: span.as_ref().and_then(|span| span.from).map(|time| time.0),
            to: span.and_then(|span| span.to).map(|time| time.0),
            request_id: self.request_id,
        })
    }
}

fn connection<R: Into<Arc<Row>>>(slice: PageSlice<R>, filter: Filter) -> Connection<AuditLog> {
    let position = |row: &Row| Position { key: SortKey::Number(row.sequence), id: row.id.to_string() };
    Connection::new(slice, ORDER, filter, position)
}

/// A page of the entries on one thing: with those on all things that the query asks for, in one statement.
pub(super) async fn on(
    ctx: &Context<'_>,
    resource: &impl ToString,
    page: PageArguments,
) -> Result<Connection<AuditLog>> {
    let resource = resource.to_string();
    let slice = Loaders::of(ctx).audit_log_page(resource.clone(), page.page(ORDER)?).await?;
    Ok(connection(slice, Filter { resource_id: Some(resource), ..Filter::default() }))
}

#[derive(Default)]
pub(super) struct AuditLogQuery;

#[Object(guard = "Declared")]
impl AuditLogQuery {
    /// The organization's audit log, newest first.
    #[graphql(directive = requires::apply(Permission::ViewAuditLogs))]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the field")]
    async fn audit_logs(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "How many rows, 1 to 100; 20 where left out.")] first: Option<i32>,
        #[graphql(desc = "Start after this cursor.")] after: Option<String>,
        #[graphql(desc = "How many rows from the end, 1 to 100.")] last: Option<i32>,
        #[graphql(desc = "End before this cursor.")] before: Option<String>,
        #[graphql(desc = "Skip so many rows.")] offset: Option<i32>,
        #[graphql(desc = "Which entries.")] filter: Option<AuditLogFilter>,
    ) -> Result<Option<Connection<AuditLog>>> {
        let arguments = PageArguments { first, after, last, before, offset };
        let filter = filter.unwrap_or_default().read()?;
        let slice = domain::audit_log::page(ctx.cx(), &filter, &arguments.page(ORDER)?).await?;
        Ok(Some(connection(slice, filter)))
    }

    /// Recomputes the hash chain of the organization's audit log and says whether it is whole. It takes the longer the longer
    /// the log is; one at a time runs, further ones wait for it.
    #[graphql(directive = requires::apply(Permission::ViewAuditLogs))]
    async fn audit_log_integrity(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "An earlier head, its sequence, a colon and its hash: the log must still have it.")]
        expect: Option<String>,
    ) -> Result<Option<AuditLogIntegrity>> {
        let wrong = |error: model::InvalidChainPoint| {
            domain::Error::bad_input(vec![domain::FieldError {
                path: vec!["expect"],
                message: error.to_string().into(),
            }])
        };
        let expected = expect.map(|text| text.parse().map_err(wrong)).transpose()?;
        Ok(Some(AuditLogIntegrity(audit_integrity::verify(ctx.cx(), expected).await?)))
    }
}

#[derive(Default)]
pub(super) struct AuditLogSubscription;

#[Object(guard = "Declared")]
impl AuditLogSubscription {
    /// Each new entry of the organization's audit log that passes the filter, denied and failed deeds too, in the log's order and
    /// without gaps from the moment of subscribing.
    #[graphql(directive = requires::apply(Permission::ViewAuditLogs))]
    async fn audit_log_added(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Which entries.")] filter: Option<AuditLogFilter>,
    ) -> Result<AuditLog> {
        let filter = filter.unwrap_or_default().read()?;
        let feed = Feed::of(ctx);
        let span = feed.span(ctx.cx(), None).await?;
        match domain::audit_log::next(ctx.cx(), &filter, span).await? {
            Some(row) => {
                feed.deliver(Delivered { sequence: row.sequence, account: None, passed: None });
                Ok(AuditLog(row.into()))
            }
            None => Err(feed.nothing_until(span)),
        }
    }
}
