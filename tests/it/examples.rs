//! The programs of `examples`, each made from `schema.graphql` with its own tools, against a live server.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::http::node;
use crate::support::{Client, PASSWORD, TestApp, TestDatabase, both_databases};

/// A folder of `examples`.
#[derive(Clone, Copy, PartialEq)]
enum Language {
    Rust,
    Urql,
    Apollo,
    Python,
}

impl Language {
    fn folder(self) -> &'static Path {
        Path::new(match self {
            Self::Rust => "examples/rust",
            Self::Urql => "examples/typescript-urql",
            Self::Apollo => "examples/typescript-apollo",
            Self::Python => "examples/python",
        })
    }

    /// Generates, checks types and builds, once for all tests.
    async fn make(self) {
        static MADE: [OnceCell<()>; 4] = [const { OnceCell::const_new() }; 4];
        let steps = match self {
            Self::Rust => vec![vec!["cargo".to_owned(), "build".into(), "--quiet".into(), "--locked".into()]],
            Self::Urql | Self::Apollo => {
                assert!(
                    self.folder().join("node_modules").exists(),
                    "{} lacks packages: ./test",
                    self.folder().display()
                );
                ["generate", "build"]
                    .map(|script| ["npm", "run", "--silent", script].map(str::to_owned).to_vec())
                    .into()
            }
            Self::Python => vec![vec![python("ariadne-codegen")], vec![python("mypy"), ".".to_owned()]],
        };
        let make = async || {
            for step in steps {
                let output = self.command(&step).output().await.unwrap();
                assert!(output.status.success(), "{step:?}: {}", text(&output));
            }
        };
        MADE[self as usize].get_or_init(make).await;
    }

    fn command(self, words: &[String]) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.folder()).env("CARGO_TARGET_DIR", absolute("target/examples"));
        command.env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
        command
    }

    /// One of its programs, signed in at the server.
    async fn program(self, app: &TestApp, name: &str, words: &[&str]) -> Command {
        self.make().await;
        let mut all = match self {
            Self::Rust => vec![absolute(&format!("target/examples/debug/{name}"))],
            Self::Urql | Self::Apollo => vec!["node".to_owned(), format!("build/{name}.js")],
            Self::Python => vec![python("python"), format!("{}.py", name.replace('-', "_"))],
        };
        all.extend(words.iter().map(|word| (*word).to_owned()));
        let mut command = self.command(&all);
        command
            .env("CLAVIGER_URL", &app.url)
            .env("CLAVIGER_EMAIL", "admin@localhost")
            .env("CLAVIGER_PASSWORD", PASSWORD);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs one of its programs to the end.
    async fn run(self, app: &TestApp, name: &str, words: &[&str], input: &str) -> Output {
        let mut child = self.program(app, name, words).await.spawn().unwrap();
        // A program that ends before it reads is judged by how it ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
        child.wait_with_output().await.unwrap()
    }

    async fn succeeds(self, app: &TestApp, name: &str, words: &[&str], input: &str) -> String {
        let output = self.run(app, name, words, input).await;
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn absolute(path: &str) -> String {
    std::env::current_dir().unwrap().join(path).display().to_string()
}

/// A program of the environment that `./test` makes.
fn python(program: &str) -> String {
    let path = absolute(&format!("target/tools/python/bin/{program}"));
    assert!(Path::new(&path).exists(), "{path} is missing: ./test installs it");
    path
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The columns of the lines that a program printed.
fn table(printed: &str) -> Vec<Vec<&str>> {
    printed.lines().map(|line| line.split('\t').collect()).collect()
}

/// The labels and secrets that a client of a name has, by the server.
async fn credentials(admin: &Client, name: &str) -> BTreeSet<(String, String)> {
    let query = "query($name: String!) { clients(search: $name) { nodes { credentials { nodes { id label } } } } }";
    let answer = admin.with(query, json!({ "name": name })).await;
    let clients = answer.data()["clients"]["nodes"].as_array().unwrap();
    assert_eq!(clients.len(), 1, "{clients:?}");
    let mut found = BTreeSet::new();
    for credential in clients[0]["credentials"]["nodes"].as_array().unwrap() {
        let reveal = "mutation($id: ID!) { revealCredential(input: { id: $id }) { secret } }";
        let answer = admin.with(reveal, json!({ "id": credential["id"] })).await;
        let of = |value: &Value| value.as_str().unwrap().to_owned();
        found.insert((of(&credential["label"]), of(&answer.data()["revealCredential"]["secret"])));
    }
    found
}

async fn onboards(app: &TestApp, language: Language) {
    let words = ["Acme", "Web server", "Database"];
    // Another client whose name contains the one that is asked for must not be taken for it.
    let admin = app.admin().await;
    admin.run(r#"mutation { createClient(input: { name: "acme" }) { client { id } } }"#).await.data();
    let other =
        admin.run(r#"{ clients(search: "acme") { nodes { id } } }"#).await.data()["clients"]["nodes"][0]["id"].clone();

    let printed = language.succeeds(app, "onboard", &words, "first secret\nsecond\n").await;
    let first = table(&printed);
    let kinds: Vec<_> = first.iter().map(|row| (row[0], row[2], row[3])).collect();
    let expected = [("client", "Acme"), ("credential", "Web server"), ("credential", "Database"), ("key", "Acme")];
    assert_eq!(kinds, expected.map(|(kind, name)| (kind, name, "created")));
    let query = "query($key: String!) { verifyApiKey(key: $key) { code apiKeyId name scopes } }";
    let answer = app.anonymous().with(query, json!({ "key": first[3][4] })).await;
    let key = json!({ "code": "VALID", "apiKeyId": first[3][1], "name": "Acme", "scopes": ["RELAY"] });
    assert_eq!(answer.data()["verifyApiKey"], key);
    assert_ne!(first[0][1], other);

    let rename = "mutation($id: ID!) { updateClient(input: { id: $id, name: \"Other\" }) { client { id } } }";
    admin.with(rename, json!({ "id": other })).await.data();
    let expected = [("Web server", "first secret"), ("Database", "second")];
    let expected: BTreeSet<_> = expected.map(|(label, secret)| (label.to_owned(), secret.to_owned())).into();
    assert_eq!(credentials(&admin, "Acme").await, expected);

    let printed = language.succeeds(app, "onboard", &words, "changed\nchanged\n").await;
    let ids = |rows: &[Vec<&str>]| rows.iter().map(|row| row[1].to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&table(&printed)), ids(&first));
    assert!(table(&printed).iter().all(|row| row[3] == "exists"), "{printed}");
    assert_eq!(credentials(&admin, "Acme").await, expected, "what exists stays as it is");

    let refused = language.run(app, "onboard", &["Acme", "x".repeat(201).as_str()], "secret\n").await;
    assert!(!refused.status.success());
    let refused = text(&refused);
    for part in ["BAD_USER_INPUT", "input.label: must have 1 to 200 characters", "request "] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert!(!refused.contains("secret\n"));
}

/// Makes clients, twenty a request.
async fn make_clients(admin: &Client, count: usize) {
    for start in (0..count).step_by(20) {
        let fields = (start..count.min(start + 20))
            .map(|n| format!("c{n}: createClient(input: {{ name: \"Client {n:03}\" }}) {{ client {{ id }} }}\n"));
        admin.run(&format!("mutation {{ {} }}", fields.collect::<String>())).await.data();
    }
}

/// The requests and outcomes that a report tells, by the newest, and the same by the server.
async fn reports(app: &TestApp, language: Language, outcome: &[&str], read: fn(&str) -> Vec<String>) {
    let admin = app.admin().await;
    make_clients(&admin, 120).await;
    assert_eq!(admin.run("mutation { deleteTask(input: { id: \"x\" }) { deletedId } }").await.code(), "NOT_FOUND");

    let span = ["2000-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"];
    let all = read(&language.succeeds(app, "audit-report", &span, "").await);
    assert_eq!(all.iter().filter(|operation| *operation == "createClient").count(), 120, "more than a page");
    assert_eq!(all.iter().filter(|operation| *operation == "deleteTask").count(), 1);

    let words: Vec<_> = span.iter().chain(outcome).copied().collect();
    assert_eq!(read(&language.succeeds(app, "audit-report", &words, "").await), ["deleteTask"]);
    let past = ["2000-01-01T00:00:00+00:00", "2000-01-02T00:00:00+00:00"];
    assert_eq!(read(&language.succeeds(app, "audit-report", &past, "").await), [""; 0]);
}

both_databases! {
    async fn rust_onboards_a_client(app: TestApp) {
        onboards(&app, Language::Rust).await;
    }

    async fn urql_onboards_a_client(app: TestApp) {
        onboards(&app, Language::Urql).await;
    }

    async fn python_onboards_a_client(app: TestApp) {
        onboards(&app, Language::Python).await;
    }

    async fn urql_renews_an_access_token_that_has_expired(app: TestApp) {
        let mut child = Language::Urql.program(&app, "onboard", &["Acme", "Web server"]).await.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap_or_default();
        assert!(line.ends_with("\tAcme\tcreated"), "{line}");
        // It waits for the secret now.
        app.advance(16 * 60);
        child.stdin.take().unwrap().write_all(b"the secret\n").await.unwrap();
        let line = lines.next_line().await.unwrap().unwrap_or_default();
        assert!(line.ends_with("\tWeb server\tcreated"), "{line}");
        assert!(child.wait().await.unwrap().success());
        let admin = app.admin().await;
        let counts = "{ refreshed: auditLogs(filter: { action: [REFRESH], outcome: [SUCCESS] }) { totalCount } }";
        assert_eq!(admin.run(counts).await.data()["refreshed"]["totalCount"], 1);
        assert_eq!(credentials(&admin, "Acme").await, [("Web server".to_owned(), "the secret".to_owned())].into());
    }

    async fn rust_reports_from_the_audit_log(app: TestApp) {
        reports(&app, Language::Rust, &["FAILED"], |printed| {
            let entry = |line| serde_json::from_str::<Value>(line).unwrap();
            printed.lines().map(|line| entry(line)["operation"].as_str().unwrap().to_owned()).collect()
        })
        .await;
    }

    async fn python_reports_from_the_audit_log(app: TestApp) {
        reports(&app, Language::Python, &["--outcome", "FAILED", "--action", "DELETE"], |printed| {
            let mut lines = printed.lines();
            let place = lines.next().unwrap().split(',').position(|column| column == "operation").unwrap();
            lines.map(|line| line.split(',').nth(place).unwrap().to_owned()).collect()
        })
        .await;
    }

    async fn a_key_that_may_read_is_enough_for_a_report(app: TestApp) {
        let deed = "mutation { createApiKey(input: { name: \"Auditor\", scopes: [ADMIN_READ] }) { rawKey } }";
        let raw = app.admin().await.run(deed).await.data()["createApiKey"]["rawKey"].as_str().unwrap().to_owned();
        for language in [Language::Rust, Language::Python] {
            let span = ["2000-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"];
            let mut command = language.program(&app, "audit-report", &span).await;
            command.env_remove("CLAVIGER_EMAIL").env_remove("CLAVIGER_PASSWORD").env("CLAVIGER_API_KEY", &raw);
            let output = command.output().await.unwrap();
            assert!(output.status.success() && text(&output).contains("createApiKey"), "{}", text(&output));
        }
    }

    async fn apollos_cached_list_shows_an_update(app: TestApp) {
        let admin = app.admin().await;
        make_clients(&admin, 45).await;
        let found = admin.run("{ clients(search: \"Client 031\") { nodes { id } } }").await;
        let id = found.data()["clients"]["nodes"][0]["id"].as_str().unwrap().to_owned();

        let printed = Language::Apollo.succeeds(&app, "clients", &["set", &id, "PAUSED"], "").await;
        let shown = table(&printed);
        let (before, after) = shown.split_at(46);
        assert_eq!(before[45], ["# after SignIn, Clients, Clients, Clients"]);
        assert_eq!(after[45..], [["# after SignIn, Clients, Clients, Clients, SetStatus"]]);
        for (n, (before, after)) in before[..45].iter().zip(after).enumerate() {
            assert_eq!(before[1..], [format!("Client {n:03}").as_str(), "ACTIVE", "1"]);
            let expected = if n == 31 { ["PAUSED", "2"] } else { ["ACTIVE", "1"] };
            assert_eq!((&after[..2], &after[2..]), (&before[..2], &expected[..]));
        }
        let query = "query($id: ID!) { client(id: $id) { status version } }";
        let client = admin.with(query, json!({ "id": id })).await.data()["client"].clone();
        assert_eq!(client, json!({ "status": "PAUSED", "version": 2 }));

        let printed = Language::Apollo.succeeds(&app, "clients", &["client 04"], "").await;
        assert_eq!(table(&printed).len(), 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_signs_in_with_an_encrypted_password() {
    let app = TestApp::sqlite().await;
    let run = async |password: &str| {
        let mut command = Command::new("node");
        command.arg("sign-in.mjs").current_dir("examples/encrypted-password").env("CLAVIGER_URL", &app.url);
        command.env("CLAVIGER_EMAIL", "admin@localhost").env("CLAVIGER_PASSWORD", password);
        command.output().await.unwrap()
    };
    let output = run(PASSWORD).await;
    assert!(output.status.success() && text(&output) == "admin@localhost\tADMIN\n", "{}", text(&output));
    let output = run("none that anybody has").await;
    assert!(!output.status.success() && text(&output).contains("UNAUTHENTICATED"), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_signs_in_with_an_encrypted_password() {
    // A port that is free, and is free again.
    let origin = format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let app = TestApp::start(TestDatabase::sqlite(), [("FRONTEND_URL", origin.clone())]).await;
    let (email, password) = ("admin@localhost".to_owned(), PASSWORD.to_owned());
    let variables = vec![("URL", app.url.clone()), ("ORIGIN", origin), ("EMAIL", email), ("PASSWORD", password)];
    node("playground", "encrypted-password.spec.mjs", variables).await;
}
