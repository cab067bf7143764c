//! The audit log's hash chain against somebody who owns the database, and the retention that keeps the rest verifiable.

use std::sync::Arc;

use claviger::app::App;
use claviger::audit::{Origin, Statement};
use claviger::domain::audit_checkpoint::{Checkpoints, Due, Lost};
use claviger::domain::audit_integrity::verify;
use claviger::domain::{Code, Cx, Record, audit_retention, keys};
use claviger::identity::Actor;
use claviger::model::{AuditAction, AuditOutcome, ChainPoint, ResourceType, Timestamp};
use claviger::store::audit_log::AuditLog;
use serde_json::{Value, json};

use crate::support::{Client, TestApp, TestDatabase, both_databases};

const DAY: i64 = 24 * 60 * 60;

const INTEGRITY: &str = "query($e: String) { auditLogIntegrity(expect: $e) {
    intact entries headSequence headHash firstBrokenId firstBrokenSequence fault } }";

pub(crate) async fn integrity(admin: &Client, expect: Option<&str>) -> Value {
    admin.with(INTEGRITY, json!({ "e": expect })).await.data()["auditLogIntegrity"].clone()
}

/// So many deeds, each an entry.
pub(crate) async fn act(admin: &Client, times: usize) {
    for n in 0..times {
        admin
            .run(&format!("mutation {{ updateOrganization(input: {{ name: \"N{n}\" }}) {{ organization {{ id }} }} }}"))
            .await
            .data();
    }
}

/// What an owner of the database does first.
pub(crate) async fn drop_triggers(database: &TestDatabase) {
    let triggers: &[&str] = if database.url.starts_with("postgres") {
        &[
            "audit_logs_refuse_change ON audit_logs",
            "audit_logs_refuse_removal ON audit_logs",
            "audit_seals_refuse_update ON audit_seals",
            "audit_seals_refuse_delete ON audit_seals",
        ]
    } else {
        &[
            "audit_logs_refuse_update",
            "audit_logs_refuse_delete",
            "audit_seals_refuse_update",
            "audit_seals_refuse_delete",
        ]
    };
    for trigger in triggers {
        database.execute(&format!("DROP TRIGGER {trigger}")).await.unwrap();
    }
}

async fn id_of(app: &TestApp, sequence: i64) -> String {
    app.database.texts(&format!("SELECT id AS text FROM audit_logs WHERE sequence = {sequence}")).await.remove(0)
}

async fn sequences(app: &TestApp) -> Vec<i64> {
    let rows = app.database.texts("SELECT CAST(sequence AS text) AS text FROM audit_logs ORDER BY sequence").await;
    rows.iter().map(|row| row.parse().unwrap()).collect()
}

fn bytes(app: &TestApp, hex: &str) -> String {
    if app.database.url.starts_with("postgres") { format!("'\\x{hex}'::bytea") } else { format!("x'{hex}'") }
}

fn broken(found: &Value) -> (Value, Value, Value) {
    assert_eq!(found["intact"], false, "{found}");
    (found["fault"].clone(), found["firstBrokenSequence"].clone(), found["firstBrokenId"].clone())
}

