//! The program as it is run: commands, exit codes, start and stop.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use crate::support::{Client, TestDatabase};

/// A folder with its own database, and the program run in it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    pub(crate) database: TestDatabase,
}

impl Place {
    pub(crate) fn new(database: TestDatabase) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), database }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("DATABASE_URL", &self.database.url)
            .env("PORT", "0")
            .env("ADMIN_PASSWORD", crate::support::PASSWORD);
        command
    }

    /// Starts a server that cannot make a file of the SQLite database larger by more than 500 KiB, as on a disk that is nearly full. The
    /// limit is a soft one: it can be taken away while the server runs.
    pub(crate) fn serve_on_a_small_disk(&self) -> Served {
        let path = self.database.url.trim_start_matches("sqlite://");
        let sizes =
            ["", "-wal"].map(|suffix| std::fs::metadata(format!("{path}{suffix}")).map_or(0, |file| file.len()));
        let kib = sizes.into_iter().max().unwrap_or_default() / 1024 + 500;
        let serve = self.command(&["serve"]);
        let mut limited = Command::new("sh");
        // The signal ignored, the write fails instead; the shell counts in blocks of 512 bytes.
        limited
            .args(["-c", &format!("trap '' XFSZ; ulimit -S -f {}; exec \"$0\" serve", kib * 2)])
            .arg(serve.get_program());
        limited.current_dir(self.folder.path()).env_clear();
        limited.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self::started(limited)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn run_well(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a server and waits until it says where it listens.
    pub(crate) fn serve(&self) -> Served {
        Self::started(self.command(&["serve"]))
    }

    pub(crate) fn started(mut command: Command) -> Served {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the server says where it listens").unwrap();
        let url = first.rsplit(' ').next().unwrap().to_owned();
        Served { child, url, _lines: lines }
    }
}

pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) url: String,
    // Whoever reads the server's output goes on to.
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Served {
    /// Tells it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs each test once on SQLite and once on PostgreSQL, with the program as it is run.
macro_rules! on_both {
    ($(async fn $name:ident($place:ident: Place) $body:block)+) => {$(
        mod $name {
            use super::*;

            async fn run($place: Place) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                run(Place::new(TestDatabase::sqlite())).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                run(Place::new(TestDatabase::postgres().await)).await;
            }
        }
    )+};
}
pub(crate) use on_both;

