//! The relay with the official programs, unchanged: the SDKs of Anthropic and OpenAI, and the Claude CLI.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use claviger::relay::RelayLimits;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::http::node;
use crate::relay::{FIRST, MODEL, OUTCOME, Relayed, records};
use crate::relay_failures::QUICK;
use crate::relay_streams::failing;
use crate::support::{Reply, Step, TestApp, both_databases, delta, events, message};

fn environment(app: &TestApp, relayed: &Relayed) -> Vec<(&'static str, String)> {
    vec![("URL", app.url.clone()), ("KEY", relayed.key.clone()), ("MODEL", MODEL.to_owned())]
}

/// Runs the Claude CLI once, in a folder of its own.
async fn cli(app: &TestApp, relayed: &Relayed, folder: &Path, model: &str, prompt: &str) -> Output {
    let program = std::env::current_dir().unwrap().join("tests/relay-clients/node_modules/.bin/claude");
    assert!(program.exists(), "{} is missing: ./test installs it", program.display());
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        if name.starts_with("CLAUDE") || name.starts_with("ANTHROPIC") {
            command.env_remove(name);
        }
    }
    command
        .args(["-p", prompt, "--output-format", "json", "--tools", "", "--strict-mcp-config", "--model", model])
        .current_dir(folder)
        .env("ANTHROPIC_BASE_URL", &app.url)
        .env("ANTHROPIC_API_KEY", &relayed.key)
        .env("CLAUDE_CONFIG_DIR", folder.join("config"))
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .env("DISABLE_AUTOUPDATER", "1")
        .env("DISABLE_TELEMETRY", "1")
        .env("DISABLE_ERROR_REPORTING", "1")
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.output().await.unwrap()
}

