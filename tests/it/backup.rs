//! `claviger backup`: a copy of a database in use, from which a server starts again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::audit_chain::act;
use crate::command_line::Place;
use crate::credential;
use crate::support::{Client, PASSWORD, TestDatabase, program};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

async fn task(admin: &Client, client: &Value, title: &str) -> Value {
    let create = "mutation($i: CreateTaskInput!) { createTask(input: $i) { task { id } } }";
    let input = json!({ "clientId": client, "title": title });
    admin.with(create, json!({ "i": input })).await.data()["createTask"]["task"]["id"].clone()
}

/// Rows with gaps between them, a secret, and a head of the audit log from before the copy.
struct Before {
    credential: Value,
    head: String,
}

async fn fill(place: &Place, admin: &Client) -> Before {
    let client = credential::new_client(admin, "Zebrafink").await;
    let first = task(admin, &client, "Gone by then").await;
    task(admin, &client, "Feed the zebra finch").await;
    let delete = "mutation($id: ID!) { deleteTask(input: { id: $id }) { deletedId } }";
    admin.with(delete, json!({ "id": first })).await.data();
    let made =
        credential::create(admin, json!({ "clientId": client, "label": "L", "secret": "kept through it" })).await;
    let verified = place.run_well(&["audit", "verify"]);
    Before { credential: made["id"].clone(), head: verified.trim().rsplit(' ').next().unwrap().to_owned() }
}

/// Starts a server on the copy, with the files that are kept besides, and finds everything.
async fn is_all_there(original: &Place, restored: &Place, before: &Before) {
    std::fs::create_dir(restored.folder().join("data")).unwrap();
    for file in ["jwt-secret", "encryption-keys"] {
        let path = |place: &Place| place.folder().join("data").join(file);
        std::fs::copy(path(original), path(restored)).unwrap();
    }
    let server = restored.serve();
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let reveal = "mutation($id: ID!) { revealCredential(input: { id: $id }) { secret } }";
    let answer = admin.with(reveal, json!({ "id": before.credential })).await;
    assert_eq!(answer.data()["revealCredential"]["secret"], "kept through it");
    let found = admin.run("{ tasks(search: \"ebra fin\") { nodes { title } } }").await;
    assert_eq!(found.data()["tasks"]["nodes"], json!([{ "title": "Feed the zebra finch" }]));
    task(&admin, &credential::new_client(&admin, "B").await, "Another zebra finch").await;
    let found = admin.run("{ tasks(search: \"ebra fin\") { totalCount } }").await;
    assert_eq!(found.data()["tasks"]["totalCount"], 2);
    assert!(restored.run(&["audit", "verify", "--expect", &before.head]).status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_from_a_copy_that_was_made_while_another_wrote() {
    let place = Place::new(TestDatabase::sqlite());
    let server = place.serve();
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let before = fill(&place, &admin).await;
    let writing = tokio::spawn({
        let admin = admin.clone();
        async move {
            loop {
                act(&admin, 1).await;
            }
        }
    });
    let copy = place.folder().join("it's a copy.db");
    let name = copy.to_str().unwrap();
    let text = place.run_well(&["backup", name]);
    writing.abort();
    assert!(text.contains("data/encryption-keys") && text.contains("data/jwt-secret"), "{text}");
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    // Nothing is written over, and nothing is left beside it.
    let bytes = std::fs::read(&copy).unwrap();
    let again = place.run(&["backup", name]);
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("is there already"), "{}", said(&again));
    assert_eq!(std::fs::read(&copy).unwrap(), bytes);
    let left: Vec<_> = std::fs::read_dir(place.folder()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    let restored = Place::new(TestDatabase::at(format!("sqlite://{name}")));
    is_all_there(&place, &restored, &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_whole_is_not_kept() {
    let place = Place::new(TestDatabase::sqlite());
    let copy = place.folder().join("copy.db");
    let refused = |why: &str| {
        let output = place.run(&["backup", "copy.db"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(why), "{}", said(&output));
        assert_eq!(std::fs::read_dir(place.folder()).unwrap().flatten().filter(|file| file.path() == copy).count(), 0);
    };
    refused("nothing is set up");
    let server = place.serve();
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    fill(&place, &admin).await;
    assert!(server.stop().success());
    place.database.execute("DELETE FROM tasks_search").await.unwrap();
    refused("the rows of tasks are not those that tasks_search names");
    let output = place.run(&["backup", "no/such/folder"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    // What is no database at all.
    std::fs::write(place.database.url.trim_start_matches("sqlite://"), "x".repeat(5000)).unwrap();
    refused("cannot be copied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_postgresql_it_says_the_command_that_does_it() {
    let place = Place::new(TestDatabase::postgres().await);
    let server = place.serve();
    let admin = Client::new(&server.url).signed_in("admin@localhost", PASSWORD).await;
    let before = fill(&place, &admin).await;
    let copy = place.folder().join("it's a copy.dump");
    let output = place
        .command(&["backup", copy.to_str().unwrap()])
        .env("DATABASE_URL", place.database.url.replace("claviger@", "claviger:canary@"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = said(&output);
    assert!(!text.contains("canary") && text.contains("data/encryption-keys"), "{text}");
    let command = text.lines().find_map(|line| line.strip_prefix("  pg_dump ")).unwrap();
    let shell = |command: &str| {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", said(&output));
    };
    let path = |name: &str| format!("'{}'", program(name).display());
    shell(&format!("{} {command}", path("pg_dump")));
    assert!(Path::new(&copy).exists());
    for is_made_by_an_administrator in [false, true] {
        let restored = Place::new(TestDatabase::postgres().await);
        if is_made_by_an_administrator {
            let administrator = TestDatabase::at(restored.database.url.replace("claviger@", "postgres@"));
            administrator.execute("CREATE EXTENSION pg_trgm").await.unwrap();
        }
        let (pg_restore, to) = (path("pg_restore"), &restored.database.url);
        shell(&format!(
            "{pg_restore} --exit-on-error --no-owner --no-comments --dbname='{to}' {}",
            place.folder().join("*.dump").display()
        ));
        is_all_there(&place, &restored, &before).await;
    }
}
