//! How many statements a query sends: bounded by its depth, whatever the number of rows.

use serde_json::{Value, json};

use crate::invitation::join;
use crate::support::{Client, TestApp, both_databases};

const ASSIGNEES: &str = "{ clients(first: 100) { nodes { tasks(first: 2) { nodes { title assignee { email } } } } } }";
const MAKERS: &str =
    "{ clients(first: 100) { nodes { credentials(first: 2) { nodes { label createdBy { email } } } } } }";

async fn statements(app: &TestApp) -> u64 {
    let text = app.anonymous().http().get(format!("{}/metrics", app.url)).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with("claviger_database_statements_total ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// How many statements a query sends, once the session is known: the least of a few times, since the server's own jobs send
/// some too.
async fn sent(app: &TestApp, client: &Client, query: &str) -> (u64, Value) {
    let (mut least, mut data) = (u64::MAX, Value::Null);
    for _ in 0..3 {
        client.run("{ viewer { role } }").await;
        let before = statements(app).await;
        data = client.run(query).await.data().clone();
        least = least.min(statements(app).await - before);
    }
    (least, data)
}

/// Clients, each with tasks that are assigned to somebody else than those of the others, who has made its credential.
async fn fill(app: &TestApp, client: &Client, from: usize, to: usize) {
    for n in from..to {
        let (user, member) = join(app, client, &format!("member-{n}@example.com"), "MEMBER").await;
        let owner = if n % 2 == 0 { ", ownerId: null" } else { "" };
        let made = client
            // Every other one without an owner: rows that need less must not run ahead of the others.
            .run(&format!("mutation {{ createClient(input: {{ name: \"c{n}\"{owner} }}) {{ client {{ id }} }} }}"))
            .await;
        let id = &made.data()["createClient"]["client"]["id"];
        for (task, assignee) in [&user, &Value::Null, &user].into_iter().enumerate() {
            let input = format!("{{ clientId: {id}, title: \"t{task}\", assigneeId: {assignee} }}");
            client.run(&format!("mutation {{ createTask(input: {input}) {{ task {{ id }} }} }}")).await.data();
        }
        let deed = format!(
            "mutation {{ createClaudeAccount(input: {{ apiKey: \"sk-ant-{n}\", accountName: \"a\" }}) {{ claudeAccount {{ id }} }} }}"
        );
        client.run(&deed).await.data();
        let input = format!("{{ name: \"k{n}\", tokenLimitPerDay: 1000 }}");
        client.run(&format!("mutation {{ createApiKey(input: {input}) {{ apiKey {{ id }} }} }}")).await.data();
        let input = format!("{{ clientId: {id}, label: \"l\", secret: \"s\" }}");
        member.run(&format!("mutation {{ createCredential(input: {input}) {{ credential {{ id }} }} }}")).await.data();
    }
    // They were invited: the server is busy with that no more.
    app.until_no_mail_waits().await;
}

both_databases! {
    async fn the_rows_of_a_list_share_their_statements(app: TestApp) {
        let admin = app.admin().await;
        fill(&app, &admin, 0, 2).await;
        let queries = [
            // Clients, owners, pages of tasks, assignees, makers of tasks (known by then), clients of tasks, counts.
            ("{ clients(first: 100) { totalCount nodes { name owner { email } tasks(first: 2) { totalCount nodes {
                title assignee { email } createdBy { email } client { name } } } } } }", 7),
            ("{ clients(first: 100) { edges { node { owner { email } tasks(first: 2) { edges { node { title client { name } } } } } } } }", 4),
            // Clients, pages of tasks, assignees; clients, pages of credentials, makers.
            (ASSIGNEES, 3),
            (MAKERS, 3),
            ("{ tasks(first: 100) { nodes { client { owner { email } tasks(first: 1) { nodes { title } } } createdBy { email } } } }", 4),
            // The page, users, owners, and for each kind of thing one: the organization, users, sessions, clients, tasks, credentials,
            // accounts, keys.
            ("{ auditLogs(first: 100) { nodes { action user { email } resource { id ... on Client { owner { email } } } } } }", 11),
            // The page, what is counted of them, what is held of them, and what the records have of those that were not used yet.
            ("{ apiKeys(first: 100) { nodes { quota { windows { used } } } } }", 4),
            ("{ claudeAccounts(first: 100) { nodes { auditLogs(first: 2) { totalCount nodes { user { email } } } } } }", 4),
        ];
        let mut few = Vec::new();
        for (query, most) in queries {
            let (count, _) = sent(&app, &admin, query).await;
            assert!(count <= most, "{count} statements: {query}");
            few.push(count);
        }
        fill(&app, &admin, 2, 36).await;
        for ((query, _), few) in queries.into_iter().zip(few) {
            let (count, data) = sent(&app, &admin, query).await;
            assert!(count <= few, "{count} statements instead of {few} with more rows: {query}");
            assert_ne!(data, json!({}));
            if [ASSIGNEES, MAKERS].contains(&query) {
                let text = data.to_string();
                let missing: Vec<_> = (0..36).filter(|n| !text.contains(&format!("member-{n}@"))).collect();
                assert!(missing.is_empty(), "{missing:?} of {text}");
            }
        }
        // What a single record refers to is read at once: the task, its client, both users; then the client's owner and tasks.
        let user = app.user("MEMBER").await.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
        let task = admin.run("{ tasks(first: 1) { nodes { id } } }").await.data()["tasks"]["nodes"][0]["id"].clone();
        let assign = format!("mutation {{ updateTask(input: {{ id: {task}, assigneeId: {user} }}) {{ task {{ id }} }} }}");
        admin.run(&assign).await.data();
        let single = format!("{{ task(id: {task}) {{ assignee {{ email }} createdBy {{ email }} client {{ owner {{ email }} name }} }} }}");
        let (count, data) = sent(&app, &admin, &single).await;
        assert!(count <= 3, "{count} statements: {data}");
    }
}
