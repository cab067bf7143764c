//! Registering, and verifying an address.

use claviger::audit::Origin;
use claviger::crypto::SecretText;
use claviger::domain::registration::{Register, register as register_deed};
use claviger::domain::{Cx, Record};
use claviger::identity::Actor;
use serde_json::{Value, json};

use crate::invitation::{invite, join};
use crate::support::{Answer, Client, PASSWORD, TestApp, both_databases};

const REGISTER: &str = "mutation($input: RegisterInput!) {
  register(input: $input) { accessToken refreshToken accessTokenExpiresAt refreshTokenExpiresAt
    viewer { role organization { id name plan } permissions sessions { current } user { id email fullName role status emailVerifiedAt version } } } }";
const VERIFY: &str = "mutation($t: String!, $p: PasswordInput) { verifyEmail(input: { token: $t, password: $p }) { user { id email emailVerifiedAt version } } }";
const SIGN_IN: &str =
    "mutation($e: String!, $p: String!) { signIn(input: { email: $e, password: { plain: $p } }) { accessToken } }";

async fn register(app: &TestApp, email: &str) -> Answer {
    let input = json!({ "organizationName": "Acme", "email": email, "fullName": "Rita Registered", "password": { "plain": PASSWORD } });
    app.anonymous().with(REGISTER, json!({ "input": input })).await
}

/// Registers: a client that is signed in.
pub(crate) async fn registered(app: &TestApp, email: &str) -> Client {
    let answer = register(app, email).await;
    let mut client = app.anonymous();
    client.access_token = answer.data()["register"]["accessToken"].as_str().map(str::to_owned);
    client
}

/// Verifies an address by who knows the password.
pub(crate) async fn verify(app: &TestApp, token: &str) -> Answer {
    verify_by(&app.anonymous(), token, Some(PASSWORD)).await
}

pub(crate) async fn verify_by(client: &Client, token: &str, password: Option<&str>) -> Answer {
    let password = password.map(|password| json!({ "plain": password }));
    client.with(VERIFY, json!({ "t": token, "p": password })).await
}

async fn sign_in(app: &TestApp, email: &str) -> Answer {
    app.anonymous().with(SIGN_IN, json!({ "e": email, "p": PASSWORD })).await
}

/// An answer without what differs from one registration to the next.
fn shape(answer: &Answer) -> Value {
    fn blur(value: &mut Value) {
        match value {
            Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| match name.as_str() {
                "id" | "accessToken" | "refreshToken" | "accessTokenExpiresAt" | "refreshTokenExpiresAt" => {
                    *value = json!(value.as_str().unwrap().len());
                }
                // Of one length in these tests.
                "email" => *value = json!("email"),
                _ => blur(value),
            }),
            Value::Array(values) => values.iter_mut().for_each(blur),
            _ => {}
        }
    }
    let mut body = answer.body.clone();
    blur(&mut body);
    body
}

