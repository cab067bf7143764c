//! The actor of a request: nobody, or a signed-in user as the database knows them now.

use crate::model::{Access, ApiKeyId, Denied, Grant, OrganizationId, Permit, Read, Role, SessionId, UserId};
use crate::store::api_key::ApiKey;
use crate::store::conversation::Own;

/// Who does a deed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// Nobody has signed in.
    Anonymous,
    /// A user with a live session, or an API key of the user's.
    User(SignedIn),
    /// The operator, from the command line.
    System(Access),
}

/// A signed-in user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SignedIn {
    /// Who.
    pub user: UserId,
    /// By what.
    pub by: SignedInBy,
    /// With which role, where; of an API key only as far as its scopes reach.
    pub access: Access,
}

/// What a user is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignedInBy {
    /// The session of an access token.
    Session(SessionId),
    /// An API key, which acts in its owner's name.
    ApiKey(ApiKeyId, ApiKeyRates),
}

/// How often an API key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ApiKeyRates {
    /// How many requests a minute, where it has a limit of its own.
    pub per_minute: Option<u32>,
    /// How many requests an hour, where it has a limit of its own.
    pub per_hour: Option<u32>,
}

impl From<&ApiKey> for ApiKeyRates {
    fn from(key: &ApiKey) -> Self {
        let limit = |limit: Option<i32>| limit.and_then(|limit| limit.try_into().ok());
        Self { per_minute: limit(key.rate_limit_per_minute), per_hour: limit(key.rate_limit_per_hour) }
    }
}

impl SignedIn {
    /// The session; none for an API key.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        match self.by {
            SignedInBy::Session(id) => Some(id),
            SignedInBy::ApiKey(..) => None,
        }
    }

    /// The API key; none for a session.
    #[must_use]
    pub fn api_key(&self) -> Option<ApiKeyId> {
        match self.by {
            SignedInBy::ApiKey(id, _) => Some(id),
            SignedInBy::Session(_) => None,
        }
    }
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPermit {
    /// Nobody has signed in.
    Anonymous,
    /// The role or the API key lacks something.
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

    /// To read who one is oneself, which every API key may.
    ///
    /// # Errors
    /// Where nobody is signed in.
    pub fn introspect(&self) -> Result<Permit<Read>, NoPermit> {
        Ok(self.access().ok_or(NoPermit::Anonymous)?.introspect())
    }

    /// The user's own conversations.
    ///
    /// # Errors
    /// Where nobody is signed in, or may have none.
    pub fn conversations(&self) -> Result<Own, NoPermit> {
        let permit = self.require()?;
        let user = self.signed_in().ok_or(NoPermit::Anonymous)?.user;
        Ok(Own::of(permit, user))
    }

    /// The API key that asks, if one does.
    #[must_use]
    pub fn api_key(&self) -> Option<ApiKeyId> {
        self.signed_in().and_then(|user| user.api_key())
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
