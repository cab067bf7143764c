//! The accounts that the relay may use, kept in memory for seconds, and what it learns of their health.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::TimeDelta;

use super::claude_account::{self, Target, open_key, usage_at};
use super::context::{Cx, Record, Services};
use super::deed::audited;
use super::error::{Code, Error, Result};
use crate::audit::{Changes, Entry, Origin};
use crate::crypto::{KeyRing, SecretText};
use crate::identity::{Actor, Epochs, Kept};
use crate::model::{
    AuditAction, ClaudeAccountHealthState, ClaudeAccountId, ManageClaudeAccounts, OrganizationId, Permit, ResourceType,
    Timestamp, UseRelay,
};
use crate::store::claude_account::{self as accounts, ClaudeAccount};
use crate::upstream::Base;

/// By how much the end of a bad state must move to be worth an entry.
const NEWS: TimeDelta = TimeDelta::seconds(5);

/// An account that the relay may use. Its key stays sealed.
pub struct RelayAccount {
    organization: OrganizationId,
    row: ClaudeAccount,
    base: Base,
    target: Arc<Target>,
    /// Tokens used since the row was read.
    used: AtomicI64,
}

/// A list of them.
pub type RelayAccountList = Arc<[Arc<RelayAccount>]>;

/// The accounts of organizations, as they were a moment ago.
pub struct RelayAccounts {
    kept: Kept<OrganizationId, (OrganizationId, RelayAccountList)>,
    epochs: Arc<Epochs>,
}

impl Default for RelayAccounts {
    fn default() -> Self {
        let epochs = Epochs::new();
        Self { kept: Kept::new(epochs.clone(), |(organization, _)| *organization), epochs }
    }
}

impl RelayAccounts {
    /// Those of the permit's organization that are ACTIVE.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn of(services: &Services, permit: &Permit<UseRelay>) -> Result<RelayAccountList> {
        let organization = permit.organization();
        let read = async || {
            let rows = accounts::find_active(&mut services.db.read().await?, permit).await?;
            let accounts =
                rows.into_iter().filter_map(|row| RelayAccount::new(services, organization, row).map(Arc::new));
            Ok::<_, crate::store::Error>(Some((organization, accounts.collect())))
        };
        let now = services.clock.now();
        let found = services.relay_accounts.kept.get(organization, now, read).await?;
        Ok(found.map(|(_, accounts)| accounts).unwrap_or_default())
    }

    /// Forgets those of an organization: one has changed.
    pub fn forget_of(&self, organization: OrganizationId) {
        self.epochs.change(Some(organization));
    }

    /// Forgets all: any may have changed.
    pub fn forget(&self) {
        self.epochs.change(None);
    }
}

impl RelayAccount {
    /// None where its base URL may not be used any longer.
    fn new(services: &Services, organization: OrganizationId, row: ClaudeAccount) -> Option<Self> {
        match services.upstream.base(row.base_url.as_deref()) {
            Ok(base) => {
                let target = Arc::new(Target::of(&row));
                Some(Self { organization, row, base, target, used: AtomicI64::new(0) })
            }
            Err(error) => {
                tracing::warn!(account = %row.id, error = &error as &dyn std::error::Error, "an account cannot be used");
                None
            }
        }
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> ClaudeAccountId {
        self.row.id
    }

    /// Whose it is.
    #[must_use]
    pub fn organization(&self) -> OrganizationId {
        self.organization
    }

    /// The account as it was read.
    #[must_use]
    pub fn row(&self) -> &ClaudeAccount {
        &self.row
    }

    /// Where its requests go.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// What it asks with and whom.
    #[must_use]
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The key, for one request.
    ///
    /// # Errors
    /// Where it does not open.
    pub fn open_key(&self, keys: &KeyRing) -> Result<SecretText> {
        open_key(keys, self.organization, &self.row)
    }

    /// Until when its tokens are used up, if they are.
    #[must_use]
    pub fn exhausted_until(&self, now: Timestamp) -> Option<Timestamp> {
        let (used, resets_at) = usage_at(&self.row, now);
        let is_used_up =
            self.row.usage_limit.is_some_and(|limit| used.saturating_add(self.used.load(Ordering::Relaxed)) >= limit);
        let is_known = self.row.health_state == ClaudeAccountHealthState::Exhausted && self.row.usage_resets_at > now;
        (is_used_up || is_known).then_some(resets_at)
    }

    /// Counts tokens until the row is read again, which knows of them by then.
    pub fn count(&self, tokens: u64) {
        self.used.fetch_add(i64::try_from(tokens).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// What the relay has seen of an account.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Which account.
    pub id: ClaudeAccountId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// With which key and at which upstream.
    pub target: Arc<Target>,
    /// How it does.
    pub state: ClaudeAccountHealthState,
    /// Until when that holds.
    pub until: Option<Timestamp>,
    /// What went wrong. Holds no key.
    pub error: Option<String>,
}

/// Writes an account's health, unless that says nothing new, or it has another key or another upstream by now.
///
/// # Errors
/// Where the database fails.
pub async fn note_health(services: &Services, observed: &Observed) -> Result<()> {
    let actor = Actor::system(observed.organization);
    let permit = actor.require::<ManageClaudeAccounts>()?;
    let found = accounts::find(&mut services.db.read().await?, &permit, observed.id).await?;
    if !found.is_some_and(|account| observed.is_news_of(&account, services.clock.now())) {
        return Ok(());
    }
    if observed.state == ClaudeAccountHealthState::Unauthorized {
        tracing::warn!(account = %observed.id, "an upstream refuses an account: its health.lastError says why");
    }
    let origin = Origin { request_id: "relay".to_owned(), ..Origin::default() };
    let record = Record::default();
    let cx = Cx { services, actor: &actor, origin: &origin, operation: "relay", record: &record, deadline: None };
    let written = audited(cx, async |tx| {
        let before = accounts::lock(tx, &permit, observed.id).await?;
        let before = before
            .filter(|account| observed.is_news_of(account, services.clock.now()))
            .ok_or_else(|| Error::not_found("Claude account"))?;
        let mut account = before.clone();
        account.health_state = observed.state;
        account.health_until = observed.until;
        account.health_last_error = observed.error.clone().or(account.health_last_error);
        claude_account::write(cx, tx, &permit, &before, &mut account).await?;
        let entry = Entry::new(AuditAction::Update, ResourceType::ClaudeAccount).on(&observed.id);
        Ok(((), entry.with(Changes::between(&before, &account))))
    });
    match written.await {
        // It is gone, or somebody else has written it meanwhile.
        Err(error) if error.code() == Code::NotFound => Ok(()),
        other => other,
    }
}

impl Observed {
    fn is_news_of(&self, account: &ClaudeAccount, now: Timestamp) -> bool {
        // Its month is told by whoever counts its tokens.
        let is_exhausted = account.health_state == ClaudeAccountHealthState::Exhausted && account.usage_resets_at > now;
        let moved = match (account.health_until, self.until) {
            (Some(known), Some(until)) => until - known > NEWS,
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        };
        Target::of(account) == *self.target && !is_exhausted && (account.health_state != self.state || moved)
    }
}
