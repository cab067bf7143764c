//! Budgets of API keys on the relay: no limit is overrun, however many race, and nothing stays reserved for what is gone.

use std::sync::Arc;
use std::time::Duration;

use chrono::Datelike as _;
use claviger::crypto::SecretText;
use claviger::domain::Services;
use claviger::domain::budget::{Estimate, NotReserved, OverBudget, Reservation, Used};
use claviger::domain::budget_watch::{self, Watch};
use claviger::domain::quota::QuotaKind;
use claviger::model::{MicroUsd, NanoUsd};
use claviger::store::Tx;
use claviger::store::api_key::FoundApiKey;
use claviger::store::budget::{self, Held, Ledger};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Client, TestApp, both_databases};
use crate::usage::{Whose, few, id, request, use_some};

pub(crate) const DAY: i64 = 24 * 60 * 60;

/// A key with limits: as the relay finds it, and its id.
pub(crate) async fn key(app: &TestApp, admin: &Client, limits: Value) -> (Arc<FoundApiKey>, Value, String) {
    let mut input = limits;
    input["name"] = json!("K");
    let (key, raw) = crate::api_key::create(admin, input).await;
    (find(&app.beside().await.services, &raw).await, key["id"].clone(), raw)
}

pub(crate) async fn find(services: &Services, raw: &str) -> Arc<FoundApiKey> {
    let address = "127.0.0.1".parse().unwrap();
    let found = services.authenticator.verify_api_key(SecretText::from(raw.to_owned()), Some(address)).await;
    found.unwrap().1.unwrap()
}

/// Servers that share the budgets: SQLite has one.
pub(crate) async fn servers(app: &TestApp) -> Vec<Arc<Services>> {
    let count = if app.database.url.starts_with("postgres") { 3 } else { 1 };
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(app.beside().await.services);
    }
    servers
}

pub(crate) fn estimate(tokens: u64, micros: i64) -> Estimate {
    Estimate { tokens, cost: MicroUsd::from_micros(micros) }
}

pub(crate) fn used(tokens: u64, nanos: i64) -> Used {
    Used { tokens, cost: NanoUsd::from_nanos(nanos) }
}

pub(crate) async fn reserve(
    services: &Services,
    key: &FoundApiKey,
    tokens: u64,
    micros: i64,
) -> Result<Reservation, OverBudget> {
    services.budgets.reserve(services, key, estimate(tokens, micros)).await.map_err(|refused| match refused {
        NotReserved::Over(over) => over,
        NotReserved::Unavailable(error) => panic!("{error}"),
    })
}

/// A hundred requests at once, spread over the servers: those that were let in.
async fn race(servers: &[Arc<Services>], key: &Arc<FoundApiKey>, tokens: u64, micros: i64) -> Vec<Reservation> {
    let racing = (0..100_usize).map(|n| {
        let (services, key) = (servers[n % servers.len()].clone(), key.clone());
        tokio::spawn(async move { reserve(&services, &key, tokens, micros).await })
    });
    join_all(racing).await.into_iter().filter_map(|reserved| reserved.unwrap().ok()).collect()
}

async fn windows(client: &Client, id: &Value) -> Vec<(String, i64, i64, i64)> {
    let query = "query($id: ID!) { apiKey(id: $id) { quota { windows { kind limit used remaining resetsAt } } } }";
    let answer = client.with(query, json!({ "id": id })).await;
    let number = |window: &Value, name: &str| window[name].as_i64().unwrap();
    let windows = answer.data()["apiKey"]["quota"]["windows"].as_array().unwrap().clone();
    let window = |w: &Value| {
        (w["kind"].as_str().unwrap().to_owned(), number(w, "limit"), number(w, "used"), number(w, "remaining"))
    };
    windows.iter().map(window).filter(|(kind, ..)| !kind.starts_with("REQUESTS_")).collect()
}

/// What a key has used, and what is held of it, as all servers see it.
pub(crate) async fn budget_of(services: &Services, key: &FoundApiKey) -> (Ledger, Held) {
    let found = budget::find(&mut services.db.read().await.unwrap(), &[key.key.id]).await;
    found.unwrap()[&key.key.id]
}

