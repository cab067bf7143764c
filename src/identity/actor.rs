//! The actor of a request: nobody, or a signed-in user as the database knows them now.

use crate::model::{Access, Denied, Grant, OrganizationId, Permit, Role, SessionId, UserId};

/// Who does a deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// Nobody has signed in.
    Anonymous,
    /// A user with a live session.
    User(SignedIn),
    /// The operator, from the command line.
    System(Access),
}

/// A signed-in user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedIn {
    /// Who.
    pub user: UserId,
    /// By which session.
    pub session: SessionId,
    /// With which role, where.
    pub access: Access,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPermit {
    /// Nobody has signed in.
    Anonymous,
    /// The role lacks the permission.
    Denied(Denied),
}

impl Actor {
    /// The operator acting in an organization from the command line.
    #[must_use]
    pub fn system(organization: OrganizationId) -> Self {
        Self::System(Access::new(organization, Role::Admin))
    }

    /// The way to a permit, which the store asks for.
    ///
    /// # Errors
    /// Where nobody is signed in or the role lacks the permission.
    pub fn require<G: Grant>(&self) -> Result<Permit<G>, NoPermit> {
        self.access().ok_or(NoPermit::Anonymous)?.require().map_err(NoPermit::Denied)
    }

    /// The signed-in user.
    #[must_use]
    pub fn signed_in(&self) -> Option<SignedIn> {
        match self {
            Self::User(user) => Some(*user),
            Self::Anonymous | Self::System(_) => None,
        }
    }

    /// The role and the organization.
    #[must_use]
    pub fn access(&self) -> Option<Access> {
        match self {
            Self::Anonymous => None,
            Self::User(user) => Some(user.access),
            Self::System(access) => Some(*access),
        }
    }
}
