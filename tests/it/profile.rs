//! What users change of themselves: name, address, sessions; and that they leave.

use serde_json::{Value, json};

use crate::invitation::{invite, join};
use crate::registration::{registered, verify, verify_by};
use crate::support::{Answer, Client, PASSWORD, both_databases};

const UPDATE: &str = "mutation($input: UpdateProfileInput!) {
  updateProfile(input: $input) { user { id email fullName emailVerifiedAt version } } }";

async fn update(client: &Client, input: Value) -> Answer {
    client.with(UPDATE, json!({ "input": input })).await
}

async fn ask_for(client: &Client, email: &str) -> Value {
    update(client, json!({ "email": email })).await.data()["updateProfile"]["user"].clone()
}

async fn is_signed_in(client: &Client) -> bool {
    client.run("{ viewer { role } }").await.body["data"]["viewer"].is_object()
}

async fn own_session(client: &Client) -> Value {
    let found = client.run("{ viewer { sessions { id current } } }").await.data()["viewer"]["sessions"].clone();
    found.as_array().unwrap().iter().find(|session| session["current"] == true).unwrap()["id"].clone()
}

async fn revoke(client: &Client, id: &Value) -> Answer {
    client.with("mutation($id: ID!) { revokeSession(input: { id: $id }) { revokedId } }", json!({ "id": id })).await
}

async fn leave(client: &Client, password: &str) -> Answer {
    let deed = "mutation($p: String!) { deleteMyAccount(input: { password: { plain: $p } }) { deletedId } }";
    client.with(deed, json!({ "p": password })).await
}

