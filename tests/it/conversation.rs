//! Conversations: whose they are, what is kept of them and how.

use serde_json::{Value, json};

use crate::audit::entries;
use crate::canary::kept;
use crate::support::{Answer, Client, TestApp, both_databases};

const FIELDS: &str =
    "id title model systemPrompt owner { email } client { id } metadata messages { totalCount } createdAt updatedAt";

async fn try_create(client: &Client, input: Value) -> Answer {
    let query = format!(
        "mutation($input: CreateConversationInput!) {{ createConversation(input: $input) {{ conversation {{ {FIELDS} }} }} }}"
    );
    client.with(&query, json!({ "input": input })).await
}

pub(crate) async fn create(client: &Client, input: Value) -> Value {
    try_create(client, input).await.data()["createConversation"]["conversation"].clone()
}

async fn update(client: &Client, input: Value) -> Answer {
    let query = format!(
        "mutation($input: UpdateConversationInput!) {{ updateConversation(input: $input) {{ conversation {{ {FIELDS} }} }} }}"
    );
    client.with(&query, json!({ "input": input })).await
}

/// The ids of a new conversation and of a message in it, which does not open.
pub(crate) async fn with_a_message(app: &TestApp, client: &Client) -> (Value, Value) {
    let id = create(client, json!({})).await["id"].clone();
    let message = id.as_str().unwrap().replace("conv_", "msg_");
    app.database
        .execute(&format!(
            "INSERT INTO messages (id, organization_id, owner_id, conversation_id, ordinal, role, sealed, key_version, created_at) \
             SELECT '{message}', organization_id, owner_id, id, 100, 'USER', (SELECT digest FROM encryption_keys ORDER BY version LIMIT 1), 'v1', \
                 created_at FROM conversations WHERE id = '{0}';
             UPDATE conversations SET message_count = 1 WHERE id = '{0}'",
            id.as_str().unwrap()
        ))
        .await
        .unwrap();
    (id, json!(message))
}

