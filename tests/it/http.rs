//! GraphQL over HTTP and the rest of the HTTP surface.

use std::path::Path;
use std::process::Command;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Answer, PASSWORD, TestApp, TestDatabase, both_databases};

const GRAPHQL: &str = "application/graphql-response+json";

async fn send(app: &TestApp, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<String>) -> Answer {
    let client = app.anonymous();
    let mut request = client.http().request(method, format!("{}{path}", app.url)).body(body.into());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::read(request.send().await.unwrap()).await
}

async fn post(app: &TestApp, accept: &str, body: impl Into<String>) -> Answer {
    send(app, Method::POST, "/graphql", &[("content-type", "application/json"), ("accept", accept)], body).await
}

/// Runs a script of a folder of `tests` whose packages `./test` has installed.
pub(crate) async fn node(folder: &'static str, script: &'static str, variables: Vec<(&'static str, String)>) {
    let folder = Path::new("tests").join(folder);
    assert!(
        folder.join("node_modules").exists(),
        "the packages of {} are missing: ./test installs them",
        folder.display()
    );
    let output = tokio::task::spawn_blocking(move || {
        Command::new("node").arg(script).current_dir(folder).envs(variables).output().unwrap()
    })
    .await
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_audit_of_graphql_over_http_passes() {
    let app = TestApp::sqlite().await;
    node("graphql-http", "audit.mjs", vec![("URL", format!("{}/graphql", app.url))]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_manages_accounts_in_the_playground() {
    let app = TestApp::sqlite().await;
    let variables = vec![("URL", app.url.clone()), ("EMAIL", "admin@localhost".into()), ("PASSWORD", PASSWORD.into())];
    node("playground", "playground.spec.mjs", variables).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deed_cannot_be_done_by_another_sites_form_or_image() {
    let app = TestApp::sqlite().await;
    let deed = "mutation{signOut{signedOut}}";
    let answer = send(&app, Method::GET, &format!("/graphql?query={deed}"), &[("accept", GRAPHQL)], "").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.headers["allow"], "POST");
    let body = json!({ "query": deed }).to_string();
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
    ] {
        let answer = send(&app, Method::POST, "/graphql", &[("content-type", content_type)], body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    let answer = send(&app, Method::POST, "/graphql", &[], body).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_key_is_verified_by_post_alone() {
    let app = TestApp::sqlite().await;
    let hidden =
        "query Q($k: String!) { viewer { role } ...F } fragment F on Query { x: verifyApiKey(key: $k) { code } }";
    let asked = json!({ "query": hidden, "variables": { "k": "clv_x" } });
    assert_eq!(post(&app, GRAPHQL, asked.to_string()).await.data()["x"]["code"], "MALFORMED");
    let hash = hex::encode(claviger::crypto::sha256(hidden.as_bytes()));
    let persisted = json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } }).to_string();
    let variables = ("variables", "{\"k\":\"clv_x\"}");
    for parameters in [
        &[("query", "{ verifyApiKey(key: \"clv_x\") { code } }")][..],
        &[("query", hidden), variables],
        &[("extensions", persisted.as_str()), variables],
    ] {
        let url = url::Url::parse_with_params("http://x/graphql", parameters).unwrap();
        let path = format!("/graphql?{}", url.query().unwrap());
        for accept in [GRAPHQL, "application/json", "text/event-stream"] {
            let answer = send(&app, Method::GET, &path, &[("accept", accept)], "").await;
            assert_eq!((answer.status, answer.code()), (StatusCode::METHOD_NOT_ALLOWED, "BAD_USER_INPUT"), "{path}");
            assert_eq!(answer.headers["allow"], "POST");
            let message = answer.body["errors"][0]["message"].as_str().unwrap();
            assert!(message.starts_with("verifyApiKey takes a secret") && !message.contains("clv_x"), "{message}");
        }
        let answer = send(&app, Method::HEAD, &path, &[("accept", GRAPHQL)], "").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_get_without_the_answers_body_and_does_no_deed() {
    let app = TestApp::sqlite().await;
    let deed = "mutation{signOut{signedOut}}";
    let head = async |path: &str, body: String| {
        send(&app, Method::HEAD, path, &[("content-type", "application/json"), ("accept", GRAPHQL)], body).await
    };
    let answer = head("/graphql", json!({ "query": deed }).to_string()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "a body is not read");
    let answer = head(&format!("/graphql?query={deed}"), String::new()).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    let answer = head("/graphql?query={viewer{role}}", String::new()).await;
    assert_eq!((answer.status, &answer.body), (StatusCode::OK, &json!("")));
    let entries = "{ auditLogs(filter: { action: [SIGN_OUT] }) { totalCount } }";
    assert_eq!(app.admin().await.run(entries).await.data()["auditLogs"]["totalCount"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_get_a_clear_error() {
    let app = TestApp::sqlite().await;
    let query = |text: &str| json!({ "query": text }).to_string();
    for (body, status, code) in [
        (String::new(), 400, "BAD_USER_INPUT"),
        ("[]".to_owned(), 400, "BAD_USER_INPUT"),
        (format!("[{}]", query("{ viewer { role } }")), 400, "BAD_USER_INPUT"),
        ("{\"query\":1}".to_owned(), 400, "BAD_USER_INPUT"),
        ("{}".to_owned(), 400, "BAD_USER_INPUT"),
        (json!({ "query": "{ viewer { role } }", "variables": [1] }).to_string(), 400, "BAD_USER_INPUT"),
        (json!({ "query": "{ viewer { role } }", "extensions": 1 }).to_string(), 400, "BAD_USER_INPUT"),
        (json!({ "query": "{ viewer { role } }", "operationName": "x" }).to_string(), 400, "GRAPHQL_VALIDATION_FAILED"),
        (query("query A { viewer { role } } query B { viewer { role } }"), 400, "GRAPHQL_VALIDATION_FAILED"),
        (query("{"), 400, "GRAPHQL_PARSE_FAILED"),
        (query("{ unknown }"), 400, "GRAPHQL_VALIDATION_FAILED"),
        (query("subscription { x }"), 400, "GRAPHQL_VALIDATION_FAILED"),
        (query(&format!("{{ viewer {{ {} }} }}", "role ".repeat(3_000))), 400, "QUERY_TOO_COMPLEX"),
        ("x".repeat(300 * 1024), 413, "QUERY_TOO_COMPLEX"),
        ("[".repeat(200_000), 400, "BAD_USER_INPUT"),
    ] {
        let start: String = body.chars().take(60).collect();
        let answer = post(&app, GRAPHQL, body).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{start}");
        assert!(answer.body.get("data").is_none(), "{start}");
        assert_eq!(
            answer.body["errors"][0]["extensions"]["requestId"],
            answer.headers["x-request-id"].to_str().unwrap()
        );
    }
    let answer = post(&app, "text/css", query("{ viewer { role } }")).await;
    assert_eq!(answer.status, StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_unread_of_a_request_ends_its_connection_which_is_told() {
    let app = TestApp::sqlite().await;
    let mut connection = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
    let ask = async |connection: &mut TcpStream, media: &str, body: &str, length: usize| {
        let head =
            format!("POST /graphql HTTP/1.1\r\nhost: claviger\r\ncontent-type: {media}\r\ncontent-length: {length}");
        connection.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    };
    let query = json!({ "query": "{ __typename }" }).to_string();
    ask(&mut connection, "application/json", &query, query.len()).await;
    let mut first = Vec::new();
    while !first.ends_with(b"}") {
        assert!(connection.read_buf(&mut first).await.unwrap() > 0);
    }
    let first = String::from_utf8(first).unwrap();
    assert!(first.starts_with("HTTP/1.1 200 ") && !first.contains("\r\nconnection: "), "{first}");
    // Refused by its head; its body is still on its way.
    ask(&mut connection, "text/css", "", 10).await;
    let mut last = String::new();
    connection.read_to_string(&mut last).await.unwrap();
    assert!(last.starts_with("HTTP/1.1 415 ") && last.contains("\r\nconnection: close\r\n"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_of_a_wrong_type_is_refused_by_name() {
    let app = TestApp::sqlite().await;
    let admin = app.admin().await;
    for (query, variables) in [
        ("query($n: Int) { claudeAccounts(first: $n) { totalCount } }", json!({ "n": "ten" })),
        (
            "mutation($i: CreateClaudeAccountInput!) { createClaudeAccount(input: $i) { claudeAccount { id } } }",
            json!({ "i": { "accountName": "A" } }),
        ),
        (
            "mutation($i: CreateClaudeAccountInput!) { createClaudeAccount(input: $i) { claudeAccount { id } } }",
            json!({ "i": { "apiKey": "k", "accountName": "A", "usageLimit": 9_007_199_254_740_992_i64 } }),
        ),
        (
            "mutation($i: CreateClaudeAccountInput!) { createClaudeAccount(input: $i) { claudeAccount { id } } }",
            json!({ "i": { "apiKey": "k", "accountName": "A", "tier": "GOLD" } }),
        ),
        (
            "query($f: AuditLogFilter) { auditLogs(filter: $f) { totalCount } }",
            json!({ "f": { "occurredAt": { "from": "yesterday" } } }),
        ),
    ] {
        let answer = admin.with(query, variables.clone()).await;
        assert!(
            matches!(answer.code(), "BAD_USER_INPUT" | "GRAPHQL_VALIDATION_FAILED"),
            "{variables}: {:#}",
            answer.body
        );
    }
    assert_eq!(admin.run("{ claudeAccounts { totalCount } }").await.data()["claudeAccounts"]["totalCount"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persisted_query_is_asked_for_by_its_hash() {
    let app = TestApp::sqlite().await;
    let query = "{ viewer { role } }";
    let hash = hex::encode(claviger::crypto::sha256(query.as_bytes()));
    let extensions = json!({ "persistedQuery": { "version": 1, "sha256Hash": hash } });
    let by_hash = json!({ "extensions": extensions }).to_string();
    let answer = post(&app, GRAPHQL, by_hash.clone()).await;
    assert_eq!(
        (answer.code(), &answer.body["errors"][0]["message"], answer.status),
        ("PERSISTED_QUERY_NOT_FOUND", &json!("PersistedQueryNotFound"), StatusCode::BAD_REQUEST)
    );
    let answer = post(&app, "application/json", by_hash.clone()).await;
    assert_eq!((answer.code(), answer.status), ("PERSISTED_QUERY_NOT_FOUND", StatusCode::OK));
    post(&app, GRAPHQL, json!({ "query": query, "extensions": extensions }).to_string()).await.data();
    assert_eq!(post(&app, GRAPHQL, by_hash).await.data()["viewer"], Value::Null);
    let wrong = json!({ "query": "{ viewer { permissions } }", "extensions": extensions });
    assert_eq!(post(&app, GRAPHQL, wrong.to_string()).await.code(), "BAD_USER_INPUT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_its_headers() {
    let app = TestApp::sqlite().await;
    for path in ["/", "/graphql", "/schema.graphql", "/health", "/metrics", "/nothing"] {
        let headers = send(&app, Method::GET, path, &[], "").await.headers;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert!(headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"), "{path}");
        assert!(!headers["content-security-policy"].to_str().unwrap().contains("http"), "{path}");
        assert!(headers.contains_key("x-request-id"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_gets_its_id_from_the_server_or_a_trusted_proxy() {
    for (trusted, given, is_taken) in
        [("", "abc-123", false), ("127.0.0.1", "abc-123", true), ("127.0.0.1", "no spaces", false)]
    {
        let app = TestApp::start(TestDatabase::sqlite(), [("TRUSTED_PROXIES", trusted.to_owned())]).await;
        let headers = send(&app, Method::GET, "/health", &[("x-request-id", given)], "").await.headers;
        assert_eq!(headers["x-request-id"] == given, is_taken, "{trusted} {given}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_keeps_the_page_and_the_answer_at_one_address_apart() {
    let app = TestApp::sqlite().await;
    for accept in ["text/html", "application/json"] {
        let answer = send(&app, Method::GET, "/graphql", &[("accept", accept)], "").await;
        assert_eq!(answer.headers["content-type"], format!("{accept}; charset=utf-8"));
        let varies = answer.headers.get_all("vary").iter().flat_map(|value| value.to_str().unwrap().split(", "));
        assert!(varies.into_iter().any(|name| name == "accept"), "{:?}", answer.headers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_frontends_that_are_set_may_call_from_a_browser() {
    let app = TestApp::sqlite().await;
    let ask = async |origin: &'static str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
        ];
        send(&app, Method::OPTIONS, "/graphql", &headers, "").await.headers
    };
    assert_eq!(ask("https://app.example.com").await["access-control-allow-origin"], "https://app.example.com");
    assert!(!ask("https://evil.example.com").await.contains_key("access-control-allow-origin"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_spellings_reach_nothing() {
    let app = TestApp::sqlite().await;
    for path in [
        "/GraphQL",
        "//graphql",
        "/graphql/",
        "/health/detailed/",
        "/../data/jwt-secret",
        "/playground/../../Cargo.toml",
    ] {
        assert_eq!(send(&app, Method::GET, path, &[], "").await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarded_addresses_are_believed_of_trusted_proxies_only() {
    for (trusted, forwarded, address) in [
        ("", "203.0.113.9", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.0/8,10.0.0.0/8", "198.51.100.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
    ] {
        let app = TestApp::start(TestDatabase::sqlite(), [("TRUSTED_PROXIES", trusted.to_owned())]).await;
        let deed = json!({ "query": "mutation { signOut { signedOut } }" }).to_string();
        let headers = [("content-type", "application/json"), ("x-forwarded-for", forwarded)];
        send(&app, Method::POST, "/graphql", &headers, deed).await;
        let answer =
            app.admin().await.run("{ auditLogs(filter: { action: [SIGN_OUT] }) { nodes { ipAddress } } }").await;
        assert_eq!(answer.data()["auditLogs"]["nodes"][0]["ipAddress"], address, "{trusted} {forwarded}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn introspection_and_the_playground_can_be_turned_off() {
    let off = [("INTROSPECTION", "off".to_owned()), ("PLAYGROUND", "off".to_owned())];
    let app = TestApp::start(TestDatabase::sqlite(), off).await;
    assert_eq!(app.anonymous().run("{ __schema { types { name } } }").await.code(), "GRAPHQL_VALIDATION_FAILED");
    assert_eq!(send(&app, Method::GET, "/", &[("accept", "text/html")], "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_are_compressed() {
    let app = TestApp::sqlite().await;
    let plain = send(&app, Method::GET, "/schema.graphql", &[], "").await;
    assert_eq!(plain.body, Value::String(claviger::graphql::sdl()));
    for coding in ["br", "gzip"] {
        let (headers, body) = packed(&app, "/schema.graphql", coding).await;
        assert_eq!(headers["content-encoding"], coding);
        assert!(body.len() < claviger::graphql::sdl().len() / 2, "{coding}");
        let (headers, _) = packed(&app, "/graphql?query={viewer{role}}", coding).await;
        assert!(!headers.contains_key("content-encoding"), "a small answer is sent as it is");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_playgrounds_files_are_not_packed_for_each_caller() {
    let app = TestApp::sqlite().await;
    let Value::String(page) = send(&app, Method::GET, "/", &[], "").await.body else { panic!("text") };
    let script = page.split('"').find(|part| part.ends_with("/app.js")).unwrap();
    let (headers, plain) = packed(&app, script, "br").await;
    assert!(!headers.contains_key("content-encoding"));
    let (headers, gzip) = packed(&app, script, "br, gzip").await;
    assert_eq!(headers["content-encoding"], "gzip");
    assert!(gzip.len() < plain.len());
}

/// What is sent to a caller that takes some codings.
async fn packed(app: &TestApp, path: &str, codings: &str) -> (HeaderMap, Vec<u8>) {
    let client = app.anonymous();
    let request = client.http().get(format!("{}{path}", app.url)).header("accept-encoding", codings);
    let answer = request.send().await.unwrap();
    (answer.headers().clone(), answer.bytes().await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_names_what_is_measured() {
    let app = TestApp::sqlite().await;
    for path in ["/invented", "/playground/invented", "/health/invented"] {
        send(&app, Method::GET, path, &[], "").await;
    }
    let method = Method::from_bytes(b"INVENTED").unwrap();
    assert_eq!(send(&app, method, "/graphql", &[], "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    for query in ["query invented { invented: viewer { role } }", "{ invented }", "query @invented { viewer { role } }"]
    {
        post(&app, GRAPHQL, json!({ "query": query }).to_string()).await;
    }
    post(&app, GRAPHQL, json!({ "query": "{ viewer { role } }", "operationName": "invented" }).to_string()).await;
    let Value::String(metrics) = send(&app, Method::GET, "/metrics", &[], "").await.body else { panic!("text") };
    assert!(metrics.contains("route=\"none\"") && !metrics.contains("invented"), "{metrics}");
}

both_databases! {
    async fn probes_and_metrics_tell_how_the_server_does(app: TestApp) {
        let admin = app.admin().await;
        assert_eq!(send(&app, Method::GET, "/health/alive", &[], "").await.body["status"], "alive");
        assert_eq!(send(&app, Method::GET, "/health/ready", &[], "").await.body["status"], "ready");
        assert_eq!(send(&app, Method::GET, "/health/detailed", &[], "").await.status, StatusCode::UNAUTHORIZED);
        let bearer = |client: &crate::support::Client| format!("Bearer {}", client.access_token.as_ref().unwrap());
        let reader = app.user("READ_ONLY").await;
        let answer = send(&app, Method::GET, "/health/detailed", &[("authorization", &bearer(&reader))], "").await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        let answer = send(&app, Method::GET, "/health/detailed", &[("authorization", &bearer(&admin))], "").await;
        assert_eq!(answer.body["database"]["reachable"], true);
        let lower = bearer(&admin).replace("Bearer", "bearer");
        let answer = send(&app, Method::GET, "/health/detailed", &[("authorization", &lower)], "").await;
        assert_eq!((answer.status, &answer.headers["cache-control"]), (StatusCode::OK, &"no-store".parse().unwrap()));
        admin.run("{ x: claudeAccounts(first: 1) { totalCount } }").await.data();
        app.anonymous().run("{ __invented }").await;
        let Value::String(metrics) = send(&app, Method::GET, "/metrics", &[], "").await.body else { panic!("text") };
        assert!(!metrics.contains("invented"), "no caller makes a label");
        for line in [
            "claviger_graphql_requests_total{field=\"claudeAccounts\",outcome=\"OK\"} 1",
            "claviger_graphql_duration_seconds_count{field=\"claudeAccounts\"} 1",
            "claviger_build_info{version=\"",
            "claviger_database_connections_open ",
        ] {
            assert!(metrics.contains(line), "{line}\n{metrics}");
        }
    }

    async fn a_token_that_cannot_be_looked_up_is_not_a_wrong_one(app: TestApp) {
        let admin = app.admin().await;
        app.database.execute("ALTER TABLE sessions RENAME TO elsewhere").await.unwrap();
        let bearer = format!("Bearer {}", admin.access_token.unwrap());
        let answer = send(&app, Method::GET, "/health/detailed", &[("authorization", &bearer)], "").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    async fn a_database_error_is_not_told_to_the_caller(app: TestApp) {
        let admin = app.admin().await;
        app.database.execute("ALTER TABLE claude_accounts RENAME TO elsewhere").await.unwrap();
        let answer = admin.run("{ claudeAccounts { totalCount } viewer { role } }").await;
        assert_eq!(answer.code(), "INTERNAL_SERVER_ERROR");
        assert_eq!(answer.body["data"]["viewer"]["role"], "ADMIN");
        assert!(!answer.body.to_string().contains("elsewhere") && !answer.body.to_string().contains("claude_accounts"));
    }
}
