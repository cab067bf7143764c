//! Changes of sessions, API keys and users, each organization's apart: what was read before a change is not believed after it, and
//! whoever stays is looked at again.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::model::OrganizationId;

/// Organizations have so many places among them: where two have one, what changes in one is looked at in both.
const PLACES: usize = 1024;

/// When something last changed: changes are numbered in their order.
pub(crate) struct Epochs {
    /// The number of the last change.
    last: AtomicU64,
    /// That of the last that may be anybody's.
    any: AtomicU64,
    /// Those of organizations.
    of: Box<[AtomicU64]>,
    /// Tells that there was one.
    news: watch::Sender<()>,
}

impl Epochs {
    pub(crate) fn new() -> Arc<Self> {
        let of = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { last: AtomicU64::new(0), any: AtomicU64::new(0), of, news: watch::Sender::new(()) })
    }

    /// Now: what is read from here on has seen all changes so far.
    pub(super) fn now(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// When something last changed that may be the organization's.
    pub(super) fn last_of(&self, organization: OrganizationId) -> u64 {
        self.any.load(Ordering::Acquire).max(self.place(organization).load(Ordering::Acquire))
    }

    /// Something has changed, in the organization where one is given.
    pub(crate) fn change(&self, organization: Option<OrganizationId>) {
        let number = self.last.fetch_add(1, Ordering::AcqRel) + 1;
        organization.map_or(&self.any, |organization| self.place(organization)).fetch_max(number, Ordering::AcqRel);
        self.news.send_replace(());
    }

    pub(super) fn follow(self: &Arc<Self>) -> Changes {
        let news = self.news.subscribe();
        Changes { seen: self.now(), epochs: self.clone(), organization: None, news }
    }

    fn place(&self, organization: OrganizationId) -> &AtomicU64 {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(organization);
        // Less than `PLACES`, which any `usize` holds.
        &self.of[usize::try_from(hash % PLACES as u64).unwrap_or_default()]
    }
}

/// The changes from a moment on.
pub struct Changes {
    epochs: Arc<Epochs>,
    /// Whose; none: all.
    organization: Option<OrganizationId>,
    seen: u64,
    news: watch::Receiver<()>,
}

impl Changes {
    /// Those that may be the organization's, from the same moment on.
    #[must_use]
    pub fn of(self, organization: OrganizationId) -> Self {
        Self { organization: Some(organization), ..self }
    }

    /// Waits until there is one that was not told yet. Nothing is lost where the wait is given up.
    pub async fn next(&mut self) {
        loop {
            let last =
                self.organization.map_or_else(|| self.epochs.now(), |organization| self.epochs.last_of(organization));
            if last > self.seen {
                self.seen = last;
                return;
            }
            if self.news.changed().await.is_err() {
                // Nobody is there to change anything.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::model::Timestamp;

    #[tokio::test]
    async fn who_waits_hears_of_its_own_organization_and_of_what_may_be_anybodys() {
        let organization = |number| OrganizationId::new(Timestamp::from_micros(0).unwrap(), &[number; 10]);
        let epochs = Epochs::new();
        let (mut own, mut all) = (epochs.follow().of(organization(1)), epochs.follow());
        assert!(own.next().now_or_never().is_none() && all.next().now_or_never().is_none());
        epochs.change(Some(organization(2)));
        assert!(own.next().now_or_never().is_none() && all.next().now_or_never().is_some());
        for changed in [Some(organization(1)), None] {
            // Also of one before it said whose it waits for.
            let later = epochs.follow();
            epochs.change(changed);
            let mut later = later.of(organization(1));
            for changes in [&mut own, &mut all, &mut later] {
                assert!(changes.next().now_or_never().is_some() && changes.next().now_or_never().is_none());
            }
        }
    }
}