/// Runs a deed of the domain as the operator.
async fn as_system<T>(app: &App, deed: impl AsyncFnOnce(Cx<'_>) -> T) -> T {
    let (actor, origin, record) = (Actor::system(app.services.home), Origin::default(), Record::default());
    deed(Cx {
        services: &app.services,
        actor: &actor,
        origin: &origin,
        operation: "test",
        record: &record,
        deadline: None,
    })
    .await
}

#[test]
fn the_hash_of_an_entry_never_drifts() {
    let mut entry = AuditLog {
        id: "audit_01jd0000000000000000000000".parse().unwrap(),
        organization_id: "org_01jd0000000000000000000000".parse().unwrap(),
        sequence: 7,
        occurred_at: Timestamp::from_micros(1_763_712_000_123_456).unwrap(),
        action: AuditAction::Update,
        operation: "updateClient".into(),
        outcome: AuditOutcome::Failed,
        error_code: Some("CONFLICT".into()),
        resource_type: ResourceType::Client,
        resource_id: Some("client_01jd0000000000000000000000".into()),
        changes: Some(r#"{"name":{"from":"a\"b","to":"ü\u0007/"}}"#.into()),
        metadata: Some("{}".into()),
        user_id: Some("user_01jd0000000000000000000000".parse().unwrap()),
        api_key_id: None,
        ip_address: Some("192.0.2.1".into()),
        user_agent: Some("a \"quoted\"\n\u{1}é😀".into()),
        request_id: "r-1".into(),
        hash: Vec::new(),
    };
    // The documented form, put together by hand.
    let written = "[1,\"audit_01jd0000000000000000000000\",\"org_01jd0000000000000000000000\",7,1763712000123456,\"UPDATE\",\
        \"updateClient\",\"FAILED\",\"CONFLICT\",\"CLIENT\",\"client_01jd0000000000000000000000\",\
        \"{\\\"name\\\":{\\\"from\\\":\\\"a\\\\\\\"b\\\",\\\"to\\\":\\\"ü\\\\u0007/\\\"}}\",\"{}\",\
        \"user_01jd0000000000000000000000\",\"192.0.2.1\",\"a \\\"quoted\\\"\\n\\u0001é😀\",\"r-1\"]";
    let hashed = [&[9; 32][..], written.as_bytes()].concat();
    assert_eq!(entry.hash_after(&[9; 32]), claviger::crypto::sha256(&hashed));
    entry.api_key_id = Some("key_01jd0000000000000000000000".parse().unwrap());
    let user = "\"user_01jd0000000000000000000000\",";
    let with_key = written.replacen('1', "2", 1).replace(user, &format!("{user}\"key_01jd0000000000000000000000\","));
    let hashed = [&[9; 32][..], with_key.as_bytes()].concat();
    assert_eq!(entry.hash_after(&[9; 32]), claviger::crypto::sha256(&hashed));
    entry.api_key_id = None;
    (entry.error_code, entry.resource_id, entry.changes, entry.metadata) = (None, None, None, None);
    (entry.user_id, entry.ip_address, entry.user_agent) = (None, None, None);
    let written = "[1,\"audit_01jd0000000000000000000000\",\"org_01jd0000000000000000000000\",7,1763712000123456,\"UPDATE\",\
        \"updateClient\",\"FAILED\",null,\"CLIENT\",null,null,null,null,null,null,\"r-1\"]";
    let hashed = [&[0; 32][..], written.as_bytes()].concat();
    assert_eq!(entry.hash_after(&[0; 32]), claviger::crypto::sha256(&hashed));
}

both_databases! {
    async fn a_log_that_nobody_touched_is_whole(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 5).await;
        let found = integrity(&admin, None).await;
        assert_eq!((&found["intact"], &found["entries"], &found["headSequence"]), (&json!(true), &json!(7), &json!(7)));
        let newest = admin.run("{ auditLogs(first: 1) { nodes { hash } } }").await.data()["auditLogs"]["nodes"][0]["hash"].clone();
        assert_eq!(found["headHash"], newest);
        assert_eq!((&found["fault"], &found["firstBrokenId"]), (&Value::Null, &Value::Null));
        let head = format!("7:{}", newest.as_str().unwrap());
        act(&admin, 2).await;
        assert_eq!(integrity(&admin, Some(&head)).await["intact"], true);
        let several = admin.run("{ a: auditLogIntegrity { entries } b: auditLogIntegrity { entries } }").await;
        assert_eq!(several.data(), &json!({ "a": { "entries": 9 }, "b": { "entries": 9 } }));
        for wrong in ["", "7", "0:00", "x:y", &head[..20]] {
            assert_eq!(admin.with(INTEGRITY, json!({ "e": wrong })).await.code(), "BAD_USER_INPUT", "{wrong}");
        }
        assert_eq!(app.user("MANAGER").await.run(INTEGRITY).await.code(), "FORBIDDEN");
    }

    async fn an_altered_entry_is_found_and_named(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 8).await;
        drop_triggers(&app.database).await;
        let named = id_of(&app, 6).await;
        let time = if app.database.url.starts_with("postgres") {
            "occurred_at = occurred_at + interval '1 microsecond'"
        } else {
            // The same instant, which other text would put on another day.
            "occurred_at = replace(occurred_at, 'Z', '+00:00')"
        };
        for change in [
            time, "operation = 'deleteUser'", "user_id = NULL", "outcome = 'DENIED'", "changes = '{}'", "ip_address = '192.0.2.9'",
            "request_id = 'another'", "user_agent = 'x'", "error_code = ''", "metadata = 'null'", "resource_id = 'x'",
            // What no entry can hold is found as well.
            "action = 'NONSENSE'", "resource_type = ''", "user_id = 'nobody'",
        ] {
            let column = change.split(' ').next().unwrap();
            app.database.execute("CREATE TABLE kept AS SELECT * FROM audit_logs").await.unwrap();
            app.database.execute(&format!("UPDATE audit_logs SET {change} WHERE sequence = 6")).await.unwrap();
            let found = integrity(&admin, None).await;
            assert_eq!(broken(&found), (json!("ALTERED"), json!(6), json!(named)), "{change}");
            assert_eq!(found["entries"], 5);
            let back = format!("UPDATE audit_logs SET {column} = (SELECT {column} FROM kept WHERE sequence = 6) WHERE sequence = 6");
            app.database.execute(&back).await.unwrap();
            app.database.execute("DROP TABLE kept").await.unwrap();
            assert_eq!(integrity(&admin, None).await["intact"], true, "{change}");
        }
        app.database.execute("UPDATE audit_logs SET id = 'x' WHERE sequence = 6").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("ALTERED"), json!(6), json!("x")));
    }

    async fn entries_that_are_gone_are_missed(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 8).await;
        drop_triggers(&app.database).await;
        let after = id_of(&app, 6).await;
        app.database.execute("DELETE FROM audit_logs WHERE sequence = 5").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("MISSING"), json!(6), json!(after)));
        app.database.execute("DELETE FROM audit_logs WHERE sequence <= 3").await.unwrap();
        let first = id_of(&app, 4).await;
        assert_eq!(broken(&integrity(&admin, None).await), (json!("MISSING"), json!(4), json!(first)));
        app.database.execute("DELETE FROM audit_logs").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("MISSING"), json!(1), Value::Null));
    }

    async fn entries_that_changed_places_are_found(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 8).await;
        drop_triggers(&app.database).await;
        let moved = id_of(&app, 7).await;
        for (from, to) in [(4, 99), (7, 4), (99, 7)] {
            app.database.execute(&format!("UPDATE audit_logs SET sequence = {to} WHERE sequence = {from}")).await.unwrap();
        }
        assert_eq!(broken(&integrity(&admin, None).await), (json!("ALTERED"), json!(4), json!(moved)));
    }

    async fn a_noted_end_that_is_not_the_end_is_found(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 4).await;
        let last = id_of(&app, 6).await;
        let of_five = "(SELECT hash FROM audit_logs WHERE sequence = 5)";
        app.database.execute(&format!("UPDATE audit_heads SET sequence = 5, hash = {of_five}")).await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("HEAD_MISMATCH"), json!(6), json!(last)));
        app.database.execute("UPDATE audit_heads SET sequence = 6").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("HEAD_MISMATCH"), json!(6), json!(last)));
        app.database.execute("DELETE FROM audit_heads").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("HEAD_MISMATCH"), json!(6), json!(last)));
    }

    async fn a_rewritten_or_cut_end_shows_only_by_what_is_kept_elsewhere(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 6).await;
        let beside = app.beside().await;
        let mut checkpoints = Checkpoints::default();
        let signed = checkpoints.due(&beside.services).await.unwrap().signed.remove(0);
        let head = signed.point.to_string();
        drop_triggers(&app.database).await;
        let last = id_of(&app, 8).await;
        // The last entry is made another, and the hashes with it: the log alone cannot show it.
        let mut row = as_system(&beside, async |cx| {
            let permit = cx.actor.require().unwrap();
            let mut conn = cx.services.db.read().await.unwrap();
            claviger::store::audit_chain::next(&mut conn, &permit, 7, 8, 10).await.unwrap().entries
        }).await;
        row[1].operation = "nothing".into();
        let hash = hex::encode(row[1].hash_after(&row[0].hash.clone().try_into().unwrap()));
        let hash = bytes(&app, &hash);
        app.database.execute(&format!("UPDATE audit_logs SET operation = 'nothing', hash = {hash} WHERE sequence = 8")).await.unwrap();
        app.database.execute(&format!("UPDATE audit_heads SET hash = {hash}")).await.unwrap();
        let organization = beside.services.home;
        let gone_back = |head| Due { signed: Vec::new(), lost: vec![Lost { organization, signed: signed.point, head }] };
        let rewritten = as_system(&beside, async |cx| verify(cx, None).await.unwrap().head).await;
        assert_eq!(checkpoints.due(&beside.services).await.unwrap(), gone_back(rewritten));
        assert_eq!(integrity(&admin, None).await["intact"], true);
        assert_eq!(broken(&integrity(&admin, Some(&head)).await), (json!("NOT_AS_EXPECTED"), json!(8), json!(last)));
        // The same for an end that is cut off.
        app.database.execute("DELETE FROM audit_logs WHERE sequence = 8").await.unwrap();
        let of_seven = "(SELECT hash FROM audit_logs WHERE sequence = 7)";
        app.database.execute(&format!("UPDATE audit_heads SET sequence = 7, hash = {of_seven}")).await.unwrap();
        assert_eq!(integrity(&admin, None).await["intact"], true);
        assert_eq!(broken(&integrity(&admin, Some(&head)).await), (json!("CUT_OFF"), json!(8), Value::Null));
        // The server that has signed the longer log says so, as often as it looks, and signs nothing shorter.
        let cut = as_system(&beside, async |cx| verify(cx, None).await.unwrap().head).await;
        for _ in 0..2 {
            assert_eq!(checkpoints.due(&beside.services).await.unwrap(), gone_back(cut));
        }
        app.database.execute("DELETE FROM audit_heads").await.unwrap();
        assert_eq!(checkpoints.due(&beside.services).await.unwrap(), gone_back(None));
    }

    async fn a_verification_without_time_says_what_to_do(app: TestApp) {
        app.admin().await;
        let beside = app.beside().await;
        let error = as_system(&beside, async |cx| {
            verify(Cx { deadline: Some(tokio::time::Instant::now()), ..cx }, None).await.unwrap_err()
        }).await;
        assert_eq!(error.code(), Code::Timeout);
        assert!(error.message().contains("claviger audit verify"), "{error}");
    }

    async fn checkpoints_are_signed_where_the_log_has_moved(app: TestApp) {
        let admin = app.admin().await;
        let beside = app.beside().await;
        let mut checkpoints = Checkpoints::default();
        let Due { signed, lost } = checkpoints.due(&beside.services).await.unwrap();
        assert_eq!((signed.len(), lost.len()), (1, 0));
        let found = integrity(&admin, Some(&signed[0].point.to_string())).await;
        assert_eq!((&found["intact"], &found["headSequence"]), (&json!(true), &json!(signed[0].point.sequence)));
        assert_eq!(checkpoints.due(&beside.services).await.unwrap(), Due::default());
        act(&admin, 1).await;
        let next = checkpoints.due(&beside.services).await.unwrap().signed.remove(0);
        assert_eq!(next.point.sequence, signed[0].point.sequence + 1);
        next.check(&beside.services.keys).unwrap();
        assert_eq!(next.to_string().parse::<Statement>().unwrap(), next);
        let another = Statement { point: ChainPoint { hash: [7; 32], ..next.point }, ..next.clone() };
        another.check(&beside.services.keys).unwrap_err();
        let seal = Statement { subject: claviger::audit::Subject::Seal, ..next };
        seal.check(&beside.services.keys).unwrap_err();
    }

    async fn a_log_that_was_cut_off_and_has_grown_again_is_not_signed(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 2).await;
        let beside = app.beside().await;
        let mut checkpoints = Checkpoints::default();
        let signed = checkpoints.due(&beside.services).await.unwrap().signed.remove(0).point;
        let set = if app.database.url.starts_with("postgres") { "decode(repeat('07', 32), 'hex')" } else { "zeroblob(32)" };
        drop_triggers(&app.database).await;
        app.database.execute(&format!("UPDATE audit_logs SET hash = {set} WHERE sequence = {}", signed.sequence)).await.unwrap();
        act(&admin, 1).await;
        let Due { signed: anew, lost } = checkpoints.due(&beside.services).await.unwrap();
        assert_eq!(anew, []);
        assert_eq!(lost.iter().map(|lost| lost.signed).collect::<Vec<_>>(), [signed]);
        app.database.execute(&format!("DELETE FROM audit_logs WHERE sequence = {}", signed.sequence)).await.unwrap();
        assert_eq!(checkpoints.due(&beside.services).await.unwrap().lost.len(), 1);
    }

    async fn what_the_retention_has_removed_is_not_lost_to_checkpoints(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 2).await;
        let beside = app.beside().await;
        // The one is signed at what will be the last that is removed, the other before it.
        let (mut early, mut late) = (Checkpoints::default(), Checkpoints::default());
        early.due(&beside.services).await.unwrap();
        act(&admin, 2).await;
        let last = late.due(&beside.services).await.unwrap().signed.remove(0).point.sequence;
        app.advance(2 * DAY);
        app.admin().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), last);
        for checkpoints in [&mut early, &mut late] {
            let Due { signed, lost } = checkpoints.due(&beside.services).await.unwrap();
            assert_eq!((signed.len(), lost.len()), (1, 0));
        }
    }

    async fn what_is_old_is_removed_and_the_rest_stays_verifiable(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 6).await;
        let page = "query($a: String) { auditLogs(first: 3, after: $a) { nodes { id } pageInfo { hasNextPage endCursor } } }";
        let beside = app.beside().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 0, "nothing is old yet");
        app.advance(2 * DAY);
        let admin = app.admin().await;
        act(&admin, 4).await;
        let cursor = admin.run(page).await.data()["auditLogs"]["pageInfo"]["endCursor"].clone();
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 8);
        assert_eq!(sequences(&app).await, (9..=14).collect::<Vec<_>>());
        let next = admin.with(page, json!({ "a": cursor })).await.data()["auditLogs"].clone();
        assert_eq!((next["nodes"].as_array().unwrap().len(), &next["pageInfo"]["hasNextPage"]), (2, &json!(false)));
        let found = integrity(&admin, None).await;
        assert_eq!((&found["intact"], &found["entries"], &found["headSequence"]), (&json!(true), &json!(6), &json!(14)));
        let newest = admin.run("{ auditLogs(first: 1) { nodes { operation action resourceType metadata user { id } } } }").await;
        assert_eq!(newest.data()["auditLogs"]["nodes"][0], json!({
            "operation": "audit retention", "action": "DELETE", "resourceType": "SYSTEM",
            "metadata": { "auditLogs": 8, "throughSequence": 8 }, "user": null,
        }));
        // A point that was removed cannot be compared; the last of them can, by the seal.
        let seal = app.database.texts(if app.database.url.starts_with("postgres") {
            "SELECT encode(hash, 'hex') AS text FROM audit_seals"
        } else {
            "SELECT lower(hex(hash)) AS text FROM audit_seals"
        }).await.remove(0);
        assert_eq!(integrity(&admin, Some(&format!("8:{seal}"))).await["intact"], true);
        let gone = integrity(&admin, Some(&format!("7:{seal}"))).await;
        assert_eq!(broken(&gone), (json!("EXPECTED_REMOVED"), json!(7), Value::Null));
        assert_eq!((&gone["entries"], &gone["headSequence"]), (&json!(6), &json!(14)), "the log itself is whole");
        let another = format!("8:{}", "0".repeat(64));
        assert_eq!(broken(&integrity(&admin, Some(&another)).await), (json!("NOT_AS_EXPECTED"), json!(8), Value::Null));
        // An entry that is put where they were is no part of the log.
        let columns = "organization_id, 3, occurred_at, action, operation, outcome, error_code, resource_type, resource_id, changes,
            metadata, user_id, ip_address, user_agent, request_id, hash, api_key_id FROM audit_logs WHERE sequence = 9";
        let planted = "audit_00000000000000000000000003";
        app.database.execute(&format!("INSERT INTO audit_logs SELECT '{planted}', {columns}")).await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("OUT_OF_PLACE"), json!(3), json!(planted)));
        // That is told before that a point cannot be compared.
        let found = integrity(&admin, Some(&format!("7:{seal}"))).await;
        assert_eq!(broken(&found), (json!("OUT_OF_PLACE"), json!(3), json!(planted)));
    }

    async fn an_entry_before_all_others_is_found(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 2).await;
        for (place, planted) in [
            (0, "audit_00000000000000000000000001"),
            (-7, "audit_00000000000000000000000002"),
            (i64::MIN, "audit_00000000000000000000000003"),
        ] {
            // No text of SQL has the least of all numbers.
            let sequence = format!("{} - 1", place + 1);
            app.database.execute(&format!(
                "INSERT INTO audit_logs SELECT '{planted}', organization_id, {sequence}, occurred_at, action, operation, outcome,
                     error_code, resource_type, resource_id, changes, metadata, user_id, ip_address, user_agent, request_id, hash,
                     api_key_id
                 FROM audit_logs WHERE sequence = 2"
            )).await.unwrap();
            assert_eq!(broken(&integrity(&admin, None).await), (json!("OUT_OF_PLACE"), json!(place), json!(planted)));
        }
        // Nor does one hide that no entry could be.
        drop_triggers(&app.database).await;
        app.database.execute("UPDATE audit_logs SET action = 'NONSENSE' WHERE sequence < -7").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await).0, "ALTERED");
    }

    async fn everything_may_be_old(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 3).await;
        let beside = app.beside().await;
        app.advance(2 * DAY);
        // As it would be with a clock that is ahead.
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 0);
        assert_eq!(sequences(&app).await, (1..=5).collect::<Vec<_>>());
        // Whoever does something says that this is the time.
        app.admin().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 5);
        assert_eq!(sequences(&app).await, [6, 7]);
        app.advance(2 * DAY);
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 0);
        let found = as_system(&beside, async |cx| verify(cx, None).await.unwrap()).await;
        assert_eq!((found.broken, found.entries, found.sealed), (None, 2, 5));
    }

    async fn what_a_stranger_can_cause_does_not_say_that_the_clock_is_right(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 3).await;
        let beside = app.beside().await;
        app.advance(2 * DAY);
        let strangers = app.anonymous();
        let sign_in = "mutation { signIn(input: { email: \"admin@localhost\", password: { plain: \"wrong\" } }) { accessToken } }";
        assert_eq!(strangers.run(sign_in).await.code(), "UNAUTHENTICATED");
        strangers.run("mutation { signOut { signedOut } }").await;
        let reset = "mutation { requestPasswordReset(input: { email: \"admin@localhost\" }) { accepted } }";
        strangers.run(reset).await.data();
        let refused = "mutation { updateOrganization(input: { name: \"\" }) { organization { id } } }";
        assert_eq!(admin.run(refused).await.code(), "UNAUTHENTICATED", "the session is over");
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 0);
        app.admin().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 5);
    }

    async fn a_deed_in_any_organization_says_that_the_clock_is_right(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 3).await;
        let other = app.other_organization().await;
        app.advance(2 * DAY);
        let beside = app.beside().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 0);
        drop(other);
        app.anonymous().signed_in("admin@other.example", crate::support::PASSWORD).await;
        assert!(audit_retention::run(&beside.services, 1).await.unwrap() == 6, "five of the one, a sign-in of the other");
    }

    async fn an_entry_that_is_not_old_keeps_those_after_it(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 1).await;
        app.advance(3 * DAY);
        let late = app.admin().await;
        act(&late, 1).await;
        // A clock that goes back leaves older times behind younger ones.
        app.advance(-3 * DAY);
        act(&admin, 2).await;
        app.advance(2 * DAY);
        app.admin().await;
        let beside = app.beside().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 3);
        assert_eq!(sequences(&app).await[0], 4);
    }

    async fn two_servers_that_remove_at_once_do_each_other_no_harm(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 10).await;
        app.advance(2 * DAY);
        app.admin().await;
        let (one, two) = (Arc::new(app.beside().await), Arc::new(app.beside().await));
        let runs = [one.clone(), two].map(|server| tokio::spawn(async move {
            audit_retention::run(&server.services, 1).await.unwrap()
        }));
        let removed: i64 = futures_util::future::join_all(runs).await.into_iter().map(Result::unwrap).sum();
        assert_eq!(removed, 12);
        assert_eq!(sequences(&app).await, [13, 14]);
        assert_eq!(as_system(&one, async |cx| verify(cx, None).await.unwrap()).await.broken, None);
    }

    async fn what_is_not_whole_is_not_removed(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 6).await;
        drop_triggers(&app.database).await;
        app.database.execute("UPDATE audit_logs SET operation = 'x' WHERE sequence = 4").await.unwrap();
        app.advance(2 * DAY);
        let admin = app.admin().await;
        let beside = app.beside().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 0);
        assert_eq!(sequences(&app).await.len(), 9);
        assert_eq!(broken(&integrity(&admin, None).await).1, 4);
    }

    async fn a_server_removes_what_is_old_by_itself(app: TestApp) {
        let mut app = app;
        let admin = app.admin().await;
        act(&admin, 3).await;
        app.advance(2 * DAY);
        app.admin().await;
        app.set("AUDIT_RETENTION_DAYS", "1");
        app.restart().await;
        while sequences(&app).await != [6, 7] {
            tokio::task::yield_now().await;
        }
        let admin = app.admin().await;
        assert_eq!(integrity(&admin, None).await["intact"], true);
    }

    async fn a_seal_cannot_be_forged_with_the_database_alone(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 6).await;
        let beside = app.beside().await;
        let signed = Checkpoints::default().due(&beside.services).await.unwrap().signed.remove(0);
        let (hash, signature) = (bytes(&app, &hex::encode(signed.point.hash)), bytes(&app, &hex::encode(&signed.signature.bytes)));
        let time = signed.time.to_text();
        // The signature of a checkpoint, which anybody who reads the logs has, is none of a seal.
        app.database.execute(&format!(
            "INSERT INTO audit_seals (organization_id, sequence, hash, sealed_at, key_version, signature)
             SELECT organization_id, sequence, {hash}, '{time}', 'v1', {signature} FROM audit_heads"
        )).await.unwrap();
        app.database.execute("DELETE FROM audit_logs WHERE sequence < 8").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("SEAL_FORGED"), json!(8), Value::Null));
        // By the name of another key it is not good either, but that may be an honest one that is missing.
        drop_triggers(&app.database).await;
        app.database.execute("UPDATE audit_seals SET key_version = 'v9'").await.unwrap();
        assert_eq!(broken(&integrity(&admin, None).await), (json!("SEAL_KEY_MISSING"), json!(8), Value::Null));
        app.database.execute("UPDATE audit_seals SET key_version = 'v1'").await.unwrap();
        // Nor does the server put a good seal on top of it.
        app.advance(2 * DAY);
        app.admin().await;
        assert_eq!(audit_retention::run(&beside.services, 1).await.unwrap(), 0);
    }

    async fn a_seal_only_moves_on(app: TestApp) {
        let admin = app.admin().await;
        act(&admin, 3).await;
        app.advance(2 * DAY);
        app.admin().await;
        let beside = app.beside().await;
        audit_retention::run(&beside.services, 1).await.unwrap();
        let insert = if app.database.url.starts_with("postgres") { "INSERT INTO" } else { "INSERT OR REPLACE INTO" };
        for (statement, said) in [
            ("UPDATE audit_seals SET sequence = sequence - 1".to_owned(), "only moves on"),
            (format!("UPDATE audit_seals SET hash = {}", bytes(&app, "00")), "only moves on"),
            ("UPDATE audit_seals SET organization_id = 'x'".to_owned(), "only moves on"),
            ("DELETE FROM audit_seals".to_owned(), "only moves on"),
            (format!("{insert} audit_seals SELECT * FROM audit_seals"), if insert.contains("REPLACE") { "only moves on" } else { "duplicate key" }),
            ("DELETE FROM audit_logs".to_owned(), "append-only"),
        ] {
            let refused = app.database.execute(&statement).await.unwrap_err();
            assert!(refused.contains(said), "{statement}: {refused}");
        }
        if app.database.url.starts_with("postgres") {
            assert!(app.database.execute("TRUNCATE audit_seals").await.unwrap_err().contains("only moves on"));
            // Nor is a table asked that only has the seal's name.
            let shadowed = "CREATE TEMPORARY TABLE audit_seals (organization_id text, sequence bigint);
                INSERT INTO audit_seals SELECT organization_id, 99 FROM audit_heads; DELETE FROM audit_logs";
            assert!(app.database.execute(shadowed).await.unwrap_err().contains("append-only"));
        }
        assert_eq!(as_system(&beside, async |cx| verify(cx, None).await.unwrap()).await.broken, None);
    }
}

