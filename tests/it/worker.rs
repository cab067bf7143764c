//! The processes of the Claude CLI: how they are waited for, watched over, and ended with all that they have started.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::command_line::{Place, on_both};
use crate::conversation::create;
use crate::invitation::join;
use crate::support::{Client, PASSWORD, STAND_IN, Socket, TestApp, TestDatabase, both_databases, until_gauge};
use crate::turn::{SEND, app_with, is_alive, said, send, send_when_free, settled, streaming, try_send, until, workers};

/// Whether all of some processes run.
fn are_alive(pids: &str) -> bool {
    pids.split(' ').all(is_alive)
}

fn signal(name: &str, pid: &Value) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The longest text, which is more than the pipe to a process holds.
fn longest() -> String {
    "x".repeat(100_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_the_process_is_ready_ends_it() {
    let app = TestApp::sqlite().await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({ "model": "asleep" })).await["id"].clone();
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("a", &streaming(&conversation, "Hello")).await;
    settled("its start", async || workers(&admin).await.iter().any(|one| one["pid"].is_number())).await;
    until(&admin, &conversation, "STARTING").await;
    socket.send(json!({ "id": "a", "type": "complete" })).await;
    settled("its end", async || workers(&admin).await.is_empty()).await;
    assert!(said(&admin, &conversation).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_hangs_is_ended_with_all_that_it_has_started() {
    let app = app_with(TestDatabase::sqlite(), &[("WORKER_TIMEOUT", "1")]).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    let pid = send(&admin, &conversation, "!pid").await;
    assert!(pid.contains(' ') && are_alive(&pid), "{pid}");
    assert_eq!(try_send(&admin, &conversation, "!hang").await.code(), "TIMEOUT");
    settled("its end", async || !is_alive(&pid)).await;
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 2");
    // Nor does one live on that does not even read what is said, which is more than its pipe holds.
    let pid = send(&admin, &conversation, "!pid").await;
    assert_eq!(send(&admin, &conversation, "!deaf").await, "Deaf");
    assert_eq!(try_send(&admin, &conversation, &longest()).await.code(), "TIMEOUT");
    settled("its end", async || !is_alive(&pid)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_stop_the_server_end_no_process_in_the_middle_of_an_answer() {
    let app = TestApp::sqlite().await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("a", &streaming(&conversation, "!slow")).await;
    assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
    // As a service manager does, and a terminal that is closed.
    let pid = until(&admin, &conversation, "BUSY").await["pid"].clone();
    for name in ["TERM", "INT", "HUP"] {
        signal(name, &pid);
    }
    // Ctrl-C goes to the group of the server alone.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert_eq!(stat.rsplit_once(") ").unwrap().1.split(' ').nth(2), Some(pid.to_string().as_str()));
    socket.send(json!({ "id": "a", "type": "complete" })).await;
    settled("the end", async || said(&admin, &conversation).await.len() == 2).await;
    assert_eq!(said(&admin, &conversation).await[1].1, "Slow");
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 2");
    assert_eq!(until(&admin, &conversation, "IDLE").await["pid"], pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_is_killed_or_stopped_leaves_no_process() {
    let app = app_with(TestDatabase::sqlite(), &[("WORKER_TIMEOUT", "2")]).await;
    let admin = app.admin().await;
    for name in ["KILL", "STOP"] {
        let conversation = create(&admin, json!({})).await["id"].clone();
        let pids = send(&admin, &conversation, "!pid").await;
        let supervisor = until(&admin, &conversation, "IDLE").await["pid"].clone();
        // Deaf: it does not notice that its input has ended.
        assert_eq!(send(&admin, &conversation, "!deaf").await, "Deaf");
        assert!(are_alive(&pids));
        signal(name, &supervisor);
        // The next process says it, or nobody does in time.
        try_send(&admin, &conversation, &longest()).await;
        settled("their end", async || !is_alive(&pids) && !is_alive(&supervisor.to_string())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_idle_ends_or_makes_room() {
    let app = app_with(TestDatabase::sqlite(), &[("MAX_WORKERS", "1"), ("WORKER_IDLE_TIMEOUT", "1")]).await;
    let admin = app.admin().await;
    let (a, b) = (create(&admin, json!({})).await["id"].clone(), create(&admin, json!({})).await["id"].clone());
    for n in 1..=2 {
        assert_eq!(send(&admin, &a, "Hello").await, format!("Answer {n}"));
        assert_eq!(send(&admin, &b, "Hello").await, format!("Answer {n}"));
    }
    let pid = send(&admin, &b, "!pid").await;
    settled("its end", async || !is_alive(&pid)).await;
    settled("its end", async || workers(&admin).await.is_empty()).await;
}

both_databases! {
    async fn what_is_deleted_is_forgotten_by_the_process_that_knows_it(app: TestApp) {
        let admin = app.admin().await;
        let (id, user) = join(&app, &admin, "a@example.com", "MEMBER").await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        let (own, theirs) = (send(&admin, &conversation, "!pid").await, create(&user, json!({})).await["id"].clone());
        let theirs = send(&user, &theirs, "!pid").await;
        assert!(are_alive(&own) && are_alive(&theirs));
        admin.with("mutation($id: ID!) { deleteConversation(input: { id: $id }) { deletedId } }", json!({ "id": conversation })).await.data();
        settled("its end", async || !is_alive(&own)).await;
        admin.with("mutation($id: ID!) { deleteUser(input: { id: $id }) { deletedId } }", json!({ "id": id })).await.data();
        settled("its end", async || !is_alive(&theirs)).await;
        settled("nobody", async || workers(&admin).await.is_empty()).await;
    }
}

/// By a path from where the server was started, while processes are elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cli_is_found_by_a_relative_path() {
    let app = app_with(TestDatabase::sqlite(), &[("CLAUDE_CLI", "tests/stand-in/claude")]).await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_has_an_end_and_nobody_fills_it_for_another_organization() {
    let app = app_with(TestDatabase::sqlite(), &[("MAX_WORKERS", "1")]).await;
    let (admin, other) = (app.admin().await, app.other_organization().await);
    let conversation = create(&admin, json!({})).await["id"].clone();
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("slow", &streaming(&conversation, "!slow")).await;
    assert_eq!(socket.event("slow").await["messageStream"]["text"], "Slow");
    let waiting: Vec<_> = (0..25)
        .map(|n| {
            let admin = admin.clone();
            tokio::spawn(async move { admin.with(SEND, json!({ "input": { "text": format!("{n}") } })).await })
        })
        .collect();
    settled("a full queue", async || waiting.iter().filter(|one| one.is_finished()).count() == 5).await;
    until_gauge(&app, "claviger_conversations_waiting", 20).await;
    let theirs = tokio::spawn(async move { other.with(SEND, json!({ "input": { "text": "Hello" } })).await });
    until_gauge(&app, "claviger_conversations_waiting", 21).await;
    socket.send(json!({ "id": "slow", "type": "complete" })).await;
    let theirs = theirs.await.unwrap().data()["sendMessage"]["message"].clone();
    assert_eq!(theirs["text"], "Answer 1");
    let mut answers = Vec::new();
    for one in waiting {
        answers.push(one.await.unwrap());
    }
    let refused: Vec<_> = answers.iter().filter(|answer| answer.body.get("errors").is_some()).collect();
    assert_eq!(refused.len(), 5);
    assert!(refused.iter().all(|answer| answer.code() == "RATE_LIMITED"));
    // Who came last of another organization was answered among the first.
    let answered = answers.iter().filter(|answer| answer.body.get("errors").is_none());
    let times: Vec<_> = answered.map(|answer| answer.data()["sendMessage"]["message"]["createdAt"].clone()).collect();
    let before = times.iter().filter(|at| at.as_str().unwrap() < theirs["createdAt"].as_str().unwrap()).count();
    assert!(times.len() == 20 && before <= 1, "{before} before {theirs}: {times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_cli_the_server_runs_and_says_so() {
    let app =
        app_with(TestDatabase::sqlite(), &[("CLAUDE_CLI", "/nowhere/claude"), ("CLAUDE_TOOLS", "WebSearch")]).await;
    let admin = app.admin().await;
    let answer = admin.with(SEND, json!({ "input": { "text": "Hello" } })).await;
    assert_eq!(answer.code(), "SERVICE_UNAVAILABLE");
    assert!(answer.body["errors"][0]["message"].as_str().unwrap().contains("CLAUDE_CLI"), "{}", answer.body);
    let found = workers(&admin).await;
    assert_eq!((found.len(), &found[0]["state"], &found[0]["pid"]), (1, &json!("FAILED"), &Value::Null));
    assert!(found[0]["lastError"].as_str().unwrap().contains("/nowhere/claude"));
    let tools = admin.run("{ tools { enabled } }").await.data()["tools"].clone();
    assert!(tools.as_array().unwrap().iter().all(|tool| tool["enabled"] == false));
    let ready = admin.http().get(format!("{}/health/ready", app.url)).send().await.unwrap();
    assert_eq!(ready.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_told_of_when_it_changes_to_its_own_organization() {
    let app = TestApp::sqlite().await;
    let (admin, other) = (app.admin().await, app.other_organization().await);
    let changed = "subscription { workerChanged { id state handled } }";
    let mut socket = Socket::connected(&app, &admin).await;
    socket.follow(&app, "w", changed).await;
    let theirs = other.with(SEND, json!({ "input": { "text": "Hello" } })).await;
    theirs.data();
    let conversation = create(&admin, json!({})).await["id"].clone();
    send(&admin, &conversation, "Hello").await;
    let own = until(&admin, &conversation, "IDLE").await["id"].clone();
    let mut last = Value::Null;
    while last["state"] != "IDLE" {
        last = socket.event("w").await["workerChanged"].clone();
        assert_eq!(last["id"], own);
    }
    assert_eq!(last["handled"], 1);
    let query = "query($id: ID!) { node(id: $id) { ... on Worker { state } } }";
    assert_eq!(admin.with(query, json!({ "id": own })).await.data()["node"]["state"], "IDLE");
    assert_eq!(other.with(query, json!({ "id": own })).await.data()["node"], Value::Null);
}

on_both! {
    async fn a_server_that_is_killed_leaves_no_process_and_goes_on_with_the_conversation(place: Place) {
        let serve = || {
            let mut command = place.command(&["serve"]);
            command.env("CLAUDE_CLI", STAND_IN);
            Place::started(command)
        };
        let mut server = serve();
        let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        let others = [create(&admin, json!({})).await["id"].clone(), create(&admin, json!({})).await["id"].clone()];
        let mut pids = Vec::new();
        for conversation in [&conversation, &others[0], &others[1]] {
            pids.push(send(&admin, conversation, "!pid").await);
        }
        assert!(pids.iter().all(|pids| are_alive(pids)));
        assert_eq!(send(&admin, &others[1], "!deaf").await, "Deaf");
        // One is idle, one in the middle of an answer, and one does not read what is said.
        let asked = [(&conversation, "!hang".to_owned()), (&others[1], longest())].map(|(conversation, text)| {
            let (admin, conversation) = (admin.clone(), conversation.clone());
            tokio::spawn(async move { let _ = tokio::time::timeout(Duration::from_secs(20), try_send(&admin, &conversation, &text)).await; })
        });
        for conversation in [&conversation, &others[1]] {
            until(&admin, conversation, "BUSY").await;
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for pid in &pids {
            settled("its end", async || !is_alive(pid)).await;
        }
        asked.iter().for_each(tokio::task::JoinHandle::abort);
        drop(server);
        let server = serve();
        let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
        assert_eq!(said(&admin, &conversation).await.len(), 2);
        assert_eq!(send_when_free(&admin, &conversation, "Hello").await, "Answer 2");
        // What the first has left is gone.
        let folders = std::fs::read_dir(place.folder().join("data/workers")).unwrap().count();
        assert_eq!(folders, 1);
    }
}

#[test]
fn a_program_that_cannot_be_started_is_told_of() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
    let output = command.args(["worker", "--", "/nowhere/claude"]).env_clear().output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("/nowhere/claude: "), "{output:?}");
}