both_databases! {
    async fn who_registers_is_the_admin_of_an_organization_of_their_own(app: TestApp) {
        let answer = register(&app, " Rita@Example.com ").await;
        let viewer = &answer.data()["register"]["viewer"];
        assert_eq!((&viewer["role"], &viewer["organization"]["name"]), (&json!("ADMIN"), &json!("Acme")));
        assert_eq!(viewer["sessions"], json!([{ "current": true }]));
        let user = &viewer["user"];
        assert_eq!(*user, json!({ "id": user["id"], "email": "rita@example.com", "fullName": "Rita Registered", "role": "ADMIN",
            "status": "ACTIVE", "emailVerifiedAt": null, "version": 1 }));
        let mut rita = app.anonymous();
        rita.access_token = answer.data()["register"]["accessToken"].as_str().map(str::to_owned);
        let log = rita.run("{ auditLogs { nodes { operation action outcome resourceType resourceId user { id } changes } } users { totalCount } }").await;
        let entries = log.data()["auditLogs"]["nodes"].as_array().unwrap();
        assert_eq!(entries.len(), 1);
        let organization = &viewer["organization"]["id"];
        assert_eq!(entries[0], json!({ "operation": "register", "action": "REGISTER", "outcome": "SUCCESS", "resourceType": "ORGANIZATION",
            "resourceId": organization, "user": { "id": user["id"] }, "changes": entries[0]["changes"] }));
        assert_eq!(log.data()["users"]["totalCount"], 1);
        assert_eq!(sign_in(&app, "rita@example.com").await.code(), "UNAUTHENTICATED", "before it is verified");

        let token = app.token_to("rita@example.com", "verify-email").await;
        assert_eq!(token.len(), 43, "256 bits in base 64");
        let verified = verify(&app, &token).await.data()["verifyEmail"]["user"].clone();
        assert_eq!((&verified["id"], &verified["email"], &verified["version"]), (&user["id"], &json!("rita@example.com"), &json!(2)));
        assert!(verified["emailVerifiedAt"].is_string());
        sign_in(&app, "RITA@example.com").await.data();
        assert_eq!(verify(&app, &token).await.code(), "UNAUTHENTICATED", "a second time");
        let admin = app.admin().await;
        let other = admin.with("query($id: ID!) { user(id: $id) { id } }", json!({ "id": user["id"] })).await;
        assert_eq!(other.data()["user"], Value::Null, "of another organization");
    }

    async fn whether_an_address_is_known_only_the_mail_says(app: TestApp) {
        let admin = app.admin().await;
        join(&app, &admin, "known@example.com", "MEMBER").await;
        invite(&admin, "asked@example.com", "MEMBER").await;
        let unknown = register(&app, "fresh@example.com").await;
        unknown.data();
        let known = register(&app, "known@example.com").await;
        assert_eq!(shape(&known), shape(&unknown));
        let mail = app.mail_to("known@example.com", |mail| mail.subject == "You have an account at Claviger").await;
        assert!(!mail.raw.contains("token=") && !mail.raw.contains("Acme") && !mail.raw.contains("Rita"));
        // Who is invited only has none.
        assert_eq!(shape(&register(&app, "asked@example.com").await), shape(&unknown));
        app.token_to("asked@example.com", "verify-email").await;
        // Not even by signing in: the one password that serves is that of before.
        sign_in(&app, "known@example.com").await.data();
        app.database.execute("UPDATE users SET password_hash = NULL WHERE email_key = 'known@example.com'").await.unwrap();
        for email in ["known@example.com", "fresh@example.com", "nobody@example.com"] {
            assert_eq!(sign_in(&app, email).await.code(), "UNAUTHENTICATED");
        }
        app.until_no_mail_waits().await;
        app.token_to("fresh@example.com", "verify-email").await;
    }

    async fn the_same_is_asked_of_the_database_for_a_known_and_an_unknown_address(app: TestApp) {
        // Beside the server, so that nobody else's statements are counted.
        let other = app.beside().await;
        let mut counts = Vec::new();
        for email in ["admin@localhost", "nobody@localhost", "admin@localhost"] {
            let (actor, origin, record) = (Actor::Anonymous, Origin::default(), Record::default());
            let cx = Cx { services: &other.services, actor: &actor, origin: &origin, operation: "register", record: &record, deadline: None };
            let before = other.services.db.statements();
            let input = Register {
                organization_name: "Acme".to_owned(),
                email: email.to_owned(),
                full_name: "N".to_owned(),
                password: SecretText::from(PASSWORD.to_owned()),
            };
            register_deed(cx, input).await.unwrap();
            counts.push(other.services.db.statements() - before);
        }
        assert!(counts[0] > 5 && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    }

    async fn an_address_is_whose_who_verifies_it_first(app: TestApp) {
        let (first, second) = (registered(&app, "rita@example.com").await, registered(&app, "rita@example.com").await);
        let tokens = [app.token_to("rita@example.com", "verify-email").await, app.token_to("rita@example.com", "verify-email").await];
        verify(&app, &tokens[0]).await.data();
        let late = verify(&app, &tokens[1]).await;
        assert_eq!(late.code(), "CONFLICT");
        let verified = "{ viewer { user { emailVerifiedAt } } }";
        let mut found = Vec::new();
        for client in [&first, &second] {
            found.push(client.run(verified).await.data()["viewer"]["user"]["emailVerifiedAt"].is_string());
        }
        found.sort_unstable();
        assert_eq!(found, [false, true]);
        // An invitation into the operator's organization that is accepted takes an address that is not verified, too.
        registered(&app, "taken@example.com").await;
        let token = app.token_to("taken@example.com", "verify-email").await;
        join(&app, &app.admin().await, "taken@example.com", "MEMBER").await;
        assert_eq!(verify(&app, &token).await.code(), "CONFLICT");
    }

    async fn a_token_serves_for_a_day_and_of_those_who_use_it_at_once_one(app: TestApp) {
        registered(&app, "late@example.com").await;
        let late = app.token_to("late@example.com", "verify-email").await;
        registered(&app, "rita@example.com").await;
        let token = app.token_to("rita@example.com", "verify-email").await;
        app.advance(24 * 3600 - 60);
        // As many as the password may be given at once.
        let answers = futures_util::future::join_all((0..5).map(|_| verify(&app, &token))).await;
        let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.body.get("errors").is_none());
        assert_eq!((good.len(), bad.len()), (1, 4));
        app.advance(61);
        let mut errors: Vec<_> = bad.iter().map(|answer| answer.body["errors"][0]["message"].clone()).collect();
        for wrong in [&late, "", "made up", &"x".repeat(10_000)] {
            let answer = verify(&app, wrong).await;
            assert_eq!(answer.code(), "UNAUTHENTICATED");
            errors.push(answer.body["errors"][0]["message"].clone());
        }
        errors.dedup();
        assert_eq!(errors.len(), 1, "{errors:?}");
        // A token of another kind verifies nothing.
        let request = "mutation { requestPasswordReset(input: { email: \"rita@example.com\" }) { accepted } }";
        app.anonymous().run(request).await.data();
        let reset = app.token_to("rita@example.com", "reset-password").await;
        assert_eq!(verify(&app, &reset).await.code(), "UNAUTHENTICATED");
    }

    async fn a_link_alone_gives_nobody_an_account_that_a_stranger_has_registered(app: TestApp) {
        let stranger = registered(&app, "ina@example.com").await;
        let mail = app.mail_to("ina@example.com", |mail| mail.token("verify-email").is_some()).await;
        assert!(mail.text.contains(" UTC, from 127.0.0.1."), "{}", mail.text);
        let token = mail.token("verify-email").unwrap();
        // Ina follows the link: she knows no password of that account, nor has she a session of it.
        let other = registered(&app, "other@example.com").await;
        for (client, password) in [(&app.anonymous(), None), (&app.anonymous(), Some("a guess of mine")), (&other, None)] {
            let answer = verify_by(client, token, password).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", &["password"][..]));
        }
        assert_eq!(sign_in(&app, "ina@example.com").await.code(), "UNAUTHENTICATED");
        let unverified = stranger.run("{ viewer { user { emailVerifiedAt } } }").await;
        assert_eq!(unverified.data()["viewer"]["user"]["emailVerifiedAt"], Value::Null);
        // It is as it was for who has registered: where they are signed in, the link is enough.
        verify_by(&stranger, token, None).await.data();
        sign_in(&app, "ina@example.com").await.data();
    }

    async fn a_password_is_guessed_at_by_a_link_no_better_than_by_a_sign_in(app: TestApp) {
        registered(&app, "rita@example.com").await;
        let token = app.token_to("rita@example.com", "verify-email").await;
        for _ in 0..5 {
            assert_eq!(verify_by(&app.anonymous(), &token, Some("a guess of mine")).await.code(), "BAD_USER_INPUT");
        }
        assert_eq!(verify(&app, &token).await.code(), "RATE_LIMITED");
        app.advance(181);
        verify(&app, &token).await.data();
    }

    async fn who_has_registered_invites_nobody_before_the_address_is_verified(app: TestApp) {
        let rita = registered(&app, "rita@example.com").await;
        let deed = "mutation { inviteUser(input: { email: \"ina@example.com\", fullName: \"Ina\", role: MEMBER }) { user { id } } }";
        assert_eq!(rita.run(deed).await.code(), "FORBIDDEN");
        app.until_no_mail_waits().await;
        verify(&app, &app.token_to("rita@example.com", "verify-email").await).await.data();
        rita.run(deed).await.data();
        app.token_to("ina@example.com", "accept-invitation").await;
    }

    async fn an_address_gets_five_mails_an_hour_and_nobody_is_told(app: TestApp) {
        let first = register(&app, "victim@example.com").await;
        for _ in 0..7 {
            assert_eq!(shape(&register(&app, "Victim@example.com").await), shape(&first));
        }
        app.until_no_mail_waits().await;
        assert_eq!(app.mails_to("victim@example.com"), 5);
        // Who needs a mail of another kind has it.
        let request = "mutation { requestPasswordReset(input: { email: \"admin@localhost\" }) { accepted } }";
        app.anonymous().run(request).await.data();
        app.token_to("admin@localhost", "reset-password").await;
        app.advance(12 * 60 + 1);
        register(&app, "victim@example.com").await.data();
        app.until_no_mail_waits().await;
        assert_eq!(app.mails_to("victim@example.com"), 6);
    }

    async fn every_wrong_field_of_a_registration_is_named(app: TestApp) {
        for (input, fields) in [
            (json!({ "organizationName": " ", "email": "nobody", "fullName": "", "password": { "plain": "short" } }), &["organizationName", "email", "fullName"][..]),
            (json!({ "organizationName": "x".repeat(101), "email": "a@b.example", "fullName": "N", "password": { "plain": "A@b.example" } }), &["organizationName", "password"]),
            (json!({ "organizationName": "O", "email": "a@b.example", "fullName": "N", "password": { "plain": "password" } }), &["password"]),
        ] {
            let answer = app.anonymous().with(REGISTER, json!({ "input": input })).await;
            assert_eq!((answer.code(), answer.fields().as_slice()), ("BAD_USER_INPUT", fields));
        }
        assert_eq!(app.database.texts("SELECT id AS text FROM organizations").await.len(), 1);
    }

    async fn a_server_that_is_closed_lets_nobody_register(app: TestApp) {
        let mut app = app;
        app.set("REGISTRATION", "closed");
        app.restart().await;
        for email in ["admin@localhost", "nobody@example.com"] {
            assert_eq!(register(&app, email).await.code(), "FORBIDDEN");
        }
        app.until_no_mail_waits().await;
        assert!(!app.outbox().exists());
        let log = "{ auditLogs(filter: { action: [REGISTER] }) { nodes { outcome } } }";
        let entries = app.admin().await.run(log).await.data()["auditLogs"]["nodes"].clone();
        assert_eq!(entries, json!([{ "outcome": "DENIED" }, { "outcome": "DENIED" }]));
    }
}