/// A change of keys signs the seal anew, and until then the old key is needed.
async fn a_seal_outlives_the_key_that_signed_it(database: TestDatabase) {
    let ring = |version: &str, byte: &str| format!("{version}:{}=", byte.repeat(43));
    let (old, new) = (ring("v1", "A"), ring("v2", "E"));
    let mut app = TestApp::start(database, [("CREDENTIAL_ENCRYPTION_KEYS", old.clone())]).await;
    let admin = app.admin().await;
    act(&admin, 3).await;
    app.advance(2 * DAY);
    app.admin().await;
    assert_eq!(audit_retention::run(&app.beside().await.services, 1).await.unwrap(), 5);
    app.set("CREDENTIAL_ENCRYPTION_KEYS", &new);
    let services = app.beside().await.services;
    let lacking = keys::missing(&services.db, &services.keys, services.clock.now()).await.unwrap();
    assert_eq!(lacking, [keys::MissingKey { version: "v1".to_owned(), records: 1 }]);
    app.set("CREDENTIAL_ENCRYPTION_KEYS", &format!("{new},{old}"));
    let both = app.beside().await;
    let rotated = as_system(&both, async |cx| keys::rotate(cx, 100, |_| ()).await.unwrap()).await;
    assert_eq!((rotated.records, rotated.failed), (1, Vec::new()));
    app.set("CREDENTIAL_ENCRYPTION_KEYS", &new);
    app.restart().await;
    let found = integrity(&app.admin().await, None).await;
    assert_eq!(found["intact"], true, "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_outlives_the_key_that_signed_it_on_sqlite() {
    a_seal_outlives_the_key_that_signed_it(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_outlives_the_key_that_signed_it_on_postgres() {
    a_seal_outlives_the_key_that_signed_it(TestDatabase::postgres().await).await;
}
