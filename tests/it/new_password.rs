//! Forgotten passwords, and changed ones.

use std::path::Path;

use claviger::audit::Origin;
use claviger::domain::password::request_reset;
use claviger::domain::{Cx, Record};
use claviger::identity::Actor;
use serde_json::json;

use crate::canary::{assert_is_nowhere, kept};
use crate::invitation::{accept, invite, join};
use crate::registration::{registered, verify};
use crate::support::{Answer, Client, PASSWORD, TestApp, both_databases};

const REQUEST: &str = "mutation($e: String!) { requestPasswordReset(input: { email: $e }) { accepted } }";
const RESET: &str =
    "mutation($t: String!, $p: String!) { resetPassword(input: { token: $t, newPassword: { plain: $p } }) { reset } }";
const CHANGE: &str = "mutation($c: String!, $n: String!) { changePassword(input: { currentPassword: { plain: $c }, newPassword: { plain: $n } }) { changed } }";
const SIGN_IN: &str =
    "mutation($e: String!, $p: String!) { signIn(input: { email: $e, password: { plain: $p } }) { accessToken } }";
const NEW: &str = "another good password";

async fn request(app: &TestApp, email: &str) -> Answer {
    app.anonymous().with(REQUEST, json!({ "e": email })).await
}

async fn reset(app: &TestApp, token: &str, password: &str) -> Answer {
    app.anonymous().with(RESET, json!({ "t": token, "p": password })).await
}

async fn change(client: &Client, current: &str, new: &str) -> Answer {
    client.with(CHANGE, json!({ "c": current, "n": new })).await
}

async fn may_sign_in(app: &TestApp, email: &str, password: &str) -> bool {
    let answer = app.anonymous().with(SIGN_IN, json!({ "e": email, "p": password })).await;
    answer.body.get("errors").is_none()
}

