//! What waits of one key in a database that servers share: it is done together, and each gets what is theirs.

use std::sync::Arc;
use std::time::Duration;

use claviger::audit::Origin;
use claviger::domain::budget::{NotReserved, Reservation};
use claviger::domain::quota::{self, QuotaKind};
use claviger::domain::{Cx, Record, Services};
use claviger::identity::Actor;
use claviger::store::api_key::FoundApiKey;
use claviger::store::budget::Held;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::budget::{budget_of, estimate, find, key, lock, reserve, used};
use crate::support::{TestApp, both_databases, in_time};

both_databases! {
    async fn each_version_of_a_key_has_its_own_limits(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let (before, id, raw) = key(&app, &admin, json!({ "tokenLimitPerDay": 100 })).await;
        crate::api_key::update(&admin, json!({ "id": id, "tokenLimitPerDay": 200 })).await.data();
        let after = find(&app.beside().await.services, &raw).await;
        let actor = Actor::system(services.home);
        let (origin, record) = (Origin::default(), Record::default());
        let cx = Cx { services: &services, actor: &actor, origin: &origin, operation: "test", record: &record, deadline: None };
        let found = quota::of_api_keys(cx, &[&before.key, &after.key]).await.unwrap();
        let tokens = found.iter().flatten().filter(|window| window.kind == QuotaKind::TokensPerDay);
        assert_eq!(tokens.map(|window| window.limit).collect::<Vec<_>>(), [100, 200]);
    }
}

/// Begins to reserve so many tokens.
pub(crate) fn begin(
    services: &Arc<Services>,
    key: &Arc<FoundApiKey>,
    tokens: u64,
) -> JoinHandle<Result<Reservation, NotReserved>> {
    let (services, key) = (services.clone(), key.clone());
    tokio::spawn(async move { services.budgets.reserve(&services, &key, estimate(tokens, 0)).await })
}

/// Ends the connections that wait for a lock. While PostgreSQL looks for a deadlock none seems to wait.
pub(crate) async fn cut_locked_out(app: &TestApp) {
    let cut = "SELECT pg_terminate_backend(pid)::text AS text FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    in_time("one that waits for a lock", async { while app.database.texts(cut).await.is_empty() {} }).await;
}

/// Who waits for a key waits for one transaction of all, whatever their number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_key_is_let_in_together_with_all_others_in_their_order() {
    let app = TestApp::patient().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 1_000 })).await;
    let running = reserve(&services, &key, 100, 0).await.unwrap();
    let blocker = lock(&app, &key).await;
    let first = begin(&services, &key, 100);
    app.database.until_locked_out().await;
    let before = services.db.statements();
    let waiting = join_all((0..40).map(|_| reserve(&services, &key, 100, 0)));
    let mut waiting = Box::pin(futures_util::future::join(waiting, running.settle(used(100, 0))));
    assert!((&mut waiting).now_or_never().is_none());
    blocker.batch_execute("COMMIT").await.unwrap();
    let (waited, ()) = waiting.await;
    let sent = services.db.statements() - before;
    // What is left of the first, those who waited for it, and what is settled, should it come after them: each begins, locks the row,
    // looks what others hold, writes what is used and what is held, and ends. One by one it would be some 200.
    assert!(sent < 25, "{sent} statements");
    // To the very limit, with those that run; and no further.
    let first = first.await.unwrap().unwrap();
    let is_in: Vec<bool> = waited.iter().map(Result::is_ok).collect();
    assert_eq!(is_in, [[true; 8].as_slice(), [false; 32].as_slice()].concat());
    for over in waited.iter().filter_map(|waited| waited.as_ref().err()) {
        assert_eq!((over.kind, over.limit, over.is_held_by_others), (QuotaKind::TokensPerDay, 1_000, true));
    }
    let (ledger, held) = budget_of(&services, &key).await;
    assert_eq!((ledger.tokens, held.requests, held.tokens), (100, 9, 900));
    let settling = waited.into_iter().flatten().chain([first]).map(|reservation| reservation.settle(used(50, 0)));
    join_all(settling).await;
    let (ledger, held) = budget_of(&services, &key).await;
    assert_eq!((ledger.tokens, held), (550, Held::default()));
}

/// Who came first does it for all; and leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_others_wait_for_the_same_key_takes_nobody_along() {
    let app = TestApp::patient().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (key, ..) = key(&app, &admin, json!({ "concurrencyLimit": 2 })).await;
    reserve(&services, &key, 1, 1).await.unwrap().settle(used(0, 0)).await;
    let blocker = lock(&app, &key).await;
    let first = begin(&services, &key, 1);
    app.database.until_locked_out().await;
    let mut second = Box::pin(reserve(&services, &key, 1, 1));
    let mut third = Box::pin(reserve(&services, &key, 1, 1));
    assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
    first.abort();
    assert!(first.await.is_err());
    drop(third);
    blocker.batch_execute("COMMIT").await.unwrap();
    let second = second.await.unwrap();
    // What is reserved for those who have left is given back.
    let again = async {
        loop {
            services.budgets.settle_owed().await.unwrap();
            match reserve(&services, &key, 1, 1).await {
                Ok(reservation) => break reservation,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(30), again).await.expect("it is given back");
    second.settle(used(0, 0)).await;
    again.settle(used(0, 0)).await;
    services.budgets.finish().await.unwrap();
    assert_eq!(budget_of(&services, &key).await.1, Held::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_refuses_takes_no_other_of_the_key_along() {
    let app = TestApp::patient().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 1_000 })).await;
    reserve(&services, &key, 1, 0).await.unwrap().settle(used(0, 0)).await;
    app.database.execute("ALTER TABLE budget_holds ADD CONSTRAINT wrong CHECK (tokens < 100)").await.unwrap();
    let blocker = lock(&app, &key).await;
    let first = begin(&services, &key, 10);
    app.database.until_locked_out().await;
    let ask = |tokens| services.budgets.reserve(&services, &key, estimate(tokens, 0));
    let mut waiting = Box::pin(join_all([50, 60, 30, 2_000].map(ask)));
    assert!((&mut waiting).now_or_never().is_none());
    blocker.batch_execute("COMMIT").await.unwrap();
    let waited = waiting.await;
    let told = waited.iter().map(|waited| match waited {
        Ok(_) => "in",
        Err(NotReserved::Over(_)) => "over",
        Err(NotReserved::Unavailable(_)) => "refused",
    });
    assert_eq!(told.collect::<Vec<_>>(), ["in", "refused", "in", "over"]);
    let held = budget_of(&services, &key).await.1;
    assert_eq!((held.requests, held.tokens), (3, 90));
    drop((waited, first.await.unwrap()));
    services.budgets.finish().await.unwrap();
    assert_eq!(budget_of(&services, &key).await.1, Held::default());
}

