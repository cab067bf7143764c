//! Passwords that come encrypted: wherever one is taken, once for each nonce, on whichever server, and with one answer for whatever is
//! wrong.

use std::collections::BTreeSet;

use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use claviger::domain::{expired, password_key};
use serde_json::{Value, json};

use crate::invitation::invite;
use crate::jobs::age;
use crate::support::{Answer, Client, PASSWORD, TestApp, both_databases};

const HOUR: i64 = 60 * 60;
const SIGN_IN: &str = "mutation($input: SignInInput!) { signIn(input: $input) { accessToken refreshToken } }";

/// What the server offers to encrypt a password with.
pub(crate) async fn offered(client: &Client) -> Value {
    client.run("{ passwordKey { keyId publicKeyPem nonce expiresAt } }").await.data()["passwordKey"].clone()
}

/// The ciphertext of a text.
fn ciphertext(offer: &Value, text: &str, algorithm: &'static OaepAlgorithm) -> String {
    let pem = offer["publicKeyPem"].as_str().unwrap();
    let body =
        pem.strip_prefix("-----BEGIN PUBLIC KEY-----\n").unwrap().strip_suffix("-----END PUBLIC KEY-----\n").unwrap();
    let spki = STANDARD.decode(body.replace('\n', "")).unwrap();
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&spki).unwrap()).unwrap();
    let mut bytes = vec![0; key.ciphertext_size()];
    key.encrypt(algorithm, text.as_bytes(), &mut bytes, None).unwrap();
    STANDARD.encode(bytes)
}

/// A password encrypted with what was offered.
pub(crate) fn encrypted(offer: &Value, password: &str) -> Value {
    let text = json!({ "password": password, "nonce": offer["nonce"] }).to_string();
    with_ciphertext(offer, &ciphertext(offer, &text, &OAEP_SHA256_MGF1SHA256))
}

fn with_ciphertext(offer: &Value, ciphertext: &str) -> Value {
    json!({ "encrypted": { "keyId": offer["keyId"], "nonce": offer["nonce"], "ciphertext": ciphertext } })
}

/// A password encrypted with what is offered now.
async fn fresh(client: &Client, password: &str) -> Value {
    encrypted(&offered(client).await, password)
}

async fn sign_in(client: &Client, password: &Value) -> Answer {
    client.with(SIGN_IN, json!({ "input": { "email": "admin@localhost", "password": password } })).await
}

/// What an answer says, but for what differs from request to request.
fn said(answer: &Answer) -> Value {
    let mut body = answer.body.clone();
    body["errors"][0]["extensions"].as_object_mut().unwrap().remove("requestId");
    body
}

async fn count(app: &TestApp, table: &str) -> String {
    app.database.texts(&format!("SELECT CAST(count(*) AS text) AS text FROM {table}")).await.remove(0)
}

