//! What every deed is given: the services it may use, who asks, and the record of what it leaves in the audit log.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::TimeDelta;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::audit_integrity::Verifications;
use super::budget::Budgets;
use super::bus::Bus;
use super::error::{Error, Result};
use super::outbox::Outbox;
use super::password_key::PasswordKeys;
use super::prices::Prices;
use super::quota::Rates;
use super::relay_account::RelayAccounts;
use super::turn::TurnLimits;
use super::usage::UsageRecorder;
use crate::audit::{Commits, Origin};
use crate::crypto::{KeyRing, Random};
use crate::identity::password::Hasher;
use crate::identity::{Actor, Authenticator};
use crate::limits::RateLimits;
use crate::model::{Clock, Id, Kind, OrganizationId, ResourceType, Timestamp};
use crate::redis::Redis;
use crate::store::{self, Db, database_clock};
use crate::upstream::Upstream;
use crate::workers::Workers;

/// What deeds are done with. Made once, by `app`.
pub struct Services {
    /// The database.
    pub db: Db,
    /// Redis, where there is one.
    pub redis: Option<Arc<Redis>>,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub random: Random,
    /// The keys that seal secrets.
    pub keys: Arc<KeyRing>,
    /// Hashes passwords.
    pub passwords: Hasher,
    /// What passwords may be encrypted with on their way here.
    pub password_keys: PasswordKeys,
    /// Tells who is behind a token or an API key.
    pub authenticator: Authenticator,
    /// How much is left of rate limits.
    pub limits: RateLimits,
    /// What the rate limits are.
    pub rates: Rates,
    /// Tells what was committed.
    pub commits: Commits,
    /// Asks Claude upstreams.
    pub upstream: Upstream,
    /// The accounts that the relay may use.
    pub relay_accounts: RelayAccounts,
    /// What tokens cost.
    pub prices: Prices,
    /// What API keys may still do on the relay.
    pub budgets: Budgets,
    /// Records what requests of the relay use.
    pub usage: UsageRecorder,
    /// Tells what usage was recorded.
    pub usage_commits: Commits,
    /// The mails that are to be sent.
    pub outbox: Outbox,
    /// What answers conversations.
    pub workers: Workers,
    /// The answers that are being given to streams, which are finished though these have ended.
    pub turns: TaskTracker,
    /// What conversations may do.
    pub turn_limits: TurnLimits,
    /// Whether anybody may make an organization.
    pub is_registration_open: bool,
    /// What the links that people are given begin with: where the frontend is, or the server itself, without a slash at the end.
    pub links: String,
    /// The verifications of audit logs that run.
    pub verifications: Verifications,
    /// What it tells and hears of others.
    pub bus: Bus,
    /// The name of this server among those on the same database: made at its start, and no other's.
    pub instance: String,
    /// When this server was started.
    pub started_at: Timestamp,
    /// The operator's organization, which also keeps the audit entries of deeds that belong to none.
    pub home: OrganizationId,
}

impl Services {
    /// A new id.
    #[must_use]
    pub fn new_id<K: Kind>(&self) -> Id<K> {
        Id::new(self.clock.now(), &self.random.bytes())
    }

    /// The time by which something is removed for good: where the database has a clock of its own, the one of the two that is
    /// behind. Of many servers one may be wrong, and what it took for ended would be gone for all.
    ///
    /// # Errors
    /// Where the database fails.
    pub(super) async fn cautious_now(&self) -> store::Result<Timestamp> {
        let [behind, _] = self.both_clocks().await?;
        Ok(behind)
    }

    /// The time by this server's clock and by the database's, where that has one of its own: the one that is behind first.
    ///
    /// # Errors
    /// Where the database fails.
    pub(super) async fn both_clocks(&self) -> store::Result<[Timestamp; 2]> {
        /// How far apart clocks commonly are.
        const APART: TimeDelta = TimeDelta::minutes(1);
        let database = database_clock::now(&mut self.db.read().await?).await?;
        let own = self.clock.now();
        let Some(database) = database else { return Ok([own, own]) };
        if own - database > APART {
            tracing::warn!(
                now = own.to_text(),
                database = database.to_text(),
                "this server's clock is ahead of the database's: what has ended is told by the latter"
            );
        }
        Ok([own.min(database), own.max(database)])
    }
}

/// The context of one deed.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    /// What it may use.
    pub services: &'a Services,
    /// Who asks.
    pub actor: &'a Actor,
    /// From where.
    pub origin: &'a Origin,
    /// By which GraphQL field or command.
    pub operation: &'a str,
    /// What it has left in the audit log.
    pub record: &'a Record,
    /// When it must be done; none for commands.
    pub deadline: Option<Instant>,
}

impl Cx<'_> {
    /// Waits for `work` no longer than the deed may take.
    ///
    /// # Errors
    /// [`Code::Timeout`](super::Code::Timeout).
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        match self.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, work).await.map_err(|_| Error::timeout()),
            None => Ok(work.await),
        }
    }
}

/// What the deeds of one request have left in the audit log, and what the one that runs now is about.
#[derive(Debug, Default)]
pub struct Record {
    written: AtomicUsize,
    has_mail: AtomicBool,
    subject: Mutex<Subject>,
}

/// What a deed is about, in case it fails.
#[derive(Debug, Default, Clone)]
pub(super) struct Subject {
    /// In whose log the failure belongs, where that is not the actor's organization.
    pub organization: Option<OrganizationId>,
    /// Of what kind that is which it was to be done to, where it is not what the deed declares.
    pub resource_type: Option<ResourceType>,
    /// What it was to be done to.
    pub resource_id: Option<String>,
}

impl Record {
    /// How many entries were written so far.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written.load(Ordering::Acquire)
    }

    pub(super) fn count(&self) {
        self.written.fetch_add(1, Ordering::AcqRel);
    }

    /// Says that there are mails to be sent, once what the deed does is committed.
    pub(super) fn mail(&self) {
        self.has_mail.store(true, Ordering::Release);
    }

    /// Whether there were, since this was last asked.
    pub(super) fn take_mail(&self) -> bool {
        self.has_mail.swap(false, Ordering::AcqRel)
    }

    /// Says what the deed that begins now is to be done to.
    pub fn begin(&self, resource_id: Option<String>) {
        *self.subject() = Subject { resource_id, ..Subject::default() };
    }

    /// Says whom a deed of nobody concerns: a sign-in with a known address belongs in that user's organization.
    pub(super) fn concerns<K: Kind>(&self, organization: OrganizationId, resource_type: ResourceType, id: Id<K>) {
        *self.subject() = Subject {
            organization: Some(organization),
            resource_type: Some(resource_type),
            resource_id: Some(id.to_string()),
        };
    }

    pub(super) fn subject(&self) -> std::sync::MutexGuard<'_, Subject> {
        // A panic cannot leave an assignment half done.
        self.subject.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
