//! Which servers hold something of budgets, and what becomes of what one holds that is gone.

use std::collections::HashMap;

use super::context::Services;
use crate::store::{self, budget as store_budget};

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
    /// Where the database fails.
    pub async fn look(&mut self, services: &Services) -> store::Result<()> {
        let found = store_budget::servers(&mut services.db.read().await?).await?;
        self.0.retain(|server, _| found.iter().any(|(known, _)| known == server));
        for (server, beat) in found {
            let (last, looks) = self.0.entry(server.clone()).or_insert((i64::MIN, 0));
            (*last, *looks) = if *last == beat { (beat, *looks + 1) } else { (beat, 0) };
            if server != services.instance && *looks >= Self::LOOKS {
                tracing::warn!(server, "a server has gone silent: what it held of budgets counts as used");
                store_budget::seize(&services.db, &server).await?;
                self.0.remove(&server);
            }
        }
        Ok(())
    }
}