both_databases! {
    async fn everybody_changes_their_own_name(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "READ_ONLY").await;
        let user = update(&ina, json!({ "fullName": " Ina Renamed ", "expectedVersion": 2 })).await.data()["updateProfile"]["user"].clone();
        assert_eq!((&user["fullName"], &user["version"]), (&json!("Ina Renamed"), &json!(3)));
        assert_eq!(update(&ina, json!({ "fullName": "N", "expectedVersion": 2 })).await.code(), "CONFLICT");
        for (input, fields) in [
            (json!({ "fullName": "", "email": "nobody" }), &["fullName", "email"][..]),
            (json!({ "fullName": null, "email": null }), &["fullName", "email"]),
        ] {
            let answer = update(&ina, input).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", fields));
        }
        let same = update(&ina, json!({})).await.data()["updateProfile"]["user"].clone();
        assert_eq!(same["version"], 3);
    }

    async fn another_address_holds_once_it_is_verified(app: TestApp) {
        let admin = app.admin().await;
        let (id, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let user = ask_for(&ina, " New@Example.com ").await;
        assert_eq!((&user["email"], &user["version"]), (&json!("ina@example.com"), &json!(2)));
        let token = app.token_to("new@example.com", "verify-email").await;
        let notice = app.mail_to("ina@example.com", |mail| mail.subject.contains("about to change")).await;
        assert!(!notice.raw.contains("new@example.com") && !notice.raw.contains("token="));
        app.anonymous().signed_in("ina@example.com", PASSWORD).await;
        // A link to the old address for a new password ends with the address.
        app.anonymous().run("mutation { requestPasswordReset(input: { email: \"ina@example.com\" }) { accepted } }").await.data();
        let reset = app.token_to("ina@example.com", "reset-password").await;
        let verified = verify(&app, &token).await.data()["verifyEmail"]["user"].clone();
        assert_eq!((&verified["id"], &verified["email"]), (&id, &json!("new@example.com")));
        app.anonymous().signed_in("new@example.com", PASSWORD).await;
        assert!(is_signed_in(&ina).await);
        let sign_in = "mutation { signIn(input: { email: \"ina@example.com\", password: { plain: \"correct horse battery staple\" } }) { accessToken } }";
        assert_eq!(app.anonymous().run(sign_in).await.code(), "UNAUTHENTICATED");
        let again = "mutation($t: String!) { resetPassword(input: { token: $t, newPassword: { plain: \"another good password\" } }) { reset } }";
        assert_eq!(app.anonymous().with(again, json!({ "t": reset })).await.code(), "UNAUTHENTICATED");
        let found = admin.run("{ users(search: \"new@\") { nodes { email } } }").await;
        assert_eq!(found.data()["users"]["nodes"], json!([{ "email": "new@example.com" }]));
        let log = "query($f: AuditLogFilter) { auditLogs(filter: $f) { nodes { operation changes metadata user { id } } } }";
        let answer = admin.with(log, json!({ "f": { "resourceId": id } })).await;
        let entries = &answer.data()["auditLogs"]["nodes"];
        assert_eq!(entries[0], json!({ "operation": "verifyEmail", "metadata": null, "user": { "id": id },
            "changes": { "email": { "from": "ina@example.com", "to": "new@example.com" } } }));
        assert_eq!(entries[2]["metadata"], json!({ "requestedEmail": "new@example.com" }));
        // The address is free again.
        invite(&admin, "ina@example.com", "MEMBER").await;
    }

    async fn whether_an_address_is_known_only_the_mail_says(app: TestApp) {
        let admin = app.admin().await;
        let (_, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let known = ask_for(&ina, "admin@localhost").await;
        let mail = app.mail_to("admin@localhost", |mail| mail.subject.contains("has an account")).await;
        assert!(!mail.raw.contains("token="));
        let unknown = ask_for(&ina, "fresh@example.com").await;
        assert_eq!(known, unknown);
        let token = app.token_to("fresh@example.com", "verify-email").await;
        // Somebody else is faster.
        join(&app, &admin, "fresh@example.com", "MEMBER").await;
        assert_eq!(verify(&app, &token).await.code(), "CONFLICT");
        assert_eq!(ina.run("{ viewer { user { email } } }").await.data()["viewer"]["user"]["email"], "ina@example.com");
    }

    async fn the_mail_is_sent_again_when_it_is_asked_for_again(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "MEMBER").await;
        ask_for(&ina, "new@example.com").await;
        let first = app.token_to("new@example.com", "verify-email").await;
        ask_for(&ina, "new@example.com").await;
        let second = app.token_to("new@example.com", "verify-email").await;
        assert_eq!(verify(&app, &first).await.code(), "UNAUTHENTICATED");
        // Who wants the address of before again wants no other any more.
        ask_for(&ina, "ina@example.com").await;
        assert_eq!(verify(&app, &second).await.code(), "UNAUTHENTICATED");
        // What was registered and lost is sent again, too, and to nobody else.
        let rita = registered(&app, "rita@example.com").await;
        app.token_to("rita@example.com", "verify-email").await;
        ask_for(&rita, "rita@example.com").await;
        verify(&app, &app.token_to("rita@example.com", "verify-email").await).await.data();
        app.anonymous().signed_in("rita@example.com", PASSWORD).await;
    }

    async fn who_asks_for_many_addresses_is_refused_and_none_gets_more_than_five_mails(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "MEMBER").await;
        for address in ["victim@example.com", "other@example.com", "victim@example.com", "other@example.com", "victim@example.com"] {
            ask_for(&ina, address).await;
        }
        assert_eq!(update(&ina, json!({ "email": "third@example.com" })).await.code(), "RATE_LIMITED");
        let (_, ida) = join(&app, &app.admin().await, "ida@example.com", "MEMBER").await;
        for _ in 0..5 {
            ask_for(&ida, "victim@example.com").await;
        }
        app.until_no_mail_waits().await;
        assert_eq!((app.mails_to("victim@example.com"), app.mails_to("other@example.com")), (5, 2));
    }

    async fn what_fails_after_all_uses_up_no_mails(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "MEMBER").await;
        app.database.execute("ALTER TABLE mail_tokens RENAME TO away").await.unwrap();
        for _ in 0..6 {
            assert_eq!(update(&ina, json!({ "email": "new@example.com" })).await.code(), "INTERNAL_SERVER_ERROR");
        }
        app.database.execute("ALTER TABLE away RENAME TO mail_tokens").await.unwrap();
        ask_for(&ina, "new@example.com").await;
        app.token_to("new@example.com", "verify-email").await;
        // Nor does it count where somebody takes the wish back.
        verify(&app, &{ ask_for(&ina, "new@example.com").await; app.token_to("new@example.com", "verify-email").await }).await.data();
        for _ in 0..6 {
            ask_for(&ina, "new@example.com").await;
        }
    }

    async fn who_stole_a_session_gains_no_account_by_another_address(app: TestApp) {
        let admin = app.admin().await;
        let (id, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        // Whoever stole a session has the mails of the new address, and not the password.
        let thief = app.anonymous().signed_in("ina@example.com", PASSWORD).await;
        let stolen = own_session(&thief).await;
        ask_for(&thief, "thief@example.com").await;
        let token = app.token_to("thief@example.com", "verify-email").await;
        for password in [None, Some("a guess of mine")] {
            let answer = verify_by(&thief, &token, password).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", &["password"][..]));
        }
        // Nor where the account's address is not verified yet.
        let rita = registered(&app, "rita@example.com").await;
        ask_for(&rita, "thief@example.net").await;
        assert_eq!(verify_by(&rita, &app.token_to("thief@example.net", "verify-email").await, None).await.fields(), ["password"]);
        revoke(&ina, &stolen).await.data();
        for client in [&app.anonymous(), &thief] {
            assert_eq!(verify_by(client, &token, None).await.fields(), ["password"]);
        }
        // Nor does it hold over a suspension.
        let set = "mutation($id: ID!, $s: UserStatus!) { updateUser(input: { id: $id, status: $s }) { user { id } } }";
        for status in ["SUSPENDED", "ACTIVE"] {
            admin.with(set, json!({ "id": id, "s": status })).await.data();
        }
        let ina = app.anonymous().signed_in("ina@example.com", PASSWORD).await;
        assert_eq!(verify_by(&ina, &token, None).await.code(), "UNAUTHENTICATED");
        // The address that is given up is told.
        ask_for(&ina, "new@example.com").await;
        verify_by(&ina, &app.token_to("new@example.com", "verify-email").await, Some(PASSWORD)).await.data();
        let notice = app.mail_to("ina@example.com", |mail| mail.subject.contains("was changed")).await;
        assert!(!notice.raw.contains("new@example.com"));
    }

    async fn a_changed_password_ends_an_address_that_is_waited_for(app: TestApp) {
        let (_, ina) = join(&app, &app.admin().await, "ina@example.com", "MEMBER").await;
        ask_for(&ina, "thief@example.com").await;
        let token = app.token_to("thief@example.com", "verify-email").await;
        let change = "mutation($c: String!) { changePassword(input: { currentPassword: { plain: $c }, newPassword: { plain: \"another good password\" } }) { changed } }";
        ina.with(change, json!({ "c": PASSWORD })).await.data();
        assert_eq!(verify(&app, &token).await.code(), "UNAUTHENTICATED");
    }

    async fn one_ends_ones_own_sessions_and_no_others(app: TestApp) {
        let admin = app.admin().await;
        let (_, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let second = app.anonymous().signed_in("ina@example.com", PASSWORD).await;
        let id = own_session(&second).await;
        assert_eq!(revoke(&admin, &id).await.code(), "NOT_FOUND", "of another user, also for an ADMIN");
        assert!(is_signed_in(&second).await);
        assert_eq!(revoke(&ina, &id).await.data()["revokeSession"]["revokedId"], id);
        assert!(!is_signed_in(&second).await && is_signed_in(&ina).await);
        let refresh = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { accessToken } }";
        assert_eq!(app.anonymous().with(refresh, json!({ "t": second.refresh_token })).await.code(), "UNAUTHENTICATED");
        assert_eq!(revoke(&ina, &id).await.code(), "NOT_FOUND", "a second time");
        // Also the one that asks.
        revoke(&ina, &own_session(&ina).await).await.data();
        assert!(!is_signed_in(&ina).await);
        let log = "{ auditLogs(filter: { action: [REVOKE], outcome: [SUCCESS] }) { nodes { resourceType resourceId } } }";
        let entries = admin.run(log).await.data()["auditLogs"]["nodes"].clone();
        assert_eq!((entries.as_array().unwrap().len(), &entries[1]), (2, &json!({ "resourceType": "SESSION", "resourceId": id })));
    }

    async fn who_leaves_is_gone_with_sessions_and_keys(app: TestApp) {
        let admin = app.admin().await;
        let (id, ina) = join(&app, &admin, "ina@example.com", "MEMBER").await;
        let (_, raw) = crate::api_key::create(&ina, json!({ "name": "K" })).await;
        ask_for(&ina, "new@example.com").await;
        let token = app.token_to("new@example.com", "verify-email").await;
        let wrong = leave(&ina, "wrong").await;
        assert_eq!((wrong.code(), wrong.fields().as_slice()), ("BAD_USER_INPUT", &["password"][..]));
        assert_eq!(leave(&ina, PASSWORD).await.data()["deleteMyAccount"]["deletedId"], id);
        assert!(!is_signed_in(&ina).await && !is_signed_in(&crate::api_key::with_key(&app, &raw)).await);
        assert_eq!(verify(&app, &token).await.code(), "UNAUTHENTICATED");
        let answer = admin.with("query($id: ID!) { user(id: $id) { id } }", json!({ "id": id })).await;
        assert_eq!(answer.data()["user"], Value::Null);
        invite(&admin, "ina@example.com", "MEMBER").await;
        let log = "{ auditLogs(filter: { action: [DELETE], outcome: [SUCCESS] }) { nodes { operation resourceId user { id fullName } } } }";
        let entries = admin.run(log).await.data()["auditLogs"]["nodes"].clone();
        assert_eq!(entries, json!([{ "operation": "deleteMyAccount", "resourceId": id, "user": { "id": id, "fullName": "Ina Invited" } }]));
    }

    async fn the_last_admin_stays(app: TestApp) {
        let admin = app.admin().await;
        assert_eq!(leave(&admin, PASSWORD).await.code(), "CONFLICT");
        assert_eq!(leave(&registered(&app, "rita@example.com").await, PASSWORD).await.code(), "CONFLICT");
        let (_, second) = join(&app, &admin, "second@example.com", "ADMIN").await;
        let answers = futures_util::future::join(leave(&admin, PASSWORD), leave(&second, PASSWORD)).await;
        let left = [answers.0, answers.1].iter().filter(|answer| answer.body.get("errors").is_none()).count();
        assert_eq!(left, 1, "of two who leave at once");
    }
}
