//! Usage: recorded without waiting and without loss, added up exactly, and shown to whoever may see it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use claviger::domain::usage::{NewUsageRecord, flush, remove_old};
use claviger::domain::{Services, claude_account};
use claviger::model::{ApiKeyId, ClaudeAccountId, ClientId, OrganizationId, Timestamp, Tokens, UserId};
use serde_json::{Value, json};

use crate::subscription::CHANGED;
use crate::support::{Client, Socket, TestApp, both_databases, in_time};

/// Whose usage it is.
#[derive(Clone)]
pub(crate) struct Whose {
    pub(crate) organization: OrganizationId,
    pub(crate) user: Option<UserId>,
    pub(crate) api_key: Option<ApiKeyId>,
    pub(crate) client: Option<ClientId>,
    pub(crate) account: Option<ClaudeAccountId>,
}

impl Whose {
    /// Of a signed-in user, with none of the others.
    pub(crate) async fn of(client: &Client) -> Self {
        let viewer = client.run("{ viewer { user { id } organization { id } } }").await.data()["viewer"].clone();
        Self {
            organization: id(&viewer["organization"]["id"]).unwrap(),
            user: id(&viewer["user"]["id"]),
            api_key: None,
            client: None,
            account: None,
        }
    }
}

pub(crate) fn id<T: std::str::FromStr>(id: &Value) -> Option<T> {
    id.as_str().and_then(|id| id.parse().ok())
}

/// A request that has ended.
pub(crate) fn request(
    services: &Services,
    whose: &Whose,
    at: Timestamp,
    model: &str,
    tokens: Tokens,
) -> NewUsageRecord {
    NewUsageRecord {
        organization_id: whose.organization,
        api_key_id: whose.api_key,
        user_id: whose.user,
        client_id: whose.client,
        claude_account_id: whose.account,
        occurred_at: at,
        model: model.to_owned(),
        endpoint: "/v1/messages".to_owned(),
        streamed: true,
        status_code: 200,
        error_type: None,
        interrupted: false,
        attempts: 1,
        tokens,
        priced: services.prices.cost(model, &tokens, at),
        is_estimated: false,
        latency: Duration::from_millis(250),
        time_to_first_token: Some(Duration::from_millis(40)),
        request_id: "req-1".to_owned(),
        upstream_request_id: None,
        session_id: None,
    }
}

/// Tokens of a small request.
pub(crate) fn few(input: u64, output: u64) -> Tokens {
    Tokens { input, output, ..Tokens::default() }
}

/// Records a small request of now.
pub(crate) async fn use_some(services: &Services, whose: &Whose, tokens: Tokens) {
    services.usage.record(request(services, whose, services.clock.now(), "claude-opus-5", tokens));
    flush(services).await.unwrap();
}

/// A usage record of whoever the client is: its id.
pub(crate) async fn specimen(app: &TestApp, client: &Client) -> Value {
    let (services, whose) = (app.services(), Whose::of(client).await);
    let record = services.usage.record(request(&services, &whose, services.clock.now(), "claude-opus-5", few(1, 1)));
    flush(&services).await.unwrap();
    json!(record.to_string())
}

/// Usage of the records of another organization.
pub(crate) async fn record_of(app: &TestApp, records: &BTreeMap<&'static str, Value>) {
    let whose = Whose {
        organization: id(&records["Organization"]).unwrap(),
        user: id(&records["User"]),
        api_key: id(&records["ApiKey"]),
        client: id(&records["Client"]),
        account: id(&records["ClaudeAccount"]),
    };
    use_some(&app.services(), &whose, few(1, 1)).await;
}

pub(crate) const REPORT: &str = "query($filter: UsageFilter!, $by: [UsageDimension!], $interval: UsageInterval) {
    usage(filter: $filter, groupBy: $by, interval: $interval) { total { ...T }
      buckets { start apiKeyId userId clientId claudeAccountId model totals { ...T } } } }
    fragment T on UsageTotals { requests failedRequests inputTokens outputTokens cacheCreationTokens cacheReadTokens costUsd
      averageLatencyMs }";

pub(crate) async fn report(client: &Client, filter: Value, by: Value, interval: Value) -> Value {
    let answer = client.with(REPORT, json!({ "filter": filter, "by": by, "interval": interval })).await;
    answer.data()["usage"].clone()
}

fn text(at: Timestamp) -> String {
    at.to_text()
}

