//! The relay: messages to Claude through the server, as programs send them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api_key::create as new_key;
use crate::claude_account::create as new_account;
use crate::support::{Claude, Client, Reply, Step, TestApp, both_databases, delta, events, message};

pub(crate) const MODEL: &str = "claude-sonnet-5-5";

/// An organization with an upstream, an account of it, and a key for programs.
pub(crate) struct Relayed {
    pub(crate) claude: Claude,
    pub(crate) admin: Client,
    pub(crate) key: String,
    pub(crate) key_id: String,
    pub(crate) account: Value,
    pub(crate) http: reqwest::Client,
    url: String,
}

/// The first account's key at the upstream.
pub(crate) const FIRST: &str = "sk-ant-first-0001";
/// The second's.
pub(crate) const SECOND: &str = "sk-ant-second-0002";

impl Relayed {
    pub(crate) async fn new(app: &TestApp) -> Self {
        Self::with(app, json!({})).await
    }

    /// With a key that has these limits.
    pub(crate) async fn with(app: &TestApp, limits: Value) -> Self {
        let (claude, admin) = (Claude::start().await, app.admin().await);
        let account = account(&admin, &claude, FIRST, json!({})).await;
        let mut input = json!({ "name": "Program", "scopes": ["RELAY"] });
        input.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        let (made, key) = new_key(&admin, input).await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let key_id = made["id"].as_str().unwrap().to_owned();
        Self { claude, admin, key, key_id, account, http, url: app.url.clone() }
    }

    /// One more account of the same upstream.
    pub(crate) async fn second(&self, more: Value) -> Value {
        account(&self.admin, &self.claude, SECOND, more).await
    }

    pub(crate) fn request(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.raw(path, body.to_string())
    }

