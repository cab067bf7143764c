//! What is said in conversations and answered: by a stand-in for the Claude CLI, which misbehaves where it is asked to.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::audit::entries;
use crate::canary::kept;
use crate::conversation::create;
use crate::support::{Answer, Client, EventStream, Socket, TestApp, TestDatabase, both_databases};

pub(crate) const SEND: &str = "mutation($input: SendMessageInput!) { sendMessage(input: $input) {
    conversation { id title } message { id role text content usage createdAt } } }";

pub(crate) async fn try_send(client: &Client, conversation: &Value, text: &str) -> Answer {
    client.with(SEND, json!({ "input": { "conversationId": conversation, "text": text } })).await
}

/// The text of the answer.
pub(crate) async fn send(client: &Client, conversation: &Value, text: &str) -> String {
    let answer = try_send(client, conversation, text).await;
    answer.data()["sendMessage"]["message"]["text"].as_str().unwrap().to_owned()
}

/// The same, once a server that was killed is taken for gone.
pub(crate) async fn send_when_free(client: &Client, conversation: &Value, text: &str) -> String {
    let mut answer = try_send(client, conversation, text).await;
    settled("the end of the lease", async || {
        let is_free = answer.body.get("errors").is_none() || answer.code() != "CONFLICT";
        if !is_free {
            // A second at a time: who asks more often has asked too often.
            tokio::time::sleep(Duration::from_secs(1)).await;
            answer = try_send(client, conversation, text).await;
        }
        is_free
    })
    .await;
    answer.data()["sendMessage"]["message"]["text"].as_str().unwrap().to_owned()
}

/// The roles and texts of a conversation's messages.
pub(crate) async fn said(client: &Client, conversation: &Value) -> Vec<(String, String)> {
    let query = "query($id: ID!) { conversation(id: $id) { messages(first: 100) { nodes { role text } } } }";
    let found = client.with(query, json!({ "id": conversation })).await.data()["conversation"]["messages"].clone();
    let nodes = found["nodes"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    nodes.iter().map(|node| (text(&node["role"]), text(&node["text"]))).collect()
}

pub(crate) async fn workers(client: &Client) -> Vec<Value> {
    let query = "{ workers { id pid state currentConversationId handled failed lastError } }";
    client.run(query).await.data()["workers"].as_array().unwrap().clone()
}

/// The worker of a conversation, once it is in a state.
pub(crate) async fn until(client: &Client, conversation: &Value, state: &str) -> Value {
    for _ in 0..3_000 {
        let found = workers(client).await;
        if let Some(worker) =
            found.into_iter().find(|one| one["currentConversationId"] == *conversation && one["state"] == state)
        {
            return worker;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no worker of {conversation} was {state}: {:?}", workers(client).await)
}

pub(crate) async fn settled(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..3_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come");
}

/// Whether any of some processes runs.
pub(crate) fn is_alive(pids: &str) -> bool {
    pids.split(' ').any(|pid| Path::new("/proc").join(pid).exists())
}

/// A message in a conversation, as a subscription.
pub(crate) fn streaming(conversation: &Value, text: &str) -> String {
    format!(
        "subscription {{ messageStream(input: {{ conversationId: {conversation}, text: \"{text}\" }}) {{
            __typename ... on MessageDelta {{ text }} ... on ToolUse {{ name input }}
            ... on MessageCompleted {{ message {{ text usage }} conversation {{ messages {{ totalCount }} }} }} }} }}"
    )
}

/// Says something as curl does.
pub(crate) async fn posted(app: &TestApp, client: &Client, conversation: &Value, text: &str) -> reqwest::Response {
    let path = format!("{}/v1/conversations/{}/messages", app.url, conversation.as_str().unwrap());
    let request = client.http().post(path).bearer_auth(client.access_token.as_ref().unwrap());
    request.json(&json!({ "text": text })).send().await.unwrap()
}