/// The connection may have been to a host that is not there any more: another is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_settles_though_a_connection_breaks() {
    let app = TestApp::patient().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (broken, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 100 })).await;
    let (other, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 100 })).await;
    let running = [reserve(&services, &broken, 10, 0).await.unwrap(), reserve(&services, &other, 10, 0).await.unwrap()];
    let until_cut = async || {
        app.database.until_locked_out().await;
        cut_locked_out(&app).await;
    };
    let blocker = lock(&app, &broken).await;
    let [of_broken, of_other] = running;
    // It is owed.
    tokio::join!(of_broken.settle(used(7, 0)), until_cut());
    drop(of_other);
    let finishing = tokio::spawn({
        let services = services.clone();
        async move { services.budgets.finish().await }
    });
    until_cut().await;
    blocker.batch_execute("COMMIT").await.unwrap();
    finishing.await.unwrap().unwrap();
    let (ledger, held) = budget_of(&services, &broken).await;
    assert_eq!((ledger.tokens, held), (7, Held::default()));
    let (ledger, held) = budget_of(&services, &other).await;
    assert_eq!((ledger.tokens, held), (0, Held::default()));
}

/// One after the other they would wait for it for ever longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_all_who_wait_for_a_key_are_told_at_once() {
    let app = TestApp::patient().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 1_000 })).await;
    reserve(&services, &key, 1, 0).await.unwrap().settle(used(0, 0)).await;
    let blocker = lock(&app, &key).await;
    let first = begin(&services, &key, 1);
    app.database.until_locked_out().await;
    let waiting = (0..100).map(|_| services.budgets.reserve(&services, &key, estimate(1, 0)));
    let mut waiting = Box::pin(join_all(waiting));
    assert!((&mut waiting).now_or_never().is_none());
    cut_locked_out(&app).await;
    assert!(matches!(first.await.unwrap(), Err(NotReserved::Unavailable(_))));
    // The row is locked still: who would try it by themselves would wait for it for half a minute.
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("they are told");
    for waited in waited {
        assert!(matches!(waited, Err(NotReserved::Unavailable(_))));
    }
    blocker.batch_execute("COMMIT").await.unwrap();
    reserve(&services, &key, 1_000, 0).await.unwrap().settle(used(0, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_used_without_a_limit_is_counted_while_a_row_is_locked() {
    let app = TestApp::patient().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (locked, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 100 })).await;
    let (before, id, raw) = key(&app, &admin, json!({})).await;
    let unheld = reserve(&services, &before, 0, 0).await.unwrap();
    crate::api_key::update(&admin, json!({ "id": id, "tokenLimitPerDay": 100 })).await.data();
    let after = find(&services, &raw).await;
    reserve(&services, &after, 1, 0).await.unwrap().settle(used(0, 0)).await;
    let running = reserve(&services, &locked, 10, 0).await.unwrap();
    let blocker = lock(&app, &locked).await;
    drop(running);
    unheld.settle(used(7, 0)).await;
    let settling = tokio::spawn({
        let services = services.clone();
        async move { services.budgets.settle_owed().await }
    });
    let counted = async {
        while budget_of(&services, &after).await.0.tokens < 7 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // While the lock is waited for.
    in_time("what is counted", counted).await;
    blocker.batch_execute("COMMIT").await.unwrap();
    settling.await.unwrap().unwrap();
    assert_eq!(budget_of(&services, &locked).await.1, Held::default());
}

/// Each try has its end, and another follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_settles_though_a_row_is_locked_for_a_while() {
    let app = TestApp::patient().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 100 })).await;
    let running = reserve(&services, &key, 10, 0).await.unwrap();
    let blocker = lock(&app, &key).await;
    drop(running);
    let finishing = tokio::spawn({
        let services = services.clone();
        async move { services.budgets.finish().await }
    });
    // The statement of the first try has gone, since that was given up; the next waits for the lock.
    app.database.until_locked_out().await;
    let first = locked_out(&app).await;
    let next = async {
        while [vec![], first.clone()].contains(&locked_out(&app).await) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), next).await.expect("it is tried again");
    blocker.batch_execute("COMMIT").await.unwrap();
    finishing.await.unwrap().unwrap();
    assert_eq!(budget_of(&services, &key).await.1, Held::default());
}

/// Which transactions wait for a lock, by their connections.
async fn locked_out(app: &TestApp) -> Vec<String> {
    let waiting = "SELECT pid::text || ' ' || xact_start::text AS text FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    app.database.texts(waiting).await
}