both_databases! {
    async fn racing_requests_overrun_no_limit(app: TestApp) {
        let (admin, servers) = (app.admin().await, servers(&app).await);
        for (limits, kind, fit) in [
            (json!({ "concurrencyLimit": 7 }), QuotaKind::ConcurrentRequests, 7),
            (json!({ "tokenLimitPerDay": 1_099 }), QuotaKind::TokensPerDay, 10),
            (json!({ "costLimitUsdPerMonth": "0.000505" }), QuotaKind::CostMicroUsdPerMonth, 12),
        ] {
            let (key, ..) = key(&app, &admin, limits).await;
            let reserved = race(&servers, &key, 100, 42).await;
            assert_eq!(reserved.len(), fit, "{kind:?}");
            let over = reserve(&servers[0], &key, 100, 42).await.err().unwrap();
            assert_eq!((over.kind, over.is_held_by_others), (kind, true));
            // Each took exactly what it was estimated at, but for the last, which took less.
            for (n, reservation) in reserved.into_iter().enumerate() {
                let last = n + 1 == fit;
                reservation.settle(if last { used(1, 1) } else { used(100, 42_000) }).await;
            }
            let again = race(&servers, &key, 100, 42).await;
            assert_eq!(again.len(), if kind == QuotaKind::ConcurrentRequests { fit } else { 1 }, "{kind:?}");
            for reservation in again {
                reservation.settle(used(100, 42_000)).await;
            }
            if kind != QuotaKind::ConcurrentRequests {
                let over = reserve(&servers[0], &key, 100, 42).await.err().unwrap();
                assert_eq!((over.kind, over.is_held_by_others), (kind, false));
                assert!(over.resets_at > servers[0].clock.now());
            }
        }
    }

    async fn a_key_without_such_limits_is_not_counted(app: TestApp) {
        let (admin, servers) = (app.admin().await, servers(&app).await);
        let (key, ..) = key(&app, &admin, json!({ "rateLimitPerMinute": 5 })).await;
        assert_eq!(race(&servers, &key, u64::MAX, i64::MAX).await.len(), 100);
        assert!(budget::find(&mut servers[0].db.read().await.unwrap(), &[key.key.id]).await.unwrap().is_empty());
    }

    async fn what_a_request_does_not_take_is_given_back(app: TestApp) {
        let (admin, servers) = (app.admin().await, servers(&app).await);
        let (key, ..) = key(&app, &admin, json!({ "concurrencyLimit": 1, "tokenLimitPerDay": 100, "costLimitUsdPerMonth": "1" })).await;
        for _ in 0..3 {
            let reservation = reserve(&servers[0], &key, 100, 1_000_000).await.unwrap();
            assert!(reserve(&servers[0], &key, 1, 0).await.is_err());
            // It ended before anything was sent, or whoever had it is gone.
            drop(reservation);
            servers[0].budgets.settle_owed().await.unwrap();
        }
        reserve(&servers[0], &key, 100, 1_000_000).await.unwrap().settle(used(60, 400_000_000)).await;
        for server in &servers {
            let over = reserve(server, &key, 41, 0).await.err().unwrap();
            assert_eq!((over.kind, over.limit), (QuotaKind::TokensPerDay, 100));
            let over = reserve(server, &key, 1, 600_001).await.err().unwrap();
            assert_eq!((over.kind, over.limit), (QuotaKind::CostMicroUsdPerMonth, 1_000_000));
            reserve(server, &key, 40, 600_000).await.unwrap().settle(used(0, 0)).await;
        }
    }

    async fn a_new_day_and_a_new_month_begin_at_nothing(app: TestApp) {
        let (admin, servers) = (app.admin().await, servers(&app).await);
        let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 100, "costLimitUsdPerMonth": "1" })).await;
        reserve(&servers[0], &key, 100, 10).await.unwrap().settle(used(100, 900_000_000)).await;
        assert_eq!(reserve(&servers[0], &key, 1, 10).await.err().unwrap().kind, QuotaKind::TokensPerDay);
        app.advance(33 * DAY);
        reserve(&servers[0], &key, 100, 1_000_000).await.unwrap().settle(used(0, 900_000_000)).await;
        assert_eq!(reserve(&servers[0], &key, 1, 200_000).await.err().unwrap().kind, QuotaKind::CostMicroUsdPerMonth);
    }

    async fn what_was_used_without_limits_counts_when_there_are_some(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let (_, id_of_key, raw) = key(&app, &admin, json!({})).await;
        let whose = Whose { api_key: id(&id_of_key), ..Whose::of(&admin).await };
        use_some(&services, &whose, few(70, 0)).await;
        crate::api_key::update(&admin, json!({ "id": id_of_key, "tokenLimitPerDay": 100 })).await.data();
        for _ in 0..2 {
            // Also on a server that has just been started.
            let services = app.beside().await.services;
            let found = find(&services, &raw).await;
            assert_eq!(reserve(&services, &found, 31, 0).await.err().unwrap().kind, QuotaKind::TokensPerDay);
            reserve(&services, &found, 30, 0).await.unwrap().settle(used(0, 0)).await;
        }
        // Taken away for a while, and back.
        crate::api_key::update(&admin, json!({ "id": id_of_key, "tokenLimitPerDay": null })).await.data();
        use_some(&services, &whose, few(20, 0)).await;
        crate::api_key::update(&admin, json!({ "id": id_of_key, "tokenLimitPerDay": 100 })).await.data();
        let fresh = app.beside().await.services;
        let found = find(&fresh, &raw).await;
        assert!(reserve(&fresh, &found, 11, 0).await.is_err());
        reserve(&fresh, &found, 10, 0).await.unwrap().settle(used(10, 0)).await;
    }

    async fn requests_that_run_when_a_limit_is_set_count(app: TestApp) {
        let (admin, servers) = (app.admin().await, servers(&app).await);
        let (before, id_of_key, raw) = key(&app, &admin, json!({})).await;
        let mut running = Vec::new();
        for server in &servers {
            running.push((server, reserve(server, &before, 0, 0).await.unwrap()));
        }
        crate::api_key::update(&admin, json!({ "id": id_of_key, "tokenLimitPerDay": 100, "costLimitUsdPerMonth": "1" })).await.data();
        let after = find(&servers[0], &raw).await;
        reserve(&servers[0], &after, 100, 1_000_000).await.unwrap().settle(used(0, 0)).await;
        let each = 90 / running.len();
        for (server, reservation) in running {
            reservation.settle(used(each as u64, 10_000_000)).await;
            server.budgets.settle_owed().await.unwrap();
        }
        let over = reserve(&servers[0], &after, 11, 0).await.err().unwrap();
        assert_eq!((over.kind, over.is_held_by_others), (QuotaKind::TokensPerDay, false));
        assert!(reserve(&servers[0], &after, 1, 1_000_000).await.is_err());
        reserve(&servers[0], &after, 10, 0).await.unwrap().settle(used(0, 0)).await;
    }

    async fn what_was_used_while_a_key_is_counted_is_not_lost(app: TestApp) {
        let (admin, servers) = (app.admin().await, servers(&app).await);
        let (before, id_of_key, raw) = key(&app, &admin, json!({})).await;
        let (counting, other) = (&servers[0], servers.last().unwrap());
        let running = reserve(other, &before, 0, 0).await.unwrap();
        crate::api_key::update(&admin, json!({ "id": id_of_key, "tokenLimitPerDay": 100 })).await.data();
        // Its record is not there yet for all, nor is the budget when it is looked for.
        let whose = Whose { api_key: id(&id_of_key), ..Whose::of(&admin).await };
        other.usage.record(request(other, &whose, other.clock.now(), "claude-opus-5", few(60, 0)));
        running.settle(used(60, 0)).await;
        other.budgets.settle_owed().await.unwrap();
        let after = find(counting, &raw).await;
        reserve(counting, &after, 1, 0).await.unwrap().settle(used(0, 0)).await;
        other.budgets.settle_owed().await.unwrap();
        assert_eq!(reserve(counting, &after, 41, 0).await.err().unwrap().kind, QuotaKind::TokensPerDay);
        reserve(counting, &after, 40, 0).await.unwrap().settle(used(0, 0)).await;
    }

    async fn what_runs_over_midnight_is_of_the_day_that_it_began_in(app: TestApp) {
        let (admin, servers) = (app.admin().await, servers(&app).await);
        let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 100 })).await;
        let running = reserve(&servers[0], &key, 90, 0).await.unwrap();
        app.advance(DAY);
        // It is held until it ends, and then it is not of this day.
        assert!(reserve(&servers[0], &key, 11, 0).await.is_err());
        running.settle(used(90, 0)).await;
        reserve(&servers[0], &key, 100, 0).await.unwrap().settle(used(100, 0)).await;
        assert!(reserve(&servers[0], &key, 1, 0).await.is_err());
    }

    async fn what_is_used_after_midnight_before_the_key_is_asked_for_again_is_of_the_month(app: TestApp) {
        // From the middle of a month on.
        app.advance(DAY * (40 - i64::from(app.services().clock.now().to_utc().day())));
        let (admin, services) = (app.admin().await, app.services());
        let (before, id, raw) = key(&app, &admin, json!({})).await;
        crate::api_key::update(&admin, json!({ "id": id, "costLimitUsdPerMonth": "1" })).await.data();
        let after = find(&services, &raw).await;
        reserve(&services, &after, 0, 1).await.unwrap().settle(used(0, 0)).await;
        app.advance(DAY);
        reserve(&services, &before, 0, 0).await.unwrap().settle(used(0, 900_000_000)).await;
        services.budgets.settle_owed().await.unwrap();
        assert!(reserve(&services, &after, 0, 200_000).await.is_err());
        reserve(&services, &after, 0, 100_000).await.unwrap().settle(used(0, 0)).await;
    }

    async fn a_key_that_was_not_used_today_is_forgotten_and_found_again(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let (_, id_of_key, raw) = key(&app, &admin, json!({ "tokenLimitPerDay": 100, "costLimitUsdPerMonth": "1" })).await;
        let whose = Whose { api_key: id(&id_of_key), ..Whose::of(&admin).await };
        let found = find(&services, &raw).await;
        let running = reserve(&services, &found, 30, 0).await.unwrap();
        reserve(&services, &found, 20, 0).await.unwrap().settle(used(0, 0)).await;
        services.budgets.forget();
        app.advance(DAY);
        services.budgets.forget();
        assert!(reserve(&services, &found, 71, 0).await.is_err(), "what runs is held");
        use_some(&services, &whose, few(70, 0)).await;
        running.settle(used(0, 0)).await;
        services.budgets.forget();
        reserve(&services, &found, 100, 0).await.unwrap().settle(used(70, 0)).await;
        app.advance(DAY);
        use_some(&services, &whose, few(60, 0)).await;
        services.budgets.forget();
        assert!(reserve(&services, &found, 41, 0).await.is_err());
        reserve(&services, &found, 40, 0).await.unwrap().settle(used(0, 0)).await;
    }

    async fn what_is_left_is_shown(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let limits = json!({ "concurrencyLimit": 3, "tokenLimitPerDay": 1_000, "costLimitUsdPerMonth": "2.5" });
        let (_, id, raw) = key(&app, &admin, limits).await;
        let found = find(&services, &raw).await;
        let shown = |at_once: i64, tokens: i64, cost: i64| vec![
            ("CONCURRENT_REQUESTS".to_owned(), 3, at_once, 3 - at_once),
            ("TOKENS_PER_DAY".to_owned(), 1_000, tokens, 1_000 - tokens),
            ("COST_MICRO_USD_PER_MONTH".to_owned(), 2_500_000, cost, 2_500_000 - cost),
        ];
        assert_eq!(windows(&admin, &id).await, shown(0, 0, 0));
        let reservation = reserve(&services, &found, 900, 2_000_000).await.unwrap();
        assert_eq!(windows(&admin, &id).await, shown(1, 900, 2_000_000));
        reservation.settle(used(10, 1_001)).await;
        assert_eq!(windows(&admin, &id).await, shown(0, 10, 2));
        let of_key = crate::api_key::with_key(&app, &raw).run("{ viewer { quota { windows { kind } } } }").await;
        let kinds: Vec<_> = of_key.data()["viewer"]["quota"]["windows"].as_array().unwrap().iter().map(|w| w["kind"].clone()).collect();
        assert!(kinds.contains(&json!("TOKENS_PER_DAY")), "{kinds:?}");
        let verify = async || {
            let answer = app.anonymous().with("query($k: String!) { verifyApiKey(key: $k) { code } }", json!({ "k": raw })).await;
            answer.data()["verifyApiKey"]["code"].clone()
        };
        assert_eq!(verify().await, "VALID");
        reserve(&services, &found, 990, 0).await.unwrap().settle(used(990, 0)).await;
        assert_eq!(verify().await, "RATE_LIMITED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_held_that_is_gone_counts_as_used() {
    let app = TestApp::postgres().await;
    let (admin, servers) = (app.admin().await, servers(&app).await);
    let [gone, there, looking] = &servers[..] else { unreachable!("PostgreSQL has three") };
    let limits = json!({ "concurrencyLimit": 2, "tokenLimitPerDay": 100, "costLimitUsdPerMonth": "1" });
    let (key, ..) = key(&app, &admin, limits).await;
    // It will never say anything again, and not what its request took.
    std::mem::forget(reserve(gone, &key, 60, 300_000).await.unwrap());
    let kept = reserve(there, &key, 1, 1).await.unwrap();
    let mut watch = Watch::default();
    for look in 0..=Watch::LOOKS {
        let over = reserve(looking, &key, 1, 1).await.err().unwrap();
        assert_eq!((over.kind, over.is_held_by_others), (QuotaKind::ConcurrentRequests, true), "{look}");
        there.budgets.beat().await.unwrap();
        watch.look(looking).await.unwrap();
    }
    let found = async || budget_of(looking, &key).await;
    let (ledger, held) = found().await;
    assert_eq!((ledger.tokens, ledger.cost_nano_usd), (60, 300_000_000));
    // Who was heard of has kept what it held.
    assert_eq!((held.requests, held.tokens), (1, 1));
    assert_eq!(reserve(looking, &key, 40, 0).await.err().unwrap().kind, QuotaKind::TokensPerDay);
    reserve(looking, &key, 39, 699_999).await.unwrap().settle(used(0, 0)).await;
    kept.settle(used(0, 0)).await;
    there.budgets.finish().await.unwrap();
    assert_eq!(found().await.1.requests, 0);
}

/// The day and the month of a key's ledger are rows that any server writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_ahead_for_a_moment_leaves_nothing_behind() {
    let app = TestApp::postgres().await;
    let (admin, services) = (app.admin().await, app.services());
    let (_, id_of_key, raw) = key(&app, &admin, json!({ "tokenLimitPerDay": 100, "costLimitUsdPerMonth": "1" })).await;
    let whose = Whose { api_key: id(&id_of_key), ..Whose::of(&admin).await };
    let found = find(&services, &raw).await;
    reserve(&services, &found, 1, 1).await.unwrap().settle(used(0, 0)).await;
    use_some(&services, &whose, few(70, 0)).await;
    let ahead = "UPDATE budgets SET day = '2099-01-02T00:00:00Z', month = '2099-01-01T00:00:00Z', tokens = 0, cost_nano_usd = 0";
    app.database.execute(ahead).await.unwrap();
    assert_eq!(windows(&admin, &id_of_key).await[0].2, 70);
    for _ in 0..2 {
        // Counted from the records, and by the days that come.
        assert_eq!(reserve(&services, &found, 31, 0).await.err().unwrap().kind, QuotaKind::TokensPerDay);
        reserve(&services, &found, 30, 0).await.unwrap().settle(used(0, 0)).await;
    }
    app.advance(DAY);
    reserve(&services, &found, 100, 0).await.unwrap().settle(used(100, 0)).await;
    assert!(reserve(&services, &found, 1, 0).await.is_err());
}

