//! Signing in, refreshing, signing out.

use serde_json::{Value, json};

use crate::invitation::invite;
use crate::support::{Answer, Client, PASSWORD, TestApp, TestDatabase, both_databases, gauge};

const SIGN_IN: &str = "mutation($email: String!, $password: String!) {
  signIn(input: { email: $email, password: { plain: $password } }) { accessToken refreshToken viewer { user { email } } }
}";
const REFRESH: &str = "mutation($token: String!) {
  refreshSession(input: { refreshToken: $token }) { accessToken refreshToken refreshTokenExpiresAt viewer { role } }
}";

async fn refresh(client: &Client, token: &str) -> Answer {
    client.with(REFRESH, json!({ "token": token })).await
}

fn refreshed(answer: &Answer) -> String {
    answer.data()["refreshSession"]["refreshToken"].as_str().unwrap().to_owned()
}

/// A sign-in whose password takes longer to compare than a request may take.
async fn sign_in_too_slowly(database: TestDatabase) {
    let app = TestApp::start(database, [("REQUEST_TIMEOUT", "1".to_owned())]).await;
    // Of cost 15, and of no password: what is compared with it takes seconds.
    let slow = format!("$2b$15${}", ".".repeat(53));
    app.database.execute(&format!("UPDATE users SET password_hash = '{slow}'")).await.unwrap();
    let variables = json!({ "email": "admin@localhost", "password": PASSWORD });
    let answer = app.anonymous().with(SIGN_IN, variables).await;
    assert_eq!(answer.code(), "TIMEOUT");
    let entries = app.database.texts("SELECT error_code AS text FROM audit_logs WHERE operation = 'signIn'").await;
    assert_eq!(entries, ["TIMEOUT"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comparing_a_password_has_the_requests_deadline_on_sqlite() {
    sign_in_too_slowly(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comparing_a_password_has_the_requests_deadline_on_postgres() {
    sign_in_too_slowly(TestDatabase::postgres().await).await;
}

both_databases! {
    async fn the_viewer_knows_role_permissions_and_sessions(app: TestApp) {
        let answer = app.admin().await.run(
            "{ viewer { role permissions user { email fullName status lastSignInAt } organization { name plan settings }
                        sessions { current ipAddress } } }",
        ).await;
        let viewer = &answer.data()["viewer"];
        assert_eq!(viewer["role"], "ADMIN");
        assert_eq!(viewer["permissions"].as_array().unwrap().len(), 17);
        assert_eq!(viewer["user"]["email"], "admin@localhost");
        assert!(viewer["user"]["lastSignInAt"].is_string());
        assert_eq!(viewer["sessions"], json!([{ "current": true, "ipAddress": "127.0.0.1" }]));
        assert_eq!(app.anonymous().run("{ viewer { role } }").await.data()["viewer"], Value::Null);
    }

    async fn spellings_of_an_address_are_one_address(app: TestApp) {
        let client = app.anonymous();
        for email in ["ADMIN@LOCALHOST", "  admin@localhost "] {
            client.with(SIGN_IN, json!({ "email": email, "password": PASSWORD })).await.data();
        }
    }

    async fn unknown_addresses_and_wrong_passwords_are_answered_alike(app: TestApp) {
        let client = app.anonymous();
        let mut errors = Vec::new();
        for (email, password) in [
            ("admin@localhost", "wrong password"), ("nobody@localhost", "wrong password"), ("not an address", "x"),
            ("admin@localhost", ""), ("admin@localhost", &"x".repeat(10_000)),
        ] {
            let answer = client.with(SIGN_IN, json!({ "email": email, "password": password })).await;
            assert_eq!(answer.code(), "UNAUTHENTICATED");
            errors.push(answer.body["errors"][0]["message"].clone());
        }
        errors.dedup();
        assert_eq!(errors.len(), 1);
    }

    async fn a_sign_in_is_the_same_work_whether_or_not_the_address_is_known(app: TestApp) {
        invite(&app.admin().await, "invited@example.com", "MEMBER").await;
        app.user("MEMBER").await;
        app.database.execute("UPDATE users SET status = 'SUSPENDED' WHERE email = 'member@example.com'").await.unwrap();
        app.until_no_mail_waits().await;
        let work = async |email: &str| {
            // The server's own jobs send statements, too: the least of a few times.
            let mut statements = i64::MAX;
            for _ in 0..3 {
                let done = async || (gauge(&app, "claviger_password_hashes_total").await, gauge(&app, "claviger_database_statements_total").await);
                let before = done().await;
                let variables = json!({ "email": email, "password": "a wrong password" });
                assert_eq!(app.anonymous().with(SIGN_IN, variables).await.code(), "UNAUTHENTICATED");
                let after = done().await;
                assert_eq!(after.0 - before.0, 1, "{email}: one hash");
                statements = statements.min(after.1 - before.1);
            }
            statements
        };
        let known = work("admin@localhost").await;
        assert!(known > 3, "{known}");
        for email in ["nobody@example.com", "invited@example.com", "member@example.com"] {
            assert_eq!(work(email).await, known, "{email}");
        }
    }

    async fn a_refresh_rotates_the_token(app: TestApp) {
        let client = app.admin().await;
        let first = client.refresh_token.clone().unwrap();
        let second = refreshed(&refresh(&app.anonymous(), &first).await);
        assert_ne!(first, second);
        refresh(&app.anonymous(), &second).await.data();
    }

    async fn a_retry_within_ten_seconds_gets_the_same_successor(app: TestApp) {
        let first = app.admin().await.refresh_token.unwrap();
        let second = refreshed(&refresh(&app.anonymous(), &first).await);
        app.advance(9);
        assert_eq!(refreshed(&refresh(&app.anonymous(), &first).await), second);
        refresh(&app.anonymous(), &second).await.data();
    }

    async fn who_has_signed_in_reads_as_themselves_whatever_the_request_came_with(app: TestApp) {
        let (admin, member) = (app.admin().await, app.user("MEMBER").await);
        let (of_admin, _) = crate::api_key::create(&admin, json!({ "name": "admin's" })).await;
        crate::api_key::create(&member, json!({ "name": "member's" })).await;
        let viewer = "viewer { role permissions apiKey { id } organization { id } user {
            email apiKeys { totalCount nodes { name owner { email apiKeys { totalCount } } } } } }";
        let sign_in = format!("mutation($email: String!, $password: String!) {{
            signIn(input: {{ email: $email, password: {{ plain: $password }} }}) {{ {viewer} sessions: viewer {{ sessions {{ current }} }} }} }}");
        let callers = [app.anonymous(), admin.clone(), member, app.other_organization().await];
        for (email, role, key) in [("admin@localhost", "ADMIN", "admin's"), ("member@example.com", "MEMBER", "member's")] {
            let as_oneself = app.anonymous().signed_in(email, PASSWORD).await.run(&format!("{{ {viewer} }}")).await;
            let expected = &as_oneself.data()["viewer"];
            assert_eq!((&expected["role"], &expected["user"]["apiKeys"]["nodes"][0]["name"]), (&json!(role), &json!(key)));
            for caller in &callers {
                let answer = caller.with(&sign_in, json!({ "email": email, "password": PASSWORD })).await;
                let payload = &answer.data()["signIn"];
                assert_eq!((&payload["viewer"], &payload["sessions"]["sessions"][0]["current"]), (expected, &json!(true)));
            }
        }
        // What follows in the same request is the request's own again.
        let both = format!("mutation($email: String!, $password: String!) {{
            signIn(input: {{ email: $email, password: {{ plain: $password }} }}) {{ viewer {{ role }} }}
            revokeApiKey(input: {{ id: {} }}) {{ apiKey {{ owner {{ email }} }} }} }}", of_admin["id"]);
        let answer = admin.with(&both, json!({ "email": "member@example.com", "password": PASSWORD })).await;
        assert_eq!(answer.data(), &json!({
            "signIn": { "viewer": { "role": "MEMBER" } }, "revokeApiKey": { "apiKey": { "owner": { "email": "admin@localhost" } } },
        }));
    }

    async fn a_clock_that_was_set_back_keeps_no_retry_open(app: TestApp) {
        for (seconds, is_served) in [(-9, true), (-11, false), (-3600, false)] {
            let first = app.admin().await.refresh_token.unwrap();
            let second = refreshed(&refresh(&app.anonymous(), &first).await);
            app.advance(seconds);
            let again = refresh(&app.anonymous(), &first).await;
            if is_served {
                assert_eq!(refreshed(&again), second);
            } else {
                assert_eq!(again.code(), "UNAUTHENTICATED", "{seconds}");
                assert_eq!(refresh(&app.anonymous(), &second).await.code(), "UNAUTHENTICATED", "{seconds}");
            }
        }
    }

    async fn a_token_used_twice_ends_its_session(app: TestApp) {
        let client = app.admin().await;
        let first = client.refresh_token.clone().unwrap();
        let second = refreshed(&refresh(&app.anonymous(), &first).await);
        app.advance(11);
        assert_eq!(refresh(&app.anonymous(), &first).await.code(), "UNAUTHENTICATED");
        assert_eq!(refresh(&app.anonymous(), &second).await.code(), "UNAUTHENTICATED");
        assert_eq!(client.run("{ viewer { role } }").await.data()["viewer"], Value::Null);
    }

    async fn an_older_ancestor_ends_the_session_even_within_ten_seconds(app: TestApp) {
        let first = app.admin().await.refresh_token.unwrap();
        let second = refreshed(&refresh(&app.anonymous(), &first).await);
        let third = refreshed(&refresh(&app.anonymous(), &second).await);
        assert_eq!(refresh(&app.anonymous(), &first).await.code(), "UNAUTHENTICATED");
        assert_eq!(refresh(&app.anonymous(), &third).await.code(), "UNAUTHENTICATED");
    }

    async fn parallel_refreshes_of_one_token_get_one_successor(app: TestApp) {
        let first = app.admin().await.refresh_token.unwrap();
        let client = app.anonymous();
        let answers = futures_util::future::join_all((0..10).map(|_| refresh(&client, &first))).await;
        let mut successors: Vec<_> = answers.iter().map(refreshed).collect();
        successors.dedup();
        assert_eq!(successors.len(), 1);
    }

    async fn tokens_that_were_never_issued_open_nothing(app: TestApp) {
        assert_eq!(refresh(&app.anonymous(), "made up").await.code(), "UNAUTHENTICATED");
        let mut client = app.admin().await;
        let good = client.access_token.clone().unwrap();
        let (head, tail) = good.rsplit_once('.').unwrap();
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
        let body = good.split('.').nth(1).unwrap();
        for bad in [format!("{head}.AAAA{}", &tail[4..]), format!("{none}.{body}."), "x".to_owned(), String::new()] {
            client.access_token = Some(bad);
            let answer = client.run("{ viewer { role } claudeAccounts { totalCount } }").await;
            assert_eq!(answer.code(), "UNAUTHENTICATED");
            assert_eq!(answer.body["data"], json!({ "viewer": null, "claudeAccounts": null }));
            assert!(answer.headers.contains_key("www-authenticate"));
        }
    }

    async fn an_access_token_expires_after_fifteen_minutes(app: TestApp) {
        let client = app.admin().await;
        app.advance(14 * 60);
        assert_eq!(client.run("{ viewer { role } }").await.data()["viewer"]["role"], "ADMIN");
        app.advance(2 * 60);
        assert_eq!(client.run("{ viewer { role } }").await.data()["viewer"], Value::Null);
    }

    async fn a_session_that_is_not_refreshed_expires(app: TestApp) {
        let token = app.admin().await.refresh_token.unwrap();
        app.advance(31 * 24 * 3600);
        assert_eq!(refresh(&app.anonymous(), &token).await.code(), "UNAUTHENTICATED");
    }

    async fn signing_out_ends_the_session_at_once(app: TestApp) {
        let client = app.admin().await;
        assert_eq!(client.run("mutation { signOut { signedOut } }").await.data()["signOut"]["signedOut"], true);
        assert_eq!(client.run("{ viewer { role } }").await.data()["viewer"], Value::Null);
        assert_eq!(refresh(&app.anonymous(), &client.refresh_token.unwrap()).await.code(), "UNAUTHENTICATED");
        assert_eq!(app.anonymous().run("mutation { signOut { signedOut } }").await.code(), "UNAUTHENTICATED");
    }

    async fn signing_out_everywhere_ends_all_sessions(app: TestApp) {
        let (here, there) = (app.admin().await, app.admin().await);
        let query = "mutation($t: String) { signOut(input: { refreshToken: $t, everywhere: true }) { signedOut } }";
        let answer = app.anonymous().with(query, json!({ "t": here.refresh_token })).await;
        assert_eq!(answer.data()["signOut"]["signedOut"], true);
        for client in [here, there] {
            assert_eq!(client.run("{ viewer { role } }").await.data()["viewer"], Value::Null);
        }
    }

    async fn a_token_that_no_longer_serves_signs_out_nobody_else(app: TestApp) {
        let query = "mutation($t: String) { signOut(input: { refreshToken: $t, everywhere: true }) { signedOut } }";
        let sign_out = async |token: Option<String>| {
            app.anonymous().with(query, json!({ "t": token })).await.data()["signOut"]["signedOut"].clone()
        };
        let is_alive = async |client: &Client| !client.run("{ viewer { role } }").await.data()["viewer"].is_null();
        let (used, other) = (app.admin().await, app.admin().await);
        refresh(&app.anonymous(), used.refresh_token.as_ref().unwrap()).await.data();
        assert_eq!(sign_out(used.refresh_token.clone()).await, true, "its own session is ended");
        assert_eq!((is_alive(&used).await, is_alive(&other).await), (false, true));
        assert_eq!(sign_out(used.refresh_token).await, false, "its session has ended");
        assert!(is_alive(&other).await);
        app.advance(31 * 24 * 3600);
        let newer = app.admin().await;
        sign_out(other.refresh_token).await;
        assert!(is_alive(&newer).await, "the other's has run out");
    }

    async fn a_token_that_never_was_makes_the_server_forget_nothing(app: TestApp) {
        let admin = app.admin().await;
        admin.run("{ claudeAccounts { totalCount } }").await.data();
        app.database.execute("UPDATE users SET role = 'READ_ONLY'").await.unwrap();
        let answer = app.anonymous().run(r#"mutation { signOut(input: { refreshToken: "made up" }) { signedOut } }"#).await;
        assert_eq!(answer.data()["signOut"]["signedOut"], false);
        admin.run("{ claudeAccounts { totalCount } }").await.data();
    }

    async fn devices_that_sign_out_everywhere_at_once_do_not_trip_over_each_other(app: TestApp) {
        for _ in 0..5 {
            let devices = futures_util::future::join_all((0..4).map(|_| app.admin())).await;
            let answers = futures_util::future::join_all(
                devices.iter().map(|device| device.run("mutation { signOut(input: { everywhere: true }) { signedOut } }")),
            ).await;
            assert!(answers.iter().any(|answer| answer.body["data"]["signOut"]["signedOut"] == true));
            for answer in answers {
                // Who comes late is not signed in any more.
                assert!(answer.body.get("errors").is_none() || answer.code() == "UNAUTHENTICATED", "{:#}", answer.body);
            }
        }
    }

    async fn a_demoted_or_suspended_user_loses_the_right_soon(app: TestApp) {
        let admin = app.admin().await;
        app.database.execute("UPDATE users SET role = 'READ_ONLY'").await.unwrap();
        // Somebody else changed it, past this server: it is believed for five seconds.
        app.advance(6);
        assert_eq!(admin.run("{ claudeAccounts { totalCount } }").await.code(), "FORBIDDEN");
        app.database.execute("UPDATE users SET status = 'SUSPENDED'").await.unwrap();
        app.advance(6);
        assert_eq!(admin.run("{ viewer { role } }").await.data()["viewer"], Value::Null);
        assert_eq!(refresh(&app.anonymous(), &admin.refresh_token.unwrap()).await.code(), "UNAUTHENTICATED");
        let answer = app.anonymous().with(SIGN_IN, json!({ "email": "admin@localhost", "password": PASSWORD })).await;
        assert_eq!(answer.code(), "UNAUTHENTICATED");
    }

    async fn a_session_outlives_a_restart(app: TestApp) {
        let mut app = app;
        let mut again = app.admin().await;
        app.restart().await;
        again.url.clone_from(&app.url);
        assert_eq!(again.run("{ viewer { role } }").await.data()["viewer"]["role"], "ADMIN");
    }

    async fn a_password_that_is_replaced_while_it_is_compared_opens_nothing(app: TestApp) {
        // It takes long to compare, so that it is replaced in the middle.
        let slow = bcrypt::hash("the old password", 13).unwrap();
        app.database.execute(&format!("UPDATE users SET password_hash = '{slow}'")).await.unwrap();
        let variables = json!({ "email": "admin@localhost", "password": "the old password" });
        let replaced = bcrypt::hash("the new password", 4).unwrap();
        let replace = async {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            app.database.execute(&format!("UPDATE users SET password_hash = '{replaced}'")).await.unwrap();
        };
        let client = app.anonymous();
        let (answer, ()) = tokio::join!(client.with(SIGN_IN, variables), replace);
        assert_eq!(answer.code(), "UNAUTHENTICATED");
        client.with(SIGN_IN, json!({ "email": "admin@localhost", "password": "the new password" })).await.data();
    }

    async fn sign_ins_at_once_that_upgrade_one_hash_all_succeed(app: TestApp) {
        let hash = bcrypt::hash("imported password", 10).unwrap();
        app.database.execute(&format!("UPDATE users SET password_hash = '{hash}'")).await.unwrap();
        let variables = json!({ "email": "admin@localhost", "password": "imported password" });
        let client = app.anonymous();
        for answer in futures_util::future::join_all((0..4).map(|_| client.with(SIGN_IN, variables.clone()))).await {
            answer.data();
        }
    }

    async fn a_bcrypt_hash_is_accepted_and_upgraded(app: TestApp) {
        let hash = bcrypt::hash("imported password", 4).unwrap();
        app.database.execute(&format!("UPDATE users SET password_hash = '{hash}'")).await.unwrap();
        app.anonymous().signed_in("admin@localhost", "imported password").await;
        let unchanged = format!("UPDATE users SET full_name = 'not upgraded' WHERE password_hash = '{hash}'");
        app.database.execute(&unchanged).await.unwrap();
        let client = app.anonymous().signed_in("admin@localhost", "imported password").await;
        let answer = client.run("{ viewer { user { fullName } } }").await;
        assert_eq!(answer.data()["viewer"]["user"]["fullName"], "Administrator");
    }
}
