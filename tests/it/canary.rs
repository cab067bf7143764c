//! Canaries in every input of the schema: where secrets are put in, they stand nowhere afterwards; nothing that is put in
//! stands in the log or the metrics.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use claviger::logs::subscriber;
use claviger::settings::{Settings, Sources};
use serde_json::{Value, json};
use tracing::dispatcher::{Dispatch, set_default};

use crate::calls::Call;
use crate::claude_account::create;
use crate::invitation::join;
use crate::logs::Captured;
use crate::password_key::{encrypted, offered};
use crate::support::schema::{Place, Schema, assert_lines};
use crate::support::{Client, MockUpstream, PASSWORD, Socket, TestApp, TestDatabase};
use crate::tenants::tables;

/// The inputs that take secrets.
const SECRETS: &[&str] = &[
    "AcceptInvitationInput.token",
    "CreateClaudeAccountInput.apiKey",
    "CreateConversationInput.systemPrompt",
    "CreateCredentialInput.secret",
    "EncryptedPasswordInput.ciphertext",
    "EncryptedPasswordInput.nonce",
    "PasswordInput.plain",
    "RefreshSessionInput.refreshToken",
    "ReplaceClaudeAccountKeyInput.apiKey",
    "ResetPasswordInput.token",
    "SendMessageInput.text",
    "SignOutInput.refreshToken",
    "UpdateConversationInput.systemPrompt",
    "UpdateCredentialInput.secret",
    "VerifyEmailInput.token",
    "Query.verifyApiKey.key",
];

/// Inputs that are named like secrets and are none.
const NOT_SECRET: &[&str] = &[
    "AuditLogFilter.apiKeyId",
    "CreateApiKeyInput.tokenLimitPerDay",
    "CredentialFilter.keyVersion",
    "EncryptedPasswordInput.keyId",
    "RevealCredentialInput.secretVersion",
    "UpdateApiKeyInput.tokenLimitPerDay",
    "UsageFilter.apiKeyId",
];

/// What the name of a secret has in it.
const SECRETIVE: [&str; 9] = ["password", "secret", "token", "key", "plain", "cipher", "nonce", "prompt", "text"];

/// What begins each canary that was put where a secret belongs, and each that was put elsewhere.
const SECRET: &str = "canarysecret";
const PLAIN: &str = "canaryplain";

/// Every place of an input of a root field.
fn places() -> Vec<(String, Place)> {
    let schema = Schema::of_the_server();
    let fields = schema.root_fields().into_iter().filter(|(name, _)| !name.starts_with("Subscription."));
    fields
        .flat_map(|(name, field)| schema.places(&name, field).into_iter().map(move |place| (name.clone(), place)))
        .collect()
}

#[test]
fn every_input_that_is_named_like_a_secret_has_its_line() {
    let schema = Schema::of_the_server();
    let all = schema.root_fields().into_iter().flat_map(|(name, field)| schema.places(&name, field));
    let is_secretive = |name: &str| {
        let name = name.rsplit_once('.').unwrap().1.to_lowercase();
        SECRETIVE.iter().any(|word| name.contains(word))
    };
    let mut secretive: Vec<_> = all.map(|place| place.name).filter(|name| is_secretive(name)).collect();
    secretive.sort();
    secretive.dedup();
    let lines = SECRETS.iter().chain(NOT_SECRET).copied();
    assert_lines("SECRETS or NOT_SECRET of tests/it/canary.rs", lines, secretive);
}

/// Each way in which a value can be put into a place, right or wrong.
fn values(canary: &str, place: &Place) -> Vec<Value> {
    let text = match place.of.as_str() {
        "String" => vec![
            json!(canary),
            json!(format!("{canary}@example.com")),
            json!(format!("https://{canary}.example.com/")),
            json!(canary.repeat(1_000)),
            json!(format!("{canary}\0")),
        ],
        "JSON" => vec![json!({ "note": canary }), json!(canary)],
        _ => vec![json!(canary)],
    };
    text.into_iter().chain([json!({ canary: canary }), json!([[canary]])]).collect()
}

