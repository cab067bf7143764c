//! Who may do what: the one table of roles and permissions, and the permits that prove a look into it.

use std::marker::PhantomData;

use super::enums::names;
use super::{ApiKeyScope, ApiKeyScopes, OrganizationId};
use std::str::FromStr;

names! {
    /// What a user is in the organization.
    Role { Admin = "ADMIN", Manager = "MANAGER", Member = "MEMBER", ReadOnly = "READ_ONLY" }

    /// What a role may do beyond reading what every member may read.
    Permission {
        ManageClaudeAccounts = "MANAGE_CLAUDE_ACCOUNTS",
        ManageUsers = "MANAGE_USERS",
        ViewUsers = "VIEW_USERS",
        ManageOrganization = "MANAGE_ORGANIZATION",
        ViewAuditLogs = "VIEW_AUDIT_LOGS",
        ViewUsage = "VIEW_USAGE",
        ViewSystem = "VIEW_SYSTEM",
        WriteClients = "WRITE_CLIENTS",
        ArchiveClients = "ARCHIVE_CLIENTS",
        WriteTasks = "WRITE_TASKS",
        DeleteTasks = "DELETE_TASKS",
        WriteCredentials = "WRITE_CREDENTIALS",
        RevealCredentials = "REVEAL_CREDENTIALS",
        DeleteCredentials = "DELETE_CREDENTIALS",
        ManageApiKeys = "MANAGE_API_KEYS",
        ManageOwnApiKeys = "MANAGE_OWN_API_KEYS",
        UseConversations = "USE_CONVERSATIONS",
    }
}

impl Role {
    /// The table. Reading needs no permission of its own: every role may.
    #[must_use]
    pub fn permissions(self) -> &'static [Permission] {
        use Permission::{
            DeleteTasks, ManageApiKeys, ManageOwnApiKeys, RevealCredentials, UseConversations, ViewSystem, ViewUsage,
            ViewUsers, WriteClients, WriteCredentials, WriteTasks,
        };
        match self {
            Self::Admin => Permission::ALL,
            Self::Manager => &[
                ViewUsers,
                ViewUsage,
                ViewSystem,
                WriteClients,
                WriteTasks,
                DeleteTasks,
                WriteCredentials,
                RevealCredentials,
                ManageApiKeys,
                ManageOwnApiKeys,
                UseConversations,
            ],
            Self::Member => &[WriteTasks, WriteCredentials, ManageOwnApiKeys, UseConversations],
            Self::ReadOnly => &[],
        }
    }

    /// Whether the table gives this role the permission.
    #[must_use]
    pub fn may(self, permission: Permission) -> bool {
        self.permissions().contains(&permission)
    }

    /// This role, or the other where this one may do more.
    #[must_use]
    pub fn at_most(self, limit: Self) -> Self {
        if limit.includes(self) { self } else { limit }
    }

    /// Whether this role may do all that the other may.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        other.permissions().iter().all(|permission| self.may(*permission))
    }
}

impl Permission {
    /// Whether it is for nothing but reading. One to manage something is also for reading it, and is none of these.
    fn only_reads(self) -> bool {
        matches!(self, Self::ViewUsers | Self::ViewAuditLogs | Self::ViewUsage | Self::ViewSystem)
    }
}

/// A right that a [`Permit`] can prove, named by a type so that permits do not mix.
pub trait Grant: Send + Sync + 'static {
    /// What the role needs; `None`: any role has it.
    const NEEDS: Option<Permission>;
}

macro_rules! grants {
    ($($(#[$meta:meta])* $name:ident => $needs:expr),+ $(,)?) => {$(
        $(#[$meta])*
        #[derive(Debug)]
        pub enum $name {}
        impl Grant for $name {
            const NEEDS: Option<Permission> = $needs;
        }
    )+};
}

grants! {
    /// To read what every member of the organization may read.
    Read => None,
    /// To send messages through the organization's accounts: only [`Access::relay`] gives it.
    UseRelay => None,
    /// To create and change clients.
    WriteClients => Some(Permission::WriteClients),
    /// To archive and restore clients.
    ArchiveClients => Some(Permission::ArchiveClients),
    /// To create and change tasks.
    WriteTasks => Some(Permission::WriteTasks),
    /// To delete tasks.
    DeleteTasks => Some(Permission::DeleteTasks),
    /// To create and change credentials.
    WriteCredentials => Some(Permission::WriteCredentials),
    /// To see the secrets of credentials.
    RevealCredentials => Some(Permission::RevealCredentials),
    /// To delete credentials.
    DeleteCredentials => Some(Permission::DeleteCredentials),
    /// To seal what older keys have sealed with the newest.
    RotateKeys => Some(Permission::ManageOrganization),
    /// To see and manage Claude accounts.
    ManageClaudeAccounts => Some(Permission::ManageClaudeAccounts),
    /// To read the audit log.
    ViewAuditLogs => Some(Permission::ViewAuditLogs),
    /// To remove what the audit log need not keep any longer.
    PruneAuditLogs => Some(Permission::ManageOrganization),
    /// To see what the organization has used, and what that costs.
    ViewUsage => Some(Permission::ViewUsage),
    /// To see how the system as a whole does.
    ViewSystem => Some(Permission::ViewSystem),
    /// To list the users.
    ViewUsers => Some(Permission::ViewUsers),
    /// To invite, change and delete users.
    ManageUsers => Some(Permission::ManageUsers),
    /// To change one's own name, address and password, to end one's own sessions, and to leave.
    ManageOneself => None,
    /// To change the organization.
    ManageOrganization => Some(Permission::ManageOrganization),
    /// To manage the API keys of all.
    ManageApiKeys => Some(Permission::ManageApiKeys),
    /// To manage one's own API keys.
    ManageOwnApiKeys => Some(Permission::ManageOwnApiKeys),
    /// To have conversations with Claude.
    UseConversations => Some(Permission::UseConversations),
}

/// What the caller lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The role lacks the permission.
    Permission(Permission),
    /// The API key lacks the scope.
    Scope(ApiKeyScope),
    /// An API key never may.
    ApiKey,
}

/// A role in an organization: what permits are asked of. That of an API key ends where its scopes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    organization: OrganizationId,
    role: Role,
    /// Those of the API key; none where somebody has signed in.
    scopes: Option<ApiKeyScopes>,
}