pub(crate) fn span(from: Timestamp, to: Timestamp) -> Value {
    json!({ "from": text(from), "to": text(to) })
}

pub(crate) fn time(text: &str) -> Timestamp {
    Timestamp::from(chrono::DateTime::parse_from_rfc3339(text).unwrap().to_utc())
}

/// Numbers that look random and are the same in each run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Sums computed from the records one by one.
#[derive(Default, Debug, PartialEq, Clone)]
struct Sum {
    requests: i64,
    failed: i64,
    tokens: [u64; 4],
    nanos: i64,
    latency: u128,
}

impl Sum {
    fn add(&mut self, record: &NewUsageRecord) {
        let Tokens { input, output, cache_write_5m, cache_write_1h, cache_read, .. } = record.tokens;
        self.requests += 1;
        self.failed += i64::from(record.status_code >= 400 || record.error_type.is_some());
        for (sum, more) in self.tokens.iter_mut().zip([input, output, cache_write_5m + cache_write_1h, cache_read]) {
            *sum += more;
        }
        self.nanos += record.priced.cost.nanos();
        self.latency += record.latency.as_millis();
    }

    fn of_answer(totals: &Value) -> Self {
        let number = |name: &str| totals[name].as_u64().unwrap();
        let requests = number("requests");
        let average = totals["averageLatencyMs"].as_f64();
        assert_eq!(average.is_some(), requests > 0);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded"
        )]
        let latency = (average.unwrap_or_default() * requests as f64).round() as u128;
        let (whole, part) =
            totals["costUsd"].as_str().unwrap().split_once('.').unwrap_or((totals["costUsd"].as_str().unwrap(), ""));
        Self {
            requests: requests.try_into().unwrap(),
            failed: number("failedRequests").try_into().unwrap(),
            tokens: ["inputTokens", "outputTokens", "cacheCreationTokens", "cacheReadTokens"].map(number),
            nanos: format!("{whole}{part:0<9}").parse().unwrap(),
            latency,
        }
    }
}

/// Several months of usage of several keys, in no order of time.
pub(crate) fn history(services: &Services, whose: &Whose, count: u64) -> Vec<NewUsageRecord> {
    let mut draw = Draw(7);
    let start = time("2026-08-30T20:00:00Z");
    let keys: Vec<ApiKeyId> = (0..3).map(|_| services.new_id()).collect();
    let users: Vec<UserId> = (0..2).map(|_| services.new_id()).collect();
    let clients: Vec<ClientId> = (0..2).map(|_| services.new_id()).collect();
    let accounts: Vec<ClaudeAccountId> = (0..2).map(|_| services.new_id()).collect();
    let models = ["claude-opus-5", "claude-haiku-5-5", "no-such-model"];
    let mut records = Vec::new();
    for _ in 0..count {
        // Often to the hour, where ends of spans fall.
        let micros =
            if draw.below(4) == 0 { draw.below(40 * 24) * 3_600_000_000 } else { draw.below(40 * 86_400_000_000) };
        let at = start + TimeDelta::microseconds(micros.try_into().unwrap());
        let tokens = Tokens {
            input: draw.below(200_000),
            output: draw.below(9_000),
            cache_write_5m: draw.below(5_000),
            cache_write_1h: draw.below(5_000),
            cache_read: draw.below(90_000),
            web_searches: draw.below(3),
        };
        let mut one_of = |count: usize| -> usize { draw.below(count as u64).try_into().unwrap() };
        let whose = Whose {
            api_key: Some(keys[one_of(3)]),
            user: Some(users[one_of(2)]),
            client: [None, Some(clients[0]), Some(clients[1])][one_of(3)],
            account: [None, Some(accounts[0]), Some(accounts[1])][one_of(3)],
            ..whose.clone()
        };
        let mut record = request(services, &whose, at, models[one_of(3)], tokens);
        match one_of(5) {
            0 => record.status_code = 429,
            1 => record.error_type = Some("overloaded_error".to_owned()),
            _ => {}
        }
        records.push(record);
    }
    records
}

