//! Clients and their tasks, through the API.

use serde_json::{Value, json};

use crate::support::{Client, both_databases};

const FIELDS: &str =
    "id name company email phone notes status owner { email } metadata archivedAt version createdAt updatedAt";
const TASK_FIELDS: &str = "id client { id } title description status priority assignee { email } dueAt completedAt
    createdBy { email } version createdAt updatedAt";

pub(crate) async fn create(client: &Client, input: Value) -> Value {
    let query =
        format!("mutation($input: CreateClientInput!) {{ createClient(input: $input) {{ client {{ {FIELDS} }} }} }}");
    client.with(&query, json!({ "input": input })).await.data()["createClient"]["client"].clone()
}

async fn update(client: &Client, input: Value) -> crate::support::Answer {
    let query =
        format!("mutation($input: UpdateClientInput!) {{ updateClient(input: $input) {{ client {{ {FIELDS} }} }} }}");
    client.with(&query, json!({ "input": input })).await
}

async fn create_task(client: &Client, input: Value) -> crate::support::Answer {
    let query =
        format!("mutation($input: CreateTaskInput!) {{ createTask(input: $input) {{ task {{ {TASK_FIELDS} }} }} }}");
    client.with(&query, json!({ "input": input })).await
}

async fn task(client: &Client, input: Value) -> Value {
    create_task(client, input).await.data()["createTask"]["task"].clone()
}

async fn update_task(client: &Client, input: Value) -> crate::support::Answer {
    let query =
        format!("mutation($input: UpdateTaskInput!) {{ updateTask(input: $input) {{ task {{ {TASK_FIELDS} }} }} }}");
    client.with(&query, json!({ "input": input })).await
}

async fn act(client: &Client, deed: &str, id: &Value) -> crate::support::Answer {
    let input = format!("{}{}Input", deed[..1].to_uppercase(), &deed[1..]);
    let query = format!("mutation($input: {input}!) {{ {deed}(input: $input) {{ client {{ {FIELDS} }} }} }}");
    client.with(&query, json!({ "input": { "id": id } })).await
}

fn titles(connection: &Value) -> Vec<&str> {
    connection["nodes"].as_array().unwrap().iter().map(|task| task["title"].as_str().unwrap()).collect()
}