    pub(crate) fn raw(&self, path: &str, body: String) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{}{path}", self.url))
            .header("x-api-key", &self.key)
            .header("anthropic-version", "2023-06-01")
            .header("content-type", "application/json")
            .body(body)
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.url)).header("x-api-key", &self.key)
    }

    /// Sends a message, not streamed.
    pub(crate) async fn send(&self) -> reqwest::Response {
        self.request("/v1/messages", &asking(false)).send().await.unwrap()
    }

    pub(crate) async fn stream(&self) -> reqwest::Response {
        self.request("/v1/messages", &asking(true)).send().await.unwrap()
    }

    /// How the first account does, once it does so.
    pub(crate) async fn until_health(&self, state: &str) -> Value {
        let query = "query($id: ID!) { claudeAccount(id: $id) { health { state until lastError } } }";
        loop {
            let answer = self.admin.with(query, json!({ "id": self.account["id"] })).await;
            let health = answer.data()["claudeAccount"]["health"].clone();
            if health["state"] == state {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) async fn account(admin: &Client, claude: &Claude, key: &str, more: Value) -> Value {
    let name = key.replace("sk-ant-", "Account ");
    let mut input = json!({ "apiKey": key, "accountName": name, "baseUrl": claude.url() });
    input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    new_account(admin, input).await
}

/// Sends something until it is let in: what others have held is given back with their end, or a moment after.
pub(crate) async fn until_let_in(send: impl AsyncFn() -> reqwest::Response) {
    let sending = async {
        while send().await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), sending).await.expect("it is let in");
}

/// The body of a request.
pub(crate) fn asking(stream: bool) -> Value {
    json!({ "model": MODEL, "max_tokens": 100, "stream": stream, "messages": [{ "role": "user", "content": "Hello?" }] })
}

/// The columns of the usage records, once there are so many: what they are of, and what stands in them.
pub(crate) async fn records(app: &TestApp, columns: &str, count: usize) -> Vec<String> {
    let sql = format!("SELECT {columns} AS text FROM usage_records ORDER BY sequence");
    loop {
        let found = app.database.texts(&sql).await;
        if found.len() >= count {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a record tells of how a request went.
pub(crate) const OUTCOME: &str = "endpoint || ' ' || status_code || ' ' || coalesce(error_type, '-') || ' ' || attempts || \
    CASE WHEN streamed THEN ' streamed' ELSE '' END || CASE WHEN interrupted THEN ' interrupted' ELSE '' END || \
    CASE WHEN is_estimated THEN ' estimated' ELSE '' END";
/// What it tells of its tokens and its cost.
pub(crate) const TOKENS: &str = "input_tokens || ' ' || output_tokens || ' ' || cache_write_5m_tokens || ' ' || \
    cache_write_1h_tokens || ' ' || cache_read_tokens || ' ' || cost_nano_usd";
/// What a usual answer costs: 25 at 2, 12 at 10, 20 at 2.5, 10 at 4 and 100 at 0.10 USD a million tokens.
pub(crate) const USUAL: &str = "25 12 20 10 100 270000";

/// The type of the error of an answer, with its status.
pub(crate) async fn error(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["type"], "error", "{body}");
    assert!(body["request_id"].is_string(), "{body}");
    (status, body["error"]["type"].as_str().unwrap().to_owned())
}

both_databases! {
    async fn a_message_goes_there_and_back_untouched(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        // Spaces, order and names that nobody knows stay as they are.
        let body = format!("{{ \"unknown\" : [1.50, {{}}],\n\"max_tokens\":5, \"model\":\"{MODEL}\", \"messages\":[] }}");
        let request = relayed.raw("/v1/messages?beta=true", body.clone()).header("anthropic-beta", "a-1,b-2");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers().clone();
        assert_eq!(headers["request-id"], "req_upstream");
        assert_eq!(headers["content-type"], "application/json");
        assert!(!headers.contains_key("anthropic-organization-id"));
        // The limits are the caller's own, not the account's.
        assert_eq!(headers["anthropic-ratelimit-requests-limit"], "1000000");
        assert_eq!(response.text().await.unwrap(), message(MODEL));
        let seen = relayed.claude.seen().pop().unwrap();
        assert_eq!((seen.uri.to_string().as_str(), &seen.body[..]), ("/v1/messages?beta=true", body.as_bytes()));
        assert_eq!(seen.headers["anthropic-beta"], "a-1,b-2");
        assert_eq!(seen.headers["anthropic-version"], "2023-06-01");
        assert_eq!(seen.key(), FIRST);
        assert!(!format!("{:?}", seen.headers).contains(&relayed.key));
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 1"]);
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
        assert_eq!(records(&app, "coalesce(upstream_request_id, '')", 1).await, ["req_upstream"]);
        relayed.until_health("HEALTHY").await;
    }

    async fn a_stream_passes_event_by_event(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let response = relayed.stream().await;
        assert_eq!(response.status(), 200);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        assert!(!response.headers().contains_key("content-encoding"));
        assert_eq!(response.text().await.unwrap(), events(MODEL).concat());
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 1 streamed"]);
        // The same as what comes whole.
        assert_eq!(records(&app, TOKENS, 1).await, [USUAL]);
        let first = records(&app, "CASE WHEN time_to_first_token_ms IS NULL THEN 'none' ELSE 'some' END", 1).await;
        assert_eq!(first, ["some"]);
    }

    async fn no_more_is_taken_in_than_is_read(app: TestApp) {
        /// What sockets hold on both sides, and more.
        const MOST: usize = 64 * 1024 * 1024;
        let relayed = Relayed::new(&app).await;
        let flood = Step::Flood(delta(&"word ".repeat(4_000)));
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(events(MODEL)[..3].concat()), flood])]);
        let mut response = relayed.stream().await;
        response.chunk().await.unwrap().unwrap();
        let (mut said, mut stood_still) = (0, 0);
        while stood_still < 5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = relayed.claude.flooded();
            assert!(now < MOST, "all of it is taken in, though nobody reads");
            stood_still = if now == said { stood_still + 1 } else { 0 };
            said = now;
        }
        drop(response);
        relayed.claude.left().await;
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages 200 - 1 streamed interrupted estimated"]);
    }

    async fn a_key_is_taken_from_either_header(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let send = async |name: &str, value: String| {
            let request = reqwest::Client::builder().no_proxy().build().unwrap().post(format!("{}/v1/messages", app.url));
            request.header(name, value).body(asking(false).to_string()).send().await.unwrap()
        };
        assert_eq!(send("x-api-key", relayed.key.clone()).await.status(), 200);
        assert_eq!(send("authorization", format!("Bearer {}", relayed.key)).await.status(), 200);
        for wrong in ["clv_0000000000000000000000000000000000000", "sk-ant-1", ""] {
            assert_eq!(error(send("x-api-key", wrong.to_owned()).await).await, (401, "authentication_error".to_owned()));
        }
        let token = app.admin().await.access_token.unwrap();
        assert_eq!(error(send("authorization", format!("Bearer {token}")).await).await.0, 401);
        assert_eq!(relayed.claude.seen().len(), 2);
    }

    async fn a_key_needs_the_scope_the_address_the_model_and_its_owner(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let denied = (403, "permission_error".to_owned());
        for (input, expected) in [
            (json!({ "scopes": ["ADMIN_READ"] }), denied.clone()),
            (json!({ "scopes": ["RELAY"], "allowedIps": ["192.0.2.0/24"] }), denied.clone()),
            (json!({ "scopes": ["RELAY"], "allowedModels": ["claude-opus-*"] }), denied),
        ] {
            let mut input = input;
            input["name"] = json!("Other");
            let key = new_key(&relayed.admin, input).await.1;
            let request = relayed.request("/v1/messages", &asking(false)).header("authorization", "Basic x");
            let mut request = request.build().unwrap();
            request.headers_mut().insert("x-api-key", key.parse().unwrap());
            assert_eq!(error(relayed.http.execute(request).await.unwrap()).await, expected);
        }
        crate::api_key::revoke(&relayed.admin, &json!(relayed.key_id)).await.data();
        assert_eq!(error(relayed.send().await).await, (401, "authentication_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 0);
    }

    async fn what_is_refused_has_the_apis_shape(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        for body in ["", "{", "[]", "{\"model\":\"a\",\"model\":\"b\"}", "{\"max_tokens\":1}"] {
            let response = relayed.raw("/v1/messages", body.to_owned()).send().await.unwrap();
            assert!(response.headers().contains_key("request-id"));
            assert_eq!(error(response).await, (400, "invalid_request_error".to_owned()), "{body}");
        }
        let large = "x".repeat(33 * 1024 * 1024);
        let response = relayed.raw("/v1/messages", large).send().await;
        // The connection may be closed before all of it was sent.
        if let Ok(response) = response {
            assert_eq!(response.headers()["connection"], "close");
            assert_eq!(error(response).await, (413, "request_too_large".to_owned()));
        }
        // What came with its head and was not looked at ends no connection.
        let refused = relayed.http.post(format!("{}/v1/messages", relayed.url)).body("{}").send().await.unwrap();
        assert!(refused.status() == 401 && !refused.headers().contains_key("connection"), "{refused:?}");
        let response = relayed.request("/v1/complete", &json!({})).send().await.unwrap();
        assert_eq!(error(response).await, (404, "not_found_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 0);
    }

    async fn a_key_has_so_many_requests_a_minute(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "rateLimitPerMinute": 2 })).await;
        for _ in 0..2 {
            assert_eq!(relayed.send().await.status(), 200);
        }
        let response = relayed.send().await;
        assert_eq!(response.headers()["anthropic-ratelimit-requests-remaining"], "0");
        assert_eq!(response.headers()["retry-after"], "30");
        assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        app.advance(30);
        assert_eq!(relayed.send().await.status(), 200);
    }

    async fn a_spent_budget_is_told_to_be_no_use_trying_again(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "tokenLimitPerDay": 50 })).await;
        let response = relayed.send().await;
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(error(response).await, (429, "rate_limit_error".to_owned()));
        assert_eq!(relayed.claude.seen().len(), 0);
    }

    async fn a_key_has_so_many_requests_at_once(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "concurrencyLimit": 1 })).await;
        relayed.claude.will(FIRST, [Reply::Held]);
        let (held, second) = tokio::join!(relayed.send(), async {
            relayed.claude.arrived().await;
            let second = relayed.send().await;
            relayed.claude.release(1);
            second
        });
        assert_eq!(held.status(), 200);
        assert_eq!(error(second).await, (429, "rate_limit_error".to_owned()));
        // What was reserved is given back with the answer, or a moment after.
        until_let_in(async || relayed.send().await).await;
    }

    async fn tokens_are_counted_by_the_upstream(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let response = relayed.request("/v1/messages/count_tokens", &asking(false)).send().await.unwrap();
        assert_eq!(response.json::<Value>().await.unwrap(), json!({ "input_tokens": 55 }));
        assert_eq!(relayed.claude.seen()[0].uri, "/v1/messages/count_tokens");
        assert_eq!(records(&app, OUTCOME, 1).await, ["/v1/messages/count_tokens 200 - 1"]);
        assert_eq!(records(&app, TOKENS, 1).await, ["0 0 0 0 0 0"]);
    }

    async fn models_are_those_that_the_key_may_use(app: TestApp) {
        let relayed = Relayed::with(&app, json!({ "allowedModels": ["claude-opus-*", "claude-haiku-*"] })).await;
        let list = relayed.get("/v1/models?limit=1000").send().await.unwrap().json::<Value>().await.unwrap();
        assert_eq!(list["data"][0]["id"], "claude-opus-5-5");
        assert_eq!(list["data"].as_array().unwrap().len(), 2);
        assert_eq!((&list["has_more"], &list["last_id"]), (&json!(false), &json!("claude-haiku-4-5")));
        let page = relayed.get("/v1/models?limit=1&after_id=claude-opus-5-5").send().await.unwrap();
        assert_eq!(page.json::<Value>().await.unwrap()["data"][0]["id"], "claude-haiku-4-5");
        let one = relayed.get("/v1/models/claude-haiku-4-5").send().await.unwrap();
        assert_eq!(one.json::<Value>().await.unwrap()["id"], "claude-haiku-4-5");
        let other = relayed.get("/v1/models/claude-sonnet-5-5").send().await.unwrap();
        assert_eq!(error(other).await, (404, "not_found_error".to_owned()));
        // They are remembered.
        assert_eq!(relayed.claude.seen().len(), 1);
    }

    async fn models_are_told_though_no_upstream_answers(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        relayed.claude.will(FIRST, [Reply::error(500, "api_error")]);
        let list = relayed.get("/v1/models?limit=1000").send().await.unwrap().json::<Value>().await.unwrap();
        let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
        assert!(ids.contains(&MODEL), "{ids:?}");
    }

    async fn the_greeting_needs_no_key(app: TestApp) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        assert_eq!(http.head(format!("{}/api/hello", app.url)).send().await.unwrap().status(), 200);
    }

}