/// Runs a script with the official SDKs for Python.
async fn python(app: &TestApp, relayed: &Relayed, script: &str) {
    let python = std::env::current_dir().unwrap().join("target/tools/relay-python/bin/python");
    assert!(python.exists(), "{} is missing: ./test installs it", python.display());
    let mut command = Command::new(python);
    let script = format!("tests/relay-clients/{script}");
    command.arg(script).envs(environment(app, relayed)).env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Far longer than a reply takes that comes.
const PATIENT: RelayLimits = RelayLimits { silence: Duration::from_secs(5), ..QUICK };

/// What goes wrong upstream, as the scripts `faults` ask for it: by one SDK, and by the other.
fn will_fail(relayed: &Relayed) {
    let overloaded = failing("overloaded_error", "Overloaded");
    let (start, rest) = (events(MODEL)[..4].concat(), events(MODEL)[4..].concat());
    let faults = [
        Reply::overloaded(),
        Reply::Body(200, "application/json", message(MODEL)),
        // A caller is told that it goes on meanwhile.
        Reply::Stream(vec![Step::Say(start.clone()), Step::Pause(Duration::from_millis(200)), Step::Say(rest)]),
        Reply::Stream(vec![Step::Say(start.clone() + &overloaded)]),
        Reply::Stream(vec![Step::Say(start), Step::Cut]),
        Reply::Held,
        Reply::rate_limited(60),
    ];
    let refused = Reply::error(401, "authentication_error");
    relayed.claude.will(FIRST, faults.iter().cloned().chain(faults.iter().cloned()).chain([refused]));
}

/// What became of it.
async fn faults_are_recorded(app: &TestApp) {
    let of = |path: &str| {
        [
            "200 - 2",
            "200 - 1 streamed",
            "200 overloaded_error 1 streamed estimated",
            "200 api_error 1 streamed estimated",
            "504 timeout_error 1 estimated",
            "429 rate_limit_error 1",
        ]
        .map(|outcome| format!("{path} {outcome}"))
    };
    let found = records(app, OUTCOME, 14).await;
    assert_eq!(found[..12], [of("/v1/messages"), of("/v1/chat/completions")].concat());
}

fn result(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

both_databases! {
    async fn anthropics_sdk_for_typescript(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        node("relay-clients", "sdk.mjs", environment(&app, &relayed)).await;
        let found = records(&app, OUTCOME, 6).await;
        assert!(found.iter().all(|record| record.contains(" 200 ")), "{found:?}");
    }

    async fn openais_sdk_for_typescript(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let mut called: Value = serde_json::from_str(&message(MODEL)).unwrap();
        called["content"] = json!([{ "type": "tool_use", "id": "t1", "name": "look", "input": { "x": 1 } }]);
        called["stop_reason"] = json!("tool_use");
        relayed.claude.will(FIRST, [Reply::Body(200, "application/json", called.to_string())]);
        node("relay-clients", "chat.mjs", environment(&app, &relayed)).await;
        let path = "/v1/chat/completions 200 - 1";
        assert_eq!(records(&app, OUTCOME, 3).await, [path, path, &format!("{path} streamed")]);
        let sent: Value = serde_json::from_slice(&relayed.claude.seen()[0].body).unwrap();
        assert_eq!((&sent["tools"][0]["name"], &sent["messages"][0]["content"][1]["type"]), (&json!("look"), &json!("image")));
    }

    async fn the_sdks_for_typescript_are_told_what_goes_wrong(app: TestApp) {
        let app = app.relaying(PATIENT).await;
        let relayed = Relayed::new(&app).await;
        will_fail(&relayed);
        node("relay-clients", "faults.mjs", environment(&app, &relayed)).await;
        faults_are_recorded(&app).await;
    }

    async fn the_sdks_for_python_are_told_what_goes_wrong(app: TestApp) {
        let app = app.relaying(PATIENT).await;
        let relayed = Relayed::new(&app).await;
        will_fail(&relayed);
        python(&app, &relayed, "faults.py").await;
        faults_are_recorded(&app).await;
    }

    async fn the_sdks_for_python(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        python(&app, &relayed, "sdk.py").await;
    }

    async fn the_claude_cli_and_its_own_figures(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let mut sum = 0;
        let mut count = 0;
        let usual = ("input_tokens\":25", "input_tokens\":25");
        let long = ("input_tokens\":25", "input_tokens\":150000");
        let with_searches = ("\"output_tokens\":12", "\"output_tokens\":12,\"server_tool_use\":{\"web_search_requests\":3}");
        for (model, (before, after)) in [
            (MODEL, usual),
            (MODEL, with_searches),
            ("claude-fable-5-2", usual),
            ("claude-fable-5-1", usual),
            ("claude-opus-5-5", usual),
            ("claude-opus-5", usual),
            ("claude-sonnet-5", usual),
            ("claude-haiku-5-5", usual),
            ("claude-haiku-5-5", long),
            ("claude-haiku-4-5", usual),
        ] {
            relayed.claude.will(FIRST, [Reply::Stream(vec![Step::Say(events(model).concat().replace(before, after))])]);
            let folder = tempfile::tempdir().unwrap();
            let output = cli(&app, &relayed, folder.path(), model, "Hello?").await;
            let result = result(&output);
            assert_eq!((&result["is_error"], &result["result"]), (&json!(false), &json!("Hello from Claude.")), "{result}");
            // What it has reckoned by itself is what stands in the records, to the last digit.
            let own = format!("{:.0}", result["total_cost_usd"].as_f64().unwrap() * 1e9);
            count = relayed.claude.seen().iter().filter(|seen| seen.uri.path() == "/v1/messages").count();
            let costs = records(&app, "CAST(cost_nano_usd AS TEXT)", count).await;
            let all: i64 = costs.iter().map(|cost| cost.parse::<i64>().unwrap()).sum();
            assert_eq!((all - sum).to_string(), own, "{model}: {result}");
            sum = all;
        }
        let sent = relayed.claude.seen();
        assert!(sent.iter().all(|seen| seen.key() == FIRST && !format!("{:?}", seen.headers).contains(&relayed.key)));
        let sessions = records(&app, "coalesce(session_id, '-')", count).await;
        assert!(sessions.iter().all(|session| session.len() == 36), "{sessions:?}");
    }

    async fn the_claude_cli_comes_through_a_bad_moment(app: TestApp) {
        let relayed = Relayed::new(&app).await;
        let folder = tempfile::tempdir().unwrap();
        let cut = Reply::Stream(vec![Step::Say(events(MODEL)[..4].concat() + &delta("half")[..20]), Step::Cut]);
        relayed.claude.will(FIRST, [Reply::overloaded(), cut]);
        let result = result(&cli(&app, &relayed, folder.path(), MODEL, "Hello?").await);
        assert_eq!((&result["is_error"], &result["result"]), (&json!(false), &json!("Hello from Claude.")), "{result}");
        let found = records(&app, OUTCOME, 2).await;
        assert!(found[0].starts_with("/v1/messages 200 api_error 2 streamed"), "{found:?}");
    }
}
