//! API keys beside what else changes: limits, makers and owners, the key ring, sockets.

use std::time::Duration;

use claviger::model::{Access, ManageOwnApiKeys, Read, Role};
use claviger::store::api_key::{ApiKey, NewDigest, Whose, find_many, insert};
use claviger::store::{Error, Tx};
use serde_json::{Value, json};

use crate::api_key::{
    create, newest_entry, regenerate, revoke, set_user, try_create, update, user_id, with_key, works,
};
use crate::invitation::invite;
use crate::support::{Answer, Client, Socket, TestApp, TestDatabase, both_databases};

const DELETE: &str = "mutation($id: ID!) { deleteUser(input: { id: $id }) { deletedId } }";

async fn last_used(admin: &Client, key: &Value) -> Value {
    let query = format!("{{ apiKey(id: {}) {{ lastUsedAt }} }}", key["id"]);
    admin.run(&query).await.data()["apiKey"]["lastUsedAt"].clone()
}

/// The code of an answer; that it succeeded is none.
fn failure(answer: &Answer) -> Option<&str> {
    answer.body.get("errors").map(|_| answer.code())
}

both_databases! {
    async fn a_key_is_made_for_a_day_up_to_a_year(app: TestApp) {
        let admin = app.admin().await;
        let made = async |days: i32| try_create(&admin, json!({ "name": "K", "expiresInDays": days })).await;
        for days in [i32::MIN, -1, 0, 366, i32::MAX] {
            assert_eq!(made(days).await.fields(), ["expiresInDays"], "{days}");
        }
        for days in [1, 365] {
            let answer = made(days).await;
            let key = &answer.data()["createApiKey"]["apiKey"];
            let time = |name: &str| chrono::DateTime::parse_from_rfc3339(key[name].as_str().unwrap()).unwrap();
            assert_eq!(time("expiresAt") - time("createdAt"), chrono::TimeDelta::days(days.into()));
        }
    }

    async fn a_key_whose_ring_key_is_gone_lives_again_with_another_raw_key_alone(app: TestApp) {
        let mut app = app;
        let input = json!({ "name": "K", "scopes": ["ADMIN_READ"], "expiresInDays": 1 });
        let (key, raw) = create(&app.admin().await, input).await;
        let id = &key["id"];
        app.advance(2 * 86_400);
        // It has expired, and nothing else needs the key that was generated at the first start.
        app.set("CREDENTIAL_ENCRYPTION_KEYS", "v2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=");
        app.restart().await;
        let admin = app.admin().await;
        let refused = update(&admin, json!({ "id": id, "expiresAt": null })).await;
        assert_eq!(refused.code(), "CONFLICT");
        assert!(refused.body["errors"][0]["message"].as_str().unwrap().contains("regenerate it first"));
        update(&admin, json!({ "id": id, "name": "L" })).await.data();
        // A server that lacked a key would not start.
        app.restart().await;
        let admin = app.admin().await;
        let answer = regenerate(&admin, id, 1).await;
        let second = answer.data()["regenerateApiKey"]["rawKey"].as_str().unwrap();
        assert!(!works(&app, second).await, "it has expired still");
        assert_eq!(regenerate(&admin, id, 0).await.code(), "CONFLICT", "as any that has");
        update(&admin, json!({ "id": id, "expiresAt": null })).await.data();
        assert!(works(&app, second).await && !works(&app, &raw).await);
        app.restart().await;
        assert!(works(&app, second).await);
    }

    async fn an_expired_key_lives_again_as_long_as_its_ring_key_is_there(app: TestApp) {
        let input = json!({ "name": "K", "scopes": ["ADMIN_READ"], "expiresInDays": 1 });
        let (key, raw) = create(&app.admin().await, input).await;
        app.advance(2 * 86_400);
        assert!(!works(&app, &raw).await);
        update(&app.admin().await, json!({ "id": key["id"], "expiresAt": null })).await.data();
        assert!(works(&app, &raw).await);
    }

    async fn a_key_that_has_limits_gives_no_other_the_relay(app: TestApp) {
        let admin = app.admin().await;
        let limited = json!({ "name": "L", "scopes": ["RELAY", "ADMIN_WRITE"], "rateLimitPerMinute": 10 });
        let (own, raw) = create(&admin, limited).await;
        let maker = with_key(&app, &raw);
        let relay = json!({ "name": "R", "scopes": ["RELAY"], "rateLimitPerMinute": 1 });
        let refused = try_create(&maker, relay.clone()).await;
        assert_eq!(refused.code(), "FORBIDDEN");
        assert!(refused.body["errors"][0]["message"].as_str().unwrap().contains("RELAY"), "{:#}", refused.body);
        let (made, _) = create(&maker, json!({ "name": "A", "scopes": ["ADMIN_READ"], "rateLimitPerMinute": 10 })).await;
        assert_eq!(update(&maker, json!({ "id": made["id"], "scopes": ["RELAY"] })).await.code(), "FORBIDDEN");
        let (other, _) = create(&admin, relay.clone()).await;
        assert_eq!(regenerate(&maker, &other["id"], 0).await.code(), "FORBIDDEN");
        // To itself it gives nothing twice.
        update(&maker, json!({ "id": own["id"], "rateLimitPerMinute": 9 })).await.data();
        let again = regenerate(&maker, &own["id"], 0).await;
        let maker = with_key(&app, again.data()["regenerateApiKey"]["rawKey"].as_str().unwrap());
        assert_eq!(try_create(&maker, relay.clone()).await.code(), "FORBIDDEN");
        let (_, raw) = create(&admin, json!({ "name": "M", "scopes": ["RELAY", "ADMIN_WRITE"] })).await;
        create(&with_key(&app, &raw), relay).await;
    }

    async fn a_key_lives_on_without_its_maker_who_is_still_named(app: TestApp) {
        let (admin, manager, member) = (app.admin().await, app.user("MANAGER").await, app.user("MEMBER").await);
        let input = json!({ "name": "K", "scopes": ["ADMIN_READ"], "ownerId": user_id(&member).await });
        let (key, raw) = create(&manager, input).await;
        let (maker, maker_raw) = create(&admin, json!({ "name": "M", "scopes": ["ADMIN_WRITE"] })).await;
        let (_, made_raw) = create(&with_key(&app, &maker_raw), json!({ "name": "N", "scopes": ["ADMIN_READ"] })).await;
        admin.with(DELETE, json!({ "id": user_id(&manager).await })).await.data();
        revoke(&admin, &maker["id"]).await.data();
        let query = format!("{{ apiKey(id: {}) {{ status createdBy {{ email }} owner {{ email }} }} }}", key["id"]);
        assert_eq!(admin.run(&query).await.data()["apiKey"], json!({
            "status": "ACTIVE", "createdBy": { "email": "manager@example.com" }, "owner": { "email": "member@example.com" },
        }));
        assert!(works(&app, &raw).await && works(&app, &made_raw).await);
    }

    async fn who_is_deleted_while_keys_are_made_and_changed_keeps_none(app: TestApp) {
        let admin = app.admin().await;
        for round in 0..6 {
            let (owner, _) = invite(&admin, &format!("owner{round}@example.com"), "MEMBER").await;
            let input = json!({ "name": "K", "ownerId": owner["id"] });
            let (key, _) = create(&admin, input.clone()).await;
            let rename = json!({ "id": key["id"], "name": "L" });
            let (one, two, renamed, renewed, deleted) = tokio::join!(
                try_create(&admin, input.clone()), try_create(&admin, input.clone()), update(&admin, rename),
                regenerate(&admin, &key["id"], 1), admin.with(DELETE, json!({ "id": owner["id"] })),
            );
            deleted.data();
            for made in [one, two] {
                assert!([None, Some("BAD_USER_INPUT")].contains(&failure(&made)), "{:#}", made.body);
            }
            for changed in [renamed, renewed] {
                assert!([None, Some("NOT_FOUND"), Some("BAD_USER_INPUT")].contains(&failure(&changed)), "{:#}", changed.body);
            }
        }
        let left = "SELECT api_keys.id AS text FROM api_keys JOIN users ON users.id = owner_id
            WHERE users.deleted_at IS NOT NULL AND revoked_at IS NULL";
        assert_eq!(app.database.texts(left).await, Vec::<String>::new());
    }

    async fn a_key_is_used_by_operations_and_not_by_a_socket_that_is_open(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        let mut keys = Vec::new();
        for name in ["idle", "asking", "following"] {
            keys.push(create(&admin, json!({ "name": name, "scopes": ["ADMIN_READ"] })).await);
        }
        let idle = Socket::connected(&app, &with_key(&app, &keys[0].1)).await;
        let mut asking = Socket::connected(&app, &with_key(&app, &keys[1].1)).await;
        asking.subscribe("1", "{ clients { totalCount } }").await;
        asking.event("1").await;
        let mut following = Socket::connected(&app, &with_key(&app, &keys[2].1)).await;
        following.follow(&app, "1", "subscription { auditLogAdded { operation } }").await;
        // Every socket looks at its caller again.
        let member = app.user("MEMBER").await;
        set_user(&admin, &user_id(&member).await, "role: READ_ONLY").await;
        following.event("1").await;
        // An orderly stop writes when keys were last used.
        app.restart().await;
        drop(idle);
        let admin = app.admin().await;
        assert_eq!(last_used(&admin, &keys[0].0).await, Value::Null);
        for (key, _) in &keys[1..] {
            assert!(last_used(&admin, key).await.is_string(), "{key}");
        }
    }

    async fn an_event_is_a_use_as_the_subscription_was(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        let (key, raw) = create(&admin, json!({ "name": "K", "scopes": ["ADMIN_READ"] })).await;
        let mut socket = Socket::connected(&app, &with_key(&app, &raw)).await;
        socket.follow(&app, "1", "subscription { auditLogAdded { operation } }").await;
        let until_used = async || loop {
            let found = last_used(&admin, &key).await;
            if found.is_string() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let begun = until_used().await;
        app.advance(120);
        app.admin().await;
        assert_eq!(socket.event("1").await["auditLogAdded"]["operation"], "signIn");
        app.restart().await;
        let event = last_used(&app.admin().await, &key).await;
        assert!(event.as_str() > begun.as_str(), "{event} {begun}");
    }

    async fn the_store_takes_no_key_that_the_permit_is_not_for(app: TestApp) {
        let admin = app.admin().await;
        let (made, _) = create(&admin, json!({ "name": "K" })).await;
        let parts = app.beside().await;
        let services = &parts.services;
        let access = Access::new(services.home, Role::Admin);
        let owner = made["owner"]["id"].as_str().unwrap().parse().unwrap();
        let id = made["id"].as_str().unwrap().parse().unwrap();
        let mut conn = services.db.read().await.unwrap();
        let found = find_many(&mut conn, &Whose::Own(access.require::<Read>().unwrap(), owner), &[id]).await.unwrap();
        drop(conn);
        let key = ApiKey { id: services.new_id(), ..found[0].clone() };
        let foreign = [
            ApiKey { owner_id: services.new_id(), ..key.clone() },
            ApiKey { organization_id: services.new_id(), ..key.clone() },
        ];
        for (number, foreign) in foreign.into_iter().enumerate() {
            let mut tx = Tx::new(services.db.clone());
            let whose = Whose::Own(access.require::<ManageOwnApiKeys>().unwrap(), owner);
            let digest = NewDigest { digest: vec![7; 32], api_key_id: key.id, key_version: "v1".to_owned() };
            let inserted = insert(&mut tx, &whose, &foreign, &digest).await;
            assert!(matches!(inserted, Err(Error::NotPermitted)), "{number}");
            tx.rollback().await.unwrap();
        }
        assert_eq!(newest_entry(&admin).await["operation"], "createApiKey");
    }
}

/// On SQLite nobody writes while another does: there the order is not to be chosen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_being_deleted_gets_no_key_any_more() {
    let app = TestApp::start(TestDatabase::postgres().await, []).await;
    let admin = app.admin().await;
    let (owner, _) = invite(&admin, "owner@example.com", "MEMBER").await;
    let mut other = app.database.connection().await;
    let deletion = other.transaction().await.unwrap();
    let is_owner = "email = 'owner@example.com'";
    deletion.batch_execute(&format!("SELECT id FROM users WHERE {is_owner} FOR UPDATE")).await.unwrap();
    let finish = async {
        app.database.until_locked_out().await;
        let delete = format!("UPDATE users SET deleted_at = now(), email_key = NULL WHERE {is_owner}");
        deletion.batch_execute(&delete).await.unwrap();
        deletion.commit().await.unwrap();
    };
    let (made, ()) = tokio::join!(try_create(&admin, json!({ "name": "K", "ownerId": owner["id"] })), finish);
    assert_eq!(made.fields(), ["ownerId"]);
}