both_databases! {
    async fn a_record_is_read_as_it_was_recorded(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let whose = Whose::of(&admin).await;
        let (key, _) = crate::api_key::create(&admin, json!({ "name": "K" })).await;
        let whose = Whose { api_key: id(&key["id"]), ..whose };
        let tokens = Tokens { input: 12, output: 34, cache_write_5m: 5, cache_write_1h: 6, cache_read: 7, web_searches: 1 };
        let record = NewUsageRecord {
            error_type: Some("overloaded_error\0".to_owned()),
            interrupted: true,
            attempts: 3,
            is_estimated: true,
            model: "m".repeat(300),
            session_id: Some("a session".to_owned()),
            upstream_request_id: Some("req_011".to_owned()),
            ..request(&services, &whose, time("2026-11-21T10:20:30.456789Z"), "claude-sonnet-5", tokens)
        };
        let id = services.usage.record(record).to_string();
        flush(&services).await.unwrap();
        let query = "query($id: ID!) { node(id: $id) { ... on UsageRecord { id occurredAt apiKey { name } apiKeyId user { email } client { id }
            clientId claudeAccount { id } model modelKnown endpoint statusCode errorType streamed interrupted estimated attempts inputTokens
            outputTokens cacheCreationTokens cacheCreationOneHourTokens cacheReadTokens webSearches costUsd latencyMs timeToFirstTokenMs
            requestId upstreamRequestId sessionId } } usageRecords { totalCount nodes { id } } }";
        let answer = admin.with(query, json!({ "id": id })).await;
        assert_eq!(answer.data()["node"], json!({
            "id": id, "occurredAt": "2026-11-21T10:20:30.456Z", "apiKey": { "name": "K" }, "apiKeyId": key["id"],
            "user": { "email": "admin@localhost" }, "client": null, "clientId": null, "claudeAccount": null, "model": "m".repeat(200),
            "modelKnown": true, "endpoint": "/v1/messages", "statusCode": 200, "errorType": "overloaded_error", "streamed": true,
            "interrupted": true, "estimated": true, "attempts": 3, "inputTokens": 12, "outputTokens": 34, "cacheCreationTokens": 11,
            "cacheCreationOneHourTokens": 6, "cacheReadTokens": 7, "webSearches": 1, "costUsd": "0.0104019", "latencyMs": 250,
            "timeToFirstTokenMs": 40, "requestId": "req-1", "upstreamRequestId": "req_011", "sessionId": "a session"
        }));
        assert_eq!(answer.data()["usageRecords"], json!({ "totalCount": 1, "nodes": [{ "id": id }] }));
    }

    async fn reports_are_the_exact_sums_of_the_records(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let whose = Whose::of(&admin).await;
        let records = history(&services, &whose, 600);
        // In two batches, of which the second comes late for every hour of the first.
        for half in records.chunks(300) {
            for record in half {
                services.usage.record(record.clone());
            }
            flush(&services).await.unwrap();
        }
        let mut draw = Draw(11);
        let start = time("2026-08-30T00:00:00Z");
        for round in 0..24_usize {
            let mut instant = |unit: i64| start + TimeDelta::microseconds(i64::try_from(draw.below(44 * 24)).unwrap() * 3_600_000_000 + unit);
            let (one, two) = (instant(0), instant([0, 1_234_567_891][round % 2]));
            let (from, to) = (one.min(two), one.max(two));
            let interval = [None, Some("HOUR"), Some("DAY"), Some("MONTH")][round % 4];
            let by: &[&str] = [&[][..], &["API_KEY"], &["MODEL", "CLIENT"], &["USER", "CLAUDE_ACCOUNT", "MODEL"]][round / 2 % 4];
            let mut filter = span(from, to);
            let only = &records[round];
            let filters: [(&str, Option<String>); 5] = [
                ("apiKeyId", only.api_key_id.map(|id| id.to_string())),
                ("userId", only.user_id.map(|id| id.to_string())),
                ("clientId", only.client_id.map(|id| id.to_string())),
                ("claudeAccountId", only.claude_account_id.map(|id| id.to_string())),
                ("model", Some(only.model.clone())),
            ];
            let place = round % 7;
            if let Some((name, Some(value))) = filters.get(place) {
                filter[*name] = json!(value);
            }
            let of = |record: &NewUsageRecord| [
                record.api_key_id.map(|id| id.to_string()),
                record.user_id.map(|id| id.to_string()),
                record.client_id.map(|id| id.to_string()),
                record.claude_account_id.map(|id| id.to_string()),
                // Nothing of the name is known, neither by the table nor by an upstream.
                Some(record.model.clone()).filter(|model| model != "no-such-model" || record.status_code < 400),
            ];
            let (mut total, mut expected) = (Sum::default(), BTreeMap::<(Option<String>, Vec<Option<String>>), Sum>::new());
            for record in &records {
                let passes = filters.get(place).is_none_or(|(_, value)| value.is_none() || of(record)[place] == *value);
                if !passes || record.occurred_at < from || record.occurred_at >= to {
                    continue;
                }
                total.add(record);
                let at = text(record.occurred_at);
                let begins = interval.map(|interval| match interval {
                    "HOUR" => format!("{}:00:00.000Z", &at[..13]),
                    "DAY" => format!("{}T00:00:00.000Z", &at[..10]),
                    _ => format!("{}-01T00:00:00.000Z", &at[..7]),
                });
                let names = ["API_KEY", "USER", "CLIENT", "CLAUDE_ACCOUNT", "MODEL"];
                let group = names.iter().zip(of(record)).map(|(name, value)| value.filter(|_| by.contains(name)));
                expected.entry((begins, group.collect())).or_default().add(record);
            }
            if by.is_empty() && interval.is_none() {
                expected.clear();
            }
            let answer = report(&admin, filter.clone(), json!(by), json!(interval)).await;
            let case = format!("{filter} by {by:?} over {interval:?}");
            assert_eq!(Sum::of_answer(&answer["total"]), total, "{case}");
            let mut found = BTreeMap::new();
            let mut starts = Vec::new();
            for bucket in answer["buckets"].as_array().unwrap() {
                let value = |name: &str| bucket[name].as_str().map(str::to_owned);
                starts.push(value("start"));
                let group = ["apiKeyId", "userId", "clientId", "claudeAccountId", "model"].map(value).to_vec();
                assert!(found.insert((value("start"), group), Sum::of_answer(&bucket["totals"])).is_none(), "{case}: twice");
            }
            assert!(starts.is_sorted(), "{case}");
            assert_eq!(found, expected, "{case}");
            let listed = admin.with("query($f: UsageFilter) { usageRecords(filter: $f) { totalCount } }", json!({ "f": filter })).await;
            assert_eq!(listed.data()["usageRecords"]["totalCount"], total.requests, "{case}");
        }
    }

    async fn everybody_sees_their_own_usage_and_some_the_organizations(app: TestApp) {
        let (admin, member, manager) = (app.admin().await, app.user("MEMBER").await, app.user("MANAGER").await);
        let services = app.services();
        let account = crate::claude_account::create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let (key, _) = crate::api_key::create(&member, json!({ "name": "M" })).await;
        let of_admin = Whose { account: id(&account["id"]), ..Whose::of(&admin).await };
        let of_member = Whose { api_key: id(&key["id"]), ..Whose::of(&member).await };
        for (whose, requests) in [(&of_admin, 3), (&of_member, 2)] {
            for _ in 0..requests {
                use_some(&services, whose, few(10, 1)).await;
            }
        }
        let now = services.clock.now();
        let filter = span(now + -TimeDelta::hours(1), now + TimeDelta::hours(1));
        let query = "query($f: UsageFilter!) {
            usage(filter: $f, groupBy: [USER, CLAUDE_ACCOUNT]) { total { requests } buckets { claudeAccount { id } claudeAccountId user { email } } }
            usageRecords(filter: $f) { totalCount nodes { claudeAccount { id } claudeAccountId apiKey { name } } } }";
        for (client, count, sees_accounts) in [(&admin, 5, true), (&manager, 5, false), (&member, 2, false)] {
            let answer = client.with(query, json!({ "f": filter })).await;
            let data = answer.data();
            assert_eq!(data["usage"]["total"]["requests"], count);
            assert_eq!((&data["usageRecords"]["totalCount"], data["usageRecords"]["nodes"].as_array().unwrap().len()), (&json!(count), count));
            let known = |value: &Value| value["claudeAccount"]["id"] == account["id"];
            assert_eq!(data["usage"]["buckets"].as_array().unwrap().iter().any(known), sees_accounts);
            assert_eq!(data["usageRecords"]["nodes"].as_array().unwrap().iter().any(known), sees_accounts);
        }
        // A key's own usage, of several keys at once; and that of nobody.
        let (idle, _) = crate::api_key::create(&member, json!({ "name": "I" })).await;
        let of_keys = "query($from: DateTime!, $to: DateTime!) { apiKeys { nodes { id usage(from: $from, to: $to, interval: DAY) {
            from to total { requests inputTokens } buckets { start totals { requests } } } } } }";
        for client in [&member, &admin] {
            let answer = client.with(of_keys, filter.clone()).await;
            let nodes = answer.data()["apiKeys"]["nodes"].as_array().unwrap().clone();
            let usage = |id: &Value| nodes.iter().find(|node| node["id"] == *id).unwrap()["usage"].clone();
            assert_eq!(usage(&key["id"])["total"], json!({ "requests": 2, "inputTokens": 20 }));
            let requests: i64 = usage(&key["id"])["buckets"].as_array().unwrap().iter().map(|b| b["totals"]["requests"].as_i64().unwrap()).sum();
            assert_eq!(requests, 2);
            assert_eq!(usage(&idle["id"])["total"], json!({ "requests": 0, "inputTokens": 0 }));
            assert_eq!(usage(&idle["id"])["buckets"], json!([]));
        }
        assert_eq!(member.run("{ billing(year: 2026, month: 11) { year } }").await.code(), "FORBIDDEN");
    }

    async fn what_was_used_outlives_what_used_it(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let account = crate::claude_account::create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let member = app.user("MEMBER").await;
        let client = admin.run("mutation { createClient(input: { name: \"C\" }) { client { id } } }").await.data()["createClient"]["client"].clone();
        let (key, _) = crate::api_key::create(&admin, json!({ "name": "K", "clientId": client["id"] })).await;
        let whose = Whose { account: id(&account["id"]), client: id(&client["id"]), api_key: id(&key["id"]), ..Whose::of(&member).await };
        use_some(&services, &whose, few(10, 1)).await;
        let user = whose.user.unwrap().to_string();
        for (mutation, id) in [
            ("deleteClaudeAccount(input: { id: $id }) { deletedId }", account["id"].clone()),
            ("deleteUser(input: { id: $id }) { deletedId }", json!(user)),
            ("revokeApiKey(input: { id: $id }) { apiKey { id } }", key["id"].clone()),
            ("archiveClient(input: { id: $id }) { client { id } }", client["id"].clone()),
        ] {
            admin.with(&format!("mutation($id: ID!) {{ {mutation} }}"), json!({ "id": id })).await.data();
        }
        let now = services.clock.now();
        let query = "query($f: UsageFilter!) { usage(filter: $f, groupBy: [API_KEY, USER, CLIENT, CLAUDE_ACCOUNT]) { total { requests }
            buckets { apiKey { id } user { id } client { id } claudeAccount { id } claudeAccountId } } usageRecords { nodes { user { id } claudeAccount { id }
            claudeAccountId } } }";
        let answer = admin.with(query, json!({ "f": span(now + -TimeDelta::hours(1), now + TimeDelta::hours(1)) })).await;
        assert_eq!(answer.data()["usage"]["buckets"], json!([{ "apiKey": { "id": key["id"] }, "user": { "id": user },
            "client": { "id": client["id"] }, "claudeAccount": null, "claudeAccountId": account["id"] }]));
        assert_eq!(answer.data()["usageRecords"]["nodes"], json!([{ "user": { "id": user }, "claudeAccount": null, "claudeAccountId": account["id"] }]));
    }

    async fn a_failing_database_keeps_records_waiting_and_says_so(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let whose = Whose::of(&admin).await;
        app.database.execute("ALTER TABLE usage_rollups RENAME TO usage_rollups_away").await.unwrap();
        for _ in 0..5 {
            services.usage.record(request(&services, &whose, services.clock.now(), "claude-opus-5", few(1, 1)));
        }
        assert!(flush(&services).await.is_err());
        let metrics = async |name: &str| crate::support::gauge(&app, name).await;
        assert_eq!(metrics("claviger_usage_records_waiting").await, 5);
        assert!(metrics("claviger_usage_records_total{outcome=\"failed\"}").await > 0);
        // All or nothing: no record is there whose sum is not.
        assert_eq!(app.database.texts("SELECT id AS text FROM usage_records").await, Vec::<String>::new());
        app.database.execute("ALTER TABLE usage_rollups_away RENAME TO usage_rollups").await.unwrap();
        flush(&services).await.unwrap();
        let listed = admin.run("{ usageRecords { totalCount nodes { id } } }").await;
        assert_eq!(listed.data()["usageRecords"]["totalCount"], 5);
        assert_eq!(listed.data()["usageRecords"]["nodes"].as_array().unwrap().len(), 5);
        assert_eq!(metrics("claviger_usage_records_waiting").await, 0);
        assert_eq!(metrics("claviger_usage_records_total{outcome=\"written\"}").await, 5);
    }

    async fn no_more_waits_than_memory_is_meant_for(app: TestApp) {
        // Without its server: nobody writes.
        let services = app.beside().await.services;
        let whose = Whose::of(&app.admin().await).await;
        for _ in 0..50_010 {
            services.usage.record(request(&services, &whose, services.clock.now(), "claude-opus-5", few(1, 1)));
        }
        let tally = services.usage.tally();
        assert_eq!((tally.waiting.load(Ordering::Relaxed), tally.lost.load(Ordering::Relaxed)), (50_000, 10));
    }

    async fn what_comes_while_others_are_written_is_not_left_behind(app: TestApp) {
        let (services, whose) = (app.services(), Whose::of(&app.admin().await).await);
        let record = || services.usage.record(request(&services, &whose, services.clock.now(), "claude-opus-5", few(1, 1)));
        let tally = services.usage.tally();
        // More than one transaction takes, and more until the first of them is done.
        for _ in 0..1_500 {
            record();
        }
        in_time("what is written first", async {
            while tally.written.load(Ordering::Relaxed) == 0 {
                record();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        // Nobody else comes who could be told of.
        in_time("what is written last", async {
            while tally.waiting.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn what_was_recorded_is_written_without_being_asked_and_by_an_orderly_stop(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let whose = Whose::of(&admin).await;
        services.usage.record(request(&services, &whose, services.clock.now(), "claude-opus-5", few(1, 1)));
        while services.usage.tally().written.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut app = app;
        for _ in 0..2_500 {
            services.usage.record(request(&services, &whose, services.clock.now(), "claude-opus-5", few(1, 1)));
        }
        app.stop().await;
        let count = "SELECT CAST(count(*) AS text) AS text FROM usage_records";
        assert_eq!(app.database.texts(count).await, ["2501"]);
        assert_eq!(services.usage.tally().waiting.load(Ordering::Relaxed), 0);
    }

    async fn servers_that_record_at_once_lose_nothing_and_double_nothing(app: TestApp) {
        let admin = app.admin().await;
        let whose = Whose::of(&admin).await;
        let servers: Vec<Arc<Services>> = vec![app.beside().await.services, app.beside().await.services, app.beside().await.services];
        let at = servers[0].clock.now();
        let writing = servers.iter().map(async |services| {
            for _ in 0..20 {
                for _ in 0..5 {
                    services.usage.record(request(services, &whose, at, "claude-opus-5", few(1, 2)));
                }
                while flush(services).await.is_err() {}
            }
        });
        futures_util::future::join_all(writing).await;
        let total = report(&admin, span(at + -TimeDelta::hours(1), at + TimeDelta::hours(1)), json!(null), json!(null)).await["total"].clone();
        assert_eq!((&total["requests"], &total["outputTokens"]), (&json!(300), &json!(600)));
        let places = app.database.texts("SELECT CAST(count(DISTINCT sequence) AS text) || ' ' || CAST(max(sequence) AS text) AS text FROM usage_records").await;
        assert_eq!(places, ["300 300"]);
    }

    async fn records_go_when_their_time_is_over_and_their_sums_stay(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let whose = Whose::of(&admin).await;
        let now = services.clock.now();
        for hours in [0, 1, 24 * 9, 24 * 11, 24 * 300] {
            services.usage.record(request(&services, &whose, now + -TimeDelta::hours(hours), "claude-opus-5", few(1, 1)));
        }
        flush(&services).await.unwrap();
        assert_eq!(remove_old(&services, 10).await.unwrap(), 2);
        let listed = admin.run("{ usageRecords { totalCount nodes { id } } }").await;
        assert_eq!((&listed.data()["usageRecords"]["totalCount"], listed.data()["usageRecords"]["nodes"].as_array().unwrap().len()), (&json!(3), 3));
        let years = span(time("2024-01-01T00:00:00Z"), time("2040-01-01T00:00:00Z"));
        assert_eq!(report(&admin, years, json!(null), json!(null)).await["total"]["requests"], 5);
        assert_eq!(remove_old(&services, 1).await.unwrap(), 1);
    }

    async fn an_account_at_its_limit_is_exhausted_until_its_month_turns(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let input = json!({ "apiKey": "sk-ant-1", "accountName": "A", "usageLimit": 100 });
        let account = crate::claude_account::create(&admin, input).await;
        let whose = Whose { account: id(&account["id"]), ..Whose::of(&admin).await };
        let state = async || {
            let query = "query($id: ID!) { node(id: $id) { ... on ClaudeAccount { currentUsage usageResetsAt health { state until lastUsedAt } } } }";
            admin.with(query, json!({ "id": account["id"] })).await.data()["node"].clone()
        };
        let mut socket = Socket::connected(&app, &admin).await;
        socket.follow(&app, "1", &CHANGED.replace("priority version", "health { state } currentUsage")).await;
        let tokens = Tokens { input: 10, output: 20, cache_write_5m: 5, cache_write_1h: 5, cache_read: 9, web_searches: 3 };
        use_some(&services, &whose, tokens).await;
        let below = state().await;
        assert_eq!((&below["currentUsage"], &below["health"]["state"]), (&json!(49), &json!("UNKNOWN")));
        assert!(below["health"]["lastUsedAt"].is_string());
        use_some(&services, &whose, few(50, 1)).await;
        let at_limit = state().await;
        assert_eq!((&at_limit["currentUsage"], &at_limit["health"]["state"]), (&json!(100), &json!("EXHAUSTED")));
        assert_eq!(at_limit["health"]["until"], at_limit["usageResetsAt"]);
        assert_eq!(socket.event("1").await["claudeAccountChanged"], json!({ "id": account["id"], "health": { "state": "EXHAUSTED" }, "currentUsage": 100 }));
        // A higher limit opens it, a lower one closes it, and so does what is set to nothing.
        let change = async |mutation: &str| {
            let answer = admin.with(&format!("mutation($id: ID!) {{ done: {mutation} {{ claudeAccount {{ health {{ state }} }} }} }}"), json!({ "id": account["id"] })).await;
            let state = answer.data()["done"]["claudeAccount"]["health"]["state"].clone();
            assert_eq!(socket.event("1").await["claudeAccountChanged"]["health"]["state"], state);
            state
        };
        let mut change = change;
        assert_eq!(change("updateClaudeAccount(input: { id: $id, usageLimit: 101 })").await, "UNKNOWN");
        assert_eq!(change("updateClaudeAccount(input: { id: $id, usageLimit: 100 })").await, "EXHAUSTED");
        assert_eq!(change("resetClaudeAccountUsage(input: { id: $id })").await, "UNKNOWN");
        use_some(&services, &whose, few(100, 0)).await;
        assert_eq!(socket.event("1").await["claudeAccountChanged"]["health"]["state"], "EXHAUSTED");
        // What was used before the month turned, but comes after, is not the new month's.
        let late = request(&services, &whose, services.clock.now(), "claude-opus-5", few(70, 0));
        app.advance(32 * 24 * 60 * 60);
        claude_account::follow_all_usage(&services).await.unwrap();
        let admin = app.admin().await;
        let query = "query($id: ID!) { node(id: $id) { ... on ClaudeAccount { currentUsage health { state until } } } }";
        let turned = admin.with(query, json!({ "id": account["id"] })).await.data()["node"].clone();
        assert_eq!(turned, json!({ "currentUsage": 0, "health": { "state": "UNKNOWN", "until": null } }));
        services.usage.record(late);
        use_some(&services, &whose, few(5, 0)).await;
        assert_eq!(admin.with(query, json!({ "id": account["id"] })).await.data()["node"]["currentUsage"], 5);
        let entries = admin.run("{ auditLogs(first: 20, filter: { resourceType: [CLAUDE_ACCOUNT] }) { nodes { operation changes } } }").await;
        let by_usage = entries.data()["auditLogs"]["nodes"].as_array().unwrap().iter().filter(|entry| entry["operation"] == "usage" && !entry["changes"].is_null()).count();
        assert_eq!(by_usage, 3, "twice at the limit, once turned");
    }

    async fn an_account_at_its_limit_is_found_though_it_was_not_noted(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let mut accounts = Vec::new();
        for (key, used) in [("1", 79), ("2", 80), ("3", 100)] {
            let input = json!({ "apiKey": format!("sk-ant-{key}"), "accountName": key, "usageLimit": 100 });
            let id = crate::claude_account::create(&admin, input).await["id"].as_str().unwrap().to_owned();
            // Counted, and no more than that: the database failed by then, or the server was killed.
            app.database.execute(&format!("UPDATE claude_accounts SET current_usage = {used} WHERE id = '{id}'")).await.unwrap();
            accounts.push(id);
        }
        claude_account::follow_all_usage(&services).await.unwrap();
        let query = "{ claudeAccounts(first: 5, orderBy: { field: CREATED_AT, direction: ASC }) { nodes { health { state } } }
            notifications(first: 5) { nodes { kind resource { id } } } }";
        let seen = admin.run(query).await.data().clone();
        let states: Vec<_> = seen["claudeAccounts"]["nodes"].as_array().unwrap().iter().map(|one| one["health"]["state"].clone()).collect();
        assert_eq!(states, ["UNKNOWN", "UNKNOWN", "EXHAUSTED"]);
        let mut told: Vec<_> = seen["notifications"]["nodes"].as_array().unwrap().iter()
            .map(|one| (one["kind"].as_str().unwrap().to_owned(), one["resource"]["id"].as_str().unwrap().to_owned())).collect();
        told.sort();
        assert_eq!(told, [("USAGE_LIMIT_NEAR".to_owned(), accounts[1].clone()), ("USAGE_LIMIT_REACHED".to_owned(), accounts[2].clone())]);
        assert_eq!(claude_account::follow_all_usage(&services).await.unwrap(), 0);
    }

    async fn usage_is_heard_of_when_it_is_recorded(app: TestApp) {
        let (admin, member, services) = (app.admin().await, app.user("MEMBER").await, app.services());
        let (of_admin, of_member) = (Whose::of(&admin).await, Whose::of(&member).await);
        use_some(&services, &of_admin, few(1, 1)).await;
        let recorded = "subscription { usageRecorded { id inputTokens user { email } } }";
        let mut all = Socket::connected(&app, &admin).await;
        all.follow(&app, "1", recorded).await;
        let mut own = Socket::connected(&app, &member).await;
        own.follow(&app, "1", recorded).await;
        let mut filtered = Socket::connected(&app, &admin).await;
        let filter = "(filter: { from: \"2020-01-01T00:00:00Z\", to: \"2040-01-01T00:00:00Z\", model: \"claude-sonnet-5\" })";
        filtered.follow(&app, "1", &recorded.replace("usageRecorded", &format!("usageRecorded{filter}"))).await;
        let tokens = |socket: &Value| socket["usageRecorded"]["inputTokens"].clone();
        for input in 10..15 {
            let (whose, model) = if input == 12 { (&of_member, "claude-sonnet-5") } else { (&of_admin, "claude-opus-5") };
            services.usage.record(request(&services, whose, services.clock.now(), model, few(input, 1)));
        }
        flush(&services).await.unwrap();
        for input in 10..15 {
            assert_eq!(tokens(&all.event("1").await), input);
        }
        let event = own.event("1").await;
        assert_eq!((tokens(&event), &event["usageRecorded"]["user"]["email"]), (json!(12), &json!("member@example.com")));
        assert_eq!(tokens(&filtered.event("1").await), 12);
        // What another server records is heard of too; and nothing comes twice.
        let beside = app.beside().await.services;
        use_some(&beside, &of_admin, few(77, 1)).await;
        assert_eq!(tokens(&all.event("1").await), 77);
        all.subscribe("end", "{ viewer { role } }").await;
        assert_eq!(all.event("end").await, json!({ "viewer": { "role": "ADMIN" } }));
    }

    async fn the_first_screen_has_counts_and_totals(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let whose = Whose::of(&admin).await;
        let manager = app.user("MANAGER").await;
        admin.run("mutation { createClient(input: { name: \"C\" }) { client { id } } }").await.data();
        crate::api_key::create(&admin, json!({ "name": "K" })).await;
        use_some(&services, &whose, few(1_000, 100)).await;
        let query = "{ systemStats { version startedAt users clients claudeAccounts activeApiKeys openTasks credentials requestsToday
            tokensToday costUsdThisMonth } }";
        let answer = manager.run(query).await;
        let mut stats = answer.data()["systemStats"].clone();
        assert!(stats["startedAt"].take().is_string());
        assert_eq!(stats, json!({
            "version": env!("CARGO_PKG_VERSION"), "startedAt": null, "users": 2, "clients": 1, "claudeAccounts": 0, "activeApiKeys": 1,
            "openTasks": 0, "credentials": 0, "requestsToday": 1, "tokensToday": 1_100, "costUsdThisMonth": "0.0075"
        }));
    }
}
