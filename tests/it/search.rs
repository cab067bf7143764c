//! Searching: the index of trigrams follows the rows, and is what a search goes by.

use serde_json::{Value, json};

use crate::command_line::Place;
use crate::support::{Client, TestApp, TestDatabase, both_databases};

async fn found(client: &Client, search: &str) -> Vec<String> {
    let query = "query($s: String!) { clients(search: $s, orderBy: { field: NAME, direction: ASC }) {
      totalCount nodes { name } } }";
    let data = client.with(query, json!({ "s": search })).await.data()["clients"].clone();
    let names: Vec<_> =
        data["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(data["totalCount"], names.len(), "{search:?}");
    names
}

async fn create(client: &Client, name: &str, company: Option<&str>) -> Value {
    let mutation = "mutation($i: CreateClientInput!) { createClient(input: $i) { client { id } } }";
    let made = client.with(mutation, json!({ "i": { "name": name, "company": company } })).await;
    made.data()["createClient"]["client"]["id"].clone()
}

/// So many clients of the organization, past the server.
fn fill(postgres: bool, count: u32) -> String {
    let numbers = if postgres {
        format!("generate_series(1, {count}) AS numbers(n)")
    } else {
        format!(
            "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {count}) SELECT n FROM c) AS numbers"
        )
    };
    format!(
        "INSERT INTO clients (id, organization_id, name, name_folded, company_folded, search_text, status, created_at,
             updated_at, version)
         SELECT 'client_' || substr('00000000000000000000000000', length(CAST(n AS TEXT)) + 1) || n, o.id, 'Common ' || n, 'common ' || n, '', 'common ' || n, 'ACTIVE',
             o.created_at, o.created_at, 1
         FROM organizations o CROSS JOIN {numbers};
         INSERT INTO tasks (id, organization_id, client_id, title, title_folded, search_text, status, priority,
             priority_rank, due_sort, created_at, updated_at, version)
         SELECT replace(id, 'client_', 'task_'), organization_id, id, 'T', 't', 't' || '\n', 'TODO', 'LOW', 1, created_at, created_at,
             created_at, 1
         FROM clients"
    )
}