async fn is_signed_in(client: &Client) -> bool {
    client.run("{ viewer { role } }").await.body["data"]["viewer"].is_object()
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

both_databases! {
    async fn a_forgotten_password_is_replaced_by_a_link(app: TestApp) {
        let admin = app.admin().await;
        let (id, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let second = app.anonymous().signed_in("ina@example.com", PASSWORD).await;
        assert_eq!(request(&app, " INA@Example.com ").await.data()["requestPasswordReset"]["accepted"], true);
        let mail = app.mail_to("ina@example.com", |mail| mail.token("reset-password").is_some()).await;
        let token = mail.token("reset-password").unwrap();
        assert!(mail.html.contains(&format!("https://app.example.com/reset-password#token={token}")));
        assert_eq!(token.len(), 43, "256 bits in base 64");
        assert_eq!(reset(&app, token, NEW).await.data()["resetPassword"]["reset"], true);
        for client in [&ina, &second] {
            assert!(!is_signed_in(client).await);
        }
        assert!(may_sign_in(&app, "ina@example.com", NEW).await && !may_sign_in(&app, "ina@example.com", PASSWORD).await);
        app.mail_to("ina@example.com", |mail| mail.subject == "Your password was reset").await;
        let log = "query($f: AuditLogFilter) { auditLogs(filter: $f) { nodes { operation action user { id } metadata } } }";
        let answer = admin.with(log, json!({ "f": { "resourceId": id, "action": ["UPDATE", "OTHER"] } })).await;
        let entries = &answer.data()["auditLogs"]["nodes"];
        // The two, and the first one of whoever accepted the invitation.
        assert_eq!(entries[0], json!({ "operation": "resetPassword", "action": "UPDATE", "user": { "id": id },
            "metadata": { "password": "reset", "sessionsEnded": 3 } }));
        assert_eq!(entries[1], json!({ "operation": "requestPasswordReset", "action": "OTHER", "user": null, "metadata": null }));
    }

    async fn who_asks_does_not_learn_whether_an_address_is_known(app: TestApp) {
        let admin = app.admin().await;
        invite(&admin, "invited@example.com", "MEMBER").await;
        let (id, _) = join(&app, &admin, "suspended@example.com", "MEMBER").await;
        let suspend = "mutation($id: ID!) { updateUser(input: { id: $id, status: SUSPENDED }) { user { id } } }";
        admin.with(suspend, json!({ "id": id })).await.data();
        crate::registration::registered(&app, "registered@example.com").await;
        app.until_no_mail_waits().await;
        let before = files(&app.outbox());
        let known = request(&app, "admin@localhost").await;
        for email in ["nobody@example.com", "invited@example.com", "suspended@example.com", "registered@example.com"] {
            let answer = request(&app, email).await;
            assert_eq!((&answer.body, answer.status), (&known.body, known.status), "{email}");
        }
        app.until_no_mail_waits().await;
        assert_eq!(files(&app.outbox()), before + 1, "one mail, to the one who may sign in");
        app.token_to("admin@localhost", "reset-password").await;
    }

    async fn the_same_is_asked_of_the_database_for_a_known_and_an_unknown_address(app: TestApp) {
        // Beside the server, so that nobody else's statements are counted.
        let other = app.beside().await;
        let mut counts = Vec::new();
        // From the sixth time on the address has had enough.
        for email in ["admin@localhost", "nobdy@localhost"].into_iter().chain(["admin@localhost"; 7]) {
            let (actor, origin, record) = (Actor::Anonymous, Origin::default(), Record::default());
            let cx = Cx { services: &other.services, actor: &actor, origin: &origin, operation: "test", record: &record, deadline: None };
            let before = other.services.db.statements();
            request_reset(cx, email).await.unwrap();
            counts.push(other.services.db.statements() - before);
        }
        assert!(counts[0] > 5 && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
        // What waits looks alike but for the mark of a decoy, which stands within what is sealed: the addresses are of one length.
        let sizes = app.database.texts("SELECT CAST(length(sealed) AS text) AS text FROM outbox ORDER BY id").await;
        let sizes: Vec<usize> = sizes.iter().map(|size| size.parse().unwrap()).collect();
        assert_eq!((sizes.len(), sizes[0], sizes[1]), (9, sizes[2], sizes[0] + "decoy\n".len()), "{sizes:?}");
    }

    async fn whoever_asks_for_links_keeps_no_owner_from_one(app: TestApp) {
        let mut links = Vec::new();
        for _ in 0..8 {
            request(&app, "admin@localhost").await.data();
            app.until_no_mail_waits().await;
            if app.mails_to("admin@localhost") > 0 {
                links.push(app.token_to("admin@localhost", "reset-password").await);
            }
        }
        assert_eq!(links.len(), 5, "the mailbox is not filled");
        // The one that was sent first serves as any, and none after it.
        reset(&app, &links[0], NEW).await.data();
        for link in &links {
            assert_eq!(reset(&app, link, NEW).await.code(), "UNAUTHENTICATED");
        }
        // Whoever goes on asking: each time a link has run out there is another.
        for _ in 0..30 {
            app.advance(3600);
            request(&app, "admin@localhost").await.data();
            app.token_to("admin@localhost", "reset-password").await;
        }
    }

    async fn no_link_stands_in_the_database(app: TestApp) {
        let admin = app.admin().await;
        let (_, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        request(&app, "ina@example.com").await.data();
        let to_reset = app.token_to("ina@example.com", "reset-password").await;
        let ask = "mutation { updateProfile(input: { email: \"renamed@example.com\" }) { user { id } } }";
        ina.run(ask).await.data();
        let to_rename = app.token_to("renamed@example.com", "verify-email").await;
        registered(&app, "rita@example.com").await;
        let to_verify = app.token_to("rita@example.com", "verify-email").await;
        let (_, to_accept) = invite(&admin, "invited@example.com", "MEMBER").await;
        app.until_no_mail_waits().await;

        let kept = kept(&app).await;
        assert!(["ina@example.com", "renamed@example.com", "rita@example.com", "invited@example.com"].iter().all(|email| kept.contains(email)));
        for token in [&to_reset, &to_rename, &to_verify, &to_accept, &ina.refresh_token.clone().unwrap()] {
            assert_is_nowhere(token, &[("database", &*kept)]);
        }
        // They are tokens that serve, by what does stand there.
        verify(&app, &to_rename).await.data();
        verify(&app, &to_verify).await.data();
        accept(&app, &to_accept, json!({})).await.data();
        request(&app, "renamed@example.com").await.data();
        reset(&app, &app.token_to("renamed@example.com", "reset-password").await, NEW).await.data();
    }

    async fn a_link_serves_once_and_for_an_hour(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "MEMBER").await;
        request(&app, "admin@localhost").await.data();
        let late = app.token_to("admin@localhost", "reset-password").await;
        request(&app, "ina@example.com").await.data();
        let token = app.token_to("ina@example.com", "reset-password").await;
        let invited = invite(&app.admin().await, "invited@example.com", "MEMBER").await.1;
        app.advance(3600 - 60);
        for (password, message) in [("short", "short"), ("password", "common"), ("Ina@example.com", "the address")] {
            let answer = reset(&app, &token, password).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", &["newPassword"][..]), "{message}");
        }
        let answers = futures_util::future::join_all((0..6).map(|_| reset(&app, &token, NEW))).await;
        let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.body.get("errors").is_none());
        assert_eq!((good.len(), bad.len()), (1, 5));
        app.advance(61);
        let mut errors: Vec<_> = bad.iter().map(|answer| answer.body["errors"][0]["message"].clone()).collect();
        for wrong in [&late, &invited, "", "made up", &"x".repeat(10_000)] {
            for password in [NEW, "short"] {
                let answer = reset(&app, wrong, password).await;
                assert_eq!(answer.code(), "UNAUTHENTICATED");
                errors.push(answer.body["errors"][0]["message"].clone());
            }
        }
        errors.dedup();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(!is_signed_in(&ina).await);
    }

    async fn who_is_suspended_or_gone_resets_nothing(app: TestApp) {
        let admin = app.admin().await;
        let mut tokens = Vec::new();
        for (email, then) in [
            ("suspended@example.com", "updateUser(input: { id: $id, status: SUSPENDED }) { user { id } }"),
            ("deleted@example.com", "deleteUser(input: { id: $id }) { deletedId }"),
        ] {
            let (id, _) = join(&app, &admin, email, "MEMBER").await;
            request(&app, email).await.data();
            tokens.push(app.token_to(email, "reset-password").await);
            admin.with(&format!("mutation($id: ID!) {{ {then} }}"), json!({ "id": id })).await.data();
        }
        for token in tokens {
            assert_eq!(reset(&app, &token, NEW).await.code(), "UNAUTHENTICATED");
        }
    }

    async fn a_changed_password_ends_every_other_session(app: TestApp) {
        let admin = app.admin().await;
        let (id, ina) = join(&app, &admin, "ina@example.com", "READ_ONLY").await;
        let second = app.anonymous().signed_in("ina@example.com", PASSWORD).await;
        request(&app, "ina@example.com").await.data();
        let link = app.token_to("ina@example.com", "reset-password").await;
        let wrong = change(&ina, "wrong", NEW).await;
        assert_eq!((wrong.code(), wrong.fields().as_slice()), ("BAD_USER_INPUT", &["currentPassword"][..]));
        let common = change(&ina, PASSWORD, "password").await;
        assert_eq!((common.code(), common.fields().as_slice()), ("BAD_USER_INPUT", &["newPassword"][..]));
        assert!(is_signed_in(&second).await);
        change(&ina, PASSWORD, NEW).await.data();
        assert!(is_signed_in(&ina).await && !is_signed_in(&second).await);
        assert!(may_sign_in(&app, "ina@example.com", NEW).await && !may_sign_in(&app, "ina@example.com", PASSWORD).await);
        app.mail_to("ina@example.com", |mail| mail.subject == "Your password was changed").await;
        assert_eq!(reset(&app, &link, PASSWORD).await.code(), "UNAUTHENTICATED", "a link of before");
        let log = "query($f: AuditLogFilter) { auditLogs(filter: $f) { nodes { operation outcome metadata } } }";
        let answer = admin.with(log, json!({ "f": { "resourceId": id, "action": ["UPDATE"] } })).await;
        // The second session, and the first one of whoever accepted the invitation.
        assert_eq!(answer.data()["auditLogs"]["nodes"][0], json!({ "operation": "changePassword", "outcome": "SUCCESS",
            "metadata": { "password": "changed", "sessionsEnded": 2 } }));
    }

    async fn a_stolen_session_guesses_at_the_password_no_better_than_a_sign_in(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "MEMBER").await;
        let guess = |n: usize| {
            let (current, new) = ("currentPassword: { plain: \"a guess of mine\" }", "newPassword: { plain: \"x\" }");
            format!("a{n}: changePassword(input: {{ {current}, {new} }}) {{ changed }}")
        };
        let guesses: Vec<_> = (0..7).map(guess).collect();
        let answer = ina.run(&format!("mutation {{ {} }}", guesses.join("\n"))).await;
        let codes: Vec<_> = answer.body["errors"].as_array().unwrap().iter().map(|error| error["extensions"]["code"].as_str().unwrap()).collect();
        assert_eq!(codes, [["BAD_USER_INPUT"; 5].as_slice(), &["RATE_LIMITED"; 2]].concat());
        assert_eq!(change(&ina, PASSWORD, NEW).await.code(), "RATE_LIMITED");
        let leave = "mutation($p: String!) { deleteMyAccount(input: { password: { plain: $p } }) { deletedId } }";
        assert_eq!(ina.with(leave, json!({ "p": PASSWORD })).await.code(), "RATE_LIMITED");
        // The owner signs in all the same, and has the password changed a few minutes later, as often as it is known.
        assert!(may_sign_in(&app, "ina@example.com", PASSWORD).await);
        app.advance(181);
        change(&ina, PASSWORD, NEW).await.data();
        change(&ina, NEW, PASSWORD).await.data();
    }

    async fn tokens_that_are_none_are_limited_before_anything_is_hashed(app: TestApp) {
        for _ in 0..10 {
            for deed in [reset(&app, "made up", NEW).await, crate::registration::verify(&app, "made up").await, reset(&app, "", NEW).await] {
                assert_eq!(deed.code(), "UNAUTHENTICATED");
            }
        }
        assert_eq!(reset(&app, "made up", NEW).await.code(), "RATE_LIMITED");
        assert_eq!(crate::registration::verify(&app, "made up").await.code(), "RATE_LIMITED");
    }

    async fn of_two_changes_at_once_one_holds(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "MEMBER").await;
        let words = ["first good password", "second good password", "third good password"];
        let answers = futures_util::future::join_all(words.map(|word| change(&ina, PASSWORD, word))).await;
        let mut holding: Vec<&str> = Vec::new();
        for (word, answer) in words.iter().zip(&answers) {
            let has_succeeded = answer.body.get("errors").is_none();
            assert!(has_succeeded || ["CONFLICT", "BAD_USER_INPUT"].contains(&answer.code()), "{}", answer.body);
            assert_eq!(may_sign_in(&app, "ina@example.com", word).await, has_succeeded);
            holding.extend(has_succeeded.then_some(word));
        }
        assert_eq!(holding.len(), 1);
    }

    async fn an_api_key_concerns_nobodys_password_or_session(app: TestApp) {
        let admin = app.admin().await;
        let (_, raw) = crate::api_key::create(&admin, json!({ "name": "K", "scopes": ["ADMIN_WRITE"] })).await;
        let key = crate::api_key::with_key(&app, &raw);
        assert_eq!(change(&key, PASSWORD, NEW).await.code(), "FORBIDDEN");
        for deed in [
            "updateProfile(input: { fullName: \"N\" }) { user { id } }",
            "deleteMyAccount(input: { password: { plain: \"x\" } }) { deletedId }",
            "revokeSession(input: { id: \"sess_00000000000000000000000000\" }) { revokedId }",
        ] {
            assert_eq!(key.run(&format!("mutation {{ {deed} }}")).await.code(), "FORBIDDEN", "{deed}");
        }
    }
}
