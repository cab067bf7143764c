//! From an access token or an API key to an actor, by what the database says now.
//!
//! The session or the key and its user are kept for seconds, and dropped at once when they change, here or on a server that is heard.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::access_token::{AccessTokens, Claims};
use super::actor::{Actor, SignedIn, SignedInBy};
use super::changes::{Changes, Epochs};
use super::kept::Kept;
use super::key_uses::KeyUses;
use super::lent::{LentKey, LentKeys, Loan};
use crate::crypto::{Digest, KeyRing, Purpose, Random, RawApiKey, SecretText};
use crate::limits::{Policy, RateLimits, WhileAway};
use crate::model::{
    Access, ApiKeyStatus, ApiKeyVerificationCode as Code, Clock, OrganizationId, Permission, Role, SessionId,
    Timestamp, UserId, UserStatus,
};
use crate::store::api_key::{ApiKey, ApiKeyUse, FoundApiKey, RenewedDigest, Whose};
use crate::store::{self, Db};
use crate::workers::Spending;

/// Tells who is behind an access token or an API key.
pub struct Authenticator {
    db: Db,
    clock: Clock,
    tokens: AccessTokens,
    keys: Arc<KeyRing>,
    states: Kept<SessionId, State>,
    /// By the digest under the newest key: the raw key is kept nowhere.
    api_keys: Kept<Digest, Arc<FoundApiKey>>,
    uses: KeyUses,
    lent: Arc<LentKeys>,
    epochs: Arc<Epochs>,
}

/// A session and its user, as far as judging a request needs them.
#[derive(Clone, Copy)]
struct State {
    user: UserId,
    organization: OrganizationId,
    role: Role,
    is_active: bool,
    expires_at: Timestamp,
}

/// An API key that somebody has sent: noted as used by [`Authenticator::note_use`].
pub struct SentApiKey {
    found: Arc<FoundApiKey>,
    /// Under the newest key of the ring.
    digest: Digest,
    address: IpAddr,
    spending: Option<Arc<Spending>>,
}

impl SentApiKey {
    /// The key and its owner.
    #[must_use]
    pub fn found(&self) -> &Arc<FoundApiKey> {
        &self.found
    }

    /// What is counted by what it is used for, where it is lent: the turn may use no more.
    #[must_use]
    pub fn spending(&self) -> Option<&Arc<Spending>> {
        self.spending.as_ref()
    }

    /// Who acts with it.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let found = &self.found;
        let role = found.key.issued_with.map_or(found.role, |limit| found.role.at_most(limit));
        Actor::User(SignedIn {
            user: found.key.owner_id,
            by: SignedInBy::ApiKey(found.key.id, (&found.key).into()),
            access: Access::new(found.key.organization_id, role).within(found.key.scopes),
        })
    }
}

/// Why a token or a key opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is forged, broken or expired, its session or user has ended since, or it may not be used from here.
    #[error("the access token or API key is not valid")]
    Invalid,
    /// It is not looked up: too many were sent from the address that are none.
    #[error("too many API keys were sent that are none")]
    Limited(Duration),
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What API keys from an address are counted in that are looked up, until they are found; none: they are not.
#[derive(Clone, Copy)]
pub struct LookUps<'a> {
    /// The buckets.
    pub limits: &'a RateLimits,
    /// From where.
    pub address: IpAddr,
    /// How many.
    pub policy: Option<Policy>,
}

impl LookUps<'_> {
    /// Counts one until `work` has found it, or could not.
    async fn count<T>(self, work: impl Future<Output = store::Result<Option<T>>>) -> Result<Option<T>, Refused> {
        let Some(policy) = self.policy else { return Ok(work.await?) };
        let buckets = self.limits.buckets_of(self.address, policy);
        // What guards against guessing is never closed.
        let answer = self.limits.take(&buckets, 1, WhileAway::Local).await.ok();
        if let Some(wait) = answer.and_then(|answer| answer.retry_after) {
            return Err(Refused::Limited(wait));
        }
        let found = work.await;
        if !matches!(found, Ok(None)) {
            self.limits.give_back(&buckets).await;
        }
        Ok(found?)
    }
}

