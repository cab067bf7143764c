//! What usage adds up to: of which models, of how many buckets, and from how few statements.

use claviger::domain::usage::{NewUsageRecord, finish, flush};
use claviger::model::OrganizationId;
use serde_json::{Value, json};

use crate::support::{TestApp, TestDatabase, both_databases};
use crate::usage::{REPORT, Whose, few, history, report, request, span, time};

/// Sums of a key for so many hours, one after the other.
async fn add_hours(app: &TestApp, organization: OrganizationId, key: &Value, hours: usize) {
    let start = if app.database.url.starts_with("postgres") {
        "timestamptz '2026-01-01 00:00:00+00' + i * interval '1 hour'"
    } else {
        "strftime('%Y-%m-%dT%H:00:00.000000Z', '2026-01-01', '+' || i || ' hours')"
    };
    let (key, last) = (key.as_str().unwrap(), hours - 1);
    let rows = format!("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {last})");
    let insert = format!(
        "INSERT INTO usage_rollups {rows} SELECT '{organization}', 'HOUR', {start}, '{key}', '', '', '', 'm', 1, 0, 1, 1, 0, 0, 1, 1 FROM n"
    );
    app.database.execute(&insert).await.unwrap();
}

both_databases! {
    async fn spans_that_cannot_be_meant_are_refused(app: TestApp) {
        let admin = app.admin().await;
        let (from, to) = (time("2026-01-01T00:00:00Z"), time("2025-01-01T00:00:00Z"));
        let answer = admin.with(REPORT, json!({ "filter": span(from, to) })).await;
        assert_eq!((answer.code(), answer.fields()), ("BAD_USER_INPUT", vec!["to"]));
        // As many buckets as nobody reads.
        let organization = Whose::of(&admin).await.organization;
        let start = if app.database.url.starts_with("postgres") {
            "timestamptz '2025-01-01 00:00:00+00' + i * interval '1 hour'"
        } else {
            "strftime('%Y-%m-%dT%H:00:00.000000Z', '2025-01-01', '+' || i || ' hours')"
        };
        let rows = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)";
        let insert = format!("INSERT INTO usage_rollups {rows} SELECT '{organization}', 'HOUR', {start}, '', '', '', '', 'm', 1, 0, 1, 1, 0, 0, 1, 1 FROM n");
        app.database.execute(&insert).await.unwrap();
        let years = span(to, time("2027-01-01T00:00:00Z"));
        let answer = admin.with(REPORT, json!({ "filter": years, "interval": "HOUR" })).await;
        assert_eq!((answer.code(), answer.fields()), ("BAD_USER_INPUT", vec!["interval"]));
        let hours = report(&admin, span(to, time("2026-01-01T00:00:00Z")), json!(null), json!("HOUR")).await;
        assert_eq!((&hours["total"]["requests"], hours["buckets"].as_array().unwrap().len()), (&json!(8_760), 8_760));
        // So many models nobody has; but a bill has to be to be had.
        let day = if app.database.url.starts_with("postgres") { "timestamptz '2024-02-03 00:00:00+00'" } else { "'2024-02-03T00:00:00.000000Z'" };
        let insert = format!("INSERT INTO usage_rollups {rows} SELECT '{organization}', 'DAY', {day}, '', '', '', '', 'm' || i, 1, 0, 1, 1, 0, 0, 1, 1 FROM n");
        app.database.execute(&insert).await.unwrap();
        let february = span(time("2024-02-01T00:00:00Z"), time("2024-03-01T00:00:00Z"));
        let answer = admin.with(REPORT, json!({ "filter": february, "by": ["MODEL"] })).await;
        assert_eq!(answer.code(), "BAD_USER_INPUT");
        let bill = admin.run("{ billing(year: 2024, month: 2) { total { requests } byModel { model } } }").await.data()["billing"].clone();
        assert_eq!((&bill["total"]["requests"], bill["byModel"].as_array().unwrap().len()), (&json!(10_001), 10_001));
    }

    async fn names_of_models_that_callers_make_up_are_not_added_up(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let (whose, now) = (Whose::of(&admin).await, services.clock.now());
        let at = |model: &str, status| NewUsageRecord {
            status_code: status,
            ..request(&services, &whose, now, model, if status < 400 { few(1, 1) } else { few(0, 0) })
        };
        for n in 0..20 {
            services.usage.record(at(&format!("claude-x-{n}"), 404));
        }
        for model in ["claude-opus-5", "claude-opus-5-latest", "claude-opus-5-20260101"] {
            services.usage.record(at(model, 200));
        }
        // The upstream has it, though the table has not.
        services.usage.record(at("claude-new", 200));
        flush(&services).await.unwrap();
        let (from, to) = (time("2020-01-01T00:00:00Z"), time("2040-01-01T00:00:00Z"));
        let by_model = report(&admin, span(from, to), json!(["MODEL"]), json!(null)).await;
        let mut found: Vec<_> = by_model["buckets"].as_array().unwrap().iter()
            .map(|bucket| (bucket["model"].as_str().map(str::to_owned), bucket["totals"]["requests"].as_i64().unwrap())).collect();
        found.sort();
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(found, [(None, 20), (name("claude-new"), 1), (name("claude-opus-5"), 3)]);
        let mut filter = span(from, to);
        filter["model"] = json!("claude-opus-5-latest");
        assert_eq!(report(&admin, filter.clone(), json!(null), json!(null)).await["total"]["requests"], 3);
        let listed = admin.with("query($filter: UsageFilter) { usageRecords(first: 30, filter: $filter) { totalCount nodes { model } } }", json!({ "filter": filter })).await;
        assert_eq!(listed.data()["usageRecords"]["totalCount"], 3);
        assert_eq!(listed.data()["usageRecords"]["nodes"].as_array().unwrap().len(), 3);
        let all = admin.run("{ usageRecords(first: 30) { nodes { model } } }").await;
        assert!(all.data()["usageRecords"]["nodes"].as_array().unwrap().contains(&json!({ "model": "claude-x-7" })));
    }

    async fn a_key_has_its_hours_whatever_other_keys_have(app: TestApp) {
        let admin = app.admin().await;
        let organization = Whose::of(&admin).await.organization;
        for name in 0..15 {
            let (key, _) = crate::api_key::create(&admin, json!({ "name": name.to_string() })).await;
            // One of them is busy in every hour of a year, the others in those of a month.
            add_hours(&app, organization, &key["id"], if name == 7 { 8_760 } else { 744 }).await;
        }
        for (to, busy) in [("2026-02-01T00:00:00Z", 744), ("2027-01-01T00:00:00Z", 8_760)] {
            let usage = format!("usage(from: \"2026-01-01T00:00:00Z\", to: \"{to}\", interval: HOUR) {{ buckets {{ start }} }}");
            let answer = admin.run(&format!("{{ apiKeys(first: 15) {{ nodes {{ name {usage} }} }} }}")).await;
            for key in answer.data()["apiKeys"]["nodes"].as_array().unwrap() {
                let expected = if key["name"] == "7" { busy } else { 744 };
                assert_eq!(key["usage"]["buckets"].as_array().unwrap().len(), expected, "{to}");
            }
        }
    }

    async fn a_key_that_has_too_many_hours_is_refused_alone(app: TestApp) {
        let admin = app.admin().await;
        let organization = Whose::of(&admin).await.organization;
        let mut ids = Vec::new();
        for (name, hours) in [("busy", 10_001), ("idle", 3)] {
            let (key, _) = crate::api_key::create(&admin, json!({ "name": name })).await;
            add_hours(&app, organization, &key["id"], hours).await;
            ids.push(key["id"].clone());
        }
        let usage = "usage(from: \"2026-01-01T00:00:00Z\", to: \"2028-01-01T00:00:00Z\", interval: HOUR) { buckets { start } }";
        let query = format!("{{ busy: apiKey(id: {}) {{ {usage} }} idle: apiKey(id: {}) {{ {usage} }} }}", ids[0], ids[1]);
        let answer = admin.run(&query).await;
        assert_eq!(answer.code(), "BAD_USER_INPUT");
        assert!(answer.body["data"]["busy"].is_null(), "{}", answer.body);
        assert_eq!(answer.body["data"]["idle"]["usage"]["buckets"].as_array().unwrap().len(), 3);
    }

    async fn an_answer_has_no_more_values_of_buckets_than_it_should(app: TestApp) {
        let admin = app.admin().await;
        let organization = Whose::of(&admin).await.organization;
        for name in 0..14 {
            let (key, _) = crate::api_key::create(&admin, json!({ "name": name.to_string() })).await;
            add_hours(&app, organization, &key["id"], 500).await;
        }
        let ask = async |names: usize| {
            let much = (0..names).map(|n| format!("a{n}: start")).collect::<Vec<_>>().join(" ");
            let filter = "{ from: \"2026-01-01T00:00:00Z\", to: \"2026-02-01T00:00:00Z\" }";
            admin.run(&format!("{{ usage(filter: {filter}, groupBy: [API_KEY], interval: HOUR) {{ buckets {{ {much} }} }} }}")).await
        };
        // 7,000 buckets: of 28 values there is an answer, of 29 there is none.
        assert_eq!(ask(28).await.data()["usage"]["buckets"].as_array().unwrap().len(), 7_000);
        let refused = ask(29).await;
        assert_eq!((refused.code(), refused.fields()), ("BAD_USER_INPUT", vec!["buckets"]), "{}", refused.body);
    }
}

/// A report sends the same few statements, however many records there are and however long its span is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_asks_for_sums_and_not_for_records() {
    let app = TestApp::start(TestDatabase::sqlite(), []).await;
    let services = app.beside().await.services;
    let whose = Whose::of(&app.admin().await).await;
    for record in history(&services, &whose, 200) {
        services.usage.record(record);
    }
    finish(&services).await;
    let admin = app.admin().await;
    let served = app.services();
    let filter = span(time("2026-08-01T00:00:01Z"), time("2026-12-01T05:00:01Z"));
    report(&admin, filter.clone(), json!(["API_KEY"]), json!("DAY")).await;
    let mut least = u64::MAX;
    for _ in 0..5 {
        let before = served.db.statements();
        report(&admin, filter.clone(), json!(["API_KEY"]), json!("DAY")).await;
        // The server's own jobs send some too.
        least = least.min(served.db.statements() - before);
    }
    // Two ends of an hour, two of a day, and the days between.
    assert_eq!(least, 5);
}
