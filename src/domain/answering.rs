//! That one server at a time answers in a conversation: a short lease on its row, which is renewed while it answers, given back at the
//! end, and runs out where the server is gone.

use std::time::Duration;

use chrono::TimeDelta;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::context::Cx;
use super::error::Result;
use crate::model::{ConversationId, Id, kind};
use crate::store::conversation_lease::{self as leases, ConversationLease, Term};
use crate::store::{self, Db};

/// How long a server may be silent until another may answer.
const LENGTH: TimeDelta = TimeDelta::seconds(15);
/// How often a server says that it still answers.
const RENEWAL: Duration = Duration::from_secs(4);

/// A conversation that no other server answers in meanwhile. Left, it is given back.
pub(super) struct Answering {
    lease: Option<ConversationLease>,
    db: Db,
    tasks: TaskTracker,
}

impl Answering {
    /// Of a conversation with so many messages. None: something is being answered there, or just was.
    pub(super) async fn begin(cx: Cx<'_>, conversation: ConversationId, messages: i32) -> Result<Option<Self>> {
        let services = cx.services;
        let turn: Id<kind::Message> = services.new_id();
        let lease = ConversationLease { conversation, holder: format!("{} {turn}", services.instance) };
        let term = Term { now: services.clock.now(), length: LENGTH };
        // Before it is known whether it was taken: who leaves meanwhile gives it back.
        let answering = Self { lease: Some(lease), db: services.db.clone(), tasks: services.turns.clone() };
        let is_taken = match &answering.lease {
            Some(lease) => leases::take(&services.db, lease, messages, term).await?,
            None => false,
        };
        if !is_taken {
            answering.ended();
            return Ok(None);
        }
        Ok(Some(answering))
    }

    /// Renews it for as long as something takes.
    pub(super) async fn while_it_lasts<T>(&self, cx: Cx<'_>, work: impl Future<Output = T>) -> T {
        let renewing = async {
            let Some(lease) = &self.lease else { return };
            loop {
                tokio::time::sleep(RENEWAL).await;
                let term = Term { now: cx.services.clock.now(), length: LENGTH };
                match leases::renew(&self.db, lease, term).await {
                    Ok(true) => {}
                    // Another server took this one for gone. Which of the two comes first is told when it is kept.
                    Ok(false) => return,
                    Err(error) => warn(&error, "that a conversation is being answered was not said; it is tried again"),
                }
            }
        };
        let never = async {
            renewing.await;
            std::future::pending().await
        };
        tokio::select! {
            done = work => done,
            done = never => done,
        }
    }

    /// What is given back together with what is kept.
    pub(super) fn lease(&self) -> Option<&ConversationLease> {
        self.lease.as_ref()
    }

    /// It was given back.
    pub(super) fn ended(mut self) {
        self.lease = None;
    }

    /// Gives it back, before anybody is told that there is no answer.
    pub(super) async fn give_up(mut self) {
        if let Some(lease) = self.lease.take() {
            give_back(&self.db, &lease).await;
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let db = self.db.clone();
            self.tasks.spawn_on(async move { give_back(&db, &lease).await }, &runtime);
        }
    }
}

async fn give_back(db: &Db, lease: &ConversationLease) {
    if let Err(error) = leases::give_back(db, lease).await {
        warn(&error, "that a conversation is not being answered any more was not said; it will show");
    }
}

fn warn(error: &store::Error, what: &'static str) {
    tracing::warn!(error = error as &dyn std::error::Error, "{what}");
}
