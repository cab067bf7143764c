//! The change of keys, as an operator does it: with the program, while a server runs, killed and run again.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::command_line::{Place, Served};
use crate::credential::{create, new_client, reveal, update};
use crate::support::{Client, PASSWORD, STAND_IN, TestDatabase};

const OLD: &str = "v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const BOTH: &str = "v2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=,v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW: &str = "v2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

fn serve(place: &Place, ring: &str) -> Served {
    let mut command = place.command(&["serve"]);
    command.env("CREDENTIAL_ENCRYPTION_KEYS", ring);
    Place::started(command)
}

fn run(place: &Place, ring: &str, arguments: &[&str]) -> Output {
    place.command(arguments).env("CREDENTIAL_ENCRYPTION_KEYS", ring).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

async fn admin(server: &Served) -> Client {
    Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await
}

/// Credentials with two versions each, and accounts: the ids of the credentials.
async fn fill(client: &Client, number: usize) -> Vec<Value> {
    let of = new_client(client, "A").await;
    let mut ids = Vec::new();
    for n in 0..number {
        let made =
            create(client, json!({ "clientId": of, "label": n.to_string(), "secret": format!("old {n}") })).await;
        update(client, json!({ "id": made["id"], "secret": format!("new {n}") })).await.data();
        ids.push(made["id"].clone());
        let input = json!({ "apiKey": format!("sk-ant-{n}"), "accountName": n.to_string() });
        crate::claude_account::create(client, input).await;
    }
    ids
}

/// Every secret opens, and every account's API key is still known as taken.
async fn check(client: &Client, ids: &[Value]) {
    for (n, id) in ids.iter().enumerate() {
        for (version, text) in [(1, format!("old {n}")), (2, format!("new {n}"))] {
            let answer = reveal(client, json!({ "id": id, "secretVersion": version })).await;
            assert_eq!(answer.data()["revealCredential"]["secret"], text);
        }
        let again = "mutation($k: String!) { createClaudeAccount(input: { apiKey: $k, accountName: \"B\" }) { claudeAccount { id } } }";
        assert_eq!(client.with(again, json!({ "k": format!("sk-ant-{n}") })).await.code(), "CONFLICT");
    }
}

/// How many records each key has sealed, as `v1 12`.
async fn in_use(place: &Place) -> Vec<String> {
    let sql = "SELECT version || ' ' || count(*) AS text FROM (SELECT key_version AS version FROM credential_secrets
               UNION ALL SELECT api_key_key_version FROM claude_accounts) AS used GROUP BY version ORDER BY version";
    place.database.texts(sql).await
}

