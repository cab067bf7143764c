//! The roots, and the schemas made of them: one for queries, one for mutations, which alone has the audit middleware, one for
//! the events of subscriptions.

use std::sync::Arc;

use async_graphql::extensions::{Extension, ExtensionContext, ExtensionFactory, NextExecute};
use async_graphql::parser::types::{ExecutableDocument, OperationType};
use async_graphql::registry::Registry;
use async_graphql::{
    Context, EmptyMutation, EmptySubscription, MergedObject, OutputType, Request, Response, Schema, SchemaBuilder,
    ServerError, SubscriptionType, Value, Variables,
};
use futures_util::stream::BoxStream;

use super::api_key::{ApiKeyMutation, ApiKeyQuery};
use super::audit_log::{AuditLogQuery, AuditLogSubscription, ErrorCode};
use super::billing::BillingQuery;
use super::claude_account::{ClaudeAccountMutation, ClaudeAccountQuery, ClaudeAccountSubscription};
use super::client::{ClientMutation, ClientQuery};
use super::collected::Collected;
use super::context::Caller;
use super::conversation::{ConversationMutation, ConversationQuery};
use super::credential::{CredentialMutation, CredentialQuery};
use super::declarations::Declarations;
use super::feed::{Feed, Outcome};
use super::invitation::InvitationMutation;
use super::loaders::Loaders;
use super::middleware::AuditMutations;
use super::models::ModelQuery;
use super::node::{Node, NodeQuery};
use super::notification::{NotificationMutation, NotificationQuery, NotificationSubscription};
use super::organization::{OrganizationMutation, OrganizationQuery};
use super::password::PasswordMutation;
use super::password_key::PasswordKeyQuery;
use super::profile::ProfileMutation;
use super::registration::RegistrationMutation;
use super::response::complete;
use super::schema_types::SchemaTypes;
use super::session::SessionMutation;
use super::system_stats::SystemStatsQuery;
use super::task::{TaskMutation, TaskQuery};
use super::turn::{TurnMutation, TurnSubscription};
use super::usage::{UsageQuery, UsageSubscription};
use super::user::{UserMutation, UserQuery};
use super::viewer::ViewerQuery;
use super::worker::{WorkerQuery, WorkerSubscription};

/// What can be read.
#[derive(MergedObject, Default)]
#[graphql(name = "Query")]
struct Query(
    ViewerQuery,
    PasswordKeyQuery,
    NodeQuery,
    OrganizationQuery,
    UserQuery,
    ClaudeAccountQuery,
    ClientQuery,
    TaskQuery,
    CredentialQuery,
    ApiKeyQuery,
    ConversationQuery,
    WorkerQuery,
    AuditLogQuery,
    NotificationQuery,
    UsageQuery,
    BillingQuery,
    ModelQuery,
    SystemStatsQuery,
);

/// What can be done. Each field leaves exactly one entry in the audit log, whatever its outcome.
#[derive(MergedObject, Default)]
#[graphql(name = "Mutation")]
struct Mutation(
    SessionMutation,
    RegistrationMutation,
    PasswordMutation,
    ProfileMutation,
    InvitationMutation,
    UserMutation,
    OrganizationMutation,
    ClaudeAccountMutation,
    ClientMutation,
    TaskMutation,
    CredentialMutation,
    ApiKeyMutation,
    ConversationMutation,
    TurnMutation,
    NotificationMutation,
);

/// What can be heard of. Over graphql-transport-ws, or server-sent events where `Accept` has `text/event-stream`.
#[derive(MergedObject, Default)]
#[graphql(name = "Subscription")]
struct Subscription(
    AuditLogSubscription,
    ClaudeAccountSubscription,
    NotificationSubscription,
    UsageSubscription,
    TurnSubscription,
    WorkerSubscription,
);

/// The root of subscriptions, for validation and the schema's text. Their events are executed one by one, as queries of
/// [`Subscription`]: the library's streams would keep the caller and the loaders that they began with.
struct Subscriptions;

impl SubscriptionType for Subscriptions {
    fn type_name() -> std::borrow::Cow<'static, str> {
        <Subscription as OutputType>::type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        <Subscription as OutputType>::create_type_info(registry)
    }

    fn create_field_stream<'a>(&'a self, _: &'a Context<'_>) -> Option<BoxStream<'a, Response>> {
        None
    }
}

type Roots = Schema<Query, Mutation, Subscriptions>;

fn roots() -> SchemaBuilder<Query, Mutation, Subscriptions> {
    // The limits stand in `walls`, before validation; those of the library would come after it.
    Schema::build(Query::default(), Mutation::default(), Subscriptions)
        .register_output_type::<Node>()
        .register_input_type::<ErrorCode>()
}

