//! Conversations with the Claude CLI itself, through the relay, at a mock upstream.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::command_line::{Place, on_both};
use crate::conversation::create;
use crate::http::node;
use crate::relay::{FIRST, MODEL, Relayed, account, records};
use crate::support::{
    Claude, Client, EventStream, PASSWORD, Reply, Socket, Step, TestApp, TestDatabase, both_databases, delta, events,
};
use crate::turn::{send_when_free, settled, streaming};

/// The CLI that `./test` has installed.
fn cli() -> PathBuf {
    let program = std::env::current_dir().unwrap().join("tests/relay-clients/node_modules/.bin/claude");
    assert!(program.exists(), "{} is missing: ./test installs it", program.display());
    program
}

/// Starts the server with the CLI.
pub(crate) async fn with_cli(mut app: TestApp) -> (TestApp, Relayed) {
    app.set("CLAUDE_CLI", cli().to_str().unwrap());
    // Many at once take their time on a small machine.
    app.set("REQUEST_TIMEOUT", "300");
    app.restart().await;
    let relayed = Relayed::new(&app).await;
    (app, relayed)
}

pub(crate) async fn send(client: &Client, conversation: &Value, text: &str) -> Value {
    let query = "mutation($input: SendMessageInput!) { sendMessage(input: $input) { message { text usage } } }";
    let input = json!({ "conversationId": conversation, "text": text });
    client.with(query, json!({ "input": input })).await.data()["sendMessage"]["message"].clone()
}

/// What the user and Claude say in the last request that the upstream has got.
pub(crate) fn last_messages(claude: &Claude) -> Vec<Value> {
    let seen = claude.seen();
    let last = seen.iter().rfind(|seen| seen.uri.path() == "/v1/messages").unwrap();
    let body: Value = serde_json::from_slice(&last.body).unwrap();
    let messages = body["messages"].as_array().unwrap().clone();
    messages.into_iter().filter(|message| message["role"] != "system").collect()
}

/// What is said by curl, and the names of the events that come.
async fn curl(app: &TestApp, client: &Client, conversation: &Value, text: &str) -> Vec<String> {
    let output = Command::new("curl")
        .args(["-sSN", "--noproxy", "*", "-H", "Content-Type: application/json"])
        .args(["-H", &format!("Authorization: Bearer {}", client.access_token.as_ref().unwrap())])
        .args(["-d", &json!({ "text": text }).to_string()])
        .arg(format!("{}/v1/conversations/{}/messages", app.url, conversation.as_str().unwrap()))
        .stdin(Stdio::null())
        .output();
    let output = output.await.expect("curl is there: ./test installs it");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| Some(line.strip_prefix("event: ")?.to_owned())).collect()
}

/// The processes that one has started.
fn children(of: &Value) -> Vec<PathBuf> {
    let of = of.as_u64().unwrap().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_child = |path: &PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split(' ').nth(2) == Some(&of))
    };
    all.filter(is_child).collect()
}