pub(crate) async fn app_with(database: TestDatabase, settings: &[(&'static str, &str)]) -> TestApp {
    TestApp::start(database, settings.iter().map(|(name, value)| (*name, (*value).to_owned()))).await
}

both_databases! {
    async fn a_conversation_goes_on_in_its_process_and_after_a_restart_in_another(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        let conversation = create(&admin, json!({ "title": "T", "systemPrompt": "Be brief.", "model": "m-1" })).await["id"].clone();
        for n in 1..=3 {
            assert_eq!(send(&admin, &conversation, "whispered words").await, format!("Answer {n}"));
        }
        let worker = until(&admin, &conversation, "IDLE").await;
        assert_eq!((&worker["handled"], &worker["failed"]), (&json!(3), &json!(0)));
        app.restart().await;
        let admin = app.admin().await;
        assert_eq!(workers(&admin).await, [] as [Value; 0]);
        assert_eq!(send(&admin, &conversation, "whispered words").await, "Answer 4");
        assert_eq!(send(&admin, &conversation, "!prompt").await, "Be brief.");
        let all = said(&admin, &conversation).await;
        assert_eq!(all.len(), 10);
        assert_eq!(all[..2], [("USER", "whispered words"), ("ASSISTANT", "Answer 1")].map(|(a, b)| (a.to_owned(), b.to_owned())));

        // Neither in the database nor in the log of what was done.
        let kept = kept(&app).await;
        assert!(!kept.contains("whispered") && !kept.contains("Answer 1") && kept.contains("sendMessage"));
        let entry = &entries(&admin).await[0];
        assert_eq!((&entry["operation"], &entry["outcome"], &entry["resourceId"]), (&json!("sendMessage"), &json!("SUCCESS"), &conversation));
        // Nor in a file beside it.
        for folder in walkdir(app.data_dir()) {
            let text = std::fs::read(&folder).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains("whispered"), "{}", folder.display());
        }
    }

    async fn an_answer_is_told_as_it_comes_to_a_socket_and_to_curl(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("a", &streaming(&conversation, "Hello")).await;
        let (mut text, mut last) = (String::new(), Value::Null);
        while last["__typename"] != "MessageCompleted" {
            text += last["text"].as_str().unwrap_or_default();
            last = socket.event("a").await["messageStream"].clone();
        }
        assert_eq!((text.as_str(), &last["message"]["text"]), ("Answer 1", &json!("Answer 1")));
        assert_eq!((&last["message"]["usage"]["model"], &last["message"]["usage"]["interrupted"]), (&json!("stand-in"), &json!(false)));
        assert_eq!(last["conversation"]["messages"]["totalCount"], 2);
        assert_eq!(socket.next().await, json!({ "id": "a", "type": "complete" }));
        assert_eq!(entries(&admin).await[0]["operation"], "messageStream");

        let path = format!("{}/v1/conversations/{}/messages", app.url, conversation.as_str().unwrap());
        let post = |client: &Client, body: Value| {
            let request = client.http().post(&path).json(&body);
            let token = client.access_token.clone();
            token.map_or(request.try_clone().unwrap(), |token| request.bearer_auth(token)).send()
        };
        let response = post(&admin, json!({ "text": "And?" })).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = EventStream::of(response);
        let (mut text, mut last) = (String::new(), (String::new(), Value::Null));
        while last.0 != "message_completed" {
            text += last.1["text"].as_str().unwrap_or_default();
            last = stream.event().await.unwrap();
        }
        assert_eq!((text.as_str(), &last.1["message"]["text"]), ("Answer 2", &json!("Answer 2")));
        assert_eq!((&last.1["conversation"]["id"], stream.event().await), (&conversation, None));
        for (client, body, status, code) in [
            (&app.anonymous(), json!({ "text": "x" }), 401, "UNAUTHENTICATED"),
            (&app.user("READ_ONLY").await, json!({ "text": "x" }), 403, "FORBIDDEN"),
            (&app.user("MEMBER").await, json!({ "text": "x" }), 404, "NOT_FOUND"),
            (&admin, json!({ "text": " " }), 400, "BAD_USER_INPUT"),
            (&admin, json!({ "no": 1 }), 400, "BAD_USER_INPUT"),
        ] {
            let response = post(client, body).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], code);
        }
    }

    async fn what_goes_wrong_is_told_and_keeps_nothing(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        for (number, (text, code, error)) in [
            ("!die", "SERVICE_UNAVAILABLE", Some("ended with exit code 3")),
            // What it complains of may quote what was said.
            ("!complain", "SERVICE_UNAVAILABLE", Some("the Claude CLI ended with exit code 4")),
            ("!garbage", "SERVICE_UNAVAILABLE", Some("understood")), ("!long", "SERVICE_UNAVAILABLE", Some("understood")),
            ("!flood", "SERVICE_UNAVAILABLE", Some("understood")), ("!overload", "SERVICE_UNAVAILABLE", Some("refused")),
            ("!limit", "RATE_LIMITED", Some("refused")), ("!wrong", "BAD_USER_INPUT", Some("refused")),
        ].into_iter().enumerate() {
            let answer = try_send(&admin, &conversation, text).await;
            assert_eq!(answer.code(), code, "{text}: {}", answer.body);
            if let Some(error) = error {
                let failed = workers(&admin).await.into_iter().rfind(|one| one["state"] == "FAILED").unwrap();
                assert!(failed["lastError"].as_str().unwrap().ends_with(error), "{text}: {failed}");
                assert_eq!((&failed["failed"], &failed["pid"]), (&json!(1), &Value::Null));
            }
            let entry = &entries(&admin).await[0];
            assert_eq!((&entry["errorCode"], &entry["resourceId"]), (&json!(code), &conversation), "{text}");
            // It goes on where it was.
            assert_eq!(send(&admin, &conversation, "Hello").await, format!("Answer {}", number + 1), "after {text}");
        }
        assert_eq!(said(&admin, &conversation).await.len(), 16);
        // What was wrong with what was asked.
        assert_eq!(try_send(&admin, &conversation, &"x".repeat(100_001)).await.fields(), ["text"]);
        let input = json!({ "text": "x", "tools": ["Bash"], "model": "" });
        assert_eq!(admin.with(SEND, json!({ "input": input })).await.fields(), ["model", "tools"]);
    }

    async fn who_leaves_ends_the_answer_which_is_kept_as_far_as_it_came(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        let mut socket = Socket::connected(&app, &admin).await;
        socket.subscribe("a", &streaming(&conversation, "!slow")).await;
        assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
        // Nobody else says anything meanwhile.
        assert_eq!(try_send(&admin, &conversation, "Hello").await.code(), "CONFLICT");
        socket.send(json!({ "id": "a", "type": "complete" })).await;
        settled("the end", async || said(&admin, &conversation).await.len() == 2).await;
        assert_eq!(said(&admin, &conversation).await[1].1, "Slow");
        // The process is as good as before.
        let pid = until(&admin, &conversation, "IDLE").await["pid"].clone();
        assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 2");
        assert_eq!(until(&admin, &conversation, "IDLE").await["pid"], pid);
        let query = "query($id: ID!) { conversation(id: $id) { messages { nodes { usage } } } }";
        let nodes = admin.with(query, json!({ "id": conversation })).await.data()["conversation"]["messages"]["nodes"].clone();
        assert_eq!((&nodes[1]["usage"]["interrupted"], &nodes[3]["usage"]["interrupted"]), (&json!(true), &json!(false)));

        // One that does not let itself be ended is.
        socket.subscribe("b", &streaming(&conversation, "!stubborn")).await;
        assert_eq!(socket.event("b").await["messageStream"]["text"], "Never");
        socket.send(json!({ "id": "b", "type": "complete" })).await;
        until(&admin, &conversation, "FAILED").await;
        assert_eq!(said(&admin, &conversation).await.len(), 4);
        // And who leaves events that the server sends.
        let path = format!("{}/v1/conversations/{}/messages", app.url, conversation.as_str().unwrap());
        let request = admin.http().post(path).bearer_auth(admin.access_token.as_ref().unwrap()).json(&json!({ "text": "!slow" }));
        let mut stream = EventStream::of(request.send().await.unwrap());
        assert_eq!(stream.event().await, Some(("message_delta".to_owned(), json!({ "text": "Slow" }))));
        drop(stream);
        settled("the end", async || said(&admin, &conversation).await.len() == 6).await;
        assert_eq!(said(&admin, &conversation).await[5].1, "Slow");
    }

    async fn twenty_conversations_at_once_on_five_processes_all_end_right(app: TestApp) {
        let admin = app.admin().await;
        let turns = (0..20).map(async |n| {
            let conversation = create(&admin, json!({ "title": n.to_string() })).await["id"].clone();
            let first = send(&admin, &conversation, "!pause").await;
            (first, send(&admin, &conversation, "Hello").await)
        });
        let watch = async {
            let mut most = 0;
            loop {
                let running = workers(&admin).await.into_iter().filter(|one| one["pid"].is_number()).count();
                most = most.max(running);
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(most <= 5, "{most} processes");
            }
        };
        let answers = tokio::select! {
            answers = futures_util::future::join_all(turns) => answers,
            () = watch => unreachable!(),
        };
        assert!(answers.iter().all(|answer| *answer == ("Answer 1".to_owned(), "Answer 2".to_owned())), "{answers:?}");
    }

    async fn a_process_gets_no_more_than_it_needs(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({ "model": "--dangerous" })).await["id"].clone();
        let names = send(&admin, &conversation, "!environment").await;
        for name in names.split(' ').filter(|name| !name.is_empty()) {
            let is_meant = ["CLAUDE_C", "DISABLE_", "ANTHROPIC_", "SSL_CERT", "LC_"].iter().any(|start| name.starts_with(start));
            assert!(is_meant || ["PATH", "HOME", "TMPDIR", "PWD", "LANG", "TZ", "_", "NODE_EXTRA_CA_CERTS", "OLDPWD", "SHLVL"].contains(&name), "{name}");
        }
        assert!(names.contains("CLAUDE_CODE_DISABLE_FILE_MENTIONS") && names.contains("CLAUDE_CODE_DISABLE_ATTACHMENTS"), "{names}");
        let arguments = send(&admin, &conversation, "!arguments").await;
        assert!(arguments.contains("--model=--dangerous") && arguments.contains("--tools  "), "{arguments}");
        let (work, config) = send(&admin, &conversation, "!folder").await.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        for folder in [&work, &config] {
            assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o077, 0, "{folder}");
        }
        // What the CLI keeps of an organization is apart from what it keeps of another.
        let other = app.other_organization().await;
        let theirs = create(&other, json!({})).await["id"].clone();
        let others_config = send(&other, &theirs, "!folder").await.split_once(' ').unwrap().1.to_owned();
        assert!(config.contains("/org_") && others_config.contains("/org_") && config != others_config, "{config}");
    }

    async fn a_lent_key_opens_the_relay_alone_while_its_process_lives(app: TestApp) {
        let admin = app.admin().await;
        let conversation = create(&admin, json!({})).await["id"].clone();
        let (url, key) = send(&admin, &conversation, "!key").await.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert_eq!(url, app.url);
        let models = async || admin.http().get(format!("{url}/v1/models")).header("x-api-key", &key).send().await.unwrap().status();
        assert_ne!(models().await, 401);
        let by_key = crate::api_key::with_key(&app, &key);
        assert_eq!(by_key.run("{ clients { totalCount } }").await.code(), "FORBIDDEN");
        assert_eq!(admin.run("{ apiKeys { totalCount } }").await.data()["apiKeys"]["totalCount"], 0);
        let verified = admin.with("query($key: String!) { verifyApiKey(key: $key) { code } }", json!({ "key": key })).await;
        assert_eq!(verified.data()["verifyApiKey"]["code"], "NOT_FOUND");
        assert!(!kept(&app).await.contains(&key));
        // It ends with what its owner may, at once.
        let member = app.user("MEMBER").await;
        let theirs = create(&member, json!({})).await["id"].clone();
        let other = send(&member, &theirs, "!key").await.split_once(' ').unwrap().1.to_owned();
        let status = async || admin.http().get(format!("{url}/v1/models")).header("x-api-key", &other).send().await.unwrap().status();
        assert_ne!(status().await, 401);
        let id = member.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
        let suspend = "mutation($id: ID!) { updateUser(input: { id: $id, status: SUSPENDED }) { user { id } } }";
        admin.with(suspend, json!({ "id": id })).await.data();
        assert_eq!(status().await, 401);
        // And with the process.
        try_send(&admin, &conversation, "!die").await;
        assert_eq!(models().await, 401);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_keeps_an_answer_as_far_as_it_has_come() {
    let mut app = TestApp::sqlite().await;
    let admin = app.admin().await;
    let conversation = create(&admin, json!({})).await["id"].clone();
    let pid = send(&admin, &conversation, "!pid").await;
    let mut socket = Socket::connected(&app, &admin).await;
    socket.subscribe("a", &streaming(&conversation, "!slow")).await;
    assert_eq!(socket.event("a").await["messageStream"]["text"], "Slow");
    let waited_for = create(&admin, json!({})).await["id"].clone();
    // Its process runs: what is said to it is answered at once.
    send(&admin, &waited_for, "Hello").await;
    let waiting = {
        let (admin, waited_for) = (admin.clone(), waited_for.clone());
        tokio::spawn(async move { try_send(&admin, &waited_for, "!slow").await })
    };
    until(&admin, &waited_for, "BUSY").await;
    let posted_to = create(&admin, json!({})).await["id"].clone();
    let mut stream = EventStream::of(posted(&app, &admin, &posted_to, "!slow").await);
    assert_eq!(stream.event().await.unwrap().1, json!({ "text": "Slow" }));
    app.restart().await;
    assert!(!is_alive(&pid));
    let (name, kept) = stream.event().await.unwrap();
    assert_eq!((&*name, &kept["message"]["usage"]["interrupted"]), ("message_completed", &json!(true)));
    let message = waiting.await.unwrap().data()["sendMessage"]["message"].clone();
    assert_eq!((&message["text"], &message["usage"]["interrupted"]), (&json!("Slow"), &json!(true)));
    let admin = app.admin().await;
    for conversation in [&conversation, &waited_for, &posted_to] {
        assert_eq!(said(&admin, conversation).await.pop(), Some(("ASSISTANT".to_owned(), "Slow".to_owned())));
    }
    assert_eq!(send(&admin, &conversation, "Hello").await, "Answer 3");
}

/// All files below a folder.
pub(crate) fn walkdir(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(walkdir(&path)),
            path => found.push(path),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_are_used_where_a_setting_allows_them() {
    let app = app_with(TestDatabase::sqlite(), &[("CLAUDE_TOOLS", "WebSearch, WebFetch")]).await;
    let admin = app.admin().await;
    let tools = admin.run("{ tools { name description enabled } }").await.data()["tools"].clone();
    let enabled: Vec<_> =
        tools.as_array().unwrap().iter().filter(|tool| tool["enabled"] == true).map(|tool| &tool["name"]).collect();
    assert_eq!(enabled, ["WebFetch", "WebSearch"]);
    let refused = admin.with(SEND, json!({ "input": { "text": "x", "tools": ["Bash"] } })).await;
    assert_eq!(refused.fields(), ["tools"]);
    let mut socket = Socket::connected(&app, &admin).await;
    socket
        .subscribe(
            "a",
            "subscription { messageStream(input: { text: \"!tool\", tools: [\"WebSearch\"] }) {
                __typename ... on ToolUse { name input } ... on MessageCompleted { message { content text } conversation { id title } } } }",
        )
        .await;
    assert_eq!(
        socket.event("a").await["messageStream"],
        json!({ "__typename": "ToolUse", "name": "WebSearch", "input": { "query": "rust" } })
    );
    let mut last = Value::Null;
    while last["__typename"] != "MessageCompleted" {
        last = socket.event("a").await["messageStream"].clone();
    }
    let kinds: Vec<_> = last["message"]["content"].as_array().unwrap().iter().map(|block| &block["type"]).collect();
    assert_eq!(
        (kinds, &last["message"]["text"]),
        (vec![&json!("tool_use"), &json!("tool_result"), &json!("text")], &json!("Found"))
    );
    assert_eq!(last["conversation"]["title"], "New conversation");
    let input = json!({ "text": "!arguments", "conversationId": last["conversation"]["id"], "tools": ["WebFetch"] });
    let arguments =
        admin.with(SEND, json!({ "input": input })).await.data()["sendMessage"]["message"]["text"].to_string();
    assert!(
        arguments.contains("--tools WebFetch --allowedTools WebFetch") && arguments.contains("deny:[Agent,Bash,"),
        "{arguments}"
    );
}
