//! Users, through the API.

use serde_json::{Value, json};

use crate::invitation::{invite, join};
use crate::support::{Answer, Client, PASSWORD, TestApp, both_databases};

const LIST: &str = "query($first: Int, $after: String, $last: Int, $before: String, $offset: Int, $search: String,
      $filter: UserFilter, $orderBy: UserOrder) {
  users(first: $first, after: $after, last: $last, before: $before, offset: $offset, search: $search,
      filter: $filter, orderBy: $orderBy) {
    totalCount nodes { email } pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }";
const UPDATE: &str = "mutation($input: UpdateUserInput!) {
  updateUser(input: $input) { user { id email fullName role status version } } }";
const DELETE: &str = "mutation($id: ID!) { deleteUser(input: { id: $id }) { deletedId } }";
const OTHER_ORGANIZATION: &str =
    "INSERT INTO organizations SELECT 'org_00000000000000000000000001', name, plan, settings,
    created_at, updated_at FROM organizations";

async fn list(client: &Client, variables: Value) -> Value {
    client.with(LIST, variables).await.data()["users"].clone()
}

fn emails(page: &Value) -> Vec<&str> {
    page["nodes"].as_array().unwrap().iter().map(|node| node["email"].as_str().unwrap()).collect()
}

async fn update(client: &Client, input: Value) -> Answer {
    client.with(UPDATE, json!({ "input": input })).await
}

async fn own_id(client: &Client) -> Value {
    client.run("{ viewer { user { id } } }").await.data()["viewer"]["user"]["id"].clone()
}

/// Whether what a client holds still opens anything: its access token, its refresh token.
async fn is_signed_in(app: &TestApp, client: &Client) -> (bool, bool) {
    let viewer = client.run("{ viewer { role } }").await.data()["viewer"].clone();
    let refresh = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { accessToken } }";
    let answer = app.anonymous().with(refresh, json!({ "t": client.refresh_token })).await;
    (!viewer.is_null(), answer.body.get("errors").is_none())
}

async fn can_sign_in(app: &TestApp, email: &str) -> bool {
    let sign_in =
        "mutation($e: String!, $p: String!) { signIn(input: { email: $e, password: { plain: $p } }) { accessToken } }";
    app.anonymous().with(sign_in, json!({ "e": email, "p": PASSWORD })).await.body.get("errors").is_none()
}

/// The administrator and five more, of whom three never signed in and two share a name.
async fn fill(app: &TestApp) -> Client {
    let admin = app.admin().await;
    let update_name =
        async |id: &Value, name: &str| update(&admin, json!({ "id": id, "fullName": name })).await.data().clone();
    for (email, role, name) in [("zoe@example.com", "MANAGER", "alpha"), ("carl@example.com", "MEMBER", "Émile 100%")]
    {
        let (id, _) = join(app, &admin, email, role).await;
        update_name(&id, name).await;
    }
    for (email, name) in [("bea@example.com", "Alpha"), ("ada@example.org", "bravo"), ("dan@example.com", "Charlie")] {
        let (user, _) = invite(&admin, email, "READ_ONLY").await;
        update_name(&user["id"], name).await;
    }
    admin
}

