//! What keeps budgets: a server says that it is there, settles what could not be settled, and looks what others hold that are gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::context::Services;
use crate::model::NanoUsd;
use crate::store::{self, budget as store_budget};

/// How often a server says that it is there, and looks at the others.
pub const BEAT: Duration = Duration::from_secs(10);
/// How often it is looked for what is to be settled: what could not be yet, and what was used without a limit.
const SETTLING: Duration = Duration::from_secs(1);
/// How often keys are forgotten that are not used any more.
const FORGETTING: Duration = Duration::from_secs(60 * 60);

/// Says every so often that this server is there, until it is told to stop: a server that stops is there until it has given all back.
pub async fn beat(services: Arc<Services>, every: Duration, stop: CancellationToken) {
    if !services.budgets.are_shared() {
        return;
    }
    loop {
        // Also where the database is away who holds nothing any more waits for nothing.
        let Some(beat) = stop.run_until_cancelled(services.budgets.beat()).await else { return };
        if let Err(error) = beat {
            failed(&error, "other servers were not told that this one is there; it is tried again");
        }
        if stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
            return;
        }
    }
}

/// Settles what this server owes, and what servers hold that have gone silent, until it is told to stop.
pub async fn keep(services: Arc<Services>, every: Duration, stop: CancellationToken) {
    let services = &services;
    let forgetting = async {
        while stop.run_until_cancelled(tokio::time::sleep(FORGETTING)).await.is_some() {
            services.budgets.forget();
        }
    };
    let settling = async {
        loop {
            if let Err(error) = services.budgets.settle_owed().await {
                failed(&error, "what requests have used was not settled; it is tried again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = services.budgets.owes() => {}
                () = tokio::time::sleep(SETTLING) => {}
            }
        }
    };
    let looking = async {
        if !services.budgets.are_shared() {
            return;
        }
        let mut watch = Watch::default();
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            if let Err(error) = watch.look(services).await {
                failed(&error, "budgets were not looked after; it is tried again");
            }
        }
    };
    // Each for itself: to count much of others keeps nobody who is to be settled waiting.
    tokio::join!(settling, looking, forgetting);
}

fn failed(error: &store::Error, what: &'static str) {
    tracing::warn!(error = error as &dyn std::error::Error, "{what}");
}

/// Which servers hold something, and how often they were looked at since they were last heard of.
#[derive(Debug, Default)]
pub struct Watch(HashMap<String, (i64, u32)>);

impl Watch {
    /// How often a server is found silent, a beat apart, until it is taken for gone. Looks are counted and not time: while the database
    /// was away nobody could be heard of.
    pub const LOOKS: u32 = 4;

    /// Counts as used what servers hold that have gone silent: what they took cannot be known, and nothing is spent twice.
    ///
    /// # Errors
    /// Where the database fails: what is left is held on, until the next look.
    pub async fn look(&mut self, services: &Services) -> store::Result<()> {
        let found = store_budget::servers(&mut services.db.read().await?).await?;
        self.0.retain(|server, _| found.iter().any(|(known, _)| known == server));
        for (server, beat) in found {
            let (last, looks) = self.0.entry(server.clone()).or_insert((i64::MIN, 0));
            (*last, *looks) = if *last == beat { (beat, *looks + 1) } else { (beat, 0) };
            if server != services.instance && *looks >= Self::LOOKS {
                seize(services, &server).await?;
                self.0.remove(&server);
            }
        }
        Ok(())
    }
}

async fn seize(services: &Services, server: &str) -> store::Result<()> {
    let keys = store_budget::held_by(&mut services.db.read().await?, server).await?;
    for key in keys {
        if let Some(held) = store_budget::seize(&services.db, key, server).await? {
            tracing::warn!(
                server,
                api_key_id = %key,
                requests = held.requests,
                tokens = held.tokens,
                cost_usd = %NanoUsd::from_nanos(held.cost_nano_usd),
                "a server has gone silent: what it held of a key's limits counts as used"
            );
        }
    }
    Ok(())
}
