//! A commit of budgets whose answer is lost: nobody was told what it did, and nothing is held, given back or counted twice for it.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use claviger::domain::Services;
use claviger::domain::budget::{NotReserved, OverBudget, Reservation};
use claviger::store::api_key::FoundApiKey;
use claviger::store::budget::{self, Held};
use serde_json::json;

use crate::budget::{budget_of, key, used};
use crate::budget_queue::{begin, cut_locked_out};
use crate::support::{Proxy, TestApp, in_time};

/// What becomes of a transaction whose answer is lost.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Lasts,
    IsUndone,
}

/// A server with a way of its own to the database, and a key that a request of 100 tokens runs for.
struct Cut {
    app: TestApp,
    proxy: Proxy,
    services: Arc<Services>,
    key: Arc<FoundApiKey>,
}

impl Cut {
    async fn new() -> Self {
        let app = TestApp::patient().await;
        let admin = app.admin().await;
        let (proxy, url) = Proxy::before(&app.database.url).await;
        let services = app.beside_through(url).await.services;
        let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 1_000 })).await;
        let slow = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON budget_holds
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()";
        app.database.connection().await.batch_execute(slow).await.unwrap();
        Self { app, proxy, services, key }
    }

    /// Loses the answer to the commit that this leads to, which is not to begin before.
    async fn lose<T: Debug>(&self, fate: Fate, commit: impl AsyncFnOnce() -> T) -> T {
        let blocker = self.app.database.connection().await;
        blocker.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
        let mut committing = Box::pin(commit());
        tokio::select! {
            told = &mut committing => panic!("the commit was not held up: {told:?}"),
            () = self.app.database.until_locked_out() => {}
        }
        match fate {
            Fate::Lasts => self.proxy.cut(),
            Fate::IsUndone => cut_locked_out(&self.app).await,
        }
        let told = committing.await;
        // The commit goes on, where there is still one.
        blocker.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
        told
    }

    /// What was used, and what is held, once the lost transaction has ended, as another server sees it.
    async fn seen(&self) -> (i64, Held) {
        let mut other = self.app.database.connection().await;
        let transaction = other.transaction().await.unwrap();
        let ledger = "SELECT tokens FROM budgets WHERE api_key_id = $1 FOR UPDATE";
        let key = self.key.key.id.to_string();
        in_time("the end of the lost one", transaction.query_one(ledger, &[&key])).await.unwrap();
        let (ledger, held) = budget_of(&self.app.services(), &self.key).await;
        transaction.rollback().await.unwrap();
        (ledger.tokens, held)
    }

    async fn settle(&self) {
        in_time("a connection that is not broken", async {
            while self.services.budgets.settle_owed().await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn settled(&self) -> (i64, Held) {
        self.settle().await;
        self.seen().await
    }

    /// Reserves once there is a connection that is not broken.
    async fn reserve(&self, tokens: u64) -> Result<Reservation, OverBudget> {
        in_time("a connection that is not broken", async {
            loop {
                match begin(&self.services, &self.key, tokens).await.unwrap() {
                    Ok(reservation) => return Ok(reservation),
                    Err(NotReserved::Over(over)) => return Err(over),
                    Err(NotReserved::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
    }
}

fn held(requests: i64, tokens: i64) -> Held {
    Held { requests, tokens, cost_nano_usd: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_reserved_in_a_commit_whose_answer_is_lost_is_given_back() {
    for fate in [Fate::Lasts, Fate::IsUndone] {
        let cut = Cut::new().await;
        let running = cut.reserve(100).await.unwrap();
        let told = cut.lose(fate, async || begin(&cut.services, &cut.key, 200).await.unwrap().map(drop)).await;
        assert!(matches!(told, Err(NotReserved::Unavailable(_))), "{fate:?}");
        let before = if fate == Fate::Lasts { held(2, 300) } else { held(1, 100) };
        assert_eq!(cut.seen().await, (0, before), "{fate:?}");
        assert_eq!(cut.settled().await, (0, held(1, 100)), "{fate:?}");
        running.settle(used(10, 0)).await;
        assert_eq!(cut.settled().await, (10, Held::default()), "{fate:?}");
    }
}

/// Where nothing was held of the key before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_that_is_reserved_in_a_commit_whose_answer_is_lost_is_given_back() {
    for fate in [Fate::Lasts, Fate::IsUndone] {
        let cut = Cut::new().await;
        let told = cut.lose(fate, async || begin(&cut.services, &cut.key, 200).await.unwrap().map(drop)).await;
        assert!(matches!(told, Err(NotReserved::Unavailable(_))), "{fate:?}");
        if fate == Fate::Lasts {
            assert!(cut.reserve(1_000).await.is_err());
        }
        cut.settle().await;
        let next = cut.reserve(1_000).await.unwrap();
        assert_eq!(cut.settled().await, (0, held(1, 1_000)), "{fate:?}");
        next.settle(used(10, 0)).await;
        assert_eq!(cut.settled().await, (10, Held::default()), "{fate:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_in_a_commit_whose_answer_is_lost_counts_once_and_is_given_back_once() {
    for fates in [[Fate::Lasts].as_slice(), &[Fate::IsUndone, Fate::IsUndone], &[Fate::IsUndone, Fate::Lasts]] {
        let cut = Cut::new().await;
        let stays = cut.reserve(300).await.unwrap();
        let mut running = Some(cut.reserve(100).await.unwrap());
        for fate in fates {
            match running.take() {
                Some(running) => cut.lose(*fate, async || running.settle(used(7, 0)).await).await,
                None => assert!(cut.lose(*fate, async || cut.services.budgets.settle_owed().await).await.is_err()),
            }
            let seen = if *fate == Fate::Lasts { (7, held(1, 300)) } else { (0, held(2, 400)) };
            assert_eq!(cut.seen().await, seen, "{fates:?}");
        }
        assert_eq!(cut.settled().await, (7, held(1, 300)), "{fates:?}");
        stays.settle(used(10, 0)).await;
        assert_eq!(cut.settled().await, (17, Held::default()), "{fates:?}");
    }
}

/// Another has taken it for gone meanwhile, and counted all that it held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_server_has_counted_as_used_is_not_counted_again() {
    for fate in [Fate::Lasts, Fate::IsUndone] {
        let cut = Cut::new().await;
        let running = cut.reserve(100).await.unwrap();
        let lost = cut.reserve(200).await.unwrap();
        cut.lose(fate, async || lost.settle(used(7, 0)).await).await;
        // By a connection that was not cut.
        let other = cut.app.services();
        let server = &budget::servers(&mut other.db.read().await.unwrap()).await.unwrap()[0].0;
        budget::seize(&other.db, cut.key.key.id, server).await.unwrap().unwrap();
        let counted = if fate == Fate::Lasts { 107 } else { 300 };
        assert_eq!(cut.settled().await, (counted, Held::default()), "{fate:?}");
        let next = cut.reserve(50).await.unwrap();
        assert_eq!(cut.settled().await, (counted, held(1, 50)), "{fate:?}");
        drop((running, next));
    }
}