/// What it holds comes and goes; that it is there does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_another_key_each_time_is_not_taken_for_gone() {
    let app = TestApp::postgres().await;
    let (admin, servers) = (app.admin().await, servers(&app).await);
    let (there, looking) = (&servers[0], &servers[1]);
    let (mut watch, mut held) = (Watch::default(), None);
    for _ in 0..=Watch::LOOKS + 2 {
        let (key, ..) = key(&app, &admin, json!({ "concurrencyLimit": 1 })).await;
        let next = (reserve(there, &key, 1, 1).await.unwrap(), key);
        if let Some((before, _)) = held.replace(next) {
            Reservation::settle(before, used(0, 0)).await;
        }
        there.budgets.beat().await.unwrap();
        watch.look(looking).await.unwrap();
    }
    let (running, key) = held.unwrap();
    assert!(reserve(looking, &key, 1, 1).await.is_err(), "what runs is held");
    running.settle(used(0, 0)).await;
    reserve(looking, &key, 1, 1).await.unwrap().settle(used(0, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_while_it_reserves_holds_nothing() {
    let app = TestApp::postgres().await;
    let (admin, services) = (app.admin().await, app.services());
    let (_, _, raw) = key(&app, &admin, json!({ "concurrencyLimit": 1 })).await;
    let found = find(&services, &raw).await;
    reserve(&services, &found, 1, 1).await.unwrap().settle(used(0, 0)).await;
    let locker = app.database.connection().await;
    locker.batch_execute("BEGIN; LOCK TABLE budgets IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let reserving = tokio::spawn({
        let (services, found) = (services.clone(), found.clone());
        async move { reserve(&services, &found, 1, 1).await.is_ok() }
    });
    app.database.until_locked_out().await;
    reserving.abort();
    let _ = reserving.await;
    locker.batch_execute("COMMIT").await.unwrap();
    // Given back by the server itself, without being asked.
    loop {
        if let Ok(reservation) = reserve(&services, &found, 1, 1).await {
            reservation.settle(used(0, 0)).await;
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Locks a key's row, as another server does while it changes it.
pub(crate) async fn lock(app: &TestApp, key: &FoundApiKey) -> tokio_postgres::Client {
    let blocker = app.database.connection().await;
    let lock = format!("BEGIN; SELECT * FROM budgets WHERE api_key_id = '{}' FOR UPDATE", key.key.id);
    blocker.batch_execute(&lock).await.unwrap();
    blocker
}

/// It has more to settle than it can at once, and is there all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_settles_for_long_says_that_it_is_there() {
    let app = TestApp::postgres().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (owed, ..) = key(&app, &admin, json!({ "concurrencyLimit": 1 })).await;
    let (held, ..) = key(&app, &admin, json!({ "concurrencyLimit": 1 })).await;
    let waiting = reserve(&services, &owed, 1, 1).await.unwrap();
    let running = reserve(&services, &held, 1, 1).await.unwrap();
    let locker = lock(&app, &owed).await;
    drop(waiting);
    let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
    let keeping = tokio::spawn(budget_watch::keep(services.clone(), Duration::from_millis(10), stop.clone()));
    let beating = tokio::spawn(budget_watch::beat(services.clone(), Duration::from_millis(10), gone.clone()));
    app.database.until_locked_out().await;
    // Also while it stops.
    stop.cancel();
    let beat = async || {
        let servers = budget::servers(&mut services.db.read().await.unwrap()).await.unwrap();
        servers.into_iter().find(|(server, _)| *server == services.instance).unwrap().1
    };
    let before = beat().await;
    let more = async {
        while beat().await < before + 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), more).await.expect("it says that it is there");
    locker.batch_execute("COMMIT").await.unwrap();
    keeping.await.unwrap();
    running.settle(used(0, 0)).await;
    services.budgets.finish().await.unwrap();
    gone.cancel();
    beating.await.unwrap();
    assert_eq!(budget_of(&services, &owed).await.1.requests, 0);
}

/// It was slow, and not gone: what it holds since is of other requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_counts_as_used_is_not_taken_from_what_is_held_later() {
    let app = TestApp::postgres().await;
    let (admin, servers) = (app.admin().await, servers(&app).await);
    let (slow, looking) = (&servers[0], &servers[1]);
    let (key, ..) = key(&app, &admin, json!({ "tokenLimitPerDay": 200 })).await;
    let before = reserve(slow, &key, 60, 0).await.unwrap();
    let dropped = reserve(slow, &key, 10, 0).await.unwrap();
    let mut watch = Watch::default();
    for _ in 0..=Watch::LOOKS {
        watch.look(looking).await.unwrap();
    }
    let later = reserve(slow, &key, 50, 0).await.unwrap();
    before.settle(used(1, 0)).await;
    drop(dropped);
    slow.budgets.settle_owed().await.unwrap();
    let (ledger, held) = budget_of(looking, &key).await;
    assert_eq!((ledger.tokens, held.requests, held.tokens), (71, 1, 50));
    later.settle(used(5, 0)).await;
    let (ledger, held) = budget_of(looking, &key).await;
    assert_eq!((ledger.tokens, held.requests, held.tokens), (76, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_settled_keeps_nothing_else_waiting() {
    let app = TestApp::postgres().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let limits = || json!({ "tokenLimitPerDay": 1_000 });
    let (good, ..) = key(&app, &admin, limits()).await;
    let (bad, ..) = key(&app, &admin, limits()).await;
    let (full, id_of_full, raw) = key(&app, &admin, json!({})).await;
    let unheld = reserve(&services, &full, 0, 0).await.unwrap();
    crate::api_key::update(&admin, json!({ "id": id_of_full, "tokenLimitPerDay": 1_000 })).await.data();
    let full = find(&services, &raw).await;
    for key in [&good, &bad, &full] {
        reserve(&services, key, 1, 0).await.unwrap().settle(used(0, 0)).await;
    }
    let (given_up, fails) =
        (reserve(&services, &good, 7, 0).await.unwrap(), reserve(&services, &bad, 7, 0).await.unwrap());
    std::mem::forget(reserve(&services, &full, 7, 0).await.unwrap());
    let (bad_id, full_id) = (bad.key.id, full.key.id);
    let refuse = format!("ALTER TABLE budgets ADD CONSTRAINT wrong CHECK (api_key_id <> '{bad_id}' OR tokens = 0)");
    let brim = format!("UPDATE budgets SET tokens = {} WHERE api_key_id = '{full_id}'", i64::MAX - 5);
    app.database.execute(&refuse).await.unwrap();
    app.database.execute(&brim).await.unwrap();
    drop(given_up);
    fails.settle(used(7, 0)).await;
    unheld.settle(used(10, 0)).await;
    assert!(services.budgets.settle_owed().await.is_err());
    assert_eq!(budget_of(&services, &good).await.1, Held::default());
    assert_eq!(budget_of(&services, &full).await.0.tokens, i64::MAX);
    // A server that stops gives back all but what it still owes.
    assert!(services.budgets.finish().await.is_err());
    assert_eq!(budget_of(&services, &full).await.1, Held::default());
    assert_eq!(budget_of(&services, &bad).await.1.tokens, 7);
    app.database.execute("ALTER TABLE budgets DROP CONSTRAINT wrong").await.unwrap();
    services.budgets.settle_owed().await.unwrap();
    let (ledger, held) = budget_of(&services, &bad).await;
    assert_eq!((ledger.tokens, held), (7, Held::default()));
}

/// On SQLite, where it is begun in memory: whoever else counts takes nothing away that has ended meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_while_several_count_a_key_is_not_lost() {
    let app = TestApp::sqlite().await;
    let (admin, services) = (app.admin().await, app.beside().await.services);
    let (before, id_of_key, raw) = key(&app, &admin, json!({})).await;
    let whose = Whose { api_key: id(&id_of_key), ..Whose::of(&admin).await };
    let running = reserve(&services, &before, 0, 0).await.unwrap();
    crate::api_key::update(&admin, json!({ "id": id_of_key, "tokenLimitPerDay": 100 })).await.data();
    let after = find(&services, &raw).await;
    let record = |tokens| {
        services.usage.record(request(&services, &whose, services.clock.now(), "claude-opus-5", few(tokens, 0)))
    };
    record(30);
    // Before it counts, it writes what there is to write.
    let mut writing = Tx::new(services.db.clone());
    writing.conn().await.unwrap();
    let mut first = Box::pin(reserve(&services, &after, 1, 0));
    assert!((&mut first).now_or_never().is_none());
    record(60);
    running.settle(used(60, 0)).await;
    let mut second = Box::pin(reserve(&services, &after, 1, 0));
    assert!((&mut second).now_or_never().is_none());
    writing.rollback().await.unwrap();
    for reserving in [first, second] {
        reserving.await.unwrap().settle(used(0, 0)).await;
    }
    assert!(reserve(&services, &after, 11, 0).await.is_err());
    reserve(&services, &after, 10, 0).await.unwrap().settle(used(0, 0)).await;
}
