//! What requests cost that are refused.

use serde_json::json;

use crate::api_key::{create, with_key};
use crate::support::both_databases;

both_databases! {
    async fn a_request_of_more_mutations_than_are_left_counts_as_one(app: TestApp) {
        // What drains in two minutes is one.
        let input = json!({ "name": "CI", "scopes": ["ADMIN_WRITE"], "rateLimitPerHour": 30 });
        let key = with_key(&app, &create(&app.admin().await, input).await.1);
        let fields = (0..20).map(|n| format!("a{n}: createClient(input: {{ name: \"C{n}\" }}) {{ client {{ id }} }}"));
        let twenty = format!("mutation {{ {} }}", fields.collect::<Vec<_>>().join("\n"));
        key.run(&twenty).await.data();
        for _ in 0..2 {
            let answer = key.run(&twenty).await;
            assert_eq!((answer.status.as_u16(), answer.code()), (429, "RATE_LIMITED"));
        }
        let answer = key.run("{ viewer { role } }").await;
        let left = answer.headers["ratelimit"].to_str().unwrap();
        assert!(left.starts_with("\"key-hour\";r=7;"), "{left}");
    }
}