both_databases! {
    async fn a_row_that_cannot_be_read_fails_what_refers_to_it_alone(app: TestApp) {
        let admin = app.admin().await;
        for role in ["MANAGER", "MEMBER", "READ_ONLY"] {
            let user = app.user(role).await;
            let viewer = user.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
            create(&admin, json!({ "name": role, "ownerId": viewer })).await;
        }
        app.database.execute("UPDATE users SET status = 'NONSENSE' WHERE email = 'member@example.com'").await.unwrap();
        let query = "{ clients(orderBy: { field: NAME, direction: ASC }) { nodes { name owner { role } } } }";
        let answer = admin.run(query).await;
        assert_eq!(answer.body["data"]["clients"]["nodes"], json!([
            { "name": "MANAGER", "owner": { "role": "MANAGER" } },
            { "name": "MEMBER", "owner": null },
            { "name": "READ_ONLY", "owner": { "role": "READ_ONLY" } },
        ]));
        assert_eq!((answer.code(), answer.body["errors"].as_array().unwrap().len()), ("INTERNAL_SERVER_ERROR", 1));
    }

    async fn a_client_comes_back_as_it_was_made(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({
            "name": "  Ärzte e. V. ", "company": "Größe GmbH", "email": "Post@Example.com", "phone": "+49 30 123",
            "notes": "first\r\nsecond\t", "status": "LEAD", "metadata": { "a": [1] },
        })).await;
        assert_eq!((&made["name"], &made["email"], &made["notes"]), (&json!("Ärzte e. V."), &json!("post@example.com"), &json!("first\nsecond")));
        assert_eq!((&made["status"], &made["owner"]["email"]), (&json!("LEAD"), &json!("admin@localhost")));
        let read = format!("query($id: ID!) {{ client(id: $id) {{ {FIELDS} }} node(id: $id) {{ ... on Client {{ {FIELDS} }} }} }}");
        assert_eq!(*admin.with(&read, json!({ "id": made["id"] })).await.data(), json!({ "client": made, "node": made }));
        let least = create(&admin, json!({ "name": "B", "ownerId": null })).await;
        assert_eq!((&least["status"], &least["owner"], &least["company"]), (&json!("ACTIVE"), &Value::Null, &Value::Null));
    }

    async fn every_wrong_field_of_a_client_or_task_is_named_at_once(app: TestApp) {
        let admin = app.admin().await;
        let query = "mutation($input: CreateClientInput!) { createClient(input: $input) { client { id } } }";
        let answer = admin.with(query, json!({ "input": {
            "name": "", "company": "c".repeat(201), "email": "no", "phone": "\u{7}", "notes": "n".repeat(10_001),
            "status": "ARCHIVED", "ownerId": "client_x", "metadata": [],
        } })).await;
        assert_eq!(answer.fields(), ["name", "company", "email", "phone", "notes", "status", "ownerId", "metadata"]);
        let answer = admin.with(query, json!({ "input": {
            "name": "gpj.\u{202e}exe", "company": "A\u{2028}B", "email": "a\u{200b}da@example.com", "phone": "1\u{2069}",
        } })).await;
        assert_eq!(answer.fields(), ["name", "company", "email", "phone"], "what shows as something else");
        let answer = admin.with(query, json!({ "input": { "name": "A", "ownerId": "user_00000000000000000000000000" } })).await;
        assert_eq!((answer.code(), answer.fields()), ("BAD_USER_INPUT", vec!["ownerId"]));

        let client = create(&admin, json!({ "name": "A" })).await;
        let answer = create_task(&admin, json!({ "clientId": client["id"], "title": " ", "description": "", "assigneeId": "x" })).await;
        assert_eq!(answer.fields(), ["title", "description", "assigneeId"]);
        let answer = create_task(&admin, json!({ "clientId": client["id"], "title": "T", "assigneeId": "user_00000000000000000000000000" })).await;
        assert_eq!(answer.fields(), ["assigneeId"]);
        assert_eq!(create_task(&admin, json!({ "clientId": "client_x", "title": "T" })).await.code(), "NOT_FOUND");
        let counts = admin.run("{ clients { totalCount } tasks { totalCount } }").await;
        assert_eq!(*counts.data(), json!({ "clients": { "totalCount": 1 }, "tasks": { "totalCount": 0 } }));
    }

    async fn an_update_of_a_client_tells_omitted_null_and_value_apart(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "name": "A", "company": "C", "email": "a@b.c", "phone": "1", "metadata": { "x": 1 } })).await;
        let answer = update(&admin, json!({ "id": made["id"], "company": null, "phone": "2", "ownerId": null, "expectedVersion": 1 })).await;
        let client = &answer.data()["updateClient"]["client"];
        assert_eq!(
            (&client["company"], &client["phone"], &client["email"], &client["owner"], &client["version"]),
            (&Value::Null, &json!("2"), &json!("a@b.c"), &Value::Null, &json!(2))
        );
        assert_eq!(update(&admin, json!({ "id": made["id"], "name": "B", "expectedVersion": 1 })).await.code(), "CONFLICT");
        assert_eq!(update(&admin, json!({ "id": made["id"], "name": null, "status": null })).await.fields(), ["name", "status"]);
        assert_eq!(update(&admin, json!({ "id": made["id"] })).await.data()["updateClient"]["client"]["version"], 2);
    }

    async fn an_archived_client_stays_readable_and_takes_nothing_new(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "name": "A", "status": "PAUSED" })).await;
        let old = task(&admin, json!({ "clientId": made["id"], "title": "old" })).await;
        let archived = act(&admin, "archiveClient", &made["id"]).await.data()["archiveClient"]["client"].clone();
        assert_eq!((&archived["status"], archived["archivedAt"].is_string()), (&json!("ARCHIVED"), true));
        assert_eq!(act(&admin, "archiveClient", &made["id"]).await.data()["archiveClient"]["client"], archived, "again");
        assert_eq!(create_task(&admin, json!({ "clientId": made["id"], "title": "T" })).await.code(), "CONFLICT");
        assert_eq!(update(&admin, json!({ "id": made["id"], "name": "B" })).await.code(), "CONFLICT");
        assert_eq!(update_task(&admin, json!({ "id": old["id"], "status": "DONE" })).await.data()["updateTask"]["task"]["status"], "DONE");
        let lists = "{ now: clients { totalCount } all: clients(filter: { includeArchived: true }) { totalCount }
            archived: clients(filter: { status: [ARCHIVED] }) { nodes { name tasks { totalCount } } }
            paused: clients(filter: { status: [PAUSED] }) { totalCount } both: clients(filter: { status: [ARCHIVED, LEAD] }) { totalCount } }";
        assert_eq!(*admin.run(lists).await.data(), json!({
            "now": { "totalCount": 0 }, "all": { "totalCount": 1 },
            "archived": { "nodes": [{ "name": "A", "tasks": { "totalCount": 1 } }] },
            "paused": { "totalCount": 0 }, "both": { "totalCount": 1 },
        }));
        let restored = act(&admin, "restoreClient", &made["id"]).await.data()["restoreClient"]["client"].clone();
        assert_eq!((&restored["status"], &restored["archivedAt"], &restored["version"]), (&json!("PAUSED"), &Value::Null, &json!(3)));
    }

    async fn nothing_is_added_to_a_client_once_it_is_archived(app: TestApp) {
        let admin = app.admin().await;
        for _ in 0..4 {
            let made = create(&admin, json!({ "name": "A" })).await;
            let tasks = futures_util::future::join_all((0..6).map(|_| create_task(&admin, json!({ "clientId": made["id"], "title": "T" }))));
            let credential = "mutation($c: ID!) { createCredential(input: { clientId: $c, label: \"L\", secret: \"s\" }) { credential { id } } }";
            let credentials = futures_util::future::join_all((0..6).map(|_| admin.with(credential, json!({ "c": made["id"] }))));
            let (tasks, archived, credentials) = tokio::join!(tasks, act(&admin, "archiveClient", &made["id"]), credentials);
            archived.data();
            let refused = tasks.iter().chain(&credentials).filter(|answer| answer.body.get("errors").is_some());
            assert!(refused.clone().all(|answer| answer.code() == "CONFLICT"));
            // The log has them in the order in which they were committed.
            let log = "{ auditLogs(first: 13, filter: { outcome: [SUCCESS], action: [CREATE, ARCHIVE] }) { nodes { action } } }";
            let entries = admin.run(log).await.data()["auditLogs"]["nodes"].clone();
            assert_eq!(entries[0]["action"], "ARCHIVE", "{entries:#}");
            let now = "query($id: ID!) { client(id: $id) { tasks { totalCount } credentials { totalCount } } }";
            let client = admin.with(now, json!({ "id": made["id"] })).await.data()["client"].clone();
            let there = client["tasks"]["totalCount"].as_u64().unwrap() + client["credentials"]["totalCount"].as_u64().unwrap();
            assert_eq!(there + refused.count() as u64, 12);
        }
    }

    async fn clients_are_searched_filtered_and_sorted(app: TestApp) {
        let admin = app.admin().await;
        let member = app.user("MEMBER").await;
        let owner = member.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
        for (name, company) in [("delta", None), ("Alpha", Some("Zebra")), ("bravo", Some("ÄRZTE")), ("Charlie", Some("zebra"))] {
            create(&admin, json!({ "name": name, "company": company, "ownerId": (if name == "Alpha" { owner.clone() } else { Value::Null }) })).await;
        }
        let list = "query($search: String, $filter: ClientFilter, $orderBy: ClientOrder) {
            clients(search: $search, filter: $filter, orderBy: $orderBy) { totalCount nodes { name } } }";
        for (variables, expected) in [
            (json!({}), vec!["Charlie", "bravo", "Alpha", "delta"]),
            (json!({ "orderBy": { "field": "NAME", "direction": "ASC" } }), vec!["Alpha", "bravo", "Charlie", "delta"]),
            (json!({ "orderBy": { "field": "COMPANY" } }), vec!["bravo", "Charlie", "Alpha", "delta"]),
            (json!({ "search": "ärz" }), vec!["bravo"]),
            (json!({ "search": "ZEB", "orderBy": { "field": "CREATED_AT", "direction": "ASC" } }), vec!["Alpha", "Charlie"]),
            (json!({ "filter": { "ownerId": owner } }), vec!["Alpha"]),
            (json!({ "filter": { "createdAt": { "to": "2020-01-01T00:00:00Z" } } }), vec![]),
        ] {
            let answer = admin.with(list, variables.clone()).await;
            let clients = &answer.data()["clients"];
            let names: Vec<_> = clients["nodes"].as_array().unwrap().iter().map(|client| client["name"].as_str().unwrap()).collect();
            assert_eq!((names, &clients["totalCount"]), (expected.clone(), &json!(expected.len())), "{variables}");
        }
        assert_eq!(admin.with(list, json!({ "filter": { "ownerId": "x" } })).await.code(), "BAD_USER_INPUT");
    }

    async fn completion_follows_the_status(app: TestApp) {
        let admin = app.admin().await;
        let client = create(&admin, json!({ "name": "A" })).await;
        let made = task(&admin, json!({
            "clientId": client["id"], "title": "T", "description": "a\nb", "priority": "URGENT", "dueAt": "2026-12-01T10:00:00+01:00",
        })).await;
        assert_eq!((&made["status"], &made["priority"], &made["dueAt"]), (&json!("TODO"), &json!("URGENT"), &json!("2026-12-01T09:00:00.000Z")));
        assert_eq!((&made["completedAt"], &made["createdBy"]["email"], &made["client"]["id"]), (&Value::Null, &json!("admin@localhost"), &client["id"]));
        let done = update_task(&admin, json!({ "id": made["id"], "status": "DONE" })).await.data()["updateTask"]["task"].clone();
        assert!(done["completedAt"].is_string());
        app.advance(60);
        let renamed = update_task(&admin, json!({ "id": made["id"], "title": "U" })).await.data()["updateTask"]["task"].clone();
        assert_eq!((&renamed["completedAt"], &renamed["version"]), (&done["completedAt"], &json!(3)));
        let open = update_task(&admin, json!({ "id": made["id"], "status": "BLOCKED", "dueAt": null })).await.data()["updateTask"]["task"].clone();
        assert_eq!((&open["completedAt"], &open["dueAt"]), (&Value::Null, &Value::Null));
        assert!(task(&admin, json!({ "clientId": client["id"], "title": "T", "status": "DONE" })).await["completedAt"].is_string());
        // What was given up is not completed, nor is it when it was before.
        assert_eq!(task(&admin, json!({ "clientId": client["id"], "title": "T", "status": "CANCELLED" })).await["completedAt"], Value::Null);
        for (status, is_completed) in [("DONE", true), ("CANCELLED", false), ("DONE", true)] {
            let changed = update_task(&admin, json!({ "id": made["id"], "status": status })).await.data()["updateTask"]["task"].clone();
            assert_eq!((&changed["status"], changed["completedAt"].is_string()), (&json!(status), is_completed));
        }
        let delete = "mutation($id: ID!) { deleteTask(input: { id: $id }) { deletedId } }";
        assert_eq!(admin.with(delete, json!({ "id": made["id"] })).await.data()["deleteTask"]["deletedId"], made["id"]);
        assert_eq!(admin.with(delete, json!({ "id": made["id"] })).await.code(), "NOT_FOUND");
    }

    async fn tasks_are_filtered_and_sorted(app: TestApp) {
        let admin = app.admin().await;
        let (one, two) = (create(&admin, json!({ "name": "1" })).await, create(&admin, json!({ "name": "2" })).await);
        let me = admin.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone();
        for (client, title, status, priority, due, assignee) in [
            (&one, "past", "TODO", "LOW", Some("2020-01-01T00:00:00Z"), &Value::Null),
            (&one, "past, done", "DONE", "URGENT", Some("2020-01-02T00:00:00Z"), &me),
            (&one, "no date", "IN_PROGRESS", "NORMAL", None, &me),
            (&two, "future", "TODO", "HIGH", Some("2999-01-01T00:00:00Z"), &Value::Null),
        ] {
            task(&admin, json!({ "clientId": client["id"], "title": title, "status": status, "priority": priority, "dueAt": due, "assigneeId": assignee })).await;
        }
        let list = "query($search: String, $filter: TaskFilter, $orderBy: TaskOrder) {
            tasks(search: $search, filter: $filter, orderBy: $orderBy) { totalCount nodes { title } } }";
        for (variables, expected) in [
            (json!({}), vec!["future", "no date", "past, done", "past"]),
            (json!({ "filter": { "overdue": true } }), vec!["past"]),
            (json!({ "filter": { "overdue": false } }), vec!["future", "no date", "past, done"]),
            (json!({ "filter": { "clientId": one["id"], "assigneeId": me } }), vec!["no date", "past, done"]),
            (json!({ "filter": { "status": ["TODO"], "priority": ["LOW", "URGENT"] } }), vec!["past"]),
            (json!({ "filter": { "dueAt": { "from": "2020-01-02T00:00:00Z", "to": "2020-01-03T00:00:00Z" } } }), vec!["past, done"]),
            (json!({ "search": "DATE" }), vec!["no date"]),
            (json!({ "orderBy": { "field": "DUE_AT", "direction": "ASC" } }), vec!["past", "past, done", "future", "no date"]),
            (json!({ "orderBy": { "field": "PRIORITY" } }), vec!["past, done", "future", "no date", "past"]),
            (json!({ "orderBy": { "field": "TITLE", "direction": "ASC" } }), vec!["future", "no date", "past", "past, done"]),
        ] {
            let answer = admin.with(list, variables.clone()).await;
            let tasks = &answer.data()["tasks"];
            assert_eq!((titles(tasks), &tasks["totalCount"]), (expected.clone(), &json!(expected.len())), "{variables}");
        }
    }

    async fn each_client_has_its_own_page_of_tasks(app: TestApp) {
        let admin = app.admin().await;
        for client in 0..4 {
            let made = create(&admin, json!({ "name": format!("c{client}") })).await;
            for n in 0..client * 2 {
                task(&admin, json!({ "clientId": made["id"], "title": format!("{client}-{n}"), "priority": (if n % 2 == 0 { "LOW" } else { "HIGH" }) })).await;
            }
        }
        let query = "query($first: Int, $last: Int, $offset: Int, $filter: TaskFilter) {
            clients(orderBy: { field: NAME, direction: ASC }) { nodes { name id
              tasks(first: $first, last: $last, offset: $offset, filter: $filter, orderBy: { field: TITLE, direction: ASC }) {
                totalCount nodes { title } pageInfo { hasNextPage hasPreviousPage endCursor } } } } }";
        for (variables, expected) in [
            (json!({ "first": 2 }), [vec![], vec!["1-0", "1-1"], vec!["2-0", "2-1"], vec!["3-0", "3-1"]]),
            (json!({ "last": 3 }), [vec![], vec!["1-0", "1-1"], vec!["2-1", "2-2", "2-3"], vec!["3-3", "3-4", "3-5"]]),
            (json!({ "first": 2, "offset": 1 }), [vec![], vec!["1-1"], vec!["2-1", "2-2"], vec!["3-1", "3-2"]]),
            (json!({ "filter": { "priority": ["HIGH"] } }), [vec![], vec!["1-1"], vec!["2-1", "2-3"], vec!["3-1", "3-3", "3-5"]]),
        ] {
            let answer = admin.with(query, variables.clone()).await;
            let found: Vec<_> = answer.data()["clients"]["nodes"].as_array().unwrap().iter().map(|client| titles(&client["tasks"])).collect();
            assert_eq!(found, expected, "{variables}");
        }
        let answer = admin.with(query, json!({ "first": 4 })).await;
        let last = &answer.data()["clients"]["nodes"][3];
        assert_eq!((&last["tasks"]["totalCount"], &last["tasks"]["pageInfo"]["hasNextPage"]), (&json!(6), &json!(true)));
        let next = "query($id: ID!, $after: String) { client(id: $id) {
            tasks(first: 4, after: $after, orderBy: { field: TITLE, direction: ASC }) { nodes { title } pageInfo { hasNextPage hasPreviousPage } } } }";
        let answer = admin.with(next, json!({ "id": last["id"], "after": last["tasks"]["pageInfo"]["endCursor"] })).await;
        assert_eq!(answer.data()["client"]["tasks"], json!({ "nodes": [{ "title": "3-4" }, { "title": "3-5" }],
            "pageInfo": { "hasNextPage": false, "hasPreviousPage": true } }));
        let others = "query($of: ID!) { clients { nodes { tasks(filter: { clientId: $of }) { totalCount nodes { title } } } } }";
        let answer = admin.with(others, json!({ "of": last["id"] })).await;
        let counts: Vec<_> = answer.data()["clients"]["nodes"].as_array().unwrap().iter().map(|client| &client["tasks"]["totalCount"]).collect();
        assert_eq!(counts, [6, 0, 0, 0]);
    }

    async fn roles_do_with_clients_and_tasks_what_the_table_says(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "name": "A" })).await;
        let todo = task(&admin, json!({ "clientId": made["id"], "title": "T" })).await;
        for (role, may) in [("MANAGER", [true, false, true, true]), ("MEMBER", [false, false, true, false]), ("READ_ONLY", [false; 4])] {
            let user = app.user(role).await;
            assert_eq!(user.run("{ clients { totalCount } tasks { totalCount } }").await.data()["tasks"]["totalCount"], 1);
            let answers = [
                update(&user, json!({ "id": made["id"], "phone": role })).await,
                act(&user, "restoreClient", &made["id"]).await,
                update_task(&user, json!({ "id": todo["id"], "description": role })).await,
                user.run("mutation { deleteTask(input: { id: \"task_00000000000000000000000000\" }) { deletedId } }").await,
            ];
            for (place, (answer, may)) in answers.iter().zip(may).enumerate() {
                let is_denied = answer.body.get("errors").is_some() && answer.code() == "FORBIDDEN";
                assert_eq!(!is_denied, may, "{role} {place}: {}", answer.body);
            }
        }
    }

    async fn another_organizations_clients_and_tasks_do_not_exist(app: TestApp) {
        let admin = app.admin().await;
        let made = create(&admin, json!({ "name": "A" })).await;
        let todo = task(&admin, json!({ "clientId": made["id"], "title": "T" })).await;
        app.database.execute(
            "INSERT INTO organizations SELECT 'org_00000000000000000000000001', name, plan, settings, created_at, updated_at FROM organizations;
             UPDATE clients SET organization_id = 'org_00000000000000000000000001';
             UPDATE tasks SET organization_id = 'org_00000000000000000000000001'",
        ).await.unwrap();
        let read = "query($c: ID!, $t: ID!) { client(id: $c) { id } task(id: $t) { id } nodes(ids: [$c, $t]) { id }
            clients { totalCount } tasks(filter: { clientId: $c }) { totalCount } }";
        assert_eq!(*admin.with(read, json!({ "c": made["id"], "t": todo["id"] })).await.data(), json!({
            "client": null, "task": null, "nodes": [null, null], "clients": { "totalCount": 0 }, "tasks": { "totalCount": 0 } }));
        assert_eq!(update(&admin, json!({ "id": made["id"], "name": "B" })).await.code(), "NOT_FOUND");
        assert_eq!(act(&admin, "archiveClient", &made["id"]).await.code(), "NOT_FOUND");
        assert_eq!(act(&admin, "restoreClient", &made["id"]).await.code(), "NOT_FOUND");
        assert_eq!(create_task(&admin, json!({ "clientId": made["id"], "title": "T" })).await.code(), "NOT_FOUND");
        assert_eq!(update_task(&admin, json!({ "id": todo["id"], "title": "U" })).await.code(), "NOT_FOUND");
        let delete = "mutation($id: ID!) { deleteTask(input: { id: $id }) { deletedId } }";
        assert_eq!(admin.with(delete, json!({ "id": todo["id"] })).await.code(), "NOT_FOUND");
    }
}