both_databases! {
    async fn three_turns_streamed_with_a_restart_between_and_paid_for(app: TestApp) {
        let (mut app, relayed) = with_cli(app).await;
        let admin = &relayed.admin;
        let client = admin.run("mutation { createClient(input: { name: \"Acme\" }) { client { id } } }").await.data()["createClient"]
            ["client"]["id"].clone();
        let input = json!({ "model": MODEL, "systemPrompt": "Be a pirate.", "clientId": client });
        let conversation = create(admin, input).await["id"].clone();
        node("graphql-live", "conversation.mjs", vec![
            ("URL", app.url.clone()), ("TOKEN", admin.access_token.clone().unwrap()),
            ("CONVERSATION", conversation.as_str().unwrap().to_owned()), ("TEXT", "My name is Ada.".to_owned()),
            ("ANSWER", "Hello from Claude.".to_owned()),
        ]).await;
        let mut names = curl(&app, admin, &conversation, "And yours?").await;
        assert!(names.len() > 1 && names.pop().unwrap() == "message_completed" && names.iter().all(|name| name == "message_delta"));

        app.restart().await;
        let admin = app.admin().await;
        // Neither a command of the CLI's own nor a file that it reads.
        let secret = app.data_dir().join("encryption-keys");
        let text = format!("/clear @{} @encryption-keys", secret.display());
        let answer = send(&admin, &conversation, &text).await;
        assert_eq!(answer["text"], "Hello from Claude.");
        let messages = last_messages(&relayed.claude);
        let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant", "user"], "{messages:?}");
        let sent = json!(messages).to_string();
        assert!(sent.contains("My name is Ada.") && sent.contains("/clear @"), "{sent}");
        let keys = std::fs::read_to_string(&secret).unwrap();
        for seen in relayed.claude.seen() {
            let body = String::from_utf8_lossy(&seen.body).into_owned();
            assert!(!body.contains(keys.trim()) && seen.key() == FIRST && !format!("{:?}", seen.headers).contains("clv_"));
        }
        assert!(sent.matches("Hello from Claude.").count() == 2);
        let seen = relayed.claude.seen();
        let last = seen.iter().rfind(|seen| seen.uri.path() == "/v1/messages").unwrap();
        assert!(String::from_utf8_lossy(&last.body).contains("Be a pirate."));

        // What it took stands in the records, reports and bills of the relay, under the user and the client, and no key.
        let columns = "coalesce(api_key_id, '-') || ' ' || substr(user_id, 1, 5) || ' ' || model || ' ' || CAST(cost_nano_usd > 0 AS TEXT)";
        let found = records(&app, columns, 3).await;
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|record| record.starts_with(&format!("- user_ {MODEL} "))), "{found:?}");
        let now = app.services().clock.now().to_text();
        let (year, month) = (&now[..4], now[5..7].trim_start_matches('0'));
        let report = format!("{{ usage(filter: {{ from: \"2020-01-01T00:00:00Z\", to: \"2099-01-01T00:00:00Z\" }}) {{ total {{ requests costUsd }} }}
            billing(year: {year}, month: {month}) {{ byClient {{ client {{ name }} totals {{ requests costUsd }} }} }} }}");
        let report = admin.run(&report).await.data().clone();
        // Three usual answers of the upstream.
        let total = json!({ "requests": 3, "costUsd": "0.00081" });
        assert_eq!((&report["usage"]["total"], &report["billing"]["byClient"]), (&total, &json!([{ "client": { "name": "Acme" }, "totals": total }])));
        assert_eq!(answer["usage"]["outputTokens"], 12);
    }

    async fn what_is_asked_again_counts_and_an_answer_ends_beyond_its_budget(app: TestApp) {
        let (mut app, relayed) = with_cli(app).await;
        let admin = &relayed.admin;
        let conversation = create(admin, json!({ "model": MODEL })).await["id"].clone();
        let start = events(MODEL)[..2].concat() + &delta("Half");
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(start.clone()), Step::Cut])]);
        let answer = send(admin, &conversation, "Hello").await;
        assert_eq!(answer["text"], "Hello from Claude.");
        let recorded = records(&app, "CAST(input_tokens AS TEXT)", 2).await;
        assert_eq!((recorded.as_slice(), &answer["usage"]["inputTokens"]), (["25", "25"].map(str::to_owned).as_slice(), &json!(50)));

        app.set("TURN_TOKEN_BUDGET", "1000");
        app.restart().await;
        let admin = app.admin().await;
        let dear = events(MODEL).into_iter().rfind(|event| event.contains("message_delta")).unwrap().replace("12", "5000");
        relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(start), Step::Hold, Step::Say(dear), Step::Hold])]);
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("a", &streaming(&conversation, "And now?")).await;
        assert_eq!(socket.event("a").await["messageStream"]["text"], "Half");
        relayed.claude.release(1);
        let kept = socket.event("a").await["messageStream"]["message"].clone();
        assert_eq!((&kept["text"], &kept["usage"]["interrupted"]), (&json!("Half"), &json!(true)));
        assert_eq!(kept["usage"]["outputTokens"], 5000);
        assert_eq!(send(&admin, &conversation, "Go on").await["text"], "Hello from Claude.");
        let asked = relayed.claude.seen().into_iter().filter(|seen| seen.uri.path() == "/v1/messages").count();
        assert_eq!(asked, 4);
    }

    async fn an_answer_that_is_left_ends_at_the_upstream_too(app: TestApp) {
        let (app, relayed) = with_cli(app).await;
        let admin = &relayed.admin;
        let conversation = create(admin, json!({ "model": MODEL })).await["id"].clone();
        let held = Reply::Stream(vec![Step::Say(events(MODEL)[..2].concat() + &delta("Half")), Step::Hold]);
        relayed.claude.will(FIRST, [held]);
        let mut socket = Socket::connected(&app, admin).await;
        let query = format!("subscription {{ messageStream(input: {{ conversationId: {conversation}, text: \"Hello\" }}) {{
            ... on MessageDelta {{ text }} }} }}");
        socket.subscribe("a", &query).await;
        assert_eq!(socket.event("a").await["messageStream"]["text"], "Half");
        socket.send(json!({ "id": "a", "type": "complete" })).await;
        let count = "query($id: ID!) { conversation(id: $id) { messages { nodes { text usage } } } }";
        let mut kept = Value::Null;
        settled("what is kept", async || {
            kept = admin.with(count, json!({ "id": conversation })).await.data()["conversation"]["messages"]["nodes"].clone();
            kept.as_array().unwrap().len() == 2
        })
        .await;
        assert_eq!((&kept[1]["text"], &kept[1]["usage"]["interrupted"]), (&json!("Half"), &json!(true)));
        assert_eq!(send(admin, &conversation, "Go on").await["text"], "Hello from Claude.");
        assert_eq!(records(&app, "CAST(interrupted AS TEXT)", 2).await.len(), 2);
    }
}

