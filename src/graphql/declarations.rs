//! What each root field declares in the schema, and the guard that holds it to that.
//!
//! A root field says with a directive what it needs: `@requires(permission)` or `@public`. A field that says neither needs a
//! sign-in. A mutation says with `@audits` what its audit entry is about, and with `@openToApiKeys` that an API key may do it;
//! where it does not say so, somebody has to sign in. A query says with `@postOnly` that it is not taken by GET. The guard, the
//! middleware and the HTTP layer read the directives from the schema itself, so what clients see there is what holds.

use std::collections::HashMap;
use std::sync::Arc;

use async_graphql::parser::parse_schema;
use async_graphql::parser::types::{FieldDefinition, OperationType, TypeKind, TypeSystemDefinition};
use async_graphql::{Context, Enum, Guard, TypeDirective, Value};

use super::context::Caller;
use super::error::Failure;
use crate::domain::{self, Error};
use crate::identity::Actor;
use crate::model::{self, Denied};

/// The permission that a field needs. Without it the field is answered with `FORBIDDEN`.
#[TypeDirective(location = "FieldDefinition")]
pub(super) fn requires(permission: Permission) {}

/// A field that needs no sign-in.
#[TypeDirective(location = "FieldDefinition")]
pub(super) fn public() {}

/// A mutation that an API key with the scope ADMIN_WRITE may do, too, within the role of its owner.
#[TypeDirective(name = "openToApiKeys", location = "FieldDefinition")]
pub(super) fn open_to_api_keys() {}

/// A query that takes a secret. By GET it is refused: the secret would stand in an address, which proxies log and browsers keep.
#[TypeDirective(name = "postOnly", location = "FieldDefinition")]
pub(super) fn post_only() {}

/// What the audit entry says that every call of a mutation leaves, whatever its outcome.
#[TypeDirective(location = "FieldDefinition")]
pub(super) fn audits(action: AuditAction, resource: ResourceType) {}

/// What a role may do. An API key may do what its scopes and its owner's role both allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::Permission")]
pub(super) enum Permission {
    /// See and manage Claude accounts.
    ManageClaudeAccounts,
    /// Invite, change and delete users.
    ManageUsers,
    /// List the organization's users.
    ViewUsers,
    /// Change the organization and its settings.
    ManageOrganization,
    /// Read and verify the audit log.
    ViewAuditLogs,
    /// See everybody's usage and what it cost.
    ViewUsage,
    /// See workers and counts of the system.
    ViewSystem,
    /// Create and change clients.
    WriteClients,
    /// Archive and restore clients.
    ArchiveClients,
    /// Create and change tasks.
    WriteTasks,
    /// Delete tasks.
    DeleteTasks,
    /// Create credentials and replace their secrets.
    WriteCredentials,
    /// See the secret of a credential.
    RevealCredentials,
    /// Delete credentials with all their versions.
    DeleteCredentials,
    /// Manage the API keys of others.
    ManageApiKeys,
    /// Manage one's own API keys.
    ManageOwnApiKeys,
    /// Talk to Claude in conversations.
    UseConversations,
}

/// The kind of deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::AuditAction")]
pub(super) enum AuditAction {
    /// Something was made.
    Create,
    /// Something was changed.
    Update,
    /// Something was deleted.
    Delete,
    /// Something was looked at whose every look is recorded.
    View,
    /// A secret was revealed.
    Reveal,
    /// Something was put away.
    Archive,
    /// Something was taken out again.
    Restore,
    /// A key or session was revoked.
    Revoke,
    /// A key was replaced by a new one.
    Regenerate,
    /// Somebody signed in.
    SignIn,
    /// Somebody signed out.
    SignOut,
    /// A session was refreshed.
    Refresh,
    /// An organization was registered.
    Register,
    /// Somebody was invited.
    Invite,
    /// An address or the log itself was verified.
    Verify,
    /// Something was tried out.
    Test,
    /// Anything else.
    Other,
}

/// What a deed was done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "crate::model::ResourceType")]
pub(super) enum ResourceType {
    /// An organization.
    Organization,
    /// A user.
    User,
    /// A session.
    Session,
    /// A Claude account.
    ClaudeAccount,
    /// A client.
    Client,
    /// A task.
    Task,
    /// A credential.
    Credential,
    /// An API key.
    ApiKey,
    /// A conversation.
    Conversation,
    /// A notification.
    Notification,
    /// The server itself.
    System,
}

/// What a root field declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Declaration {
    needs: Needs,
    is_mutation: bool,
    is_open_to_api_keys: bool,
    is_post_only: bool,
    pub(super) audits: Option<(model::AuditAction, model::ResourceType)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    SignIn,
    Permission(model::Permission),
}

/// What every root field declares.
#[derive(Debug, Default)]
pub(super) struct Declarations {
    queries: HashMap<String, Declaration>,
    mutations: HashMap<String, Declaration>,
    subscriptions: HashMap<String, Declaration>,
}

impl Declarations {
    /// Reads the directives of the root fields.
    ///
    /// # Panics
    /// Where the text is not the schema's own: it was printed by this program.
    pub(super) fn read(sdl: &str) -> Arc<Self> {
        let document = parse_schema(sdl).expect("the schema's own text is a schema");
        let mut declarations = Self::default();
        for definition in document.definitions {
            let TypeSystemDefinition::Type(definition) = definition else { continue };
            let TypeKind::Object(object) = definition.node.kind else { continue };
            let root = definition.node.name.node.as_str();
            let fields = match root {
                "Query" => &mut declarations.queries,
                "Mutation" => &mut declarations.mutations,
                "Subscription" => &mut declarations.subscriptions,
                _ => continue,
            };
            let is_mutation = root == "Mutation";
            let declare = |field: &FieldDefinition| (field.name.node.to_string(), declared(field, is_mutation));
            fields.extend(object.fields.iter().map(|field| declare(&field.node)));
        }
        Arc::new(declarations)
    }