/// Puts canaries everywhere. Returns all errors that were answered.
async fn plant(app: &TestApp, admin: &Client) -> String {
    // An upstream that says back which key it was given.
    let upstream = MockUpstream::start().await;
    let input = json!({ "apiKey": format!("{SECRET}-told"), "accountName": "A", "baseUrl": upstream.base_url("echo") });
    let account = create(admin, input).await;
    let try_out = "mutation($id: ID!) { testClaudeAccount(input: { id: $id }) { message claudeAccount { health { lastError } } } }";
    let mut errors = admin.with(try_out, json!({ "id": account["id"] })).await.data().to_string();
    assert_eq!(upstream.requests().len(), 1);

    let mut note = |body: &Value| match body.get("errors") {
        Some(told) => errors += &told.to_string(),
        None if body.is_object() => {}
        None => errors += &body.to_string(),
    };
    for (n, (name, place)) in places().iter().enumerate() {
        let is_secret = SECRETS.contains(&place.name.as_str());
        let canary = format!("{}{n}", if is_secret { SECRET } else { PLAIN });
        let mut call = Call::fresh(app, admin, name, &format!("sk-ant-fresh-{n}")).await;
        // Whose password is a canary by then signs in no more.
        let somebody = match name.as_str() {
            "Mutation.changePassword" => join(app, admin, &format!("somebody-{n}@example.com"), "ADMIN").await.1,
            _ => admin.clone(),
        };
        // Each from a network of its own: wrong passwords from here would lock out who signs in for the next call.
        let from = format!("2001:db8:{n:x}::1");
        let (somebody, anonymous) = (somebody.from(&from), app.anonymous().from(&from));
        if let Some(at) = place.path.iter().position(|step| step == "encrypted") {
            // In the place of the plain one: with both, the input would be refused before it is read.
            let offer = offered(&anonymous).await;
            call.put(&place.path[..at], encrypted(&offer, &format!("{SECRET}-sealed-{n}")));
        }
        for value in values(&canary, place) {
            call.put(&place.path, value);
            note(&call.send(&somebody).await.body);
            note(&call.send(&anonymous).await.body);
        }
        call.put(&place.path, json!(canary));
        let written_out = call.written_out("");
        let broken = [call.written_out("nope: 1"), format!("{written_out} }}"), written_out.replace("\") {", ") {")];
        for document in broken.iter().chain([&written_out]) {
            note(&somebody.run(document).await.body);
        }
    }
    errors + &say(app, admin).await
}

/// Says canaries in conversations as no call does. Returns what was answered.
async fn say(app: &TestApp, admin: &Client) -> String {
    let stream = |text: &str| format!("subscription {{ messageStream(input: {{ text: {text} }}) {{ __typename }} }}");
    let mut socket = Socket::connected(app, admin).await;
    let mut answered = String::new();
    for (n, text) in
        [format!("\"{SECRET}\""), format!("\"{SECRET} !complain\""), format!("{{ {SECRET}: 1 }}")].iter().enumerate()
    {
        let id = n.to_string();
        socket.subscribe(&id, &stream(text)).await;
        loop {
            let told = socket.next().await;
            answered += &told.to_string();
            if told["id"] == id && told["type"] != "next" {
                break;
            }
        }
    }
    let workers = admin.run("{ workers { lastError } }").await.data().to_string();
    assert!(workers.contains("exit code 4"), "{workers}");
    answered += &workers;
    let conversation = crate::conversation::create(admin, json!({})).await["id"].clone();
    let path = format!("{}/v1/conversations/{}/messages", app.url, conversation.as_str().unwrap());
    for body in [
        json!({ "text": SECRET }).to_string(),
        json!({ "text": format!("{SECRET} !overload") }).to_string(),
        json!({ "text": { SECRET: 1 } }).to_string(),
        format!("{{ \"text\": \"{SECRET}\", "),
    ] {
        let request = admin.http().post(&path).bearer_auth(admin.access_token.as_ref().unwrap()).body(body);
        answered += &request.send().await.unwrap().text().await.unwrap();
    }
    assert!(answered.contains("MessageCompleted") && answered.contains("event: message_completed"), "{answered}");
    answered
}