on_both! {
    async fn a_conversation_goes_on_after_the_server_was_killed_in_the_middle(place: Place) {
        let serve = || {
            let mut command = place.command(&["serve"]);
            command.env("CLAUDE_CLI", cli()).env("UPSTREAM_ALLOWED_HOSTS", "127.0.0.1");
            Place::started(command)
        };
        let (claude, mut server) = (Claude::start().await, serve());
        let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
        account(&admin, &claude, FIRST, json!({})).await;
        let conversation = create(&admin, json!({ "model": MODEL })).await["id"].clone();
        assert_eq!(send(&admin, &conversation, "My name is Ada.").await["text"], "Hello from Claude.");
        claude.will(FIRST, [Reply::Stream(vec![Step::Say(events(MODEL)[..2].concat() + &delta("Half")), Step::Hold])]);
        let path = format!("{}/v1/conversations/{}/messages", server.url, conversation.as_str().unwrap());
        let request = admin.http().post(path).bearer_auth(admin.access_token.as_ref().unwrap());
        let mut stream = EventStream::of(request.json(&json!({ "text": "And yours?" })).send().await.unwrap());
        assert_eq!(stream.event().await.unwrap().1, json!({ "text": "Half" }));
        let pid = admin.run("{ workers { pid } }").await.data()["workers"][0]["pid"].clone();
        let processes = children(&pid);
        assert_eq!(processes.len(), 1);
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for process in processes {
            settled("its end", async || !process.exists()).await;
        }
        drop(server);

        let server = serve();
        let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
        assert_eq!(send_when_free(&admin, &conversation, "And now?").await, "Hello from Claude.");
        let messages = last_messages(&claude);
        let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user"], "{messages:?}");
        let sent = json!(messages).to_string();
        assert!(sent.contains("My name is Ada.") && !sent.contains("Half") && sent.contains("And now?"), "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_conversations_at_once_on_five_processes() {
    let (app, relayed) = with_cli(TestApp::sqlite().await).await;
    let admin = &relayed.admin;
    let all = (0..20).map(async |_| {
        let conversation = create(admin, json!({ "model": MODEL })).await["id"].clone();
        send(admin, &conversation, "Hello").await["text"].clone()
    });
    let answers = futures_util::future::join_all(all).await;
    assert!(answers.iter().all(|answer| answer == "Hello from Claude."), "{answers:?}");
    assert_eq!(records(&app, "id", 20).await.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_refuses_is_told_of() {
    let (_app, relayed) = with_cli(TestApp::sqlite().await).await;
    let body = r#"{"type":"error","error":{"type":"not_found_error","message":"model: nothing"}}"#;
    relayed.claude.will(FIRST, vec![Reply::Body(404, "application/json", body.to_owned()); 3]);
    let query = "mutation { sendMessage(input: { text: \"Hello\", model: \"nothing\" }) { message { id } } }";
    let answer = relayed.admin.run(query).await;
    assert_eq!(answer.code(), "BAD_USER_INPUT", "{}", answer.body);
}

/// The relay has tried for long by then: the CLI does not go on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_away_is_told_of_soon() {
    let (app, relayed) = with_cli(TestApp::sqlite().await).await;
    relayed.claude.will(FIRST, vec![Reply::Error(503, "api_error", vec![]); 1_000]);
    let query = "mutation { sendMessage(input: { text: \"Hello\" }) { message { id } } }";
    let answer = relayed.admin.run(query).await;
    assert_eq!(answer.code(), "SERVICE_UNAVAILABLE", "{}", answer.body);
    claviger::domain::usage::flush(&app.services()).await.unwrap();
    assert!(records(&app, "id", 1).await.len() <= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_of_an_api_key_hold_for_what_it_says() {
    let (app, relayed) = with_cli(TestApp::sqlite().await).await;
    // It opens the GraphQL API and not the relay: that is lent to the process.
    let input = json!({ "name": "K", "scopes": ["ADMIN_WRITE"], "allowedModels": ["claude-haiku-*"] });
    let (key, raw) = crate::api_key::create(&relayed.admin, input).await;
    let by_key = crate::api_key::with_key(&app, &raw);
    let said = async |model: &str| {
        let query = "mutation($m: String!) { sendMessage(input: { text: \"Hello\", model: $m }) { message { text } } }";
        by_key.with(query, json!({ "m": model })).await
    };
    assert_eq!(said(MODEL).await.code(), "BAD_USER_INPUT");
    assert_eq!(said("claude-haiku-4-5").await.data()["sendMessage"]["message"]["text"], "Hello from Claude.");
    let found = records(&app, "model || ' ' || coalesce(api_key_id, '-')", 1).await;
    assert_eq!(found, [format!("claude-haiku-4-5 {}", key["id"].as_str().unwrap())]);
    let entry = relayed.admin.run("{ auditLogs(first: 1) { nodes { operation apiKey { id } } } }").await;
    assert_eq!(
        entry.data()["auditLogs"]["nodes"][0],
        json!({ "operation": "sendMessage", "apiKey": { "id": key["id"] } })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_repository_that_the_server_stands_in_is_told() {
    let (app, relayed) = with_cli(TestApp::sqlite().await).await;
    let git = async |arguments: &[&str]| {
        let as_somebody = ["-c", "user.name=A", "-c", "user.email=a@example.com"];
        let output =
            Command::new("git").args(as_somebody).args(arguments).current_dir(app.data_dir()).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    git(&["init", "--quiet", "--initial-branch=canary-branch"]).await;
    git(&["commit", "--quiet", "--allow-empty", "--message=canary-subject"]).await;
    std::fs::write(app.data_dir().join("canary-file"), "").unwrap();
    let conversation = create(&relayed.admin, json!({ "model": MODEL })).await["id"].clone();
    assert_eq!(send(&relayed.admin, &conversation, "What is in your context?").await["text"], "Hello from Claude.");
    let seen = relayed.claude.seen();
    assert!(seen.iter().any(|seen| seen.uri.path() == "/v1/messages"));
    for seen in seen {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        assert!(!body.contains("canary-"), "{body}");
    }
}