impl Authenticator {
    /// Reads sessions, API keys and users from the database.
    #[must_use]
    pub fn new(db: Db, clock: Clock, tokens: AccessTokens, keys: Arc<KeyRing>) -> Self {
        let (uses, epochs) = (KeyUses::new(db.clone()), Epochs::new());
        Self {
            db,
            clock,
            tokens,
            keys,
            states: Kept::new(epochs.clone(), |state: &State| state.organization),
            api_keys: Kept::new(epochs.clone(), |found: &Arc<FoundApiKey>| found.key.organization_id),
            uses,
            lent: Arc::default(),
            epochs,
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
        let state = self.states.get(session, now, || self.find_session(session)).await?.ok_or(Refused::Invalid)?;
        if state.user != user || !state.is_active || state.expires_at <= now {
            return Err(Refused::Invalid);
        }
        let access = Access::new(state.organization, state.role);
        Ok(Actor::User(SignedIn { user, by: SignedInBy::Session(session), access }))
    }

    async fn find_session(&self, session: SessionId) -> Result<Option<State>, store::Error> {
        let found = store::session::find_with_user(&mut self.db.read().await?, session).await?;
        Ok(found.map(|(session, user)| State {
            user: user.id,
            organization: user.organization_id,
            role: user.role,
            is_active: user.status == UserStatus::Active && session.revoked_at.is_none(),
            expires_at: session.expires_at,
        }))
    }

    /// Who is behind the API key that is sent from the address, now. Looking at it is no use of it yet.
    ///
    /// # Errors
    /// [`Refused::Invalid`] for every reason that lies in the key, its owner or the address.
    pub async fn authenticate_api_key(
        &self,
        key: SecretText,
        look_ups: LookUps<'_>,
    ) -> Result<(Actor, SentApiKey), Refused> {
        let sent = self.judge_api_key(key, look_ups).await?.map_err(|_| Refused::Invalid)?;
        Ok((sent.actor(), sent))
    }

    /// The API key that is sent from the address, where it is good for something now. Looking at it is no use of it yet.
    ///
    /// # Errors
    /// The inner one says what is against the key, the outer one why it was not looked up.
    pub async fn judge_api_key(
        &self,
        key: SecretText,
        look_ups: LookUps<'_>,
    ) -> Result<Result<SentApiKey, Code>, Refused> {
        let (address, now) = (look_ups.address, self.clock.now());
        let Ok(key) = RawApiKey::parse(key) else { return Ok(Err(Code::Malformed)) };
        let digest = self.keys.digest(Purpose::ApiKey, key.text().expose().as_bytes());
        if let Some(loan) = self.lent.find(&digest) {
            // In a box, as all that is rare: what there is no room for here no request carries.
            let found = Box::pin(self.judge_loan(&loan, address, now)).await?;
            let spending = Some(loan.spending);
            return Ok(found.map(|found| SentApiKey { found: Arc::new(found), digest, address, spending }));
        }
        let found = self.find_api_key(&key, now, Some(look_ups)).await?;
        let (digest, Some(found)) = found else { return Ok(Err(Code::NotFound)) };
        Ok(match judge(&found, address, now) {
            Code::Valid => Ok(SentApiKey { found, digest, address, spending: None }),
            code => Err(code),
        })
    }

    /// Lends a process of the server's own a key to the relay, in somebody's name. It serves until it is dropped, and no longer than
    /// its owner may have conversations; from this machine alone.
    #[must_use]
    pub fn lend(&self, random: &Random, loan: Loan) -> LentKey {
        let key = RawApiKey::generate(random);
        let digest = self.keys.digest(Purpose::ApiKey, key.text().expose().as_bytes());
        LentKeys::lend(&self.lent, &key, digest, loan)
    }

    /// Says from where lent keys serve besides loopback: where this server listens. Said once.
    pub fn lends_to(&self, address: IpAddr) {
        self.lent.lends_to(address);
    }

    /// A lent key as it is now: no more than its owner, or the API key that it stands for, may by now.
    async fn judge_loan(
        &self,
        loan: &Loan,
        address: IpAddr,
        now: Timestamp,
    ) -> Result<Result<FoundApiKey, Code>, store::Error> {
        if !self.lent.is_near(address) {
            return Ok(Err(Code::IpNotAllowed));
        }
        let access = Access::new(loan.organization, Role::ReadOnly);
        let mut conn = self.db.read().await?;
        let user = store::user::find(&mut conn, &access.introspect(), loan.user).await?;
        let may = |role: Role| role.may(Permission::UseConversations);
        let Some(user) = user.filter(|user| user.status == UserStatus::Active && may(user.role)) else {
            return Ok(Err(Code::OwnerSuspended));
        };
        let key = match loan.api_key {
            None => loan.key(now),
            Some(id) => {
                let whose = Whose::Own(access.introspect(), loan.user);
                let found = store::api_key::find_many(&mut conn, &whose, &[id]).await?.pop();
                match found.map(|key| (key.status(now), key)) {
                    // What a conversation is for comes before what its key is for.
                    Some((ApiKeyStatus::Active, key)) => ApiKey { client_id: loan.client.or(key.client_id), ..key },
                    Some((ApiKeyStatus::Expired, _)) => return Ok(Err(Code::Expired)),
                    Some((ApiKeyStatus::Revoked, _)) | None => return Ok(Err(Code::Revoked)),
                }
            }
        };
        Ok(Ok(Loan::found(key, user.role)))
    }

    /// Notes that an API key was used now: for a request or an operation, and not for a socket that is merely open.
    pub fn note_use(&self, SentApiKey { found, digest, address, .. }: &SentApiKey) {
        if found.is_lent {
            return;
        }
        let now = self.clock.now();
        self.uses.note(found.key.id, now, || ApiKeyUse {
            id: found.key.id,
            at: now,
            ip_address: address.to_canonical().to_string(),
            renewed: (found.key_version != self.keys.newest_version()).then(|| RenewedDigest {
                from: found.digest.clone(),
                to: digest.as_bytes().to_vec(),
                key_version: self.keys.newest_version().to_owned(),
            }),
        });
    }

    /// What the API key is good for when it is used from the address, without using it: the key itself where it is valid.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn verify_api_key(
        &self,
        key: SecretText,
        address: Option<IpAddr>,
    ) -> Result<(Code, Option<Arc<FoundApiKey>>), Refused> {
        let now = self.clock.now();
        let Ok(key) = RawApiKey::parse(key) else { return Ok((Code::Malformed, None)) };
        let (_, Some(found)) = self.find_api_key(&key, now, None).await? else { return Ok((Code::NotFound, None)) };
        let Some(address) = address else { return Ok((Code::IpNotAllowed, None)) };
        let code = judge(&found, address, now);
        Ok((code, (code == Code::Valid).then_some(found)))
    }