both_databases! {
    async fn every_password_may_come_encrypted(app: TestApp) {
        let (admin, anyone) = (app.admin().await, app.anonymous());
        let passed = sign_in(&anyone, &fresh(&anyone, PASSWORD).await).await;
        assert!(passed.data()["signIn"]["accessToken"].is_string());
        let wrong = sign_in(&anyone, &fresh(&anyone, "another password").await).await;
        assert_eq!(wrong.code(), "UNAUTHENTICATED");

        let register = "mutation($input: RegisterInput!) { register(input: $input) { accessToken } }";
        let input = json!({ "organizationName": "O", "email": "rita@example.com", "fullName": "Rita", "password": fresh(&anyone, "a long password").await });
        anyone.with(register, json!({ "input": input })).await.data();

        let (_, token) = invite(&admin, "ina@example.com", "MEMBER").await;
        let accept = "mutation($input: AcceptInvitationInput!) { acceptInvitation(input: $input) { accessToken } }";
        let input = json!({ "token": token, "password": fresh(&anyone, "the first password").await });
        anyone.with(accept, json!({ "input": input })).await.data();
        let ina = app.anonymous().signed_in("ina@example.com", "the first password").await;

        // Each of the two has a nonce of its own; one of the two may be as it is.
        let change = "mutation($input: ChangePasswordInput!) { changePassword(input: $input) { changed } }";
        let input = json!({ "currentPassword": fresh(&ina, "the first password").await, "newPassword": fresh(&ina, "the second password").await });
        ina.with(change, json!({ "input": input })).await.data();
        let input = json!({ "currentPassword": { "plain": "the second password" }, "newPassword": fresh(&ina, "the third password").await });
        ina.with(change, json!({ "input": input })).await.data();
        let offer = offered(&ina).await;
        let (current, new) = (encrypted(&offer, "the third password"), encrypted(&offer, "the fourth password"));
        let twice = ina.with(change, json!({ "input": { "currentPassword": current, "newPassword": new } })).await;
        assert_eq!((twice.code(), twice.fields()), ("BAD_USER_INPUT", vec!["newPassword"]));
        let twice = ina.with(change, json!({ "input": { "currentPassword": current, "newPassword": new } })).await;
        assert_eq!(twice.fields(), ["currentPassword", "newPassword"]);

        let request = "mutation { requestPasswordReset(input: { email: \"ina@example.com\" }) { accepted } }";
        anyone.run(request).await.data();
        let token = app.token_to("ina@example.com", "reset-password").await;
        let reset = "mutation($input: ResetPasswordInput!) { resetPassword(input: $input) { reset } }";
        let input = json!({ "token": token, "newPassword": fresh(&anyone, "the fifth password").await });
        anyone.with(reset, json!({ "input": input })).await.data();

        let ina = app.anonymous().signed_in("ina@example.com", "the fifth password").await;
        let leave = "mutation($input: DeleteMyAccountInput!) { deleteMyAccount(input: $input) { deletedId } }";
        ina.with(leave, json!({ "input": { "password": fresh(&ina, "the fifth password").await } })).await.data();
    }

    async fn rules_hold_for_what_was_encrypted(app: TestApp) {
        let admin = app.admin().await;
        let change = "mutation($input: ChangePasswordInput!) { changePassword(input: $input) { changed } }";
        let to = async |password: &str| {
            let input = json!({ "currentPassword": { "plain": PASSWORD }, "newPassword": fresh(&admin, password).await });
            admin.with(change, json!({ "input": input })).await
        };
        assert_eq!(to("short").await.fields(), ["newPassword"]);
        assert_eq!(to("password123").await.fields(), ["newPassword"]);
        // The longest that there is goes into one block.
        let longest = "ä\"".repeat(2) + &"x".repeat(250);
        to(&longest).await.data();
        app.anonymous().signed_in("admin@localhost", &longest).await;
    }

    async fn a_nonce_serves_once_on_whichever_server_and_for_five_minutes(app: TestApp) {
        let mut app = app;
        let here = app.anonymous();
        let there = Client::new(&app.another().await);
        // What one server has offered another takes, once for both.
        let password = fresh(&here, PASSWORD).await;
        sign_in(&there, &password).await.data();
        for client in [&here, &there] {
            assert_eq!(sign_in(client, &password).await.fields(), ["password"]);
        }
        // Of many at once one comes through.
        let password = fresh(&here, PASSWORD).await;
        let at_once = (0..8).map(|n| sign_in(if n % 2 == 0 { &here } else { &there }, &password));
        let answers = futures_util::future::join_all(at_once).await;
        assert_eq!(answers.iter().filter(|answer| answer.body.get("errors").is_none()).count(), 1);
        // A wrong ciphertext uses it up as well.
        let offer = offered(&here).await;
        sign_in(&here, &with_ciphertext(&offer, "AAAA")).await.code();
        assert_eq!(sign_in(&there, &encrypted(&offer, PASSWORD)).await.code(), "BAD_USER_INPUT");

        let (early, late) = (fresh(&here, PASSWORD).await, fresh(&here, PASSWORD).await);
        app.advance(5 * 60 - 20);
        sign_in(&here, &early).await.data();
        app.advance(21);
        assert_eq!(sign_in(&here, &late).await.code(), "BAD_USER_INPUT");

        let beside = app.beside().await.services;
        assert_ne!(count(&app, "password_nonces").await, "0");
        age(&app, &[("password_nonces", "expires_at")], 1).await;
        expired::remove(&beside).await.unwrap();
        assert_eq!(count(&app, "password_nonces").await, "0");
        assert_eq!(sign_in(&here, &early).await.code(), "BAD_USER_INPUT");
    }

    async fn of_many_who_ask_at_once_each_has_a_nonce(app: TestApp) {
        for client in [app.anonymous(), app.admin().await] {
            let asking = (0..20).map(|_| offered(&client));
            let offers = futures_util::future::join_all(asking).await;
            let nonces: BTreeSet<_> = offers.iter().map(|offer| offer["nonce"].as_str().unwrap()).collect();
            assert_eq!(nonces.len(), offers.len());
        }
        assert_eq!(count(&app, "password_keys").await, "1", "the first of them has it made for all");
    }

    async fn whatever_is_wrong_is_answered_alike(app: TestApp) {
        let anyone = app.anonymous();
        let offer = async || offered(&anyone).await;
        let put = |mut password: Value, field: &str, value: &str| { password["encrypted"][field] = json!(value); password };
        let sealing = |offer: &Value, text: &str| with_ciphertext(offer, &ciphertext(offer, text, &OAEP_SHA256_MGF1SHA256));
        let (used, other) = (offer().await, offer().await);
        sign_in(&anyone, &encrypted(&used, PASSWORD)).await.data();
        let mut of_last_bit = offer().await;
        let text = json!({ "password": PASSWORD, "nonce": of_last_bit["nonce"] }).to_string();
        let mut bytes = STANDARD.decode(ciphertext(&of_last_bit, &text, &OAEP_SHA256_MGF1SHA256)).unwrap();
        bytes[383] ^= 1;
        of_last_bit = with_ciphertext(&of_last_bit, &STANDARD.encode(&bytes));
        let fresh = offer().await;
        let nonce = fresh["nonce"].as_str().unwrap();
        let of_sha1 = ciphertext(&fresh, &json!({ "password": PASSWORD, "nonce": nonce }).to_string(), &OAEP_SHA1_MGF1SHA1);
        // One that a server of another ring would make: alike but for its proof.
        let forged = format!("{}{}", &nonce[..31], if nonce.ends_with('A') { "B" } else { "A" });
        let of_forged = ciphertext(&fresh, &json!({ "password": PASSWORD, "nonce": forged }).to_string(), &OAEP_SHA256_MGF1SHA256);
        let wrong = [
            encrypted(&used, PASSWORD),
            of_last_bit,
            put(encrypted(&offer().await, PASSWORD), "keyId", "pwkey_00000000000000000000000000"),
            put(encrypted(&offer().await, PASSWORD), "keyId", "no id"),
            put(encrypted(&offer().await, PASSWORD), "nonce", other["nonce"].as_str().unwrap()),
            put(encrypted(&offer().await, PASSWORD), "nonce", ""),
            put(put(encrypted(&fresh, PASSWORD), "nonce", &forged), "ciphertext", &of_forged),
            put(encrypted(&offer().await, PASSWORD), "ciphertext", ""),
            put(encrypted(&offer().await, PASSWORD), "ciphertext", "no base 64!"),
            put(encrypted(&offer().await, PASSWORD), "ciphertext", &STANDARD.encode([0; 384])),
            put(encrypted(&offer().await, PASSWORD), "ciphertext", &STANDARD.encode([255; 384])),
            put(encrypted(&offer().await, PASSWORD), "ciphertext", &STANDARD.encode([1; 385])),
            with_ciphertext(&fresh, &of_sha1),
            sealing(&offer().await, PASSWORD),
            sealing(&offer().await, &json!({ "password": PASSWORD }).to_string()),
            sealing(&offer().await, &json!({ "password": PASSWORD, "nonce": "another" }).to_string()),
            sealing(&offer().await, &json!({ "password": 8, "nonce": "another" }).to_string()),
        ];
        let mut answers = Vec::new();
        for password in &wrong {
            let answer = sign_in(&anyone, password).await;
            assert_eq!((answer.code(), answer.fields()), ("BAD_USER_INPUT", vec!["password"]), "{password}");
            answers.push(said(&answer));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
        // None has cost an attempt, nor told whether the password was right.
        let admin = app.admin().await;
        let failed = "{ auditLogs(first: 100, filter: { action: [SIGN_IN], outcome: [FAILED] }) { totalCount nodes { user { id } errorCode } } }";
        let failed = admin.run(failed).await.data()["auditLogs"].clone();
        assert_eq!(failed["totalCount"], wrong.len());
        assert!(failed["nodes"].as_array().unwrap().iter().all(|entry| entry["user"].is_null()));
    }

    async fn key_pairs_are_shared_replaced_with_an_overlap_and_removed(app: TestApp) {
        let mut app = app;
        let anyone = app.anonymous();
        let beside = app.beside().await.services;
        let first = offered(&anyone).await["keyId"].clone();
        for _ in 0..3 {
            password_key::rotate(&beside).await.unwrap();
        }
        assert_eq!(count(&app, "password_keys").await, "1", "it is new");
        let there = Client::new(&app.another().await);
        assert_eq!(offered(&there).await["keyId"], first);

        app.advance(24 * HOUR);
        let of_first = offered(&anyone).await;
        password_key::rotate(&beside).await.unwrap();
        // One of the servers may have been at it already.
        let newest = "SELECT id AS text FROM password_keys ORDER BY created_at DESC, id DESC";
        let keys = app.database.texts(newest).await;
        assert_eq!((keys.len() >= 2, json!(keys.last())), (true, first.clone()));
        assert_eq!(of_first["keyId"], first);
        sign_in(&anyone, &encrypted(&of_first, PASSWORD)).await.data();
        // A server that has just started knows the newest; the other takes what it offers.
        let third = Client::new(&app.another().await);
        let of_second = offered(&third).await;
        assert_ne!(of_second["keyId"], first);
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        sign_in(&anyone, &encrypted(&of_second, PASSWORD)).await.data();

        app.advance(2 * HOUR);
        age(&app, &[("password_keys", "created_at")], 2).await;
        password_key::rotate(&beside).await.unwrap();
        assert!(!app.database.texts(newest).await.contains(&first.as_str().unwrap().to_owned()), "its time is over");
        let late = encrypted(&of_first, PASSWORD);
        assert_eq!(sign_in(&anyone, &late).await.code(), "BAD_USER_INPUT");
        assert_ne!(offered(&anyone).await["keyId"], first);
    }

    async fn a_key_pair_that_does_not_open_is_nobodys(app: TestApp) {
        let anyone = app.anonymous();
        let first = offered(&anyone).await["keyId"].clone();
        // Copied onto another row, the private key does not open.
        app.database.execute("UPDATE password_keys SET id = 'pwkey_00000000000000000000000001'").await.unwrap();
        let mut app = app;
        let there = Client::new(&app.another().await);
        let waiting = tokio::spawn(async move { offered(&there).await["keyId"].clone() });
        let beside = app.beside().await.services;
        password_key::rotate(&beside).await.unwrap();
        assert_ne!(waiting.await.unwrap(), first);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_is_wrong_removes_no_key_pair_of_the_others() {
    let app = TestApp::postgres().await;
    let first = offered(&app.anonymous()).await["keyId"].clone();
    for days in [2, -2] {
        let wrong = app.beside_by(app.clock_ahead(TimeDelta::days(days))).await.services;
        password_key::rotate(&wrong).await.unwrap();
        let keys = app.database.texts("SELECT id AS text FROM password_keys").await;
        assert!(keys.iter().any(|id| json!(id) == first), "{days}: {keys:?}");
    }
    assert_eq!(offered(&app.anonymous()).await["keyId"], first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_pair_that_was_removed_is_not_in_sqlites_file_any_more() {
    let app = TestApp::sqlite().await;
    let beside = app.beside().await.services;
    let first = offered(&app.anonymous()).await["keyId"].clone();
    let sealed = format!("SELECT hex(sealed) AS text FROM password_keys WHERE id = '{}'", first.as_str().unwrap());
    let sealed = hex::decode(app.database.texts(&sealed).await.remove(0)).unwrap();
    // Where there are few, one would be overwritten by what is moved.
    app.advance(24 * HOUR);
    password_key::rotate(&beside).await.unwrap();
    let is_there = async || {
        app.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
        let file = std::fs::read(app.database.url.strip_prefix("sqlite://").unwrap()).unwrap();
        // From the middle: where something was deleted, SQLite writes the first bytes for its own use.
        file.windows(100).any(|bytes| bytes == &sealed[1_000..1_100])
    };
    assert!(is_there().await);
    app.advance(24 * HOUR);
    password_key::rotate(&beside).await.unwrap();
    let left = app.database.texts("SELECT id AS text FROM password_keys").await;
    assert!(!left.iter().any(|id| json!(id) == first));
    assert!(!is_there().await);
}
