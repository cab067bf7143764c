//! An entry as a deed hands it over.

use std::net::IpAddr;

use serde_json::Value;

use super::Changes;
use crate::model::{ApiKeyId, AuditAction, AuditLogId, AuditOutcome, OrganizationId, ResourceType, Timestamp, UserId};
use crate::store::audit_log::NewAuditLog;

/// Where a request came from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The caller's address.
    pub ip_address: Option<IpAddr>,
    /// The caller's program, cut to a bounded length.
    pub user_agent: Option<String>,
    /// The request, as the log names it too.
    pub request_id: String,
}

/// What a deed says of itself; who did it, when and from where is added when it is committed.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The kind of deed.
    pub action: AuditAction,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// The error's code where it did not succeed.
    pub error_code: Option<&'static str>,
    /// What kind of thing it was done to.
    pub resource_type: ResourceType,
    /// To which one.
    pub resource_id: Option<String>,
    /// What it changed.
    pub changes: Changes,
    /// What else is worth knowing.
    pub metadata: Option<Value>,
    /// Whose deed it is, where that is not the actor: a sign-in is the deed of whom it signs in.
    pub user: Option<UserId>,
    /// With which API key it was done.
    pub api_key: Option<ApiKeyId>,
    /// In whose log it belongs, where that is not the actor's organization.
    pub organization: Option<OrganizationId>,
    /// Whether what it did changes who may ask for what.
    pub changes_access: bool,
}

impl Entry {
    /// A deed that succeeded.
    #[must_use]
    pub fn new(action: AuditAction, resource_type: ResourceType) -> Self {
        Self {
            action,
            outcome: AuditOutcome::Success,
            error_code: None,
            resource_type,
            resource_id: None,
            changes: Changes::default(),
            metadata: None,
            user: None,
            api_key: None,
            organization: None,
            changes_access: false,
        }
    }

    /// Says to which thing it was done.
    #[must_use]
    pub fn on(mut self, id: &impl ToString) -> Self {
        self.resource_id = Some(id.to_string());
        self
    }

    /// Says what it changed.
    #[must_use]
    pub fn with(mut self, changes: Changes) -> Self {
        self.changes = changes;
        self
    }

    /// Says what else is worth knowing. Never a secret, and of the caller's text only what the caller
    /// is asked to write into the log, like a reason.
    #[must_use]
    pub fn noting(mut self, metadata: Value) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// Says whose deed it is, and in which organization.
    #[must_use]
    pub fn by(mut self, organization: OrganizationId, user: UserId) -> Self {
        self.organization = Some(organization);
        self.user = Some(user);
        self
    }

    /// Says in whose log it belongs: a deed of nobody that concerns an organization.
    #[must_use]
    pub fn in_log_of(mut self, organization: OrganizationId) -> Self {
        self.organization = Some(organization);
        self
    }

    /// Says that it changes who may ask for what: callers are looked at again before anybody hears of it.
    #[must_use]
    pub fn changing_access(mut self) -> Self {
        self.changes_access = true;
        self
    }

    /// A deed that did not succeed.
    #[must_use]
    pub fn ended(mut self, outcome: AuditOutcome, error_code: &'static str) -> Self {
        self.outcome = outcome;
        self.error_code = Some(error_code);
        self
    }

    /// The row to append: the entry with its id, when, in whose log, by whom, by which operation and from where.
    #[must_use]
    pub fn complete(
        self,
        id: AuditLogId,
        occurred_at: Timestamp,
        organization_id: OrganizationId,
        user_id: Option<UserId>,
        operation: &str,
        origin: &Origin,
    ) -> NewAuditLog {
        NewAuditLog {
            id,
            organization_id,
            occurred_at,
            action: self.action,
            operation: operation.to_owned(),
            outcome: self.outcome,
            error_code: self.error_code,
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            changes: self.changes.to_text(),
            metadata: self.metadata.map(|metadata| metadata.to_string()),
            user_id,
            api_key_id: self.api_key,
            changes_access: self.changes_access,
            ip_address: origin.ip_address.map(|address| address.to_string()),
            user_agent: origin.user_agent.clone(),
            request_id: origin.request_id.clone(),
        }
    }
}