    /// Those of the events of subscriptions, each of which is executed as a query.
    pub(super) fn of_events(&self) -> Arc<Self> {
        Arc::new(Self { queries: self.subscriptions.clone(), ..Self::default() })
    }

    /// Whether a query is refused by GET.
    pub(super) fn is_post_only(&self, query: &str) -> bool {
        self.queries.get(query).is_some_and(|declaration| declaration.is_post_only)
    }

    /// Whether a query is nothing but what a caller may read.
    pub(super) fn is_read(&self, query: &str) -> bool {
        /// A look at an account leaves an audit entry that says from where; verifying the log takes all of a request's time, and
        /// says so at its end.
        const MORE_THAN_READS: [&str; 2] = ["claudeAccount", "auditLogIntegrity"];
        self.queries.get(query).is_some_and(|declaration| {
            !matches!(declaration.needs, Needs::Nothing)
                && !declaration.is_post_only
                && !MORE_THAN_READS.contains(&query)
        })
    }

    /// Whether somebody may do a mutation.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check_mutation(&self, field: &str, actor: &Actor) -> domain::Result<()> {
        permit(self.mutations.get(field), field, actor)
    }

    /// Whether a mutation needs no sign-in.
    pub(super) fn is_public_mutation(&self, field: &str) -> bool {
        self.mutations.get(field).is_some_and(|declaration| matches!(declaration.needs, Needs::Nothing))
    }

    /// What a mutation's audit entry is about.
    pub(super) fn mutation(&self, field: &str) -> Option<&Declaration> {
        self.mutations.get(field)
    }
}

fn declared(field: &FieldDefinition, is_mutation: bool) -> Declaration {
    let mut declaration = Declaration {
        needs: Needs::SignIn,
        is_mutation,
        is_open_to_api_keys: false,
        is_post_only: false,
        audits: None,
    };
    for directive in &field.directives {
        let name_of = |argument: &str| match directive.node.get_argument(argument).map(|value| &value.node) {
            Some(Value::Enum(name)) => name.to_string(),
            _ => String::new(),
        };
        match directive.node.name.node.as_str() {
            "public" => declaration.needs = Needs::Nothing,
            "openToApiKeys" => declaration.is_open_to_api_keys = true,
            "postOnly" => declaration.is_post_only = true,
            "requires" => {
                let permission = name_of("permission").parse().expect("the directive's argument is a permission");
                declaration.needs = Needs::Permission(permission);
            }
            "audits" => {
                let action = name_of("action").parse().expect("the directive's argument is an action");
                let resource = name_of("resource").parse().expect("the directive's argument is a resource type");
                declaration.audits = Some((action, resource));
            }
            _ => {}
        }
    }
    declaration
}

/// Holds every root field to what it declares; a field that is not declared at all is refused.
pub(super) struct Declared;

impl Guard for Declared {
    async fn check(&self, ctx: &Context<'_>) -> async_graphql::Result<()> {
        check(ctx).map_err(|error| Failure::from(error).into())
    }
}

fn check(ctx: &Context<'_>) -> domain::Result<()> {
    let declarations: &Arc<Declarations> = ctx.data_unchecked();
    let caller: &Arc<Caller> = ctx.data_unchecked();
    let field = ctx.item.node.name.node.as_str();
    let declaration = if ctx.query_env.operation.node.ty == OperationType::Mutation {
        caller.record.begin(resource_id(ctx));
        declarations.mutations.get(field)
    } else {
        declarations.queries.get(field)
    };
    permit(declaration, field, &caller.actor)
}

fn permit(declaration: Option<&Declaration>, field: &str, actor: &Actor) -> domain::Result<()> {
    let access = actor.access();
    let Some(declaration) = declaration else {
        return Err(match access {
            Some(_) => Error::internal(format!("the field {field} declares nothing")),
            None => Error::unauthenticated(),
        });
    };
    if declaration.is_mutation
        && let Some(access) = access.filter(|access| access.scopes().is_some())
    {
        if !declaration.is_open_to_api_keys {
            return Err(Denied::ApiKey.into());
        }
        access.may_write()?;
    }
    match (declaration.needs, access) {
        (Needs::Nothing, _) => Ok(()),
        (_, None) => Err(Error::unauthenticated()),
        (Needs::SignIn, Some(access)) => Ok(access.check(None)?),
        (Needs::Permission(permission), Some(access)) => Ok(access.check(Some(permission))?),
    }
}

/// The `id` of a mutation's input: what it is to be done to, should it be refused.
fn resource_id(ctx: &Context<'_>) -> Option<String> {
    let input = ctx.field().arguments().ok()?.into_iter().find(|(name, _)| name == "input")?.1;
    match input {
        // An id of ours is no longer than this; anything else is not written down.
        Value::Object(mut input) => match input.swap_remove("id") {
            Some(Value::String(id)) if id.len() <= 40 && id.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) => {
                Some(id)
            }
            _ => None,
        },
        _ => None,
    }
}