both_databases! {
    async fn a_search_finds_what_rows_say_now(app: TestApp) {
        let admin = app.admin().await;
        let id = create(&admin, "Ærøskøbing 100% \"Søn\"", Some("Юлия & Co")).await;
        create(&admin, "東京タワー", None).await;
        for term in ["ærøsk", "ÆRØSKØBING", "0% \"s", "\"SØN\"", "юлия", "& co", "n\"", "øn"] {
            assert_eq!(found(&admin, term).await.len(), 1, "{term:?}");
        }
        assert_eq!(found(&admin, "京タワ").await, ["東京タワー"]);
        assert_eq!(found(&admin, "京").await, ["東京タワー"]);
        for term in ["søn\" юлия", "ærø_kø", "zzz", "* OR \"", "a\" OR \"b"] {
            assert_eq!(found(&admin, term).await, Vec::<String>::new(), "{term:?}");
        }
        let change = "mutation($i: UpdateClientInput!) { updateClient(input: $i) { client { id } } }";
        admin.with(change, json!({ "i": { "id": id, "name": "Zebra" } })).await.data();
        assert_eq!(found(&admin, "ærøskøbing").await, Vec::<String>::new());
        assert_eq!(found(&admin, "ZEBRA").await, ["Zebra"]);
        assert_eq!(found(&admin, "юлия").await, ["Zebra"]);
        // A change of what is not searched, and a change that is undone, leave the index as it is.
        admin.with(change, json!({ "i": { "id": id, "notes": "ærøskøbing" } })).await.data();
        let refused = json!({ "i": { "id": id, "name": "Okapi", "ownerId": "user_00000000000000000000000000" } });
        admin.with(change, refused).await.code();
        assert_eq!((found(&admin, "okapi").await, found(&admin, "zebra").await.len()), (Vec::new(), 1));
        // What goes with another row is gone from the index too, and VACUUM leaves it as it is.
        app.database.execute("DELETE FROM clients WHERE name = 'Zebra'").await.unwrap();
        app.database.execute("VACUUM").await.unwrap();
        assert_eq!((found(&admin, "zebra").await, found(&admin, "タワー").await.len()), (Vec::new(), 1));
    }

    async fn rare_and_common_terms_find_all_that_has_them(app: TestApp) {
        let admin = app.admin().await;
        let postgres = app.database.url.starts_with("postgres");
        app.database.execute(&fill(postgres, 6_000)).await.unwrap();
        let count = async |term: &str| {
            let query = "query($s: String!) { clients(search: $s, first: 3) { totalCount nodes { id } } }";
            let page = admin.with(query, json!({ "s": term })).await.data()["clients"].clone();
            (page["totalCount"].as_i64().unwrap(), page["nodes"].as_array().unwrap().len())
        };
        assert_eq!(count("common").await, (6_000, 3));
        assert_eq!(count("common 5").await, (1_111, 3));
        assert_eq!(count("common 5999").await, (1, 1));
        assert_eq!(count("co").await, (6_000, 3));
    }

    async fn a_search_and_the_tasks_of_clients_go_by_an_index(app: TestApp) {
        let mut app = app;
        let postgres = app.database.url.starts_with("postgres");
        app.database.execute(&fill(postgres, 12_000)).await.unwrap();
        let admin = app.admin().await;
        create(&admin, "Zebrafink", None).await;
        let organization = app.database.texts("SELECT id AS text FROM organizations").await.remove(0);
        for (sql, index) in [
            (format!(
                "SELECT * FROM clients WHERE organization_id = '{organization}' AND archived_at IS NULL
                 AND search_text LIKE '%zebrafink%' ESCAPE '\\' {}
                 ORDER BY created_at DESC, id DESC LIMIT 21",
                if postgres { "" } else {
                    "AND clients.rowid IN (SELECT rowid FROM clients_search WHERE clients_search MATCH '\"zeb\" AND \"fin\"')"
                }
            ), if postgres { "clients_by_search" } else { "clients USING INTEGER PRIMARY KEY (rowid=?)" }),
            (if postgres {
                format!(
                    "SELECT ranked.* FROM unnest(ARRAY['client_00000000000000000000000001', 'client_00000000000000000000000002']) AS parents (parent)
                     CROSS JOIN LATERAL (SELECT id, row_number() OVER (PARTITION BY client_id ORDER BY created_at DESC, id DESC) AS place
                     FROM tasks WHERE organization_id = '{organization}' AND client_id = parents.parent
                     ORDER BY created_at DESC, id DESC LIMIT 6 OFFSET 0) AS ranked ORDER BY place"
                )
            } else {
                format!(
                    "SELECT * FROM (SELECT id, row_number() OVER (PARTITION BY client_id ORDER BY created_at DESC, id DESC) AS place
                     FROM tasks WHERE organization_id = '{organization}' AND client_id IN ('client_00000000000000000000000001', 'client_00000000000000000000000002')) AS ranked
                     WHERE place <= 6 ORDER BY place"
                )
            }, "tasks_by_client"),
        ] {
            let plan = app.database.plan(&sql).await;
            assert!(plan.contains(index), "{plan}");
        }
        if !postgres {
            let statistics = "SELECT tbl || ' ' || coalesce(idx, '') || ' ' || stat AS text FROM sqlite_stat1 ORDER BY 1";
            let before = app.database.texts(statistics).await;
            assert!(before.contains(&"tasks tasks_by_organization 1000000 100000".to_owned()), "{before:?}");
            assert!(before.contains(&"clients clients_by_name 1000000 100000 10 1".to_owned()), "{before:?}");
            assert!(before.contains(&"clients clients_by_owner 1000000 100000 100 10 1".to_owned()), "{before:?}");
            assert!(before.iter().all(|line| !line.starts_with("audit_logs")), "{before:?}");
            for (of, index) in [("api_key_id = 'x' AND", "usage_rollups_by_key"), ("user_id = 'x' AND", "usage_rollups_by_user"), ("", "PRIMARY KEY")] {
                let sql = format!("SELECT SUM(cost_nano_usd) FROM usage_rollups WHERE organization_id = 'o' AND {of} span = 'DAY' AND start_at >= '2026'");
                let plan = app.database.plan(&sql).await;
                assert!(plan.contains(index), "{plan}");
            }
            // What somebody else makes of them holds until the next start at most.
            for deed in ["ANALYZE", "DELETE FROM sqlite_stat1", "DROP TABLE sqlite_stat1"] {
                app.database.execute(deed).await.unwrap();
                app.restart().await;
                assert_eq!(app.database.texts(statistics).await, before, "{deed}");
            }
            let admin = app.admin().await;
            assert_eq!(found(&admin, "zebrafink").await.len(), 1);
        }
        if postgres {
            // The server's own statement went by it as well.
            assert_eq!(found(&admin, "zebrafink").await.len(), 1);
            let scans = "SELECT idx_scan::text AS text FROM pg_stat_user_indexes WHERE indexrelname = 'clients_by_search'";
            let mut counted = app.database.texts(scans).await;
            for _ in 0..100 {
                if counted != ["0"] { break; }
                // PostgreSQL tells of it when it comes to it.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                counted = app.database.texts(scans).await;
            }
            assert_ne!(counted, ["0"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_trgm_may_be_in_a_schema_of_its_own() {
    let database = TestDatabase::postgres().await;
    database.execute("CREATE SCHEMA \"Their own\"; CREATE EXTENSION pg_trgm SCHEMA \"Their own\"").await.unwrap();
    let app = TestApp::start(database, []).await;
    let admin = app.admin().await;
    create(&admin, "Zebrafink", None).await;
    assert_eq!(found(&admin, "brafin").await, ["Zebrafink"]);
    let tables = "SELECT schemaname AS text FROM pg_indexes WHERE indexname = 'clients_by_search'";
    assert_eq!(app.database.texts(tables).await, ["public"]);
}

/// Whatever migration makes an index of trigrams, the first or a later one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_trgm_in_a_schema_of_its_own_is_found_where_some_indexes_are_there_already() {
    let database = TestDatabase::postgres().await;
    database.execute("CREATE SCHEMA \"Their own\"; CREATE EXTENSION pg_trgm SCHEMA \"Their own\"").await.unwrap();
    let place = Place::new(database);
    place.run_well(&["migrate", "up"]);
    let known = place.run_well(&["migrate", "status"]);
    let later = known.lines().skip_while(|line| !line.ends_with("_search")).count() - 1;
    place.run_well(&["migrate", "down", "--yes", "--steps", &later.to_string()]);
    assert!(place.run_well(&["migrate", "redo", "--yes"]).ends_with("_search\n"));
    place.run_well(&["migrate", "up"]);
    let schemas = "SELECT DISTINCT schemaname AS text FROM pg_indexes WHERE indexname LIKE '%\\_by\\_search'";
    assert_eq!(place.database.texts(schemas).await, ["public"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_trgm_in_a_schema_that_is_closed_is_told_of() {
    let database = TestDatabase::postgres().await;
    let of_owner = TestDatabase::at(database.url.replace("claviger@", "postgres@"));
    of_owner.execute("CREATE SCHEMA closed; CREATE EXTENSION pg_trgm SCHEMA closed").await.unwrap();
    let output = Place::new(database).run(&["migrate", "up"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("GRANT USAGE ON SCHEMA closed TO claviger"), "{error}");
}