on_both! {
    async fn migrations_go_up_and_down(place: Place) {
        assert!(place.run_well(&["migrate", "status"]).starts_with("pending "));
        assert!(place.run_well(&["migrate", "up"]).starts_with("applied "));
        assert_eq!(place.run_well(&["migrate", "up"]), "nothing to do\n");
        assert!(place.run_well(&["migrate", "status"]).starts_with("applied "));
        assert!(place.run_well(&["migrate", "redo", "--yes"]).starts_with("applied again "));
        let known = place.run_well(&["migrate", "status"]).lines().count();
        for _ in 0..known {
            assert!(place.run_well(&["migrate", "down", "--yes"]).starts_with("reverted "));
        }
        let output = place.run(&["migrate", "down", "--yes"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no migration is applied"));
        assert!(place.run_well(&["migrate", "up"]).starts_with("applied "));
    }

    async fn users_outlive_a_way_back_to_before_they_could_be_deleted(place: Place) {
        let invite = "mutation { inviteUser(input: { email: \"ina@example.com\", fullName: \"Ina\", role: MEMBER }) { user { id } } }";
        let server = place.serve();
        let admin = Client::new(&server.url).signed_in("admin@localhost", crate::support::PASSWORD).await;
        for _ in 0..2 {
            let id = admin.run(invite).await.data()["inviteUser"]["user"]["id"].clone();
            admin.run(&format!("mutation {{ deleteUser(input: {{ id: {id} }}) {{ deletedId }} }}")).await.data();
        }
        admin.run(invite).await.data();
        drop(server);
        let known = place.run_well(&["migrate", "status"]);
        let steps = known.lines().skip_while(|line| !line.ends_with("_users")).count().to_string();
        assert!(place.run_well(&["migrate", "down", "--yes", "--steps", &steps]).contains("_users"));
        let server = place.serve();
        let refresh = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { accessToken } }";
        let again = Client::new(&server.url);
        again.with(refresh, serde_json::json!({ "t": admin.refresh_token })).await.data();
        let admin = again.signed_in("admin@localhost", crate::support::PASSWORD).await;
        let count = async |arguments: &str| {
            admin.run(&format!("{{ users({arguments}) {{ totalCount }} }}")).await.data()["users"]["totalCount"].clone()
        };
        assert_eq!((count("first: 1").await, count("search: \"ina@example.com\"").await), (4.into(), 1.into()));
        // Those who were deleted are found again, for there was no such thing, but get in by nothing.
        assert_eq!(count("search: \"@deleted.invalid\", filter: { status: [SUSPENDED] }").await, 2);
    }

    async fn tables_are_deleted_only_where_somebody_means_it(place: Place) {
        place.run_well(&["migrate", "up"]);
        for command in ["down", "redo"] {
            let output = place.run(&["migrate", command]);
            assert_eq!(output.status.code(), Some(2));
            assert!(String::from_utf8_lossy(&output.stderr).contains("add --yes"));
        }
        assert!(place.run_well(&["migrate", "status"]).starts_with("applied "));
    }

    async fn the_first_administrators_password_is_shown_though_the_port_is_taken(place: Place) {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let output = place.command(&["serve"]).env("PORT", port).env_remove("ADMIN_PASSWORD").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        let password = text.lines().find_map(|line| line.trim().strip_prefix("password")).unwrap().trim();
        let server = place.serve();
        Client::new(&server.url).signed_in("admin@localhost", password).await;
    }

    async fn no_organization_is_made_by_the_way(place: Place) {
        const COMMANDS: [&[&str]; 6] = [
            &["admin", "create", "--email", "second@example.com"],
            &["admin", "reset-password", "--email", "admin@localhost"],
            &["keys", "rotate"],
            &["audit", "verify"],
            &["audit", "export"],
            &["audit", "public-key"],
        ];
        let refused = || {
            for command in COMMANDS {
                let output = place.run(command);
                assert_eq!(output.status.code(), Some(1), "{command:?}");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains("nothing is set up in ") && said.contains(": start the server"), "{said}");
                assert_eq!(output.stdout, b"");
            }
        };
        refused();
        assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 0, "no file is made");
        place.run_well(&["migrate", "up"]);
        refused();
        drop(place.serve());
        place.run_well(COMMANDS[0]);
    }

    async fn a_key_ring_that_was_lost_is_missed_at_the_start(place: Place) {
        let ring = |version: &str, byte: &str| format!("{version}:{}=", byte.repeat(43));
        let start = |ring: String| {
            let mut command = place.command(&["seed"]);
            command.env("CREDENTIAL_ENCRYPTION_KEYS", ring).output().unwrap()
        };
        assert!(start(ring("v1", "A")).status.success());
        assert!(start(ring("v1", "A")).status.success());
        let output = start(ring("v1", "E"));
        assert_eq!(output.status.code(), Some(2));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("not the one that this database was used with"), "{message}");
        assert!(start(format!("{},{}", ring("v2", "E"), ring("v1", "A"))).status.success());
        assert_eq!(start(ring("v2", "I")).status.code(), Some(2), "the second key is known by now");
    }

    async fn a_database_of_a_newer_program_is_left_alone(place: Place) {
        place.run_well(&["migrate", "up"]);
        place.database.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')").await.unwrap();
        let output = place.run(&["serve"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("99990101000000"));
    }

    async fn seeding_twice_makes_the_data_once(place: Place) {
        let signs_in = place.run_well(&["seed"]);
        assert_eq!(signs_in.lines().count(), 4, "{signs_in}");
        let again = place.run_well(&["seed"]);
        assert!(again.starts_with("The demonstration data is there already."), "{again}");
        let server = place.serve();
        for line in signs_in.lines() {
            let [role, email, password] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
            let client = Client::new(&server.url).signed_in(email, password).await;
            assert_eq!(client.run("{ viewer { role } }").await.data()["viewer"]["role"], role);
        }
        let admin = Client::new(&server.url).signed_in("admin@localhost", crate::support::PASSWORD).await;
        assert_eq!(admin.run("{ claudeAccounts { totalCount } }").await.data()["claudeAccounts"]["totalCount"], 6);
        let query = "{ clients { totalCount } tasks { totalCount } credentials { totalCount } usageRecords { totalCount } }";
        let counts = admin.run(query).await.data().clone();
        let one = |name: &str| counts[name]["totalCount"].as_i64().unwrap();
        assert_eq!((one("clients"), one("tasks"), one("credentials"), one("usageRecords")), (4, 6, 3, 600));
    }

    async fn a_load_is_made_once_and_its_log_holds(place: Place) {
        place.run_well(&["seed"]);
        assert!(place.run_well(&["seed", "--scale", "3"]).contains("Made 3 of 3 clients"));
        assert!(place.run_well(&["seed", "--scale", "3"]).contains("Made 0 of 3 clients"));
        assert!(place.run_well(&["seed", "--scale", "5"]).contains("Made 2 of 5 clients"));
        let server = place.serve();
        let admin = Client::new(&server.url).signed_in("admin@localhost", crate::support::PASSWORD).await;
        let query = "{ clients(filter: { createdAt: { to: \"2025-01-01T00:00:00Z\" } }) { totalCount nodes { version owner { id }
            tasks(first: 9) { totalCount nodes { version } } } } }";
        let clients = admin.run(query).await.data()["clients"].clone();
        assert_eq!(clients["totalCount"], 5);
        let years = "from: \"2023-01-01T00:00:00Z\", to: \"2025-01-01T00:00:00Z\"";
        let used = admin.run(&format!("{{ usage(filter: {{ {years} }}) {{ total {{ requests }} }} }}")).await;
        assert_eq!(used.data()["usage"]["total"]["requests"], 50);
        for client in clients["nodes"].as_array().unwrap() {
            assert_eq!(client["version"], 5);
            assert_eq!((&client["tasks"]["totalCount"], &client["tasks"]["nodes"][0]["version"]), (&5.into(), &3.into()));
            assert!(client["owner"]["id"].is_string());
        }
        let entries = "SELECT CAST(count(*) AS TEXT) AS text FROM audit_logs WHERE occurred_at < '2025-01-01T00:00:00.000000Z'";
        assert_eq!(place.database.texts(entries).await, ["100"]);
        crate::audit::assert_chain_holds(&place.database).await;
    }

    async fn an_administrator_is_made_and_gets_another_password(place: Place) {
        drop(place.serve());
        let made = place.run_well(&["admin", "create", "--email", "Second@Example.com"]);
        let password = made.lines().find_map(|line| line.strip_prefix("password")).unwrap().trim().to_owned();
        assert_eq!(place.run(&["admin", "create", "--email", "second@example.com"]).status.code(), Some(1));
        for (name, said) in [("", "must have 1 to 100 characters"), ("a\u{7}b", "must not have control characters")] {
            let output = place.run(&["admin", "create", "--email", "third@example.com", "--full-name", name]);
            assert_eq!(output.status.code(), Some(2));
            assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{name:?}");
        }
        let server = place.serve();
        let client = Client::new(&server.url).signed_in("second@example.com", &password).await;
        let mut reset = place
            .command(&["admin", "reset-password", "--email", "second@example.com", "--password-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        reset.stdin.take().unwrap().write_all(b"another password\n").unwrap();
        assert!(reset.wait().unwrap().success());
        Client::new(&server.url).signed_in("second@example.com", "another password").await;
        let query = "mutation($t: String!) { refreshSession(input: { refreshToken: $t }) { accessToken } }";
        let token = serde_json::json!({ "t": client.refresh_token });
        assert_eq!(Client::new(&server.url).with(query, token).await.code(), "UNAUTHENTICATED");
    }

    async fn a_password_is_set_for_who_can_use_it(place: Place) {
        let server = place.serve();
        let admin = Client::new(&server.url).signed_in("admin@localhost", crate::support::PASSWORD).await;
        let invite = "mutation { inviteUser(input: { email: \"ina@example.com\", fullName: \"Ina\", role: MEMBER }) { user { id } } }";
        let id = admin.run(invite).await.data()["inviteUser"]["user"]["id"].clone();
        let output = place.run(&["admin", "reset-password", "--email", "ina@example.com"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("has not accepted the invitation yet"));
        // Nor is there another of that address then.
        assert_eq!(place.run(&["admin", "create", "--email", "ina@example.com"]).status.code(), Some(1));
        let accepted = "UPDATE users SET status = 'SUSPENDED', email_key = email WHERE email = 'ina@example.com'";
        place.database.execute(accepted).await.unwrap();
        let text = place.run_well(&["admin", "reset-password", "--email", "ina@example.com"]);
        assert!(text.contains("status      SUSPENDED: cannot sign in"), "{text}");
        let delete = "mutation($id: ID!) { deleteUser(input: { id: $id }) { deletedId } }";
        admin.with(delete, serde_json::json!({ "id": id })).await.data();
        assert_eq!(place.run(&["admin", "reset-password", "--email", "ina@example.com"]).status.code(), Some(1));
    }

    async fn a_password_is_set_for_who_is_of_another_organization(place: Place) {
        let mut serve = place.command(&["serve"]);
        serve.env("REGISTRATION", "open");
        let server = Place::started(serve);
        let register = "mutation($p: String!) { register(input: { organizationName: \"Other\", email: \"rita@example.com\",
            fullName: \"Rita\", password: { plain: $p } }) { accessToken } }";
        let variables = serde_json::json!({ "p": crate::support::PASSWORD });
        Client::new(&server.url).with(register, variables).await.data();
        let verified = "UPDATE users SET email_key = email, email_verified_at = created_at WHERE email = 'rita@example.com'";
        place.database.execute(verified).await.unwrap();
        let text = place.run_well(&["admin", "reset-password", "--email", "rita@example.com"]);
        let password = text.lines().find_map(|line| line.strip_prefix("password")).unwrap().trim();
        let rita = Client::new(&server.url).signed_in("rita@example.com", password).await;
        let entries = rita.run("{ auditLogs(filter: { action: [UPDATE] }) { nodes { operation resourceType } } }").await;
        let expected = serde_json::json!([{ "operation": "admin reset-password", "resourceType": "USER" }]);
        assert_eq!(entries.data()["auditLogs"]["nodes"], expected);
    }

    async fn what_invitations_had_reserved_is_free_after_an_upgrade(place: Place) {
        let server = place.serve();
        let admin = Client::new(&server.url).signed_in("admin@localhost", crate::support::PASSWORD).await;
        let invite = "mutation { inviteUser(input: { email: \"ina@example.com\", fullName: \"Ina\", role: MEMBER }) { user { id } } }";
        admin.run(invite).await.data();
        drop(server);
        let held = async || place.database.texts("SELECT email_key AS text FROM users WHERE email_key IS NOT NULL ORDER BY 1").await;
        assert_eq!(held().await, ["admin@localhost"]);
        let known = place.run_well(&["migrate", "status"]);
        let steps = known.lines().skip_while(|line| !line.ends_with("_invited_addresses")).count().to_string();
        place.run_well(&["migrate", "down", "--yes", "--steps", &steps]);
        assert_eq!(held().await, ["admin@localhost", "ina@example.com"]);
        place.run_well(&["migrate", "up"]);
        assert_eq!(held().await, ["admin@localhost"]);
    }

    async fn several_servers_that_start_at_once_make_one_organization(place: Place) {
        let servers: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..3).map(|_| scope.spawn(|| place.serve())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let mut ids = std::collections::BTreeSet::new();
        for server in &servers {
            let admin = Client::new(&server.url).signed_in("admin@localhost", crate::support::PASSWORD).await;
            ids.insert(admin.run("{ organization { id } }").await.data().to_string());
        }
        assert_eq!(ids.len(), 1);
    }

    async fn a_server_that_is_told_to_stop_ends_well(place: Place) {
        assert_eq!(place.serve().stop().code(), Some(0));
    }
}

#[test]
fn the_schema_is_printed_without_any_setting() {
    let output = Command::new(env!("CARGO_BIN_EXE_claviger")).arg("schema").env_clear().output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), claviger::graphql::sdl());
}