    async fn find_api_key(
        &self,
        key: &RawApiKey,
        now: Timestamp,
        look_ups: Option<LookUps<'_>>,
    ) -> Result<(Digest, Option<Arc<FoundApiKey>>), Refused> {
        let raw = key.text().expose().as_bytes();
        let newest = self.keys.digest(Purpose::ApiKey, raw);
        let find = async || {
            let digests: Vec<_> =
                self.keys.digests(Purpose::ApiKey, raw).iter().map(|digest| digest.as_bytes().to_vec()).collect();
            let found = store::api_key::find_by_digest(&mut self.db.read().await?, &digests).await?;
            Ok::<_, store::Error>(found.map(Arc::new))
        };
        let counted = async || match look_ups {
            Some(look_ups) => look_ups.count(find()).await,
            None => Ok(find().await?),
        };
        Ok((newest, self.api_keys.get(newest, now, counted).await?))
    }

    /// Forgets what is kept of an organization: after a session, an API key or a user of it has changed.
    pub fn forget_of(&self, organization: OrganizationId) {
        self.epochs.change(Some(organization));
    }

    /// Forgets all that is kept: anything may have changed.
    pub fn forget(&self) {
        self.epochs.change(None);
    }

    /// Tells whoever waits on it that a session, an API key or a user has changed, from now on: a caller who stays is to be looked at
    /// again.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.epochs.follow()
    }

    /// Waits until it is written when API keys were last used. Uses that come later are written, too, but not waited for.
    pub async fn finish(&self) {
        self.uses.finish().await;
    }
}

/// What a key is good for that is used from the address.
fn judge(found: &FoundApiKey, address: IpAddr, now: Timestamp) -> Code {
    match found.key.status(now) {
        ApiKeyStatus::Revoked => Code::Revoked,
        ApiKeyStatus::Expired => Code::Expired,
        // Regenerated, and the grace is over.
        ApiKeyStatus::Active if found.digest_expires_at.is_some_and(|end| end <= now) => Code::Expired,
        ApiKeyStatus::Active if found.status != UserStatus::Active => Code::OwnerSuspended,
        ApiKeyStatus::Active if !found.key.allowed_ips.allow(address) => Code::IpNotAllowed,
        ApiKeyStatus::Active => Code::Valid,
    }
}
