//! What callers may take of the relay, what of theirs travels on, and how it answers who asks in another way than it is meant.

use claviger::relay::RelayLimits;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::api_key::create as new_key;
use crate::relay::{FIRST, MODEL, Relayed, SECOND, asking, error, until_let_in};
use crate::relay_failures::QUICK;
use crate::support::{Reply, Seen, both_databases};

/// A request that says so much.
fn saying(text: &str) -> Value {
    let mut body = asking(false);
    body["messages"][0]["content"] = json!(text);
    body
}

/// Sends it with another key.
async fn send_with(relayed: &Relayed, key: &str, path: &str, body: &Value) -> reqwest::Response {
    let mut request = relayed.request(path, body).build().unwrap();
    request.headers_mut().insert("x-api-key", key.parse().unwrap());
    relayed.http.execute(request).await.unwrap()
}

/// Sends a large message. The connection may be closed before all of it was sent, and the answer be lost.
async fn sent(relayed: &Relayed, body: &Value) -> reqwest::Response {
    loop {
        if let Ok(response) = relayed.request("/v1/messages", body).send().await {
            return response;
        }
    }
}

both_databases! {
    async fn headers_travel_by_their_whole_names(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let mut request = relayed.request("/v1/messages", &asking(false)).header("x-app", "cli");
        for name in ["x-app-token", "x-application-secret", "x-appengine-user-email"] {
            request = request.header(name, "secret");
        }
        assert_eq!(request.send().await.unwrap().status(), 200);
        let seen = relayed.claude.seen().pop().unwrap();
        assert_eq!(seen.headers["x-app"], "cli");
        assert!(!format!("{:?}", seen.headers).contains("secret"));
    }

    async fn a_key_without_the_scope_is_counted_too(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let input = json!({ "name": "Other", "scopes": ["ADMIN_READ"], "rateLimitPerMinute": 2 });
        let key = new_key(&relayed.admin, input).await.1;
        for expected in [(403, "permission_error"), (403, "permission_error"), (429, "rate_limit_error")] {
            let refused = error(send_with(&relayed, &key, "/v1/messages", &asking(false)).await).await;
            assert_eq!(refused, (expected.0, expected.1.to_owned()));
        }
    }

    async fn who_has_no_good_key_is_told_what_was_wrong_with_it(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let token = format!("Bearer {}", relayed.admin.access_token.clone().unwrap());
        let unknown = "clv_0000000000000000000000000000000000000";
        for (sent, told) in [
            (&[][..], "Send an API key"),
            (&[("x-api-key", unknown)], "This API key is not known here"),
            (&[("x-api-key", "nope")], "This API key is not known here"),
            (&[("authorization", token.as_str())], "An access token is no key for the relay"),
            (&[("x-api-key", unknown), ("authorization", &format!("Bearer {}", relayed.key))], "Two API keys were sent"),
        ] {
            let request = relayed.http.post(format!("{}/v1/messages", app.url));
            let request = sent.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let answer: Value = request.body(asking(false).to_string()).send().await.unwrap().json().await.unwrap();
            assert!(answer["error"]["message"].as_str().unwrap().starts_with(told), "{answer}");
        }
    }

    async fn whatever_is_wrong_is_told_in_the_apis_shape(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let invalid = |status: u16| (status, "invalid_request_error".to_owned());
        assert_eq!(error(relayed.get("/v1/models?limit=abc").send().await.unwrap()).await, invalid(400));
        assert_eq!(error(relayed.get("/v1/models/%ff").send().await.unwrap()).await, invalid(400));
        // Who has no key is told that, whatever else is wrong.
        let response = reqwest::get(format!("{}/v1/models?limit=abc", app.url)).await.unwrap();
        assert_eq!(error(response).await, (401, "authentication_error".to_owned()));
        let response = relayed.get("/v1/messages").send().await.unwrap();
        assert_eq!(response.headers()["allow"], "POST");
        assert_eq!(error(response).await, invalid(405));
        let response = relayed.request("//v1/messages", &asking(false)).send().await.unwrap();
        assert_eq!(error(response).await, (404, "not_found_error".to_owned()));
        let response = relayed.get("/v1/chat/completions").send().await.unwrap();
        assert_eq!(response.status(), 405);
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["type"], "invalid_request_error");
    }

    async fn a_model_is_known_by_the_names_that_the_upstream_knows(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "allowedModels": ["claude-sonnet-*"] })).await;
        relayed.get("/v1/models").send().await.unwrap();
        let model = json!({ "type": "model", "id": "claude-sonnet-5-5", "display_name": "S", "created_at": "2026-01-01T00:00:00Z" });
        relayed.claude.will(FIRST, [Reply::Body(200, "application/json", model.to_string())]);
        let found = relayed.get("/v1/models/claude-sonnet-latest").send().await.unwrap();
        assert_eq!(found.json::<Value>().await.unwrap()["id"], "claude-sonnet-5-5");
        for id in ["claude-sonnet-none", "claude-opus-latest", "claude-sonnet-%2F..%2Fx"] {
            let response = relayed.get(&format!("/v1/models/{id}")).send().await.unwrap();
            assert_eq!(error(response).await, (404, "not_found_error".to_owned()), "{id}");
        }
        let uris: Vec<_> = relayed.claude.seen().iter().map(|seen| seen.uri.to_string()).collect();
        assert_eq!(uris, ["/v1/models?limit=1000", "/v1/models/claude-sonnet-latest", "/v1/models/claude-sonnet-none"]);
    }

    async fn one_asks_for_the_models_of_all_who_start_together(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, vec![Reply::Held; 20]);
        let lists = join_all((0..20).map(async |_| relayed.get("/v1/models").send().await.unwrap().status()));
        let (statuses, ()) = tokio::join!(lists, async {
            relayed.claude.arrived().await;
            relayed.claude.release(1);
        });
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        assert_eq!(relayed.claude.seen().len(), 1);
    }

    async fn an_upstream_that_lists_no_models_is_not_asked_by_everybody(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::error(400, "invalid_request_error")]);
        for _ in 0..3 {
            assert_eq!(relayed.get("/v1/models").send().await.unwrap().status(), 200);
        }
        assert_eq!(relayed.claude.seen().len(), 1);
        app.advance(20);
        relayed.claude.will_as_usual(FIRST);
        relayed.claude.will(FIRST, [Reply::error(401, "authentication_error")]);
        assert_eq!(relayed.get("/v1/models").send().await.unwrap().status(), 200);
        // What it has shown of the account is noted.
        relayed.until_health("UNAUTHORIZED").await;
    }

    async fn where_one_upstream_has_no_list_another_has(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.second(json!({ "priority": 5 })).await;
        let whole = |body: &str| Reply::Body(200, "application/json", body.to_owned());
        for reply in [whole("[]"), whole("\"ok\""), whole("{\"data\":{}}"), Reply::error(404, "not_found_error")] {
            relayed.claude.will(FIRST, [reply]);
            let before = relayed.claude.seen().len();
            let odd = relayed.get("/v1/models?limit=1000").header("anthropic-version", "odd").header("anthropic-beta", "odd");
            let response = odd.send().await.unwrap();
            assert_eq!(response.status(), 200);
            // The upstream's own list, which is shorter than the table of prices.
            assert_eq!(response.json::<Value>().await.unwrap()["data"].as_array().unwrap().len(), 3);
            let seen = relayed.claude.seen().split_off(before);
            assert_eq!(seen.iter().map(Seen::key).collect::<Vec<_>>(), [FIRST, SECOND]);
            // All get it: it is not asked for in one caller's way.
            assert!(seen.iter().all(|seen| seen.headers["anthropic-version"] == "2023-06-01" && !seen.headers.contains_key("anthropic-beta")));
            app.advance(301);
        }
    }

    async fn bodies_take_no_more_memory_than_a_key_and_all_may(app: TestApp) {
        let app = app.relaying(RelayLimits { bodies: 640 * 1024, ..QUICK }).await;
        let relayed = Relayed::new(&app).await;
        let other = new_key(&relayed.admin, json!({ "name": "Other", "scopes": ["RELAY"] })).await.1;
        let large = saying(&"x".repeat(100_000));
        relayed.claude.will(FIRST, [Reply::Held]);
        let (first, (second, of_other)) = tokio::join!(sent(&relayed, &large), async {
            relayed.claude.arrived().await;
            let refused = sent(&relayed, &large).await;
            let of_other = send_with(&relayed, &other, "/v1/messages", &large).await;
            relayed.claude.release(1);
            (refused, of_other)
        });
        assert_eq!(of_other.status(), 200);
        assert_eq!(error(second).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(first.status(), 200);
        // It is given back, with the answer or a moment after.
        until_let_in(async || sent(&relayed, &large).await).await;
        let larger = sent(&relayed, &saying(&"x".repeat(200_000))).await;
        assert_eq!(error(larger).await, (413, "request_too_large".to_owned()));
        // Read into values, this takes many times as much as its text.
        let body = json!({ "model": MODEL, "messages": vec![json!({ "a": 0 }); 1_000] });
        let response = relayed.request("/v1/chat/completions", &body).send().await.unwrap();
        assert_eq!(response.status(), 413);
        assert!(response.json::<Value>().await.unwrap()["error"]["message"].as_str().unwrap().contains("memory"));
    }

    async fn a_reservation_is_enough_for_what_a_prompt_may_be(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "tokenLimitPerDay": 40_000 })).await;
        let data = "A".repeat(90_000);
        let with = |block: Value| {
            let mut body = asking(false);
            body["messages"][0]["content"] = json!([block]);
            body
        };
        let source = |media_type: &str| json!({ "type": "base64", "media_type": media_type, "data": data });
        for body in [
            saying(&"漢".repeat(30_000)),
            with(json!({ "type": "document", "source": source("application/pdf") })),
            with(json!({ "type": "tool_use", "id": "t", "name": "n", "input": { "type": "image", "source": source("image/png") } })),
            with(json!({ "type": "document", "source": { "type": "url", "url": "https://example.com/a.pdf" } })),
        ] {
            let response = relayed.request("/v1/messages", &body).send().await.unwrap();
            assert_eq!(response.headers()["x-should-retry"], "false");
            assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        }
        let image = with(json!({ "type": "image", "source": source("image/png") }));
        assert_eq!(relayed.request("/v1/messages", &image).send().await.unwrap().status(), 200);
    }

    async fn the_default_upstream_opens_no_other_port(app: TestApp) {
        let mut app = app;
        let claude = crate::support::Claude::start().await;
        app.set("ANTHROPIC_BASE_URL", &claude.url());
        app.set("UPSTREAM_ALLOWED_HOSTS", "localhost:1");
        app.restart().await;
        let admin = app.admin().await;
        let create = "mutation($input: CreateClaudeAccountInput!) { createClaudeAccount(input: $input) { claudeAccount { id } } }";
        let with = async |url: &str| {
            let key = format!("sk-ant-{}", url.len());
            let input = json!({ "apiKey": key, "accountName": url, "baseUrl": url });
            admin.with(create, json!({ "input": input })).await
        };
        for inside in ["http://127.0.0.1:6379", "https://127.0.0.1:6379", &claude.url().replace("http", "https")] {
            assert_eq!(with(inside).await.fields(), ["baseUrl"], "{inside}");
        }
        let made = with(&claude.url()).await.data()["createClaudeAccount"]["claudeAccount"].clone();
        let test = "mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { ok } }";
        assert_eq!(admin.with(test, json!({ "id": made["id"] })).await.data()["testClaudeAccount"]["ok"], true);
        // A name is allowed at the port that was named, and leads inside at no other.
        let inside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        inside.set_nonblocking(true).unwrap();
        let url = format!("https://localhost:{}", inside.local_addr().unwrap().port());
        let made = with(&url).await.data()["createClaudeAccount"]["claudeAccount"].clone();
        assert_eq!(admin.with(test, json!({ "id": made["id"] })).await.data()["testClaudeAccount"]["ok"], false);
        assert_eq!(inside.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
