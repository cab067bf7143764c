//! Who may do what: the one table of roles and permissions, and the permits that prove a look into it.

use std::marker::PhantomData;

use super::OrganizationId;
use super::enums::names;
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
    /// To list the users.
    ViewUsers => Some(Permission::ViewUsers),
    /// To invite, change and delete users.
    ManageUsers => Some(Permission::ManageUsers),
    /// To change the organization.
    ManageOrganization => Some(Permission::ManageOrganization),
}

/// The role lacks the permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied(pub Permission);

/// A role in an organization: what permits are asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    organization: OrganizationId,
    role: Role,
}

impl Access {
    /// Whoever makes this says who is asking: `identity`, from a checked session or as the system, and a sign-in or a refresh,
    /// for whom it has just let in.
    #[must_use]
    pub fn new(organization: OrganizationId, role: Role) -> Self {
        Self { organization, role }
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

    /// The only way to a permit.
    pub fn require<G: Grant>(self) -> Result<Permit<G>, Denied> {
        match G::NEEDS {
            Some(permission) if !self.role.may(permission) => Err(Denied(permission)),
            _ => Ok(Permit { organization: self.organization, grant: PhantomData }),
        }
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