#[test]
fn wrong_settings_and_arguments_end_with_2() {
    let place = Place::new(TestDatabase::sqlite());
    let output = place.command(&["serve"]).env("PORT", "many").env("HOST", "over there").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @r#"
    claviger: the settings are not valid:
      HOST: "over there" is neither an IP address nor a host name [in the environment]
      PORT: "many" is not a port number (0 to 65535) [in the environment]
    "#);
    assert_eq!(place.run(&["unknown"]).status.code(), Some(2));
    std::fs::write(place.folder.path().join("claviger.toml"), "prot = 3001\n").unwrap();
    let output = place.run(&["serve"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("prot: there is no such setting [in claviger.toml]"));
}

#[test]
fn settings_that_only_the_start_can_judge_end_with_2() {
    for (name, value, said) in [
        ("ADMIN_PASSWORD", "short", "ADMIN_PASSWORD must have"),
        ("CREDENTIAL_ENCRYPTION_KEYS", "v1:short", "CREDENTIAL_ENCRYPTION_KEYS entry 1 is not of the form"),
        ("DATABASE_URL", "postgres://u:CANARY@h/d?sslmode=some", "DATABASE_URL is not a valid PostgreSQL URL: "),
        ("DATABASE_URL", "postgres://u:CANARY@h/d?unknown=CANARY", "unknown"),
        ("REDIS_URL", "redis://u:CANARY@h/CANARY", "REDIS_URL cannot be used: "),
    ] {
        let place = Place::new(TestDatabase::sqlite());
        let output = place.command(&["serve"]).env(name, value).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {text}");
        assert!(text.contains(said) && !text.contains("CANARY"), "{text}");
    }
    for (file, value, said) in [
        ("encryption-keys", "no keys CANARY", "the file encryption-keys in DATA_DIR entry 1 is not"),
        ("jwt-secret", "CANARY of less than 32 bytes\n", "the file jwt-secret in DATA_DIR must have at least 32 bytes"),
    ] {
        let place = Place::new(TestDatabase::sqlite());
        std::fs::create_dir(place.folder.path().join("data")).unwrap();
        std::fs::write(place.folder.path().join("data").join(file), value).unwrap();
        let output = place.run(&["serve"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{file}: {text}");
        assert!(text.contains(said) && !text.contains("CANARY"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_listens_on_a_name() {
    let place = Place::new(TestDatabase::sqlite());
    let mut command = place.command(&["serve"]);
    command.env("HOST", "localhost");
    let server = Place::started(command);
    Client::new(&server.url).signed_in("admin@localhost", crate::support::PASSWORD).await;
    let port = server.url.rsplit(':').next().unwrap();
    let health = place.command(&["healthcheck"]).env("HOST", "localhost").env("PORT", port).output().unwrap();
    assert!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
    let output = place.command(&["serve"]).env("HOST", "nowhere.invalid").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("cannot listen on nowhere.invalid:0: "), "{text}");
}

#[test]
fn a_database_that_cannot_be_reached_is_named() {
    let place = Place::new(TestDatabase::sqlite());
    for (url, said) in [
        ("postgres://nobody:CANARY@127.0.0.1:1/none", "claviger: cannot connect to PostgreSQL at 127.0.0.1:1/none: "),
        ("sqlite:///proc/none/claviger.db", "claviger: cannot open the SQLite database /proc/none/claviger.db: "),
    ] {
        let output = place.command(&["serve"]).env("DATABASE_URL", url).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{url}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(said) && !text.contains("CANARY"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_postgres_lets_nobody_in_is_told() {
    let place = Place::new(TestDatabase::postgres().await);
    let url = &place.database.url;
    for (url, said) in [
        (url.replace("claviger@", "locked:wrong@"), "password authentication failed for user \"locked\""),
        (url.replace("/test_", "/unknown_"), "does not exist"),
        (format!("{url}?sslmode=require"), "TLS"),
    ] {
        let output = place.command(&["migrate", "up"]).env("DATABASE_URL", &url).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{url}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_health_of_no_server_is_no_health() {
    let place = Place::new(TestDatabase::sqlite());
    assert_eq!(place.command(&["healthcheck"]).env("PORT", "1").output().unwrap().status.code(), Some(1));
    let server = place.serve();
    let port = server.url.rsplit(':').next().unwrap();
    assert!(place.command(&["healthcheck"]).env("PORT", port).output().unwrap().status.success());
    let output = place.run(&["healthcheck"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("PORT is 0"), "{said}");
}
