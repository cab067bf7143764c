//! What an API key may do on the relay, and what a caller is told whose key may not.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::api_key::{create as new_key, regenerate, set_user, user_id};
use crate::invitation::join;
use crate::relay::{FIRST, Relayed, asking, error, records};
use crate::support::{Reply, TestApp, both_databases};

/// A request that is as long as a usual answer says.
fn asking_much() -> Value {
    let mut body = asking(false);
    body["messages"][0]["content"] = json!("Why? ".repeat(100));
    body
}

/// Sends a message with another key, to a server.
async fn send_with(relayed: &Relayed, url: &str, key: &str) -> reqwest::Response {
    let request = relayed.http.post(format!("{url}/v1/messages")).header("x-api-key", key);
    request.body(asking_much().to_string()).send().await.unwrap()
}

/// Sends a message, again and again as long as it is said to be of use.
async fn send_until(relayed: &Relayed, body: &Value) -> reqwest::Response {
    loop {
        let response = relayed.request("/v1/messages", body).send().await.unwrap();
        if response.status() != 429 || response.headers().contains_key("x-should-retry") {
            return response;
        }
    }
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// What the records add up to.
async fn sum(app: &TestApp, column: &str, count: usize) -> i64 {
    records(app, &format!("CAST({column} AS TEXT)"), count).await.iter().map(|text| text.parse::<i64>().unwrap()).sum()
}

/// How much a key has used of a limit.
async fn used(relayed: &Relayed, key: &Value, kind: &str) -> i64 {
    let query = "query($id: ID!) { apiKey(id: $id) { quota { windows { kind limit used } } } }";
    let answer = relayed.admin.with(query, json!({ "id": key })).await;
    let windows = answer.data()["apiKey"]["quota"]["windows"].as_array().unwrap().clone();
    windows.iter().find(|window| window["kind"] == kind).unwrap()["used"].as_i64().unwrap()
}

both_databases! {
    async fn a_key_that_has_ended_opens_nothing(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let refused = (401, "authentication_error".to_owned());
        let (_, member) = join(&app, &relayed.admin, "ina@example.com", "MEMBER").await;
        let owner = user_id(&member).await;
        let (_, of_member) = new_key(&relayed.admin, json!({ "name": "M", "ownerId": owner, "scopes": ["RELAY"] })).await;
        assert_eq!(send_with(&relayed, &app.url, &of_member).await.status(), 200);
        set_user(&relayed.admin, &owner, "status: SUSPENDED").await;
        assert_eq!(error(send_with(&relayed, &app.url, &of_member).await).await, refused);
        set_user(&relayed.admin, &owner, "status: ACTIVE").await;
        assert_eq!(send_with(&relayed, &app.url, &of_member).await.status(), 200);

        let (short, of_days) = new_key(&relayed.admin, json!({ "name": "S", "scopes": ["RELAY"], "expiresInDays": 2 })).await;
        let answer = regenerate(&relayed.admin, &short["id"], 24).await;
        let renewed = answer.data()["regenerateApiKey"]["rawKey"].as_str().unwrap().to_owned();
        for key in [&of_days, &renewed] {
            assert_eq!(send_with(&relayed, &app.url, key).await.status(), 200);
        }
        // The grace of what was regenerated is over, then the key.
        app.advance(25 * 3600);
        assert_eq!(error(send_with(&relayed, &app.url, &of_days).await).await, refused);
        assert_eq!(send_with(&relayed, &app.url, &renewed).await.status(), 200);
        app.advance(24 * 3600);
        assert_eq!(error(send_with(&relayed, &app.url, &renewed).await).await, refused);
        assert_eq!(relayed.claude.seen().len(), 5);
    }

    async fn a_key_is_good_from_its_addresses_and_for_its_models(app: TestApp) {
        let limits = json!({ "allowedIps": ["127.0.0.0/8"], "allowedModels": ["claude-sonnet-*"] });
        let relayed = Relayed::with(&app, limits).await;
        assert_eq!(relayed.send().await.status(), 200);
        for path in ["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"] {
            let mut body = asking(false);
            body["model"] = json!("claude-opus-5-5");
            let response = relayed.request(path, &body).send().await.unwrap();
            assert_eq!((response.status().as_u16(), header(&response, "x-should-retry")), (403, Some("false")), "{path}");
            assert!(response.text().await.unwrap().contains("claude-opus-5-5"));
        }
        let update = json!({ "id": relayed.key_id, "allowedIps": ["192.0.2.0/24"] });
        crate::api_key::update(&relayed.admin, update).await.data();
        assert_eq!(error(relayed.send().await).await, (403, "permission_error".to_owned()));
        assert_eq!(error(relayed.get("/v1/models").send().await.unwrap()).await, (403, "permission_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 1);
    }

    async fn a_key_has_so_many_requests_an_hour(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "rateLimitPerHour": 2 })).await;
        for left in ["1", "0"] {
            let response = relayed.send().await;
            assert_eq!(header(&response, "anthropic-ratelimit-requests-remaining"), Some(left));
            assert_eq!(header(&response, "anthropic-ratelimit-requests-limit"), Some("2"));
        }
        let response = relayed.send().await;
        assert_eq!(header(&response, "retry-after"), Some("1800"));
        assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        app.advance(1800);
        assert_eq!(relayed.send().await.status(), 200);
        assert_eq!(relayed.claude.seen().len(), 3);
    }

    async fn a_busy_key_does_not_shut_its_owner_out(app: TestApp) {
        let mut app = app;
        app.set("RATE_LIMIT_USER_PER_MINUTE", "12");
        app.restart().await;
        let relayed = Relayed::with(&app, json!({ "rateLimitPerMinute": 1_000 })).await;
        for _ in 0..30 {
            assert_eq!(relayed.send().await.status(), 200);
        }
        // Those that have no limit of their own share one.
        let mut others = Vec::new();
        for name in ["A", "B"] {
            others.push(new_key(&relayed.admin, json!({ "name": name, "scopes": ["RELAY"] })).await.1);
        }
        let refused = loop {
            let response = send_with(&relayed, &app.url, &others[0]).await;
            if response.status() != 200 {
                break response;
            }
        };
        assert_eq!(header(&refused, "anthropic-ratelimit-requests-limit"), Some("12"));
        let told: Value = refused.json().await.unwrap();
        assert!(told["error"]["message"].as_str().unwrap().contains("owner"), "{told}");
        while send_with(&relayed, &app.url, &others[1]).await.status() == 200 {}
        // Neither another key nor the owner has any less for it.
        assert_eq!(relayed.send().await.status(), 200);
        crate::api_key::revoke(&relayed.admin, &json!(relayed.key_id)).await.data();
        assert_eq!(error(relayed.send().await).await.0, 401);
    }

    async fn a_request_that_names_no_end_reserves_the_longest_answer(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "tokenLimitPerDay": 100_000 })).await;
        let mut endless = asking(false);
        endless.as_object_mut().unwrap().remove("max_tokens");
        let refused = relayed.request("/v1/messages", &endless).send().await.unwrap();
        assert_eq!(header(&refused, "x-should-retry"), Some("false"));
        assert_eq!(error(refused).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(relayed.send().await.status(), 200);
        let more = json!({ "id": relayed.key_id, "tokenLimitPerDay": 200_000 });
        crate::api_key::update(&relayed.admin, more).await.data();
        assert_eq!(relayed.request("/v1/messages", &endless).send().await.unwrap().status(), 200);
    }

    async fn the_costs_of_a_month_end_where_the_next_request_might_not_fit(app: TestApp) {
        // A usual answer costs 0.00027 USD, and might cost about 0.002.
        let relayed = Relayed::with(&app, json!({ "costLimitUsdPerMonth": "0.003" })).await;
        let mut count = 0;
        let refused = loop {
            let response = send_until(&relayed, &asking_much()).await;
            if response.status() != 200 {
                break response;
            }
            count += 1;
        };
        assert!((2..9).contains(&count), "{count}");
        assert_eq!(header(&refused, "x-should-retry"), Some("false"));
        let wait: i64 = header(&refused, "retry-after").unwrap().parse().unwrap();
        assert_eq!(error(refused).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), count);
        assert_eq!(sum(&app, "cost_nano_usd", count).await, 270_000 * i64::try_from(count).unwrap());
        // Smaller than what is left, it fits.
        let mut small = asking(false);
        small["max_tokens"] = json!(1);
        assert_eq!(send_until(&relayed, &small).await.status(), 200);
        // As was said: then the next month has begun.
        app.advance(wait);
        assert_eq!(relayed.send().await.status(), 200);
    }

    async fn what_others_hold_may_be_free_again_in_a_moment(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "tokenLimitPerDay": 400 })).await;
        relayed.claude.will(FIRST, [Reply::Held, Reply::Held]);
        let (first, second, third) = tokio::join!(relayed.send(), relayed.send(), async {
            while relayed.claude.seen().len() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let third = relayed.send().await;
            relayed.claude.release(2);
            third
        });
        assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
        assert_eq!((header(&third, "x-should-retry"), header(&third, "retry-after")), (None, Some("1")));
        assert_eq!(error(third).await, (429, "rate_limit_error".to_owned()));
    }

    async fn a_hundred_requests_at_once_overrun_nothing_on_any_server(app: TestApp) {
        let mut app = app;
        let relayed = Relayed::new(&app).await;
        // What SQLite keeps is one server's.
        let mut urls = vec![app.url.clone()];
        if app.database.url.starts_with("postgres") {
            urls.extend([app.another().await, app.another().await]);
        }
        let mut answered = 0;
        for (limit, value, kind) in [
            ("concurrencyLimit", json!(5), "CONCURRENT_REQUESTS"),
            ("tokenLimitPerDay", json!(6_000), "TOKENS_PER_DAY"),
            ("costLimitUsdPerMonth", json!("0.02"), "COST_MICRO_USD_PER_MONTH"),
        ] {
            let (made, key) = new_key(&relayed.admin, json!({ "name": limit, "scopes": ["RELAY"], limit: value })).await;
            let before = answered;
            let statuses: Vec<u16> = join_all((0..100_usize).map(async |n| {
                send_with(&relayed, &urls[n % urls.len()], &key).await.status().as_u16()
            })).await;
            assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
            answered += statuses.iter().filter(|status| **status == 200).count();
            assert!((1..100).contains(&(answered - before)), "{limit}: {statuses:?}");
            assert_eq!(relayed.claude.seen().len(), answered);
            let (tokens, cost) = (167 * (answered - before), 270 * (answered - before));
            match kind {
                "CONCURRENT_REQUESTS" => assert!(relayed.claude.most_at_once() <= 5),
                "TOKENS_PER_DAY" => assert!(tokens <= 6_000, "{tokens}"),
                _ => assert!(cost <= 20_000, "{cost}"),
            }
            // Nothing stays held, and what was used is known to the last token.
            let known = match kind {
                "CONCURRENT_REQUESTS" => 0,
                "TOKENS_PER_DAY" => tokens,
                _ => cost,
            };
            while used(&relayed, &made["id"], kind).await != i64::try_from(known).unwrap() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
        assert_eq!(sum(&app, "cost_nano_usd", answered).await, 270_000 * i64::try_from(answered).unwrap());
    }
}
