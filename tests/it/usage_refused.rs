//! Usage that cannot be what it says: a record that the database does not take, and numbers beyond what one can add up.

use std::sync::atomic::Ordering;

use claviger::domain::usage::flush;
use claviger::model::Tokens;
use serde_json::json;

use crate::budget::{find, key, reserve};
use crate::support::both_databases;
use crate::usage::{Whose, few, id, request, use_some};

both_databases! {
    async fn a_record_that_is_refused_keeps_no_other_waiting(app: TestApp) {
        let (admin, other) = (app.admin().await, app.other_organization().await);
        // Without its server: nobody else writes.
        let services = app.beside().await.services;
        let (whose, of_other) = (Whose::of(&admin).await, Whose::of(&other).await);
        let refuse = if app.database.url.starts_with("postgres") {
            "ALTER TABLE usage_records ADD CONSTRAINT refused CHECK (asked_model <> 'refused')"
        } else {
            "CREATE TRIGGER refused BEFORE INSERT ON usage_records WHEN NEW.asked_model = 'refused' BEGIN SELECT RAISE(ABORT, 'no'); END"
        };
        app.database.execute(refuse).await.unwrap();
        for (whose, model) in [
            (&whose, "claude-opus-5"), (&whose, "refused"), (&of_other, "claude-opus-5"), (&whose, "claude-haiku-5-5"),
            (&of_other, "claude-haiku-5-5"), (&whose, "claude-sonnet-5"),
        ] {
            services.usage.record(request(&services, whose, services.clock.now(), model, few(1, 1)));
        }
        // Limits are judged by what was used.
        let (_, _, raw) = key(&app, &admin, json!({ "tokenLimitPerDay": 100 })).await;
        let found = find(&services, &raw).await;
        assert!(reserve(&services, &found, 1, 0).await.is_ok());
        let tally = services.usage.tally();
        let counts = [&tally.written, &tally.lost, &tally.waiting].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [5, 1, 0]);
        for (client, count) in [(&admin, 3), (&other, 2)] {
            let listed = client.run("{ usageRecords { totalCount nodes { id } } }").await.data()["usageRecords"].clone();
            assert_eq!((&listed["totalCount"], listed["nodes"].as_array().unwrap().len()), (&json!(count), count));
        }
        // What comes after is written as ever.
        use_some(&services, &whose, few(1, 1)).await;
        let last = "SELECT CAST(MAX(sequence) AS text) AS text FROM usage_records GROUP BY organization_id ORDER BY 1";
        assert_eq!(app.database.texts(last).await, ["2", "4"]);
    }

    async fn a_sum_that_outgrows_a_number_stays_at_the_largest(app: TestApp) {
        let (admin, services) = (app.admin().await, app.services());
        let whose = Whose::of(&admin).await;
        let account = crate::claude_account::create(&admin, json!({ "apiKey": "sk-ant-1", "accountName": "A" })).await;
        let whose = Whose { account: id(&account["id"]), ..whose };
        let at = services.clock.now();
        let use_then = async |tokens| {
            services.usage.record(request(&services, &whose, at, "claude-opus-5", tokens));
            flush(&services).await.unwrap();
        };
        use_then(few(1, 1)).await;
        let brim = i64::MAX - 5;
        let sums = format!("UPDATE usage_rollups SET input_tokens = {brim}, cost_nano_usd = {brim}, latency_ms = {brim}");
        app.database.execute(&sums).await.unwrap();
        app.database.execute(&format!("UPDATE claude_accounts SET current_usage = {brim}")).await.unwrap();
        // As much as an upstream likes to say.
        let much = Tokens { input: u64::MAX, output: u64::MAX, web_searches: u64::MAX, ..Tokens::default() };
        use_then(much).await;
        assert_eq!(services.usage.tally().lost.load(Ordering::Relaxed), 0);
        let largest = i64::MAX.to_string();
        for column in ["input_tokens", "cost_nano_usd", "latency_ms"] {
            let sums = app.database.texts(&format!("SELECT CAST({column} AS text) AS text FROM usage_rollups")).await;
            assert_eq!(sums, [largest.as_str(); 2], "{column}");
        }
        assert_eq!(app.database.texts("SELECT CAST(current_usage AS text) AS text FROM claude_accounts").await, [largest]);
        // One request is believed no more than one may be.
        let last = "SELECT CAST(output_tokens AS text) || ' ' || web_searches AS text FROM usage_records ORDER BY sequence DESC LIMIT 1";
        assert_eq!(app.database.texts(last).await, ["100000000 10000"]);
        let cost = "SELECT CAST(MAX(cost_nano_usd) AS text) AS text FROM usage_records";
        let cost: i64 = app.database.texts(cost).await[0].parse().unwrap();
        assert!(cost <= 10_000_000_000_000, "{cost}");
    }
}
