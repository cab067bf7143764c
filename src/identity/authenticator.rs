//! From an access token to an actor, by what the database says now.
//!
//! The session and its user are kept for seconds, and dropped at once by whoever changes them on this server.

use std::sync::atomic::{AtomicU64, Ordering};

use chrono::TimeDelta;
use quick_cache::sync::Cache;
use tokio::sync::watch;

use super::access_token::{AccessTokens, Claims};
use super::actor::{Actor, SignedIn};
use crate::model::{Access, Clock, OrganizationId, Role, SessionId, Timestamp, UserId, UserStatus};
use crate::store::{self, Db};

/// How many sessions are kept.
const CAPACITY: usize = 10_000;
/// How long a kept state is believed where another server may have changed it.
const LIFETIME: TimeDelta = TimeDelta::seconds(5);

/// Tells who is behind an access token.
pub struct Authenticator {
    db: Db,
    clock: Clock,
    tokens: AccessTokens,
    states: Cache<SessionId, State>,
    /// Counts the changes: a state that was read before a change is not believed after it.
    epoch: AtomicU64,
    /// Tells of the changes.
    forgotten: watch::Sender<()>,
}

/// A session and its user, as far as judging a request needs them.
#[derive(Clone, Copy)]
struct State {
    user: UserId,
    organization: OrganizationId,
    role: Role,
    is_active: bool,
    expires_at: Timestamp,
    read_at: Timestamp,
    /// The authenticator's epoch when it was read.
    epoch: u64,
}

/// Why a token opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The token is forged, broken or expired, or its session or user has ended since.
    #[error("the access token is not valid")]
    Invalid,
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Authenticator {
    /// Reads sessions and users from the database.
    #[must_use]
    pub fn new(db: Db, clock: Clock, tokens: AccessTokens) -> Self {
        Self {
            db,
            clock,
            tokens,
            states: Cache::new(CAPACITY),
            epoch: AtomicU64::new(0),
            forgotten: watch::Sender::new(()),
        }
    }

    /// Issues and verifies the tokens.
    #[must_use]
    pub fn tokens(&self) -> &AccessTokens {
        &self.tokens
    }

    /// Who is behind the token, now.
    ///
    /// # Errors
    /// [`Refused::Invalid`] for every reason that lies in the token, its session or its user.
    pub async fn authenticate(&self, token: &str) -> Result<Actor, Refused> {
        let now = self.clock.now();
        let Claims { user, session } = self.tokens.verify(token, now).map_err(|_| Refused::Invalid)?;
        let state = self.state(session, now).await?.ok_or(Refused::Invalid)?;
        if state.user != user || !state.is_active || state.expires_at <= now {
            return Err(Refused::Invalid);
        }
        Ok(Actor::User(SignedIn { user, session, access: Access::new(state.organization, state.role) }))
    }

    async fn state(&self, session: SessionId, now: Timestamp) -> Result<Option<State>, store::Error> {
        let epoch = self.epoch.load(Ordering::Acquire);
        if let Some(state) = self.states.get(&session)
            && state.epoch == epoch
            // A clock that was set back must not make it live longer.
            && now >= state.read_at
            && now - state.read_at < LIFETIME
        {
            return Ok(Some(state));
        }
        let found = store::session::find_with_user(&mut self.db.read().await?, session).await?;
        let state = found.map(|(session, user)| State {
            user: user.id,
            organization: user.organization_id,
            role: user.role,
            is_active: user.status == UserStatus::Active && session.revoked_at.is_none(),
            expires_at: session.expires_at,
            read_at: now,
            epoch,
        });
        if let Some(state) = state {
            self.states.insert(session, state);
        }
        Ok(state)
    }

    /// Forgets all that is kept: after a session or a user has changed. Such changes are rare beside requests.
    pub fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.states.clear();
        self.forgotten.send_replace(());
    }

    /// Tells whoever waits on it that a session or a user has changed: a caller who stays is to be looked at again.
    #[must_use]
    pub fn forgotten(&self) -> watch::Receiver<()> {
        self.forgotten.subscribe()
    }
}