/// The schema as text.
#[must_use]
pub fn sdl() -> String {
    let mut text = roots().finish().sdl();
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// What a step of a subscription came to.
pub enum Step {
    /// There was an event: the answer for it. Until [`Feed::accept`], the next step finds it again.
    Event(Response),
    /// There is none yet.
    Nothing,
    /// The caller may not have it, or it failed: the errors.
    Failed(Response),
}

/// The API: validates documents and executes their operations.
pub struct Api {
    validator: Roots,
    queries: Roots,
    mutations: Roots,
    events: Schema<Subscription, EmptyMutation, EmptySubscription>,
    declarations: Arc<Declarations>,
    sdl: String,
    types: SchemaTypes,
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}

impl Api {
    /// Builds the schemas.
    #[must_use]
    pub fn new() -> Self {
        let sdl = sdl();
        let declarations = Declarations::read(&sdl);
        let types = SchemaTypes::read(&sdl);
        let validator = roots().extension(OnlyValidate).finish();
        let events = Schema::build(Subscription::default(), EmptyMutation, EmptySubscription)
            .register_output_type::<Node>()
            .data(declarations.of_events())
            .finish();
        let queries = roots().data(declarations.clone()).finish();
        let mutations = roots().data(declarations.clone()).extension(AuditMutations).finish();
        Self { validator, queries, mutations, events, declarations, sdl, types }
    }

    /// The schema as text.
    #[must_use]
    pub fn sdl(&self) -> &str {
        &self.sdl
    }

    /// What the schema says of its types.
    #[must_use]
    pub fn types(&self) -> &SchemaTypes {
        &self.types
    }

    /// The field of a query by which it is refused by GET, if there is one.
    #[must_use]
    pub fn post_only<'a>(&self, operation: &'a Collected) -> Option<&'a str> {
        operation.root_fields().find(|field| self.declarations.is_post_only(field))
    }

    /// Whether an operation does nothing but read what its caller may: nothing of where they are or what they have sent besides
    /// matters to it, as it may to what is open to all or takes a secret.
    #[must_use]
    pub fn is_read(&self, operation: &Collected) -> bool {
        operation.kind() == OperationType::Query
            && operation.root_fields().all(|field| self.declarations.is_read(field))
    }

    /// How many mutations of an operation need no sign-in.
    #[must_use]
    pub fn public_mutations(&self, operation: &Collected) -> usize {
        if operation.kind() != OperationType::Mutation {
            return 0;
        }
        operation.root_fields().filter(|field| self.declarations.is_public_mutation(field)).count()
    }

    /// What is wrong with a document, as far as it does not depend on variables.
    pub async fn validate(&self, document: &ExecutableDocument) -> Vec<ServerError> {
        /// More would tell nobody more.
        const MAX_ERRORS: usize = 20;
        let mut request = Request::new("");
        request.operation_name = document.operations.iter().next().and_then(|(name, _)| name.map(ToString::to_string));
        request.set_parsed_query(document.clone());
        let mut errors = self.validator.execute(request).await.errors;
        errors.truncate(MAX_ERRORS);
        errors
    }

    /// Executes an operation of a document that is valid.
    pub async fn execute(&self, operation: &Collected, variables: Variables, caller: Arc<Caller>) -> Response {
        let mut request = Request::new("").variables(variables).data(Loaders::new(&caller)).data(caller);
        request.set_parsed_query(operation.to_document());
        let mut answer = match operation.kind() {
            OperationType::Mutation => self.mutations.execute(request).await,
            OperationType::Query | OperationType::Subscription => self.queries.execute(request).await,
        };
        complete(&self.types, operation, &mut answer);
        answer
    }

    /// Begins a subscription, or goes on with it: executes it for the next event, if there is one.
    pub async fn step(
        &self,
        operation: &Collected,
        variables: Variables,
        caller: Arc<Caller>,
        feed: &Arc<Feed>,
    ) -> Step {
        feed.begin_step();
        let mut request =
            Request::new("").variables(variables).data(Loaders::new(&caller)).data(caller).data(feed.clone());
        request.set_parsed_query(operation.to_event_document());
        let mut answer = self.events.execute(request).await;
        complete(&self.types, operation, &mut answer);
        match feed.outcome() {
            Outcome::Event(_) | Outcome::Turn => Step::Event(answer),
            Outcome::Nothing => Step::Nothing,
            Outcome::Failed => Step::Failed(answer),
        }
    }
}

/// Answers with nothing where the validation has found nothing.
struct OnlyValidate;

impl ExtensionFactory for OnlyValidate {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Self)
    }
}

#[async_graphql::async_trait::async_trait]
impl Extension for OnlyValidate {
    async fn execute(&self, _: &ExtensionContext<'_>, _: Option<&str>, _: NextExecute<'_>) -> Response {
        Response::new(Value::Null)
    }
}
