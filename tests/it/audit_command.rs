//! `claviger audit`: verifying, exporting, and the checkpoints that a server leaves in its log.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use claviger::domain::audit_retention;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::audit_chain::{act, drop_triggers};
use crate::command_line::{Place, Served, on_both};
use crate::support::{Client, PASSWORD, TestApp, TestDatabase};

async fn admin(server: &Served) -> Client {
    Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await
}

fn lines(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What comes after `head ` in what verify prints.
fn head(text: &str) -> String {
    text.trim().rsplit("head ").next().unwrap().to_owned()
}

/// Serves, does something, stops, and returns the lines of the log that are checkpoints.
async fn checkpoints(place: &Place, minutes: &str) -> Vec<Value> {
    let mut command = place.command(&["serve"]);
    command.env("LOG_FORMAT", "json").env("AUDIT_CHECKPOINT_MINUTES", minutes);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut first).unwrap();
    let client = Client::new(first.trim().rsplit(' ').next().unwrap()).signed_in("admin@localhost", PASSWORD).await;
    act(&client, 3).await;
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(child.wait().unwrap().success());
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["target"] == "claviger::audit").collect()
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

on_both! {
    async fn verifying_names_what_is_broken(place: Place) {
        let server = place.serve();
        act(&admin(&server).await, 4).await;
        let (code, text) = lines(&place.run(&["audit", "verify"]));
        assert_eq!(code, Some(0));
        assert!(text.starts_with("org_") && text.contains(" intact: 6 entries, head 6:"), "{text}");
        let earlier = head(&text);
        act(&admin(&server).await, 1).await;
        assert_eq!(place.run(&["audit", "verify", "--expect", &earlier]).status.code(), Some(0));
        let organization = text.split(' ').next().unwrap();
        assert_eq!(place.run(&["audit", "verify", "--organization", organization]).status.code(), Some(0));
        let another = format!("6:{}", "0".repeat(64));
        let (code, text) = lines(&place.run(&["audit", "verify", "--expect", &another]));
        assert_eq!(code, Some(1));
        assert!(text.contains("BROKEN: entry 6 (audit_") && text.contains("rewritten"), "{text}");
        let beyond = format!("99:{}", "0".repeat(64));
        let (code, text) = lines(&place.run(&["audit", "verify", "--expect", &beyond]));
        assert_eq!(code, Some(1));
        assert!(text.contains("BROKEN: entry 99") && text.contains("cut off"), "{text}");

        drop_triggers(&place.database).await;
        let id = place.database.texts("SELECT id AS text FROM audit_logs WHERE sequence = 4").await.remove(0);
        place.database.execute("UPDATE audit_logs SET ip_address = '192.0.2.9' WHERE sequence = 4").await.unwrap();
        let (code, text) = lines(&place.run(&["audit", "verify"]));
        assert_eq!(code, Some(1));
        assert!(text.contains(&format!("BROKEN: entry 4 ({id}) was altered; 3 entries before it are whole")), "{text}");
    }

    async fn several_organizations_are_told_apart(place: Place) {
        place.run_well(&["migrate", "up"]);
        let server = place.serve();
        act(&admin(&server).await, 1).await;
        let own = lines(&place.run(&["audit", "verify"])).1;
        let other = "org_00000000000000000000000000";
        place.database.execute(&format!(
            "INSERT INTO organizations SELECT '{other}', name, plan, settings, created_at, updated_at FROM organizations"
        )).await.unwrap();
        place.database.execute(&format!(
            "INSERT INTO audit_heads SELECT '{other}', 0, {} FROM organizations WHERE id = '{other}'",
            if place.database.url.starts_with("postgres") { "decode(repeat('00', 32), 'hex')" } else { "zeroblob(32)" }
        )).await.unwrap();
        let (code, text) = lines(&place.run(&["audit", "verify"]));
        assert_eq!((code, text.lines().count()), (Some(0), 2), "{text}");
        if !place.database.url.starts_with("postgres") {
            // One that cannot be read is told of, and the others are verified all the same.
            place.database.execute(&format!("INSERT INTO audit_seals VALUES ('{other}', 1, x'00', 'no time', 'v1', x'00')")).await.unwrap();
            let (code, text) = lines(&place.run(&["audit", "verify"]));
            assert_eq!((code, text.lines().count()), (Some(1), 2), "{text}");
            assert!(text.contains(&format!("{other} NOT VERIFIED: ")) && text.contains(" intact: "), "{text}");
            place.database.execute("DROP TRIGGER audit_seals_refuse_delete").await.unwrap();
            place.database.execute("DELETE FROM audit_seals").await.unwrap();
        }
        assert!(text.contains(&format!("{other} intact: 0 entries, head empty")), "{text}");
        let point = head(&own);
        assert_eq!(place.run(&["audit", "verify", "--expect", &point]).status.code(), Some(2), "of which?");
        let home = own.split(' ').next().unwrap();
        let of = |id: &str| place.run(&["audit", "verify", "--expect", &point, "--organization", id]).status.code();
        assert_eq!((of(home), of(other), of("org_00000000000000000000000001")), (Some(0), Some(1), Some(2)));
    }

    async fn a_first_entry_that_cannot_be_read_stops_the_retention_aloud(place: Place) {
        let server = place.serve();
        act(&admin(&server).await, 2).await;
        assert!(server.stop().success());
        drop_triggers(&place.database).await;
        place.database.execute("UPDATE audit_logs SET action = 'NONSENSE' WHERE sequence = 1").await.unwrap();
        let mut command = place.command(&["serve"]);
        command.env("LOG_FORMAT", "json").env("AUDIT_RETENTION_DAYS", "1");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = log.find_map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            (line["level"] == "ERROR").then_some(line)
        }).unwrap();
        assert!(said["message"].as_str().unwrap().contains("nothing is removed"), "{said}");
        assert_eq!((&said["sequence"], &said["fault"]), (&json!(1), &json!("Altered")));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = place.database.texts("SELECT CAST(count(*) AS text) AS text FROM audit_logs").await;
        assert_eq!(left, ["4"]);
    }

    async fn a_server_that_stops_signs_where_the_log_ends(place: Place) {
        assert_eq!(checkpoints(&place, "0").await, Vec::<Value>::new());
        let found = checkpoints(&place, "60").await;
        assert_eq!(found.len(), 1, "{found:?}");
        let line = &found[0];
        let text = lines(&place.run(&["audit", "verify"])).1;
        assert_eq!(head(&text), format!("{}:{}", line["sequence"], line["hash"].as_str().unwrap()));
        assert!(text.starts_with(line["organization"].as_str().unwrap()));
        let checkpoint = line["checkpoint"].as_str().unwrap();
        assert_eq!(place.run(&["audit", "verify", "--expect", checkpoint]).status.code(), Some(0));

        // By the documented form, with nothing but the public key.
        let printed = place.run_well(&["audit", "public-key"]);
        let (version, key) = printed.trim().split_once(' ').unwrap();
        assert_eq!(version, line["key_version"]);
        let key = base64::engine::general_purpose::STANDARD.decode(key).unwrap();
        let (said, signature) = checkpoint.rsplit_once(':').unwrap();
        assert_eq!(signature, line["signature"]);
        let public = UnparsedPublicKey::new(&ED25519, &key[12..]);
        public.verify(said.as_bytes(), &hex::decode(signature).unwrap()).unwrap();

        let forged = checkpoint.replace(&format!(":{}:", line["sequence"]), ":1:");
        let output = place.run(&["audit", "verify", "--expect", &forged]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("not this server's"));
        let unknown = checkpoint.replace(":v1:", ":v9:");
        let output = place.run(&["audit", "verify", "--expect", &unknown]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("the key v9 is not in the key ring"));

        drop_triggers(&place.database).await;
        place.database.execute("DELETE FROM audit_logs WHERE sequence = (SELECT max(sequence) FROM audit_logs)").await.unwrap();
        place.database.execute(
            "UPDATE audit_heads SET sequence = sequence - 1,
             hash = (SELECT hash FROM audit_logs ORDER BY sequence DESC LIMIT 1)"
        ).await.unwrap();
        assert_eq!(place.run(&["audit", "verify"]).status.code(), Some(0), "the log alone cannot show it");
        let (code, text) = lines(&place.run(&["audit", "verify", "--expect", checkpoint]));
        assert_eq!(code, Some(1));
        assert!(text.contains("cut off"), "{text}");
    }

    async fn the_log_is_exported_with_its_hashes(place: Place) {
        let server = place.serve();
        let client = admin(&server).await;
        act(&client, 3).await;
        let exported = rows(&place.run_well(&["audit", "export"]));
        assert_eq!(exported.iter().map(|row| row["sequence"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let query = "{ auditLogs(first: 100) { nodes { id action operation outcome errorCode resourceType resourceId changes metadata
            ipAddress userAgent requestId hash } } }";
        let listed = client.run(query).await.data()["auditLogs"]["nodes"].as_array().unwrap().clone();
        let own = &listed[0];
        assert_eq!((&own["operation"], &own["action"], &own["resourceType"]), (&json!("audit export"), &json!("VIEW"), &json!("SYSTEM")));
        assert_eq!(own["metadata"], json!({ "from": null, "to": null, "format": "jsonl", "throughSequence": 5 }));
        for (row, entry) in exported.iter().zip(listed[1..].iter().rev()) {
            for (field, value) in entry.as_object().unwrap() {
                assert_eq!(&row[field], value, "{field}");
            }
            assert!(row["organizationId"].as_str().unwrap().starts_with("org_"));
        }
        let third = exported[2]["occurredAt"].as_str().unwrap();
        let part = rows(&place.run_well(&["audit", "export", "--from", third, "--to", exported[4]["occurredAt"].as_str().unwrap()]));
        assert_eq!(part, exported[2..4]);
        assert_eq!(place.run_well(&["audit", "export", "--to", "2020-01-01T00:00:00Z"]), "");
        let newest = client.run(query).await.data()["auditLogs"]["nodes"][0]["metadata"].clone();
        assert_eq!(newest["to"], "2020-01-01T00:00:00.000000Z");
        for wrong in [&["--from", "yesterday"][..], &["--format", "xml"], &["--organization", "x"]] {
            let output = place.run(&[&["audit", "export"], wrong].concat());
            assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        }
        let nobody = place.run(&["audit", "export", "--organization", "org_00000000000000000000000000"]);
        assert_eq!(nobody.status.code(), Some(2));
    }

    async fn no_cell_of_the_export_is_a_formula(place: Place) {
        let server = place.serve();
        for agent in ["=1+1", "+1", "-1", "@x", "\ta", "plain, \"quoted\""] {
            let body = json!({ "query": "mutation { signOut { signedOut } }" });
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            let sent = http.post(format!("{}/graphql", server.url)).header("user-agent", agent).json(&body).send().await.unwrap();
            assert!(sent.status().is_success());
        }
        let text = place.run_well(&["audit", "export", "--format", "csv"]);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let agent = reader.headers().unwrap().iter().position(|name| name == "userAgent").unwrap();
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        let agents: Vec<_> = records.iter().map(|record| &record[agent]).filter(|cell| !cell.is_empty()).collect();
        // A header's value loses its outer white space on the way.
        assert_eq!(agents, ["'=1+1", "'+1", "'-1", "'@x", "a", "plain, \"quoted\""]);
        assert!(records.iter().flatten().all(|cell| !cell.starts_with(['=', '+', '-', '@', '\t', '\r'])));
    }

    async fn a_reader_that_has_enough_ends_the_export(place: Place) {
        let server = place.serve();
        act(&admin(&server).await, 3).await;
        let mut export = place.command(&["audit", "export"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(export.stdout.take());
        let output = export.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
    }
}

/// What the retention has removed, and the seal in its place.
async fn a_sealed_log_says_what_cannot_be_told(database: TestDatabase) {
    let ring = |version: &str, byte: &str| format!("{version}:{}=", byte.repeat(43));
    let mut app = TestApp::start(database, [("CREDENTIAL_ENCRYPTION_KEYS", ring("v1", "A"))]).await;
    act(&app.admin().await, 3).await;
    app.advance(2 * 24 * 60 * 60);
    app.admin().await;
    assert_eq!(audit_retention::run(&app.beside().await.services, 1).await.unwrap(), 5);
    app.stop().await;
    let place = Place::new(app.database);
    let run = |keys: &str, arguments: &[&str]| {
        let output = place.command(arguments).env("CREDENTIAL_ENCRYPTION_KEYS", keys).output().unwrap();
        let (code, text) = lines(&output);
        (code, text, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, text, _) = run(&ring("v1", "A"), &["audit", "verify"]);
    assert_eq!(code, Some(0), "{text}");
    let removed = format!("3:{}", "0".repeat(64));
    let (code, text, error) = run(&ring("v1", "A"), &["audit", "verify", "--expect", &removed]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains(" intact, but entry 3, which was expected, was removed by the retention: 2 entries"),
        "{text}"
    );
    assert!(error.contains("take a later one"), "{error}");
    let (code, text, error) = run(&ring("v2", "E"), &["audit", "verify"]);
    assert_eq!(code, Some(2));
    assert!(text.contains(" NOT VERIFIED: the seal at entry 5 is signed by a key that the key ring lacks"), "{text}");
    assert!(error.contains("CREDENTIAL_ENCRYPTION_KEYS lacks v1"), "{error}");
    // A way back that would lose the seal is none.
    let known = place.run_well(&["migrate", "status"]);
    let steps = known.lines().skip_while(|line| !line.contains("_audit_retention")).count().to_string();
    let (code, _, error) = run(&ring("v1", "A"), &["migrate", "down", "--yes", "--steps", &steps]);
    assert_eq!(code, Some(1));
    assert!(error.contains("begins at a seal"), "{error}");
    assert_eq!(place.run_well(&["migrate", "status"]), known);
    assert_eq!(run(&ring("v1", "A"), &["audit", "verify"]).0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_log_says_what_cannot_be_told_on_sqlite() {
    a_sealed_log_says_what_cannot_be_told(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_log_says_what_cannot_be_told_on_postgres() {
    a_sealed_log_says_what_cannot_be_told(TestDatabase::postgres().await).await;
}

#[test]
fn what_cannot_be_expected_is_wrong_usage() {
    let place = Place::new(TestDatabase::sqlite());
    for wrong in ["", "7", "7:abc", "0:00", "claviger-audit-checkpoint:x", "claviger-audit-seal:a:1:b:2:v1:c"] {
        let output = place.run(&["audit", "verify", "--expect", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    let help = String::from_utf8(place.run(&["audit", "verify", "--help"]).stdout).unwrap();
    assert!(help.contains("Exit codes"), "{help}");
}
