//! What was committed, told to whoever waits for it: each organization's log has grown, and to where.
//!
//! A hint, no more: who is told reads the log from where it last was. So nothing is lost where a hint is, the order is the
//! log's, and another server's hints would do as well.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::model::{OrganizationId, ResourceType};

/// How many hints are kept for a listener that is busy. One that misses some is told that it did.
const KEPT: usize = 256;

/// An organization's log has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Whose log.
    pub organization: OrganizationId,
    /// The place of the last entry; all before it are committed too.
    pub sequence: i64,
    /// What that entry is about; none where several may have come.
    pub resource_type: Option<ResourceType>,
}

/// Where commits are told, and heard of.
#[derive(Debug)]
pub struct Commits(broadcast::Sender<Committed>);

impl Default for Commits {
    fn default() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }
}

impl Commits {
    /// Tells everybody who listens.
    pub fn publish(&self, committed: Committed) {
        // Nobody listens, as a rule.
        let _ = self.0.send(committed);
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn has_listeners(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Listens to what is committed in an organization from now on.
    #[must_use]
    pub fn listen(&self, organization: OrganizationId) -> Listener {
        Listener { organization, hints: self.0.subscribe() }
    }
}

/// Listens to one organization's commits.
#[derive(Debug)]
pub struct Listener {
    organization: OrganizationId,
    hints: broadcast::Receiver<Committed>,
}

impl Listener {
    /// Waits until the log has grown, by something that may be `about` where that is given. Returns to where; none: hints were
    /// missed, and only the log knows. Nothing is lost where the wait is given up.
    pub async fn grown(&mut self, about: Option<ResourceType>) -> Option<i64> {
        let concerns = |organization: OrganizationId, hint: &Committed| {
            let is_about = about.is_none() || hint.resource_type.is_none() || hint.resource_type == about;
            hint.organization == organization && is_about
        };
        let mut to = loop {
            match self.hints.recv().await {
                Ok(hint) if concerns(self.organization, &hint) => break hint.sequence,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return None,
                // The server is going away, and this wait with it.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        };
        loop {
            match self.hints.try_recv() {
                Ok(hint) if concerns(self.organization, &hint) => to = to.max(hint.sequence),
                Ok(_) => {}
                Err(TryRecvError::Lagged(_)) => return None,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Some(to),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn organization(number: u8) -> OrganizationId {
        OrganizationId::new(Timestamp::from_micros(0).unwrap(), &[number; 10])
    }

    fn hint(number: u8, sequence: i64, resource_type: ResourceType) -> Committed {
        Committed { organization: organization(number), sequence, resource_type: Some(resource_type) }
    }

    #[tokio::test]
    async fn a_listener_hears_its_own_organization_and_what_it_asks_for() {
        let commits = Commits::default();
        let (mut all, mut clients) = (commits.listen(organization(1)), commits.listen(organization(1)));
        commits.publish(hint(2, 9, ResourceType::Client));
        commits.publish(hint(1, 4, ResourceType::User));
        commits.publish(hint(1, 6, ResourceType::Client));
        // Two commits may be told in another order than they were made in.
        commits.publish(hint(1, 5, ResourceType::User));
        commits.publish(hint(1, 7, ResourceType::User));
        assert_eq!(all.grown(None).await, Some(7));
        assert_eq!(clients.grown(Some(ResourceType::Client)).await, Some(6));
        commits.publish(Committed { resource_type: None, ..hint(1, 8, ResourceType::User) });
        assert_eq!(clients.grown(Some(ResourceType::Client)).await, Some(8));
    }

    #[tokio::test]
    async fn a_listener_that_missed_hints_is_told() {
        let commits = Commits::default();
        let mut listener = commits.listen(organization(1));
        for sequence in 1..=2 * i64::try_from(KEPT).unwrap() {
            commits.publish(hint(1, sequence, ResourceType::User));
        }
        assert_eq!(listener.grown(None).await, None);
        assert_eq!(listener.grown(None).await, Some(2 * i64::try_from(KEPT).unwrap()));
    }

    #[tokio::test]
    async fn nobody_listens_once_the_last_is_gone() {
        let commits = Commits::default();
        assert!(!commits.has_listeners());
        let listener = commits.listen(organization(1));
        assert!(commits.has_listeners());
        drop(listener);
        assert!(!commits.has_listeners());
    }
}
