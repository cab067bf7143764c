//! Reads that are asked for at once share executions: nobody gets what is old, or another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Client, both_databases};

/// Callers who ask the same over and over, until they are told to stop.
struct Crowd {
    is_over: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Crowd {
    fn of(client: &Client, query: &'static str) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let caller = |_| {
            let (client, is_over) = (client.clone(), is_over.clone());
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    client.run(query).await.data();
                }
            })
        };
        Self { callers: (0..6).map(caller).collect(), is_over }
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        join_all(self.callers).await.into_iter().for_each(Result::unwrap);
    }
}

both_databases! {
    async fn who_has_written_reads_it_whatever_goes_on(app: TestApp) {
        const QUERY: &str = "{ organization { name } clients { totalCount } }";
        let admin = app.admin().await;
        let crowd = Crowd::of(&admin, QUERY);
        for n in 1..=20 {
            let deeds = format!("mutation {{ updateOrganization(input: {{ name: \"N{n}\" }}) {{ organization {{ id }} }}
                createClient(input: {{ name: \"c{n}\" }}) {{ client {{ id }} }} }}");
            admin.run(&deeds).await.data();
            let read = admin.run(QUERY).await;
            assert_eq!(read.data(), &json!({ "organization": { "name": format!("N{n}") }, "clients": { "totalCount": n } }));
        }
        crowd.end().await;
    }

    async fn each_reads_what_they_may(app: TestApp) {
        const QUERY: &str = "{ organization { name } apiKeys { nodes { name } } }";
        let callers = [app.admin().await, app.user("MEMBER").await, app.other_organization().await];
        for (n, caller) in callers.iter().enumerate() {
            let input = json!({ "name": format!("key {n}") });
            crate::api_key::create(caller, input).await;
        }
        let alone = join_all(callers.iter().map(|caller| caller.run(QUERY))).await;
        let crowds: Vec<_> = callers.iter().map(|caller| Crowd::of(caller, QUERY)).collect();
        for _ in 0..10 {
            let together = join_all(callers.iter().map(|caller| caller.run(QUERY))).await;
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(alone.data(), together.data());
            }
        }
        assert_ne!(alone[0].data(), alone[1].data());
        assert_ne!(alone[1].data(), alone[2].data());
        join_all(crowds.into_iter().map(Crowd::end)).await;
    }

    async fn variables_are_told_apart(app: TestApp) {
        const QUERY: &str = "query($first: Int, $filter: ClientFilter) { clients(first: $first, filter: $filter) { nodes { name } } }";
        let admin = app.admin().await;
        for n in 0..3 {
            admin.run(&format!("mutation {{ createClient(input: {{ name: \"c{n}\" }}) {{ client {{ id }} }} }}")).await.data();
        }
        let asked = (0..30).map(async |n| {
            let first = n % 3 + 1;
            let answer = admin.with(QUERY, json!({ "first": first, "filter": { "includeArchived": n % 2 == 0 } })).await;
            assert_eq!(answer.data()["clients"]["nodes"].as_array().unwrap().len(), first);
        });
        join_all(asked).await;
    }

    async fn each_error_names_the_request_that_it_answers(app: TestApp) {
        let member = app.user("MEMBER").await;
        let ask = async || {
            let body = json!({ "query": "{ organization { id } auditLogs { totalCount } }" });
            let response = member.http().post(format!("{}/graphql", app.url)).json(&body);
            let response = response.bearer_auth(member.access_token.as_deref().unwrap()).send().await.unwrap();
            let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
            let body: serde_json::Value = response.json().await.unwrap();
            assert_eq!(body["errors"][0]["extensions"]["code"], "FORBIDDEN", "{body}");
            assert_eq!(body["errors"][0]["extensions"]["requestId"], id);
            assert_eq!(body["data"]["auditLogs"], json!(null));
            id
        };
        let mut ids = join_all((0..30).map(|_| ask())).await;
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 30);
    }

    async fn each_look_at_an_account_is_recorded(app: TestApp) {
        let admin = app.admin().await;
        let made = admin.run("mutation { createClaudeAccount(input: { apiKey: \"sk-ant-1\", accountName: \"a\" }) { claudeAccount { id } } }").await;
        let query = format!("{{ claudeAccount(id: {}) {{ accountName }} }}", made.data()["createClaudeAccount"]["claudeAccount"]["id"]);
        join_all((0..20).map(|_| admin.run(&query))).await.iter().for_each(|answer| assert_eq!(answer.data()["claudeAccount"]["accountName"], "a"));
        let looks = "SELECT DISTINCT request_id AS text FROM audit_logs WHERE action = 'VIEW' AND operation = 'claudeAccount'";
        assert_eq!(app.database.texts(looks).await.len(), 20);
    }
}
