//! Keys to the relay that are lent to processes of the server's own, which come to it as any caller does. They stand in no database and
//! on no list, and are gone with the process.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::crypto::{Digest, RawApiKey, SecretText};
use crate::model::{
    AllowedIps, AllowedModels, ApiKeyId, ApiKeyScope, ApiKeyScopes, ClientId, OrganizationId, Role, Timestamp, UserId,
    UserStatus,
};
use crate::store::api_key::{ApiKey, FoundApiKey};
use crate::workers::Spending;

/// In whose name a key is lent.
#[derive(Debug, Clone)]
pub struct Loan {
    /// In which organization.
    pub organization: OrganizationId,
    /// The user.
    pub user: UserId,
    /// The API key that it stands for, whose limits hold; none: the user has signed in.
    pub api_key: Option<ApiKeyId>,
    /// The client that it is for.
    pub client: Option<ClientId>,
    /// What the turn that it is for has used, and may use.
    pub spending: Arc<Spending>,
}

impl Loan {
    /// As though the user had one key for all conversations, however many processes answer them: its requests are counted together, by
    /// the rate limit that keys have by default and the user's own, and so is the room that their bodies take. Nothing else limits it.
    pub(super) fn key(&self, now: Timestamp) -> ApiKey {
        ApiKey {
            // The user's: no API key has it.
            id: self.user.in_place_of(),
            organization_id: self.organization,
            owner_id: self.user,
            client_id: self.client,
            name: "conversations".to_owned(),
            description: None,
            key_prefix: String::new(),
            scopes: ApiKeyScopes::default(),
            issued_with: None,
            allowed_ips: AllowedIps::default(),
            allowed_models: AllowedModels::default(),
            rate_limit_per_minute: None,
            rate_limit_per_hour: None,
            concurrency_limit: None,
            token_limit_per_day: None,
            cost_limit_micro_usd_per_month: None,
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
            last_used_ip: None,
            created_by: None,
            created_at: now,
            updated_at: now,
            // That of no row.
            version: 0,
        }
    }

    /// The key with what it opens: the relay, and nothing else.
    pub(super) fn found(key: ApiKey, role: Role) -> FoundApiKey {
        FoundApiKey {
            key: ApiKey { scopes: ApiKeyScopes::from_iter([ApiKeyScope::Relay]), ..key },
            role,
            status: UserStatus::Active,
            digest: Vec::new(),
            key_version: String::new(),
            digest_expires_at: None,
            is_lent: true,
        }
    }
}

/// A key that is lent until this is dropped.
pub struct LentKey {
    text: SecretText,
    digest: Digest,
    of: Arc<LentKeys>,
}

impl LentKey {
    /// The raw key.
    #[must_use]
    pub fn text(&self) -> &SecretText {
        &self.text
    }
}

impl Drop for LentKey {
    fn drop(&mut self) {
        self.of.loans().remove(&self.digest);
    }
}

/// The keys that are lent now.
#[derive(Default)]
pub(super) struct LentKeys {
    loans: Mutex<HashMap<Digest, Loan>>,
    /// Where this server listens.
    own: OnceLock<IpAddr>,
}

impl LentKeys {
    pub(super) fn lend(this: &Arc<Self>, key: &RawApiKey, digest: Digest, loan: Loan) -> LentKey {
        this.loans().insert(digest, loan);
        LentKey { text: key.text().clone(), digest, of: this.clone() }
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<Loan> {
        self.loans().get(digest).cloned()
    }

    pub(super) fn lends_to(&self, address: IpAddr) {
        let _ = self.own.set(address);
    }

    /// Whether the address is this machine's.
    pub(super) fn is_near(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.own.get().is_some_and(|own| own.to_canonical() == address)
    }

    fn loans(&self) -> MutexGuard<'_, HashMap<Digest, Loan>> {
        // A panic cannot leave an insertion half done.
        self.loans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_key_is_used_from_this_machine_alone() {
        let lent = LentKeys::default();
        for (address, is_near) in [("127.0.0.1", true), ("::1", true), ("::ffff:127.0.0.1", true), ("10.0.0.1", false)]
        {
            assert_eq!(lent.is_near(address.parse().unwrap()), is_near, "{address}");
        }
        lent.lends_to("10.0.0.1".parse().unwrap());
        assert!(lent.is_near("10.0.0.1".parse().unwrap()) && !lent.is_near("10.0.0.2".parse().unwrap()));
    }
}