/// What is searched for to find a text, however it may be written.
fn disguises(text: &str) -> Vec<String> {
    let mut found = vec![text.to_owned(), hex::encode(text), hex::encode_upper(text)];
    // Base 64 looks different by what stands before; the characters at the ends have bits of their neighbours.
    for before in 0..3 {
        let bytes = [vec![0; before], text.as_bytes().to_vec()].concat();
        for alphabet in [&STANDARD, &URL_SAFE] {
            let encoded = alphabet.encode(&bytes);
            let from = [0, 2, 3][before];
            let to = bytes.len() * 4 / 3;
            found.push(encoded[from..to].to_owned());
        }
    }
    found
}

#[track_caller]
pub(crate) fn assert_is_nowhere(text: &str, places: &[(&str, &str)]) {
    for (place, kept) in places {
        for disguise in disguises(text) {
            if let Some(at) = kept.find(&disguise) {
                let around =
                    String::from_utf8_lossy(&kept.as_bytes()[at.saturating_sub(200)..kept.len().min(at + 200)]);
                panic!("{text} stands in the {place}: …{around}…");
            }
        }
    }
}

/// Everything that the database keeps.
pub(crate) async fn kept(app: &TestApp) -> String {
    if let Some(path) = app.database.url.strip_prefix("sqlite://") {
        let files = ["", "-wal", "-shm"].map(|suffix| std::fs::read(format!("{path}{suffix}")).unwrap_or_default());
        return String::from_utf8_lossy(&files.concat()).into_owned();
    }
    let of_tables =
        tables(app).await.into_keys().map(|table| format!("SELECT CAST({table}.* AS text) AS text FROM {table}"));
    app.database.texts(&of_tables.collect::<Vec<_>>().join(" UNION ALL ")).await.join("\n")
}

async fn secrets_stand_nowhere(database: TestDatabase, log: Captured) {
    let app = TestApp::start(database, [("TRUSTED_PROXIES", "127.0.0.1".to_owned())]).await;
    let admin = app.admin().await;
    let errors = plant(&app, &admin).await;
    let metrics = reqwest::get(format!("{}/metrics", app.url)).await.unwrap().text().await.unwrap();
    let database = kept(&app).await;
    let log = log.text();

    // Where nothing is found, the canaries were there to be found, and the log was one.
    assert!(database.contains(PLAIN) && errors.contains("BAD_USER_INPUT"));
    assert!(log.contains("TRACE") && log.contains("DEBUG") && log.contains("/graphql"));

    let everywhere = [("database", &*database), ("log", &*log), ("errors", &*errors), ("metrics", &*metrics)];
    let (access, refresh) = (admin.access_token.unwrap(), admin.refresh_token.unwrap());
    for secret in [SECRET, PASSWORD, &access, &refresh] {
        assert_is_nowhere(secret, &everywhere);
    }
    assert_is_nowhere(PLAIN, &[("log", &*log), ("metrics", &*metrics)]);
}

/// Runs a test on threads whose log is captured: all of it, that of the server's libraries too.
pub(crate) fn with_log(
    format: &str,
    database: impl AsyncFnOnce() -> TestDatabase,
    test: impl AsyncFnOnce(TestDatabase, Captured),
) {
    let settings = Settings::load(&Sources::from_pairs([("LOG_FORMAT", format), ("LOG_LEVEL", "trace")])).unwrap();
    let captured = Captured::default();
    let writer = captured.clone();
    let dispatch = Dispatch::new(subscriber(&settings, None, move || writer.clone(), false));
    let of_main = set_default(&dispatch);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        // For as long as the thread lives.
        .on_thread_start(move || std::mem::forget(set_default(&dispatch)))
        .build()
        .unwrap();
    runtime.block_on(async { test(database().await, captured).await });
    drop(of_main);
}

mod secrets_stand_in_no_database_log_error_or_metric {
    use super::*;

    #[test]
    fn sqlite_json() {
        with_log("json", async || TestDatabase::sqlite(), secrets_stand_nowhere);
    }

    #[test]
    fn sqlite_pretty() {
        with_log("pretty", async || TestDatabase::sqlite(), secrets_stand_nowhere);
    }

    #[test]
    fn postgres_json() {
        with_log("json", TestDatabase::postgres, secrets_stand_nowhere);
    }

    #[test]
    fn postgres_pretty() {
        with_log("pretty", TestDatabase::postgres, secrets_stand_nowhere);
    }
}
