//! The tools of the Claude CLI itself: which it has, and what comes of those that the upstream wants to use.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::conversation::create;
use crate::conversation_cli::{last_messages, send, with_cli};
use crate::relay::{FIRST, MODEL};
use crate::support::{Reply, Socket, Step, both_databases, event, events};
use crate::turn::{SEND, settled, walkdir};

/// What a command says, more than the CLI keeps in memory.
const CANARY: &str = "canary-of-a-tool";

/// The upstream has a shell command run.
fn runs(command: &str) -> Reply {
    let input = json!({ "command": command, "description": "x" }).to_string();
    let said = [
        json!({ "type": "content_block_start", "index": 0,
            "content_block": { "type": "tool_use", "id": "toolu_01", "name": "Bash", "input": {} } }),
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "input_json_delta", "partial_json": input } }),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use", "stop_sequence": null }, "usage": { "output_tokens": 12 } }),
        json!({ "type": "message_stop" }),
    ];
    let said = said.iter().map(|data| event(data["type"].as_str().unwrap(), &data.to_string()));
    Reply::Stream([events(MODEL)[0].clone()].into_iter().chain(said).map(Step::Say).collect())
}

/// The files below a folder that have something in them.
fn with_canary(folder: &Path) -> Vec<std::path::PathBuf> {
    let has_it = |path: &std::path::PathBuf| {
        std::fs::read(path).is_ok_and(|bytes| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()))
    };
    walkdir(folder).into_iter().filter(has_it).collect()
}

both_databases! {
    async fn the_tools_that_it_has_are_those_that_a_setting_names(app: TestApp) {
        let (mut app, relayed) = with_cli(app).await;
        let all = relayed.admin.run("{ tools { name } }").await.data()["tools"].clone();
        let all: Vec<&str> = all.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
        app.set("CLAUDE_TOOLS", &all.join(","));
        app.restart().await;
        let admin = app.admin().await;
        for allowed in [all.as_slice(), &["Read", "WebFetch"], &[]] {
            let input = json!({ "text": "Hello", "model": MODEL, "tools": allowed });
            admin.with(SEND, json!({ "input": input })).await.data();
            let seen = relayed.claude.seen();
            let last = seen.iter().rfind(|seen| seen.uri.path() == "/v1/messages").unwrap();
            let body: Value = serde_json::from_slice(&last.body).unwrap();
            let tools = body["tools"].as_array().cloned().unwrap_or_default();
            // It stands for tools that there are none of.
            let names = tools.iter().map(|tool| tool["name"].as_str().unwrap()).filter(|name| *name != "DeferredToolPlaceholder");
            assert_eq!(names.collect::<BTreeSet<_>>(), allowed.iter().copied().collect::<BTreeSet<_>>());
        }
    }

    async fn a_tool_runs_where_it_is_allowed_alone_and_leaves_nothing(app: TestApp) {
        let (mut app, relayed) = with_cli(app).await;
        app.set("CLAUDE_TOOLS", "Bash,Read");
        app.restart().await;
        let admin = app.admin().await;
        let file = app.data_dir().join("touched");
        let command = format!("touch {}; yes {CANARY} | head -n 20000", file.display());
        let conversation = create(&admin, json!({ "model": MODEL })).await["id"].clone();
        for tools in [json!([]), json!(["Read"])] {
            relayed.claude.will(FIRST, [runs(&command)]);
            let input = json!({ "conversationId": conversation, "text": "Hello", "tools": tools });
            let answer = admin.with(SEND, json!({ "input": input })).await.data()["sendMessage"]["message"].clone();
            assert_eq!(answer["text"], "Hello from Claude.");
            assert!(!file.exists());
        }
        relayed.claude.will(FIRST, [runs(&command)]);
        let mut socket = Socket::connected(&app, &admin).await;
        let query = format!("subscription {{ messageStream(input: {{ conversationId: {conversation}, text: \"Hello\", tools: [\"Bash\"] }}) {{
            __typename ... on ToolUse {{ name input }} ... on MessageCompleted {{ message {{ content }} }} }} }}");
        socket.subscribe("a", &query).await;
        let mut told = Vec::new();
        while told.last().is_none_or(|last: &Value| last["__typename"] != "MessageCompleted") {
            told.push(socket.event("a").await["messageStream"].clone());
        }
        assert!(file.exists());
        let used = told.iter().find(|event| event["__typename"] == "ToolUse").unwrap();
        assert_eq!((&used["name"], &used["input"]["command"]), (&json!("Bash"), &json!(command)));
        let content = told.last().unwrap()["message"]["content"].as_array().unwrap().clone();
        let kinds: Vec<_> = content.iter().map(|block| block["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["tool_use", "tool_result", "text"]);
        let delete = "mutation($id: ID!) { deleteConversation(input: { id: $id }) { deletedId } }";
        let another = create(&admin, json!({ "model": MODEL })).await["id"].clone();
        // Another process knows what was used.
        app.restart().await;
        let admin = app.admin().await;
        send(&admin, &conversation, "And now?").await;
        let sent = json!(last_messages(&relayed.claude)).to_string();
        assert!(sent.contains("toolu_01") && sent.contains("tool_result") && sent.contains(CANARY), "{sent}");
        relayed.claude.will(FIRST, [runs(&command)]);
        let input = json!({ "conversationId": another, "text": "Hello", "tools": ["Bash"] });
        admin.with(SEND, json!({ "input": input })).await.data();
        assert!(!with_canary(app.data_dir()).is_empty(), "the CLI keeps it as long as it runs");
        for conversation in [&conversation, &another] {
            admin.with(delete, json!({ "id": conversation })).await.data();
        }
        settled("an empty folder", async || with_canary(app.data_dir()).is_empty()).await;
    }
}