async fn is_killed_and_goes_on(database: TestDatabase) {
    const NUMBER: usize = 30;
    // After how many lines of progress it is killed, each time.
    const LINES: [usize; 10] = [1, 4, 2, 3, 1, 5, 2, 1, 3, 2];
    let place = Place::new(database);
    let server = serve(&place, OLD);
    let ids = fill(&admin(&server).await, NUMBER).await;
    drop(server);
    let server = serve(&place, BOTH);
    let client = admin(&server).await;
    let all = 3 * NUMBER;
    assert_eq!(in_use(&place).await, [format!("v1 {all}")]);
    let mut killed = 0;
    for (round, lines) in LINES.into_iter().enumerate() {
        let mut rotate = place
            .command(&["keys", "rotate", "--batch", "1"])
            .env("CREDENTIAL_ENCRYPTION_KEYS", BOTH)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed as soon as it has told of something, in the middle of what comes next. A machine may be so slow to kill that
        // it is done by then: so only what must hold in any case is asked.
        let said = BufReader::new(rotate.stdout.take().unwrap()).lines();
        assert!(said.take(lines).count() > 0);
        rotate.kill().unwrap();
        killed += usize::from(rotate.wait().unwrap().signal().is_some());
        let used = in_use(&place).await;
        let records: usize = used.iter().map(|of| of.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum();
        assert_eq!((records, used.last().unwrap().starts_with("v2 ")), (all, true), "round {round}: {used:?}");
        // The server serves both.
        assert_eq!(
            reveal(&client, json!({ "id": ids[round] })).await.data()["revealCredential"]["secret"],
            format!("new {round}")
        );
        update(&client, json!({ "id": ids[NUMBER - 1], "username": round.to_string() })).await.data();
    }
    assert!(killed > LINES.len() / 2, "only {killed} were killed before they were done");
    // The rest while the server writes the same rows.
    let rotate = place
        .command(&["keys", "rotate", "--batch", "3"])
        .env("CREDENTIAL_ENCRYPTION_KEYS", BOTH)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for id in ids.iter().rev() {
        update(&client, json!({ "id": id, "url": "https://example.com" })).await.data();
        reveal(&client, json!({ "id": id })).await.data();
    }
    let output = rotate.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(said(&output).ends_with("all is sealed with v2\n"), "{}", said(&output));
    assert_eq!(in_use(&place).await, [format!("v2 {all}")]);
    check(&client, &ids).await;
    let log = "{ auditLogs(first: 100, filter: { resourceType: [SYSTEM], action: [UPDATE] }) { nodes { operation metadata user { id } } } }";
    let entries = client.run(log).await.data()["auditLogs"]["nodes"].as_array().unwrap().clone();
    let of = |what: &str| -> usize {
        entries.iter().filter_map(|entry| usize::try_from(entry["metadata"][what].as_u64()?).ok()).sum()
    };
    assert_eq!((of("credentialSecrets"), of("upstreamKeys")), (2 * NUMBER, NUMBER), "each is in one entry");
    assert!(entries.iter().all(|entry| entry["operation"] == "keys rotate" && entry["user"].is_null()));
    drop(server);

    let server = serve(&place, NEW);
    let client = admin(&server).await;
    check(&client, &ids).await;
    let versions =
        "{ credentials(first: 100, filter: { keyVersion: \"v2\" }) { totalCount nodes { keyVersion version } } }";
    let found = client.run(versions).await.data()["credentials"].clone();
    assert_eq!((&found["totalCount"], &found["nodes"][0]["keyVersion"]), (&json!(NUMBER), &json!("v2")));
    let test = "{ claudeAccounts(first: 1) { nodes { version } } }";
    assert_eq!(client.run(test).await.data()["claudeAccounts"]["nodes"][0]["version"], 1, "no change of the account");
    let output = run(&place, NEW, &["keys", "rotate"]);
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), "all is sealed with v2\n"));
}

