//! Inviting users, and accepting.

use serde_json::{Value, json};

use crate::registration::{registered, verify, verify_by};
use crate::support::{Answer, Client, PASSWORD, TestApp, both_databases};

const INVITE: &str = "mutation($input: InviteUserInput!) {
  inviteUser(input: $input) { invitationUrl user { id email fullName role status emailVerifiedAt lastSignInAt version } } }";
const ACCEPT: &str = "mutation($input: AcceptInvitationInput!) {
  acceptInvitation(input: $input) { accessToken accessTokenExpiresAt refreshToken refreshTokenExpiresAt
    viewer { role user { id fullName status emailVerifiedAt lastSignInAt version } sessions { current } } } }";
const URL: &str = "https://app.example.com/accept-invitation#token=";

/// Invites somebody: the user, and the token of the invitation.
pub(crate) async fn invite(admin: &Client, email: &str, role: &str) -> (Value, String) {
    let input = json!({ "email": email, "fullName": "Ina Invited", "role": role });
    let answer = admin.with(INVITE, json!({ "input": input })).await;
    let payload = &answer.data()["inviteUser"];
    let token = payload["invitationUrl"].as_str().unwrap().strip_prefix(URL).unwrap();
    (payload["user"].clone(), token.to_owned())
}

pub(crate) async fn accept(app: &TestApp, token: &str, more: Value) -> Answer {
    let mut input = json!({ "token": token, "password": { "plain": PASSWORD } });
    input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    app.anonymous().with(ACCEPT, json!({ "input": input })).await
}

/// Invites somebody who accepts: their id, and a client that is signed in as them.
pub(crate) async fn join(app: &TestApp, admin: &Client, email: &str, role: &str) -> (Value, Client) {
    let (user, token) = invite(admin, email, role).await;
    accept(app, &token, json!({})).await.data();
    (user["id"].clone(), app.anonymous().signed_in(email, PASSWORD).await)
}

/// Somebody who has made an organization and verified an address, as anybody may.
async fn stranger(app: &TestApp) -> Client {
    let stranger = registered(app, "stranger@example.net").await;
    verify(app, &app.token_to("stranger@example.net", "verify-email").await).await.data();
    stranger
}