both_databases! {
    async fn every_ordering_walks_all_users_once_in_both_directions(app: TestApp) {
        let admin = fill(&app).await;
        for field in ["CREATED_AT", "EMAIL", "FULL_NAME", "LAST_SIGN_IN_AT"] {
            for direction in ["ASC", "DESC"] {
                let order = json!({ "field": field, "direction": direction });
                let all = list(&admin, json!({ "orderBy": order })).await;
                let all = emails(&all);
                assert_eq!(all.len(), 6);

                let (mut forwards, mut after) = (Vec::new(), Value::Null);
                loop {
                    let page = list(&admin, json!({ "first": 2, "after": after, "orderBy": order })).await;
                    forwards.extend(emails(&page).into_iter().map(str::to_owned));
                    after = page["pageInfo"]["endCursor"].clone();
                    if page["pageInfo"]["hasNextPage"] == false { break; }
                }
                assert_eq!(forwards, all, "{field} {direction}");

                let (mut backwards, mut before) = (Vec::new(), Value::Null);
                loop {
                    let page = list(&admin, json!({ "last": 2, "before": before, "orderBy": order })).await;
                    backwards.splice(0..0, emails(&page).into_iter().map(str::to_owned));
                    before = page["pageInfo"]["startCursor"].clone();
                    if page["pageInfo"]["hasPreviousPage"] == false { break; }
                }
                assert_eq!(backwards, all, "{field} {direction} backwards");

                let page = list(&admin, json!({ "first": 2, "offset": 2, "orderBy": order })).await;
                assert_eq!(emails(&page), all[2..4], "{field} {direction} by offset");
            }
        }
    }

    async fn orderings_are_what_they_say_and_ascend_by_themselves(app: TestApp) {
        let admin = fill(&app).await;
        let by = async |field: &str| {
            let page = list(&admin, json!({ "orderBy": { "field": field } })).await;
            emails(&page).into_iter().map(|email| email.split('@').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(by("CREATED_AT").await, ["admin", "zoe", "carl", "bea", "ada", "dan"]);
        assert_eq!(by("EMAIL").await, ["ada", "admin", "bea", "carl", "dan", "zoe"]);
        // Two are called alpha, and the older one has the smaller id.
        assert_eq!(by("FULL_NAME").await, ["admin", "zoe", "bea", "ada", "dan", "carl"]);
        assert_eq!(by("LAST_SIGN_IN_AT").await, ["bea", "ada", "dan", "admin", "zoe", "carl"]);
        app.advance(60);
        app.admin().await;
        assert_eq!(by("LAST_SIGN_IN_AT").await, ["bea", "ada", "dan", "zoe", "carl", "admin"]);
        let page = list(&admin, json!({})).await;
        assert_eq!(emails(&page)[..2], ["admin@localhost", "zoe@example.com"]);
    }

    async fn search_and_filters_hold_together(app: TestApp) {
        let admin = fill(&app).await;
        let count = async |variables| list(&admin, variables).await["totalCount"].clone();
        for (search, expected) in [
            ("ALPHA", 2), ("émile", 1), ("É", 1), ("100%", 1), ("%", 1), ("_", 0), ("EXAMPLE.com", 4), ("zoe@", 1),
            ("", 6), ("  ", 6), ("alpha\nzoe", 0), ("nothing", 0),
        ] {
            assert_eq!(count(json!({ "search": search })).await, expected, "{search:?}");
        }
        assert_eq!(count(json!({ "filter": { "role": ["MANAGER", "MEMBER"] } })).await, 2);
        assert_eq!(count(json!({ "filter": { "status": ["INVITED"] } })).await, 3);
        assert_eq!(count(json!({ "filter": { "status": ["INVITED"], "role": ["ADMIN"] } })).await, 0);
        assert_eq!(count(json!({ "filter": { "status": [] } })).await, 0);
        assert_eq!(count(json!({ "filter": { "status": ["ACTIVE"] }, "search": "alpha" })).await, 1);
        let answer = admin.with(LIST, json!({ "search": "é".repeat(201) })).await;
        assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", &["search"][..]));
        let accounts = admin.run("{ claudeAccounts { nodes { id } } users(first: 1) { pageInfo { endCursor } } }").await;
        let cursor = &accounts.data()["users"]["pageInfo"]["endCursor"];
        let order = json!({ "field": "CREATED_AT", "direction": "DESC" });
        assert_eq!(admin.with(LIST, json!({ "after": cursor, "orderBy": order })).await.fields(), ["after"]);
    }

    async fn each_role_may_what_the_table_says(app: TestApp) {
        let admin = app.admin().await;
        for role in ["MANAGER", "MEMBER", "READ_ONLY"] {
            let user = app.user(role).await;
            let (target, _) = invite(&admin, &format!("{role}-target@example.com"), "MEMBER").await;
            let id = &target["id"];
            assert_eq!(user.run(&format!("{{ user(id: {id}) {{ fullName }} }}")).await.data()["user"]["fullName"], "Ina Invited");
            let users = user.run("{ users { totalCount } }").await;
            if role == "MANAGER" { users.data(); } else { assert_eq!(users.code(), "FORBIDDEN", "{role}"); }
            for mutation in [
                "inviteUser(input: { email: \"a@b.c\", fullName: \"N\", role: MEMBER }) { user { id } }".to_owned(),
                format!("updateUser(input: {{ id: {id}, fullName: \"N\" }}) {{ user {{ id }} }}"),
                format!("updateUser(input: {{ id: {}, role: ADMIN }}) {{ user {{ id }} }}", own_id(&user).await),
                format!("deleteUser(input: {{ id: {id} }}) {{ deletedId }}"),
            ] {
                assert_eq!(user.run(&format!("mutation {{ {mutation} }}")).await.code(), "FORBIDDEN", "{role} {mutation}");
            }
        }
    }

    async fn an_update_tells_omitted_null_and_value_apart(app: TestApp) {
        let admin = app.admin().await;
        let (id, _) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let answer = update(&admin, json!({ "id": id, "fullName": " Ina Other " })).await;
        let changed = json!({ "id": id, "email": "ina@example.com", "fullName": "Ina Other", "role": "MEMBER", "status": "ACTIVE", "version": 3 });
        assert_eq!(answer.data()["updateUser"]["user"], changed);
        assert_eq!(update(&admin, json!({ "id": id, "role": "MEMBER" })).await.data()["updateUser"]["user"], changed, "nothing changed");
        let answer = update(&admin, json!({ "id": id, "fullName": null, "role": null, "status": null })).await;
        assert_eq!(answer.fields(), ["fullName", "role", "status"]);
        assert_eq!(update(&admin, json!({ "id": id, "fullName": "x".repeat(101) })).await.fields(), ["fullName"]);
        assert_eq!(update(&admin, json!({ "id": "no id", "fullName": "N" })).await.code(), "NOT_FOUND");
        let at = |version: i32, name: &str| json!({ "id": id, "fullName": name, "expectedVersion": version });
        assert_eq!(update(&admin, at(2, "N")).await.code(), "CONFLICT");
        let (one, two) = tokio::join!(update(&admin, at(3, "B")), update(&admin, at(3, "C")));
        let codes: Vec<_> = [&one, &two].iter().filter(|answer| answer.body.get("errors").is_some()).map(|a| a.code()).collect();
        assert_eq!(codes, ["CONFLICT"]);
    }

    async fn nobody_is_made_invited_or_active_by_hand(app: TestApp) {
        let admin = app.admin().await;
        let (id, _) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        assert_eq!(update(&admin, json!({ "id": id, "status": "INVITED" })).await.fields(), ["status"]);
        let (user, _) = invite(&admin, "new@example.com", "MEMBER").await;
        for status in ["ACTIVE", "SUSPENDED"] {
            assert_eq!(update(&admin, json!({ "id": user["id"], "status": status })).await.code(), "CONFLICT", "{status}");
        }
        let answer = update(&admin, json!({ "id": user["id"], "role": "MANAGER" })).await;
        assert_eq!(answer.data()["updateUser"]["user"]["role"], "MANAGER");
    }

    async fn who_is_suspended_is_signed_out_at_once(app: TestApp) {
        let admin = app.admin().await;
        let (id, user) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        assert!(can_sign_in(&app, "ina@example.com").await);
        // It is known by then who that is.
        user.run("{ viewer { role } }").await.data();
        update(&admin, json!({ "id": id, "status": "SUSPENDED" })).await.data();
        assert_eq!(is_signed_in(&app, &user).await, (false, false));
        assert_eq!(user.run("{ organization { id } }").await.code(), "UNAUTHENTICATED");
        assert!(!can_sign_in(&app, "ina@example.com").await);
        let log = "{ auditLogs(first: 1, filter: { action: [UPDATE], outcome: [SUCCESS] }) { nodes { changes metadata } } }";
        let entry = admin.run(log).await.data()["auditLogs"]["nodes"][0].clone();
        assert_eq!(entry["changes"], json!({ "status": { "from": "ACTIVE", "to": "SUSPENDED" } }));
        assert_eq!(entry["metadata"], json!({ "sessionsEnded": 3 }));
        update(&admin, json!({ "id": id, "status": "ACTIVE" })).await.data();
        assert_eq!(is_signed_in(&app, &user).await, (false, false), "what has ended does not begin again");
        assert!(can_sign_in(&app, "ina@example.com").await);
    }

    async fn who_is_demoted_loses_the_right_at_once(app: TestApp) {
        let admin = app.admin().await;
        let (id, user) = join(&app, &admin, "ina@example.com", "ADMIN").await;
        user.run("{ auditLogs { totalCount } }").await.data();
        update(&admin, json!({ "id": id, "role": "READ_ONLY" })).await.data();
        assert_eq!(user.run("{ auditLogs { totalCount } }").await.code(), "FORBIDDEN");
        assert_eq!(user.run("{ viewer { role } }").await.data()["viewer"]["role"], "READ_ONLY");
        update(&admin, json!({ "id": id, "role": "ADMIN" })).await.data();
        user.run("{ auditLogs { totalCount } }").await.data();
    }

    async fn who_was_demoted_or_suspended_a_moment_ago_changes_nobody(app: TestApp) {
        let admin = app.admin().await;
        let user = app.user("ADMIN").await;
        let (id, victim) = (own_id(&user).await, own_id(&admin).await);
        let set = async |change: &str| {
            app.database.execute(&format!("UPDATE users SET {change} WHERE email = 'admin@example.com'")).await.unwrap();
        };
        for (change, code) in [("role = 'MANAGER'", "FORBIDDEN"), ("status = 'SUSPENDED'", "UNAUTHENTICATED")] {
            set("role = 'ADMIN', status = 'ACTIVE'").await;
            app.advance(6);
            user.run("{ auditLogs { totalCount } }").await.data();
            // By another server: this one believes for five seconds what it knew.
            set(change).await;
            assert_eq!(update(&user, json!({ "id": id, "role": "ADMIN", "status": "ACTIVE" })).await.code(), code);
            assert_eq!(update(&user, json!({ "id": victim, "role": "MEMBER" })).await.code(), code);
            assert_eq!(user.with(DELETE, json!({ "id": victim })).await.code(), code);
            let invite = "mutation { inviteUser(input: { email: \"a@b.c\", fullName: \"N\", role: ADMIN }) { user { id } } }";
            assert_eq!(user.run(invite).await.code(), code);
            let log = "{ auditLogs(first: 4) { nodes { outcome errorCode } } }";
            let refused = json!({ "outcome": "DENIED", "errorCode": code });
            assert_eq!(admin.run(log).await.data()["auditLogs"]["nodes"], json!(vec![refused; 4]));
        }
    }

    async fn who_is_deleted_is_gone_but_for_the_log(app: TestApp) {
        let admin = app.admin().await;
        let (id, user) = join(&app, &admin, "ina@example.com", "ADMIN").await;
        update(&user, json!({ "id": id, "fullName": "Ina Deleted" })).await.data();
        assert_eq!(admin.with(DELETE, json!({ "id": id })).await.data()["deleteUser"]["deletedId"], id);
        assert_eq!(is_signed_in(&app, &user).await, (false, false));
        assert!(!can_sign_in(&app, "ina@example.com").await);
        let read = "query($id: ID!) { user(id: $id) { id } node(id: $id) { id } nodes(ids: [$id]) { id }
            users { totalCount nodes { email } } all: users(filter: { status: [INVITED, ACTIVE, SUSPENDED] }) { totalCount } }";
        assert_eq!(*admin.with(read, json!({ "id": id })).await.data(), json!({ "user": null, "node": null, "nodes": [null],
            "users": { "totalCount": 1, "nodes": [{ "email": "admin@localhost" }] }, "all": { "totalCount": 1 } }));
        let log = "query($id: ID!) { auditLogs(filter: { userId: $id, action: [UPDATE] }) { nodes { user { id fullName status } resource { id } } } }";
        let entries = admin.with(log, json!({ "id": id })).await.data()["auditLogs"]["nodes"].clone();
        assert_eq!(entries, json!([{ "user": { "id": id, "fullName": "Ina Deleted", "status": "SUSPENDED" }, "resource": null }]));
        assert_eq!(admin.with(DELETE, json!({ "id": id })).await.code(), "NOT_FOUND");
        assert_eq!(update(&admin, json!({ "id": id, "status": "ACTIVE" })).await.code(), "NOT_FOUND");
        // The address is free, for somebody else with another id; twice.
        for _ in 0..2 {
            let (again, _) = join(&app, &admin, "ina@example.com", "MEMBER").await;
            assert_ne!(again, id);
            admin.with(DELETE, json!({ "id": again })).await.data();
        }
    }

    async fn nobody_deletes_themselves_by_this(app: TestApp) {
        let admin = app.admin().await;
        join(&app, &admin, "ina@example.com", "ADMIN").await;
        assert_eq!(admin.with(DELETE, json!({ "id": own_id(&admin).await })).await.code(), "CONFLICT");
        admin.run("{ users { totalCount } }").await.data();
    }

    async fn the_last_active_admin_stays(app: TestApp) {
        let admin = app.admin().await;
        let own = own_id(&admin).await;
        // None of these counts: one is invited, one suspended, one of another organization, one deleted.
        invite(&admin, "invited@example.com", "ADMIN").await;
        let (suspended, _) = join(&app, &admin, "suspended@example.com", "ADMIN").await;
        update(&admin, json!({ "id": suspended, "status": "SUSPENDED" })).await.data();
        join(&app, &admin, "elsewhere@example.com", "ADMIN").await;
        app.database.execute(&format!("{OTHER_ORGANIZATION}; UPDATE users
            SET organization_id = 'org_00000000000000000000000001' WHERE email = 'elsewhere@example.com'")).await.unwrap();
        let (deleted, _) = join(&app, &admin, "deleted@example.com", "ADMIN").await;
        admin.with(DELETE, json!({ "id": deleted })).await.data();
        for change in [json!({ "role": "MANAGER" }), json!({ "status": "SUSPENDED" }), json!({ "role": "READ_ONLY", "status": "SUSPENDED" })] {
            let mut input = change.clone();
            input["id"] = own.clone();
            assert_eq!(update(&admin, input).await.code(), "CONFLICT", "{change}");
        }
        update(&admin, json!({ "id": own, "fullName": "Still here", "role": "ADMIN", "status": "ACTIVE" })).await.data();
        // Those who are no active ADMIN can go.
        admin.with(DELETE, json!({ "id": suspended })).await.data();
        let (second, other) = join(&app, &admin, "second@example.com", "ADMIN").await;
        update(&admin, json!({ "id": own, "role": "MEMBER" })).await.data();
        assert_eq!(update(&other, json!({ "id": second, "role": "MEMBER" })).await.code(), "CONFLICT");
    }

    async fn two_admins_who_end_each_other_at_once_leave_one(app: TestApp) {
        let (one, two) = (app.admin().await, app.user("ADMIN").await);
        let (first, second) = (own_id(&one).await, own_id(&two).await);
        for input in [json!({ "role": "MEMBER" }), json!({ "status": "SUSPENDED" })] {
            for _ in 0..4 {
                app.database.execute("UPDATE users SET role = 'ADMIN', status = 'ACTIVE'; UPDATE sessions SET revoked_at = NULL").await.unwrap();
                // What this server believes of them lasts for five seconds.
                app.advance(6);
                let with = |id: &Value| { let mut input = input.clone(); input["id"] = id.clone(); input };
                let (a, b) = tokio::join!(update(&one, with(&second)), update(&two, with(&first)));
                let refused: Vec<_> = [&a, &b].into_iter().filter(|answer| answer.body.get("errors").is_some()).collect();
                assert_eq!(refused.len(), 1);
                // Who came too late to be asked is told something else.
                assert!(["CONFLICT", "FORBIDDEN", "UNAUTHENTICATED"].contains(&refused[0].code()), "{:#}", refused[0].body);
                let left = app.database.texts("SELECT id AS text FROM users WHERE role = 'ADMIN' AND status = 'ACTIVE'").await;
                assert_eq!(left.len(), 1);
            }
        }
    }

    async fn a_user_can_be_changed_while_signing_in(app: TestApp) {
        let admin = app.admin().await;
        let (id, _) = join(&app, &admin, "ina@example.com", "ADMIN").await;
        // Each locks the user, and what the user belongs to: in another order they would wait for each other.
        let sign_ins = futures_util::future::join_all((0..12).map(|_| can_sign_in(&app, "ina@example.com")));
        let changes = futures_util::future::join_all((0..4).map(|n| {
            let (admin, id) = (&admin, &id);
            async move {
                for m in 0..15 {
                    update(admin, json!({ "id": id, "fullName": format!("{n} {m}") })).await.data();
                }
            }
        }));
        let (signed_in, _) = tokio::join!(sign_ins, changes);
        assert_eq!(signed_in, [true; 12]);
    }

    async fn another_organizations_user_does_not_exist(app: TestApp) {
        let admin = app.admin().await;
        let (id, _) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        app.database.execute(&format!("{OTHER_ORGANIZATION}; UPDATE users
            SET organization_id = 'org_00000000000000000000000001' WHERE email = 'ina@example.com'")).await.unwrap();
        let variables = json!({ "id": id });
        let read = "query($id: ID!) { user(id: $id) { id } node(id: $id) { id } nodes(ids: [$id]) { id } users { totalCount }
            auditLogs(filter: { userId: $id }) { nodes { user { id } } } }";
        let answer = admin.with(read, variables.clone()).await;
        let found = answer.data();
        assert_eq!((&found["user"], &found["node"], &found["nodes"]), (&Value::Null, &Value::Null, &json!([null])));
        assert_eq!(found["users"]["totalCount"], 1);
        assert!(found["auditLogs"]["nodes"].as_array().unwrap().iter().all(|entry| entry["user"].is_null()));
        assert_eq!(admin.with(DELETE, variables).await.code(), "NOT_FOUND");
        for change in [json!({ "fullName": "N" }), json!({ "role": "ADMIN" }), json!({ "status": "SUSPENDED" })] {
            let mut input = change;
            input["id"] = id.clone();
            assert_eq!(update(&admin, input).await.code(), "NOT_FOUND");
        }
    }
}