async fn two_at_once_change_each_record_once(database: TestDatabase) {
    let place = Place::new(database);
    let server = serve(&place, OLD);
    let client = admin(&server).await;
    let ids = fill(&client, 12).await;
    // One credential of more versions than a transaction takes.
    for n in 0..9 {
        update(&client, json!({ "id": ids[0], "secret": format!("version {n}") })).await.data();
    }
    drop(server);
    let server = serve(&place, BOTH);
    let client = admin(&server).await;
    let programs: Vec<_> = (0..2)
        .map(|_| {
            let mut rotate = place.command(&["keys", "rotate", "--batch", "3"]);
            rotate
                .env("CREDENTIAL_ENCRYPTION_KEYS", BOTH)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for id in &ids[1..] {
        let delete = "mutation($id: ID!) { deleteCredential(input: { id: $id }) { deletedId } }";
        client.with(delete, json!({ "id": id })).await.data();
    }
    for program in programs {
        let output = program.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(in_use(&place).await, ["v2 23"]);
    for (version, text) in [(1, "old 0"), (2, "new 0"), (3, "version 0"), (11, "version 8")] {
        let answer = reveal(&client, json!({ "id": ids[0], "secretVersion": version })).await;
        assert_eq!(answer.data()["revealCredential"]["secret"], text);
    }
}

async fn a_missing_key_is_named(database: TestDatabase) {
    let place = Place::new(database);
    let server = serve(&place, OLD);
    fill(&admin(&server).await, 2).await;
    drop(server);
    for command in [&["serve"][..], &["keys", "rotate"]] {
        let output = run(&place, NEW, command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(
            said(&output).contains("CREDENTIAL_ENCRYPTION_KEYS lacks v1, which 6 records need"),
            "{}",
            said(&output)
        );
    }
    assert_eq!(in_use(&place).await, ["v1 6"]);
}

async fn what_does_not_open_stays_and_is_named(database: TestDatabase) {
    let place = Place::new(database);
    let server = serve(&place, OLD);
    let ids = fill(&admin(&server).await, 3).await;
    drop(server);
    let broken = format!("credential_id = {} AND secret_version = 1", ids[1].to_string().replace('"', "'"));
    let bytes = if place.database.url.starts_with("postgres") { "'\\x00'" } else { "x'00'" };
    place.database.execute(&format!("UPDATE credential_secrets SET sealed = {bytes} WHERE {broken}")).await.unwrap();
    let output = run(&place, BOTH, &["keys", "rotate"]);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(text.contains(&format!("version 1 of the credential {}", ids[1].as_str().unwrap())), "{text}");
    assert!(text.contains("1 records are not sealed with v2"), "{text}");
    assert_eq!(in_use(&place).await, ["v1 1", "v2 8"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_keys_that_is_killed_goes_on_on_sqlite() {
    is_killed_and_goes_on(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_keys_that_is_killed_goes_on_on_postgres() {
    is_killed_and_goes_on(TestDatabase::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_once_change_each_record_once_on_sqlite() {
    two_at_once_change_each_record_once(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_once_change_each_record_once_on_postgres() {
    two_at_once_change_each_record_once(TestDatabase::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_key_is_named_on_sqlite() {
    a_missing_key_is_named(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_key_is_named_on_postgres() {
    a_missing_key_is_named(TestDatabase::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_open_stays_and_is_named_on_sqlite() {
    what_does_not_open_stays_and_is_named(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_open_stays_and_is_named_on_postgres() {
    what_does_not_open_stays_and_is_named(TestDatabase::postgres().await).await;
}

/// How many raw keys are found by each key of the ring, as `v1 2`.
async fn digests(place: &Place) -> Vec<String> {
    let sql =
        "SELECT key_version || ' ' || count(*) AS text FROM api_key_digests GROUP BY key_version ORDER BY key_version";
    place.database.texts(sql).await
}

async fn a_used_api_key_is_found_by_the_newest_key(database: TestDatabase) {
    let place = Place::new(database);
    let server = serve(&place, OLD);
    let client = admin(&server).await;
    let (_, used) = crate::api_key::create(&client, json!({ "name": "used", "scopes": ["ADMIN_READ"] })).await;
    let (unused, _) = crate::api_key::create(&client, json!({ "name": "unused" })).await;
    // Found by two digests, it is one API key.
    crate::api_key::regenerate(&client, &unused["id"], 24).await.data();
    drop(server);
    let server = serve(&place, BOTH);
    let output = run(&place, BOTH, &["keys", "rotate"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).contains("2 API keys are found by an older key"), "{}", said(&output));
    let mut with_key = Client::new(&server.url);
    with_key.access_token = Some(used);
    with_key.run("{ clients { totalCount } }").await.data();
    // It is written beside the request.
    while digests(&place).await != ["v1 2", "v2 1"] {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    with_key.run("{ clients { totalCount } }").await.data();
    let output = run(&place, NEW, &["serve"]);
    assert!(said(&output).contains("CREDENTIAL_ENCRYPTION_KEYS lacks v1, which 1 records need"), "{}", said(&output));
    let revoke = format!("mutation {{ revokeApiKey(input: {{ id: {} }}) {{ apiKey {{ id }} }} }}", unused["id"]);
    admin(&server).await.run(&revoke).await.data();
    drop(server);
    let server = serve(&place, NEW);
    with_key.url.clone_from(&server.url);
    with_key.run("{ clients { totalCount } }").await.data();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_api_key_is_found_by_the_newest_key_on_sqlite() {
    a_used_api_key_is_found_by_the_newest_key(TestDatabase::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_api_key_is_found_by_the_newest_key_on_postgres() {
    a_used_api_key_is_found_by_the_newest_key(TestDatabase::postgres().await).await;
}

/// On SQLite nobody writes while another does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_another_change_got_in_the_way_of_is_looked_at_again() {
    let place = Place::new(TestDatabase::postgres().await);
    let (old, both) = (serve(&place, OLD), serve(&place, BOTH));
    // The one server does not know the fingerprints of the other's newest key.
    let input = json!({ "apiKey": "sk-ant-same", "accountName": "A" });
    let newer = crate::claude_account::create(&admin(&both).await, input.clone()).await["id"].clone();
    let older = crate::claude_account::create(&admin(&old).await, input).await["id"].clone();
    let (newer, older) = (newer.as_str().unwrap(), older.as_str().unwrap());
    let hex = format!("SELECT encode(api_key_fingerprint, 'hex') AS text FROM claude_accounts WHERE id = '{newer}'");
    let fingerprint = place.database.texts(&hex).await.remove(0);
    let set = |to: &str| {
        format!("UPDATE claude_accounts SET api_key_fingerprint = decode('{to}', 'hex') WHERE id = '{newer}'")
    };
    place.database.execute(&set("00")).await.unwrap();
    let mut other = place.database.connection().await;
    let change = other.transaction().await.unwrap();
    change.batch_execute(&set(&fingerprint)).await.unwrap();
    let mut rotate = place.command(&["keys", "rotate"]);
    rotate.env("CREDENTIAL_ENCRYPTION_KEYS", BOTH).stdout(Stdio::piped()).stderr(Stdio::piped());
    let rotate = rotate.spawn().unwrap();
    place.database.until_locked_out().await;
    change.commit().await.unwrap();
    let output = rotate.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let named = format!("the API key of the Claude account {older}: the account {newer} has it too");
    assert!(said(&output).contains(&named), "{}", said(&output));
}

/// On SQLite nobody waits for two locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_another_waits_for_as_well_is_begun_again() {
    let place = Place::new(TestDatabase::postgres().await);
    let old = serve(&place, OLD);
    let admin = admin(&old).await;
    fill(&admin, 2).await;
    assert!(old.stop().success());
    // Of the two it is the rotation that finds out: the other never looks.
    let as_superuser = TestDatabase::at(place.database.url.replace("claviger@", "postgres@"));
    let name = place.database.url.rsplit('/').next().unwrap();
    as_superuser.execute(&format!("ALTER DATABASE {name} SET deadlock_timeout = '3s'")).await.unwrap();
    let mut other = as_superuser.connection().await;
    other.batch_execute("SET deadlock_timeout = '1h'").await.unwrap();
    let change = other.transaction().await.unwrap();
    let locked = |which| format!("SELECT id FROM claude_accounts ORDER BY id {which} LIMIT 1 FOR UPDATE");
    change.batch_execute(&locked("DESC")).await.unwrap();
    let mut rotate = place.command(&["keys", "rotate"]);
    rotate.env("CREDENTIAL_ENCRYPTION_KEYS", BOTH).stdout(Stdio::piped()).stderr(Stdio::piped());
    let rotate = rotate.spawn().unwrap();
    // It has the first by then, and waits for the last.
    place.database.until_locked_out().await;
    change.batch_execute(&locked("ASC")).await.unwrap();
    change.commit().await.unwrap();
    let output = rotate.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let deadlocks = "SELECT deadlocks::text AS text FROM pg_stat_database WHERE datname = current_database()";
    let mut counted = place.database.texts(deadlocks).await;
    for _ in 0..100 {
        if counted == ["1"] {
            break;
        }
        // PostgreSQL tells of it when it comes to it.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        counted = place.database.texts(deadlocks).await;
    }
    assert_eq!(counted, ["1"]);
}

async fn are_sealed_anew(database: TestDatabase) {
    let place = Place::new(database);
    let serve = |ring: &str| {
        let mut command = place.command(&["serve"]);
        command.env("CREDENTIAL_ENCRYPTION_KEYS", ring).env("CLAUDE_CLI", STAND_IN);
        Place::started(command)
    };
    let server = serve(OLD);
    let client = admin(&server).await;
    let id = crate::conversation::create(&client, json!({ "systemPrompt": "Be brief." })).await["id"].clone();
    let sent =
        "mutation($id: ID!) { sendMessage(input: { conversationId: $id, text: \"Hello\" }) { message { text } } }";
    client.with(sent, json!({ "id": id })).await.data();
    drop(server);
    let output = run(&place, BOTH, &["keys", "rotate", "--batch", "1"]);
    assert!(said(&output).ends_with("all is sealed with v2\n"), "{}", said(&output));
    // By the new key alone.
    let server = serve(NEW);
    let client = admin(&server).await;
    let read = "query($id: ID!) { conversation(id: $id) { systemPrompt messages { nodes { text } } } }";
    let found = client.with(read, json!({ "id": id })).await.data()["conversation"].clone();
    assert_eq!(
        found,
        json!({ "systemPrompt": "Be brief.", "messages": { "nodes": [{ "text": "Hello" }, { "text": "Answer 1" }] } })
    );
    assert_eq!(client.with(sent, json!({ "id": id })).await.data()["sendMessage"]["message"]["text"], "Answer 2");
}

mod conversations {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        are_sealed_anew(TestDatabase::sqlite()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        are_sealed_anew(TestDatabase::postgres().await).await;
    }
}