both_databases! {
    async fn an_invited_user_chooses_a_password_and_is_signed_in(app: TestApp) {
        let admin = app.admin().await;
        let (user, token) = invite(&admin, " Ina@Example.com ", "MANAGER").await;
        let id = user["id"].clone();
        assert_eq!(user, json!({ "id": id, "email": "ina@example.com", "fullName": "Ina Invited", "role": "MANAGER",
            "status": "INVITED", "emailVerifiedAt": null, "lastSignInAt": null, "version": 1 }));
        assert_eq!(token.len(), 43, "256 bits in base 64");
        let answer = accept(&app, &token, json!({ "fullName": " Ina Inside " })).await;
        let payload = answer.data()["acceptInvitation"].clone();
        let viewer = &payload["viewer"];
        assert_eq!((&viewer["role"], &viewer["sessions"]), (&json!("MANAGER"), &json!([{ "current": true }])));
        let user = &viewer["user"];
        assert_eq!((&user["id"], &user["fullName"], &user["status"], &user["version"]), (&id, &json!("Ina Inside"), &json!("ACTIVE"), &json!(2)));
        assert!(user["lastSignInAt"].is_string());
        assert_eq!(user["emailVerifiedAt"], Value::Null, "the link went to the ADMIN, not to the address");
        let mut client = app.anonymous();
        client.access_token = payload["accessToken"].as_str().map(str::to_owned);
        assert_eq!(client.run("{ viewer { role } }").await.data()["viewer"]["role"], "MANAGER");
        let refresh = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { accessToken } }";
        client.with(refresh, json!({ "t": payload["refreshToken"] })).await.data();
        app.anonymous().signed_in("INA@example.com", PASSWORD).await;
    }

    async fn the_name_of_the_invitation_holds_where_no_other_is_chosen(app: TestApp) {
        let admin = app.admin().await;
        for (email, more) in [("a@example.com", json!({})), ("b@example.com", json!({ "fullName": null }))] {
            let (_, token) = invite(&admin, email, "MEMBER").await;
            let answer = accept(&app, &token, more).await;
            assert_eq!(answer.data()["acceptInvitation"]["viewer"]["user"]["fullName"], "Ina Invited");
        }
    }

    async fn an_invited_user_cannot_sign_in_before(app: TestApp) {
        invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        let sign_in = "mutation { signIn(input: { email: \"ina@example.com\", password: { plain: \"\" } }) { accessToken } }";
        assert_eq!(app.anonymous().run(sign_in).await.code(), "UNAUTHENTICATED");
    }

    async fn every_token_that_does_not_serve_is_answered_alike(app: TestApp) {
        let admin = app.admin().await;
        let (_, used) = invite(&admin, "used@example.com", "MEMBER").await;
        accept(&app, &used, json!({})).await.data();
        let (gone, deleted) = invite(&admin, "deleted@example.com", "MEMBER").await;
        let delete = "mutation($id: ID!) { deleteUser(input: { id: $id }) { deletedId } }";
        admin.with(delete, json!({ "id": gone["id"] })).await.data();
        let (_, replaced) = invite(&admin, "replaced@example.com", "MEMBER").await;
        let (_, newer) = invite(&admin, "replaced@example.com", "MEMBER").await;
        let (_, late) = invite(&admin, "late@example.com", "MEMBER").await;
        // A minute before the seven days are over it serves still.
        app.advance(7 * 24 * 3600 - 60);
        accept(&app, &newer, json!({})).await.data();
        app.advance(61);
        let mut errors = Vec::new();
        for token in [&used, &deleted, &replaced, &newer, &late, "", "made up", &"x".repeat(10_000)] {
            let answer = accept(&app, token, json!({})).await;
            assert_eq!(answer.code(), "UNAUTHENTICATED");
            // What is wrong with the rest is not told to whom the invitation is not known.
            let wrong = accept(&app, token, json!({ "fullName": "", "password": { "plain": "" } })).await;
            errors.extend([answer, wrong].map(|answer| answer.body["errors"][0]["message"].clone()));
        }
        errors.dedup();
        assert_eq!(errors.len(), 1, "{errors:?}");
    }

    async fn a_wrong_choice_is_named_and_uses_nothing_up(app: TestApp) {
        let (_, token) = invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        for (more, fields) in [
            (json!({ "fullName": " ", "password": { "plain": "short" } }), &["fullName", "password"][..]),
            (json!({ "fullName": "x".repeat(101) }), &["fullName"]),
            (json!({ "password": { "plain": "password" } }), &["password"]),
            (json!({ "password": { "plain": "Ina@Example.com" } }), &["password"]),
        ] {
            let answer = accept(&app, &token, more).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", fields));
        }
        accept(&app, &token, json!({})).await.data();
    }

    async fn of_those_who_accept_at_once_one_succeeds(app: TestApp) {
        let (_, token) = invite(&app.admin().await, "ina@example.com", "MEMBER").await;
        let answers = futures_util::future::join_all((0..6).map(|_| accept(&app, &token, json!({})))).await;
        let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.body.get("errors").is_none());
        assert_eq!((good.len(), bad.len()), (1, 5));
        assert!(bad.iter().all(|answer| answer.code() == "UNAUTHENTICATED"));
    }

    async fn an_address_belongs_to_one_user(app: TestApp) {
        let admin = app.admin().await;
        join(&app, &admin, "ina@example.com", "MEMBER").await;
        for email in ["admin@localhost", "INA@example.com"] {
            let input = json!({ "email": email, "fullName": "N", "role": "ADMIN" });
            assert_eq!(admin.with(INVITE, json!({ "input": input })).await.code(), "CONFLICT", "{email}");
        }
        let invitations = (0..4).map(|_| {
            let input = json!({ "email": "once@example.com", "fullName": "N", "role": "MEMBER" });
            let admin = admin.clone();
            async move { admin.with(INVITE, json!({ "input": input })).await }
        });
        for answer in futures_util::future::join_all(invitations).await {
            // Who comes at the same time is told that the address is taken, who comes later replaces the invitation.
            assert!(answer.body.get("errors").is_none() || answer.code() == "CONFLICT", "{:#}", answer.body);
        }
        let found = admin.run("{ users(search: \"once@\") { totalCount } }").await;
        assert_eq!(found.data()["users"]["totalCount"], 1);
    }

    async fn an_address_of_another_organization_is_invited_as_any_other(app: TestApp) {
        const THEIRS: &str = "admin@other.example";
        let admin = app.admin().await;
        app.other_organization().await;
        let (mut invited, _) = invite(&admin, THEIRS, "MEMBER").await;
        let (mut fresh, _) = invite(&admin, "fresh@other.example", "MEMBER").await;
        // Once more it is the same user, as of any other address.
        let (again, token) = invite(&admin, THEIRS, "MEMBER").await;
        assert_eq!(again["id"], invited["id"]);
        for user in [&mut invited, &mut fresh] {
            user["id"].take();
            user["email"].take();
        }
        assert_eq!(invited, fresh);
        // Only the mail says so.
        let is_meant = |mail: &crate::support::Mail| mail.token("accept-invitation") == Some(&token);
        let mail = app.mail_to(THEIRS, is_meant).await;
        assert!(mail.text.contains("an account in another organization"), "{}", mail.text);
        let mail = app.mail_to("fresh@other.example", |_| true).await;
        assert!(!mail.text.contains("another organization"), "{}", mail.text);
        let answer = accept(&app, &token, json!({ "password": { "plain": "another password" } })).await;
        assert_eq!(answer.data()["acceptInvitation"]["viewer"]["role"], "MEMBER");
        // The address is whose it was.
        let owner = app.anonymous().signed_in(THEIRS, PASSWORD).await;
        assert_eq!(owner.run("{ viewer { organization { name } } }").await.data()["viewer"]["organization"]["name"], "Other");
        let input = json!({ "email": THEIRS, "fullName": "N", "role": "ADMIN" });
        assert_eq!(admin.with(INVITE, json!({ "input": input })).await.code(), "CONFLICT", "of one's own organization");
    }

    async fn an_invitation_reserves_nothing(app: TestApp) {
        let stranger = stranger(&app).await;
        let (_, token) = invite(&stranger, "ina@example.com", "MEMBER").await;
        invite(&stranger, "max@example.com", "MEMBER").await;
        // One of those who were invited registers, the other comes to where they belong.
        registered(&app, "ina@example.com").await;
        verify(&app, &app.token_to("ina@example.com", "verify-email").await).await.data();
        join(&app, &app.admin().await, "max@example.com", "MEMBER").await;
        // Accepted in her place, it takes nothing from her.
        accept(&app, &token, json!({ "password": { "plain": "another password" } })).await.data();
        app.anonymous().signed_in("ina@example.com", PASSWORD).await;
        app.until_no_mail_waits().await;
        assert_eq!(app.mails_to("ina@example.com"), 1, "the invitation");
    }

    async fn elsewhere_an_accepted_address_counts_once_it_is_verified(app: TestApp) {
        let stranger = stranger(&app).await;
        let (_, token) = invite(&stranger, "ina@example.com", "MEMBER").await;
        accept(&app, &token, json!({})).await.data();
        let sign_in = format!("mutation {{ signIn(input: {{ email: \"ina@example.com\", password: {{ plain: \"{PASSWORD}\" }} }}) {{ accessToken }} }}");
        assert_eq!(app.anonymous().run(&sign_in).await.code(), "UNAUTHENTICATED");
        let mail = app.mail_to("ina@example.com", |mail| mail.token("verify-email").is_some()).await;
        assert!(mail.text.contains("An invitation to Claviger for this address was accepted."), "{}", mail.text);
        // Whoever accepted in her place has none of her mails, and she takes what is hers.
        registered(&app, "ina@example.com").await;
        verify(&app, &app.token_to("ina@example.com", "verify-email").await).await.data();
        assert_eq!(verify(&app, mail.token("verify-email").unwrap()).await.code(), "CONFLICT");

        // Whoever accepts for themselves verifies with the session that they have by that.
        let (_, token) = invite(&stranger, "max@example.com", "ADMIN").await;
        let answer = accept(&app, &token, json!({})).await;
        let mut max = app.anonymous();
        max.access_token = answer.data()["acceptInvitation"]["accessToken"].as_str().map(str::to_owned);
        let input = json!({ "email": "ida@example.com", "fullName": "Ida", "role": "MEMBER" });
        assert_eq!(max.with(INVITE, json!({ "input": input })).await.code(), "FORBIDDEN", "as long as it is not verified");
        let verified = verify_by(&max, &app.token_to("max@example.com", "verify-email").await, None).await;
        assert!(verified.data()["verifyEmail"]["user"]["emailVerifiedAt"].is_string());
        app.anonymous().signed_in("max@example.com", PASSWORD).await;
        max.with(INVITE, json!({ "input": input })).await.data();
    }

    async fn where_nobody_can_register_an_accepted_address_counts_at_once(app: TestApp) {
        let mut app = app;
        let mut other = app.other_organization().await;
        app.set("REGISTRATION", "closed");
        app.restart().await;
        other.url.clone_from(&app.url);
        join(&app, &other, "ina@example.com", "MEMBER").await;
        app.until_no_mail_waits().await;
        assert_eq!(app.mails_to("ina@example.com"), 1, "the invitation");
    }

    async fn who_is_invited_again_is_invited_as_now(app: TestApp) {
        let admin = app.admin().await;
        let (first, _) = invite(&admin, "ina@example.com", "MEMBER").await;
        let input = json!({ "email": "ina@example.com", "fullName": "Ina Again", "role": "READ_ONLY" });
        let answer = admin.with(INVITE, json!({ "input": input })).await;
        let user = &answer.data()["inviteUser"]["user"];
        assert_eq!(*user, json!({ "id": first["id"], "email": "ina@example.com", "fullName": "Ina Again", "role": "READ_ONLY",
            "status": "INVITED", "emailVerifiedAt": null, "lastSignInAt": null, "version": 2 }));
    }

    async fn every_wrong_field_of_an_invitation_is_named(app: TestApp) {
        let input = json!({ "email": "nobody", "fullName": "", "role": "MEMBER" });
        let answer = app.admin().await.with(INVITE, json!({ "input": input })).await;
        assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", &["email", "fullName"][..]));
    }

    async fn an_invitation_stands_in_the_log_without_its_token(app: TestApp) {
        let admin = app.admin().await;
        let (user, token) = invite(&admin, "ina@example.com", "MEMBER").await;
        accept(&app, &token, json!({ "password": { "plain": "canary-password" } })).await.data();
        accept(&app, &token, json!({ "password": { "plain": "canary-password" } })).await;
        let log = "query($f: AuditLogFilter) { auditLogs(filter: $f) { nodes { action outcome changes metadata user { id } } } }";
        let answer = admin.with(log, json!({ "f": { "resourceId": user["id"] } })).await;
        let entries = &answer.data()["auditLogs"]["nodes"];
        assert_eq!((&entries[1]["action"], &entries[1]["changes"]["email"]), (&json!("INVITE"), &json!({ "to": "ina@example.com" })));
        assert_eq!((&entries[0]["action"], &entries[0]["user"]["id"]), (&json!("VERIFY"), &user["id"]));
        assert_eq!(entries[0]["changes"], json!({ "status": { "from": "INVITED", "to": "ACTIVE" } }));
        assert!(entries[0]["metadata"]["session"].as_str().unwrap().starts_with("sess_"));
        let mut seen = admin.run("{ auditLogs(first: 100) { nodes { operation changes metadata } } }").await.body.to_string();
        seen += &reqwest::get(format!("{}/metrics", app.url)).await.unwrap().text().await.unwrap();
        seen += &app.database.texts("SELECT full_name || search_text || coalesce(password_hash, '') AS text FROM users").await.concat();
        let (_, open) = invite(&admin, "open@example.com", "MEMBER").await;
        if let Some(path) = app.database.url.strip_prefix("sqlite://") {
            for suffix in ["", "-wal"] {
                seen += &String::from_utf8_lossy(&std::fs::read(format!("{path}{suffix}")).unwrap());
            }
        }
        for secret in [token.as_str(), &open, "canary-password"] {
            assert!(!seen.contains(secret), "{secret}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_frontend_the_link_leads_to_the_server() {
    for (public_url, base) in [
        ("https://claviger.example.com", "https://claviger.example.com"),
        ("https://example.com/c/", "https://example.com/c"),
    ] {
        // A list of nothing.
        let more = [("FRONTEND_URL", ",".to_owned()), ("PUBLIC_URL", public_url.to_owned())];
        let app = TestApp::start(crate::support::TestDatabase::sqlite(), more).await;
        let input = json!({ "email": "ina@example.com", "fullName": "Ina", "role": "MEMBER" });
        let answer = app.admin().await.with(INVITE, json!({ "input": input })).await;
        let url = answer.data()["inviteUser"]["invitationUrl"].as_str().unwrap();
        assert!(url.starts_with(&format!("{base}/accept-invitation#token=")), "{url}");
    }
}