both_databases! {
    async fn a_conversation_comes_back_as_it_was_made_and_changed(app: TestApp) {
        let member = app.user("MEMBER").await;
        let bare = create(&member, json!({})).await;
        assert_eq!((&bare["title"], &bare["model"], &bare["systemPrompt"]), (&json!("New conversation"), &Value::Null, &Value::Null));
        assert_eq!((&bare["owner"]["email"], &bare["messages"]["totalCount"]), (&json!("member@example.com"), &json!(0)));
        let client = app.admin().await.run("mutation { createClient(input: { name: \"C\" }) { client { id } } }").await.data()
            ["createClient"]["client"].clone();
        let made = create(&member, json!({
            "title": " Über Rust ", "model": "claude-sonnet-5-5", "systemPrompt": "Be\nbrief.", "clientId": client["id"],
            "metadata": { "a": 1 },
        })).await;
        assert_eq!((&made["title"], &made["systemPrompt"], &made["client"]), (&json!("Über Rust"), &json!("Be\nbrief."), &client));
        let read = format!("query($id: ID!) {{ conversation(id: $id) {{ {FIELDS} }} node(id: $id) {{ ... on Conversation {{ {FIELDS} }} }} }}");
        assert_eq!(*member.with(&read, json!({ "id": made["id"] })).await.data(), json!({ "conversation": made, "node": made }));

        let changed = update(&member, json!({ "id": made["id"], "title": "Rust", "systemPrompt": null })).await;
        let changed = changed.data()["updateConversation"]["conversation"].clone();
        assert_eq!((&changed["title"], &changed["systemPrompt"], &changed["model"]), (&json!("Rust"), &Value::Null, &made["model"]));
        assert_eq!(changed["metadata"], json!({ "a": 1 }));
        let wrong = update(&member, json!({ "id": made["id"], "title": null, "model": "", "metadata": [] })).await;
        assert_eq!(wrong.fields(), ["title", "model", "metadata"]);
        let wrong = try_create(&member, json!({ "title": "x".repeat(201), "systemPrompt": "x".repeat(20_001) })).await;
        assert_eq!(wrong.fields(), ["title", "systemPrompt"]);

        let delete = "mutation($id: ID!) { deleteConversation(input: { id: $id }) { deletedId } }";
        member.with(delete, json!({ "id": made["id"] })).await.data();
        assert_eq!(member.with(&read, json!({ "id": made["id"] })).await.data()["conversation"], Value::Null);
        assert_eq!(member.with(delete, json!({ "id": made["id"] })).await.code(), "NOT_FOUND");
    }

    async fn a_conversation_is_its_owners_alone(app: TestApp) {
        let (admin, member) = (app.admin().await, app.user("MEMBER").await);
        let (id, message) = with_a_message(&app, &member).await;
        let read = "query($id: ID!, $message: ID!) { conversation(id: $id) { id } nodes(ids: [$id, $message]) { id } conversations { totalCount } }";
        let seen = admin.with(read, json!({ "id": id, "message": message })).await;
        assert_eq!(*seen.data(), json!({ "conversation": null, "nodes": [null, null], "conversations": { "totalCount": 0 } }));
        let seen = member.with(read, json!({ "id": id, "message": message })).await;
        assert_eq!(seen.data()["nodes"], json!([{ "id": id }, { "id": message }]));
        assert_eq!(update(&admin, json!({ "id": id, "title": "Mine" })).await.code(), "NOT_FOUND");
        let delete = "mutation($id: ID!) { deleteConversation(input: { id: $id }) { deletedId } }";
        assert_eq!(admin.with(delete, json!({ "id": id })).await.code(), "NOT_FOUND");
    }

    async fn conversations_are_found_by_their_title_and_no_more(app: TestApp) {
        let admin = app.admin().await;
        for title in ["Über Rust", "über go", "100% C"] {
            create(&admin, json!({ "title": title, "systemPrompt": "rust, go and C" })).await;
        }
        let find = "query($search: String) { conversations(search: $search, orderBy: { field: TITLE, direction: ASC }) {
            totalCount nodes { title } } }";
        for (search, titles) in [
            ("ÜBER", vec!["über go", "Über Rust"]), ("rust", vec!["Über Rust"]), ("%", vec!["100% C"]), ("and", vec![]),
        ] {
            let found = admin.with(find, json!({ "search": search })).await.data()["conversations"].clone();
            let nodes: Vec<_> = found["nodes"].as_array().unwrap().iter().map(|node| node["title"].as_str().unwrap()).collect();
            assert_eq!((found["totalCount"].as_u64().unwrap(), nodes), (titles.len() as u64, titles), "{search}");
        }
    }

    async fn the_audit_log_has_nothing_of_a_conversation_that_its_owner_alone_sees(app: TestApp) {
        let member = app.user("MEMBER").await;
        let made = create(&member, json!({ "title": "whispered title", "metadata": { "whispered": 1 }, "model": "m-1" })).await;
        let id = made["id"].clone();
        update(&member, json!({ "id": id, "title": "Whispered again", "metadata": { "whispered": 2 } })).await.data();
        update(&member, json!({ "id": id, "title": "Whispered again", "metadata": { "whispered": 2 } })).await.data();
        update(&member, json!({ "id": id, "metadata": null })).await.data();
        let delete = "mutation($id: ID!) { deleteConversation(input: { id: $id }) { deletedId } }";
        member.with(delete, json!({ "id": id })).await.data();
        let query = "query($id: ID!) { auditLogs(first: 5, filter: { resourceId: $id }) { nodes { changes metadata } } }";
        let found = app.admin().await.with(query, json!({ "id": id })).await.data()["auditLogs"]["nodes"].clone();
        assert!(!found.to_string().to_lowercase().contains("whispered"), "{found}");
        let (was, is) = (json!({ "from": "[redacted]" }), json!({ "to": "[redacted]" }));
        let both = json!({ "from": "[redacted]", "to": "[redacted]" });
        let changes: Vec<_> = found.as_array().unwrap().iter().map(|node| node["changes"].clone()).collect();
        assert_eq!(changes, [
            json!({ "title": was, "model": { "from": "m-1" } }),
            json!({ "metadata": { "from": "[redacted]", "to": null } }),
            Value::Null,
            json!({ "title": both, "metadata": both }),
            json!({ "title": is, "metadata": is, "model": { "to": "m-1" } }),
        ]);
    }

    async fn a_system_prompt_stands_sealed_in_the_database_and_not_in_the_audit_log(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "title": "plain words", "systemPrompt": "whispered words" })).await;
        update(&admin, json!({ "id": made["id"], "systemPrompt": "whispered again" })).await.data();
        let kept = kept(&app).await;
        assert!(kept.contains("plain words") && !kept.contains("whispered"));
        let changes = admin.run("{ auditLogs(first: 1) { nodes { changes } } }").await.data()["auditLogs"]["nodes"][0]["changes"].clone();
        assert_eq!(changes, json!({ "systemPrompt": { "from": "[redacted]", "to": "[redacted]" } }));
        assert_eq!(entries(&admin).await[0]["resourceId"], made["id"]);
    }

    async fn what_is_sealed_opens_in_its_own_place_alone(app: TestApp) {
        let (admin, member) = (app.admin().await, app.user("MEMBER").await);
        let (mine, theirs) = (create(&member, json!({ "systemPrompt": "first words" })).await["id"].clone(), create(&admin, json!({})).await["id"].clone());
        let say = "mutation($id: ID!) { sendMessage(input: { conversationId: $id, text: \"whispered words\" }) { message { id } } }";
        member.with(say, json!({ "id": mine })).await.data();
        let read = "query($id: ID!) { conversation(id: $id) { systemPrompt messages { nodes { role text } } } }";
        let says = async |client: &Client, id: &Value| client.with(read, json!({ "id": id })).await.body.to_string();
        assert!(says(&member, &mine).await.contains("whispered words"));
        let sql = async |sql: &str| app.database.execute(sql).await.unwrap();
        let (mine_id, theirs_id) = (mine.as_str().unwrap(), theirs.as_str().unwrap());
        // As somebody else's words, in another place, and back.
        for (wrong, right) in [("role = 'ASSISTANT'", "role = 'USER'"), ("ordinal = 9", "ordinal = 1")] {
            sql(&format!("UPDATE messages SET {wrong} WHERE {right}")).await;
            assert!(!says(&member, &mine).await.contains("whispered words"), "{wrong}");
            sql(&format!("UPDATE messages SET {right} WHERE {wrong} AND conversation_id = '{mine_id}' AND ordinal IN (1, 9)")).await;
            assert!(says(&member, &mine).await.contains("whispered words"), "{wrong}");
        }
        // In another's conversation.
        sql(&format!("UPDATE messages SET conversation_id = '{theirs_id}', owner_id = (SELECT owner_id FROM conversations WHERE id = '{theirs_id}')")).await;
        let seen = says(&admin, &theirs).await;
        assert!(seen.contains("INTERNAL") && !seen.contains("whispered words"), "{seen}");
        // An older prompt in the place of a newer one.
        sql("CREATE TABLE kept AS SELECT id, system_prompt, key_version FROM conversations").await;
        update(&member, json!({ "id": mine, "systemPrompt": "newer words" })).await.data();
        assert!(says(&member, &mine).await.contains("newer words"));
        sql(&format!("UPDATE conversations SET system_prompt = (SELECT system_prompt FROM kept WHERE id = '{mine_id}') WHERE id = '{mine_id}'")).await;
        let seen = says(&member, &mine).await;
        assert!(seen.contains("INTERNAL") && !seen.contains("first words"), "{seen}");
    }
}