impl Access {
    /// Whoever makes this says who is asking: `identity`, from a checked session or as the system, a sign-in or a refresh, for
    /// whom it has just let in, and a deed that looks at its caller again.
    #[must_use]
    pub fn new(organization: OrganizationId, role: Role) -> Self {
        Self { organization, role, scopes: None }
    }

    /// The same, as far as these scopes of an API key reach.
    #[must_use]
    pub fn within(self, scopes: ApiKeyScopes) -> Self {
        Self { scopes: Some(scopes), ..self }
    }

    /// The organization.
    #[must_use]
    pub fn organization(self) -> OrganizationId {
        self.organization
    }

    /// The role.
    #[must_use]
    pub fn role(self) -> Role {
        self.role
    }

    /// The scopes of the API key; none where somebody has signed in.
    #[must_use]
    pub fn scopes(self) -> Option<ApiKeyScopes> {
        self.scopes
    }

    /// What role and scopes both allow.
    #[must_use]
    pub fn permissions(self) -> Vec<Permission> {
        let is_open = |permission: &Permission| match self.scopes {
            None => true,
            // Users are changed by whoever has signed in.
            Some(_) if *permission == Permission::ManageUsers => false,
            Some(_) if permission.only_reads() => self.may_read().is_ok(),
            Some(_) => self.may_write().is_ok(),
        };
        self.role.permissions().iter().copied().filter(is_open).collect()
    }

    /// Whether anything may be read: an API key needs a scope for it.
    ///
    /// # Errors
    /// The scope that it lacks.
    pub fn may_read(self) -> Result<(), Denied> {
        self.needs(ApiKeyScope::AdminRead)
    }

    /// Whether anything may be changed: an API key needs a scope for it.
    ///
    /// # Errors
    /// The scope that it lacks.
    pub fn may_write(self) -> Result<(), Denied> {
        self.needs(ApiKeyScope::AdminWrite)
    }

    fn needs(self, scope: ApiKeyScope) -> Result<(), Denied> {
        match self.scopes {
            Some(scopes) if !scopes.include(ApiKeyScopes::from_iter([scope])) => Err(Denied::Scope(scope)),
            _ => Ok(()),
        }
    }

    /// Whether the caller may read what needs the permission. Whether it may also change something is asked by
    /// [`Access::may_write`], where mutations are entered and where transactions are committed.
    ///
    /// # Errors
    /// What it lacks.
    pub fn check(self, permission: Option<Permission>) -> Result<(), Denied> {
        self.may_read()?;
        match permission {
            Some(permission) if !self.role.may(permission) => Err(Denied::Permission(permission)),
            _ => Ok(()),
        }
    }

    /// The only way to a permit, but for what a caller may know of itself.
    pub fn require<G: Grant>(self) -> Result<Permit<G>, Denied> {
        self.check(G::NEEDS).map(|()| Permit { organization: self.organization, grant: PhantomData })
    }

    /// To send messages through the organization's accounts, which an API key with the scope may, and nobody who signs in.
    ///
    /// # Errors
    /// The scope that it lacks.
    pub fn relay(self) -> Result<Permit<UseRelay>, Denied> {
        match self.scopes {
            Some(scopes) if scopes.has(ApiKeyScope::Relay) => {
                Ok(Permit { organization: self.organization, grant: PhantomData })
            }
            _ => Err(Denied::Scope(ApiKeyScope::Relay)),
        }
    }

    /// To read who one is oneself: an API key may that learn, whatever its scopes.
    #[must_use]
    pub fn introspect(self) -> Permit<Read> {
        Permit { organization: self.organization, grant: PhantomData }
    }
}

/// Proof that the caller may do `G` in the organization. The store asks for it and takes the organization from it,
/// so that neither a forgotten check nor another tenant's row gets past.
#[derive(Debug)]
pub struct Permit<G> {
    organization: OrganizationId,
    grant: PhantomData<fn() -> G>,
}

impl<G> Permit<G> {
    /// The organization that the permit holds in.
    #[must_use]
    pub fn organization(&self) -> OrganizationId {
        self.organization
    }
}
