//! `claviger doctor`: what it says of a server in production, and of each thing that can be wrong.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use serde_json::Value;

use crate::audit_chain::{act, drop_triggers};
use crate::command_line::{Place, on_both};
use crate::support::{Behaviour, Client, PASSWORD, SmtpSink, TestDatabase, TestRedis};

const RING: &str = "v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEWER: &str = "v2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const JWT: &str = "canary-jwt-secret-of-32-bytes-or-more";
const EMAIL: &str = "ada@example.com";

/// What stands beside the server, and the settings of one in production.
struct Production {
    place: Place,
    redis: TestRedis,
    _smtp: SmtpSink,
    settings: Vec<(&'static str, String)>,
}

impl Production {
    async fn new(place: Place) -> Self {
        let (redis, smtp) = (TestRedis::start().await, SmtpSink::start(Behaviour::Take).await);
        let mut settings: Vec<_> = [
            ("HOST", "0.0.0.0"),
            ("PUBLIC_URL", "https://claviger.example.com"),
            ("TRUSTED_PROXIES", "10.0.0.0/8"),
            ("FRONTEND_URL", "https://app.example.com"),
            ("JWT_SECRET", JWT),
            ("CREDENTIAL_ENCRYPTION_KEYS", RING),
            ("ADMIN_EMAIL", EMAIL),
            ("INTROSPECTION", "off"),
            ("PLAYGROUND", "off"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .into();
        settings.extend([("REDIS_URL", redis.url()), ("MAIL_FROM", "noreply@example.com".to_owned())]);
        settings.push(("SMTP_URL", smtp.url("canary-user:canary-password@")));
        Self { place, redis, _smtp: smtp, settings }
    }

    fn with_settings(&self, arguments: &[&str], more: &[(&str, &str)]) -> std::process::Command {
        let mut command = self.place.command(arguments);
        command.envs(self.settings.iter().map(|(name, value)| (*name, value)));
        command.envs(more.iter().copied());
        command
    }

    /// Serves once, so that there is something to look at.
    async fn serve_once(&self) {
        let server = Place::started(self.with_settings(&["serve"], &[("HOST", "127.0.0.1")]));
        let admin = Client::new(&server.url).signed_in(EMAIL, PASSWORD).await;
        let input = serde_json::json!({ "apiKey": "sk-ant-canary-account", "accountName": "A" });
        crate::claude_account::create(&admin, input).await;
        act(&admin, 3).await;
        assert!(server.stop().success());
    }

    fn examined(&self, more: &[(&str, &str)]) -> Examined {
        let mut command = self.with_settings(&["doctor", "--format", "json"], more);
        if !more.iter().any(|(name, _)| *name == "ADMIN_PASSWORD") {
            command.env_remove("ADMIN_PASSWORD");
        }
        Examined::of(&command.output().unwrap())
    }
}

struct Examined {
    code: Option<i32>,
    status: Value,
    /// Each check's status and message; of several the last.
    checks: BTreeMap<String, (String, String)>,
}

impl Examined {
    fn of(output: &Output) -> Self {
        let all = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        for secret in [PASSWORD, "canary", RING, &RING[3..], NEWER, &NEWER[3..]] {
            assert!(!all.contains(secret), "{secret}: {all}");
        }
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{all}"));
        let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
        let mut checks = BTreeMap::new();
        for check in answer["checks"].as_array().unwrap() {
            assert_eq!(check["advice"].is_null(), check["status"] == "ok", "{check}");
            checks.insert(text(check, "check"), (text(check, "status"), text(check, "message")));
        }
        Self { code: output.status.code(), status: answer["status"].clone(), checks }
    }

    #[track_caller]
    fn has(&self, check: &str, status: &str, part: &str) {
        let found = self.checks.get(check).unwrap_or_else(|| panic!("{check}: {:?}", self.checks));
        assert!(found.0 == status && found.1.contains(part), "{check}: {found:?}");
    }
}

on_both! {
    async fn a_server_as_it_should_be_has_nothing_to_be_said_of_it(place: Place) {
        let production = Production::new(place).await;
        // Nothing is made by looking.
        let before = production.examined(&[]);
        before.has("data-dir", "warn", "is not there");
        assert!(!production.place.folder().join("data").exists());
        production.serve_once().await;
        let found = production.examined(&[]);
        let others: Vec<_> = found.checks.iter().filter(|(name, (status, _))| *name != "disk-space" && status != "ok").collect();
        assert!(others.is_empty(), "{others:?}");
        // The machine of the test has as much room as it has.
        if found.checks["disk-space"].0 == "ok" {
            assert_eq!((found.code, &found.status), (Some(0), &"ok".into()));
        }
        let documented = std::fs::read_to_string("docs/operations.md").unwrap();
        assert!(found.checks.keys().all(|name| documented.contains(&format!("`{name}`"))), "{:?}", found.checks.keys());
        let text = production.with_settings(&["doctor"], &[]).env_remove("ADMIN_PASSWORD").output().unwrap();
        let text = String::from_utf8(text.stdout).unwrap();
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("ok    ")?.split(' ').next()).collect();
        assert!(found.checks.keys().all(|name| names.contains(&name.as_str()) || name == "disk-space"), "{text}");
    }

    async fn each_thing_that_is_wrong_is_named(place: Place) {
        let mut production = Production::new(place).await;
        production.serve_once().await;
        let (both, another) = (format!("{NEWER},{RING}"), NEWER.replace("v2", "v1"));
        for (more, check, status, part) in [
            (&[("PUBLIC_URL", "http://claviger.example.com")][..], "public-url", "fail", "as they are"),
            (&[("TRUSTED_PROXIES", "")], "trusted-proxies", "fail", "none is trusted"),
            (&[("TRUSTED_PROXIES", "10.0.0.0/8,::/0")], "trusted-proxies", "fail", "::/0 is everybody"),
            (&[("FRONTEND_URL", "")], "frontend-url", "warn", "none"),
            (&[("FRONTEND_URL", "http://app.example.com")], "frontend-url", "fail", "no https"),
            (&[("REGISTRATION", "open")], "registration", "warn", "open"),
            (&[("INTROSPECTION", "on")], "introspection", "warn", "on"),
            (&[("PLAYGROUND", "on")], "playground", "warn", "on"),
            (&[("AUDIT_CHECKPOINT_MINUTES", "0")], "audit-checkpoints", "warn", "none"),
            (&[("ADMIN_PASSWORD", PASSWORD)], "administrator", "warn", "still signs in"),
            (&[("CREDENTIAL_ENCRYPTION_KEYS", both.as_str())], "key-rotation", "warn", "older key than v2"),
            (&[("CREDENTIAL_ENCRYPTION_KEYS", NEWER)], "key-ring", "fail", "lacks v1, which 1 records need"),
            (&[("CREDENTIAL_ENCRYPTION_KEYS", another.as_str())], "key-ring", "fail", "is not the one"),
            (&[("CREDENTIAL_ENCRYPTION_KEYS", "v1:canary")], "key-ring", "fail", ""),
            (&[("SMTP_URL", "smtp://127.0.0.1:9")], "mail", "fail", "127.0.0.1:9: "),
            (&[("SMTP_URL", "")], "mail", "warn", "nobody gets them"),
            (&[("CLAUDE_CLI", "no/claude")], "claude-cli", "warn", "no/claude is not there"),
            (&[("DATABASE_URL", "postgres://canary:canary@127.0.0.1:9/d")], "database", "fail", "127.0.0.1:9/d"),
            (&[("DATABASE_URL", "sqlite://no/such.db")], "database", "warn", "no/such.db is not there"),
        ] {
            let found = production.examined(more);
            found.has(check, status, part);
            let code = if found.status == "fail" { 2 } else { 1 };
            assert_eq!(found.code, Some(code), "{more:?}");
        }
        let data = production.place.folder().join("data");
        for (mode, status) in [(0o755, "fail"), (0o750, "warn")] {
            std::fs::set_permissions(&data, Permissions::from_mode(mode)).unwrap();
            production.examined(&[]).has("data-dir", status, "can enter it");
        }
        std::fs::write(data.join("jwt-secret"), "short").unwrap();
        std::fs::set_permissions(data.join("jwt-secret"), Permissions::from_mode(0o644)).unwrap();
        let found = production.examined(&[("JWT_SECRET", "")]);
        found.has("file-modes", "fail", "jwt-secret");
        found.has("jwt-secret", "fail", "at least 32 bytes");
        found.has("generated-secrets", "warn", "JWT_SECRET");
        production.redis.kill();
        production.examined(&[]).has("redis", "fail", "is away");
        drop_triggers(&production.place.database).await;
        production.place.database.execute("UPDATE audit_logs SET operation = 'x' WHERE sequence = 3").await.unwrap();
        production.examined(&[]).has("audit-log", "fail", "at entry 3");
        let then = "'2026-01-01T00:00:00.000000Z'";
        let missed = format!("DELETE FROM leases; INSERT INTO leases (name, term, changed_at, finished_at) VALUES ('cleanup', 1, {then}, {then})");
        production.place.database.execute(&missed).await.unwrap();
        production.examined(&[]).has("jobs", "warn", "cleanup");
        production.place.run_well(&["migrate", "down", "--yes"]);
        production.examined(&[]).has("migrations", "fail", "1 of ");
        production.place.database.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')").await.unwrap();
        production.examined(&[]).has("migrations", "fail", "99990101000000");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_try_on_one_machine_has_nothing_wrong() {
    let place = Place::new(TestDatabase::sqlite());
    assert!(place.serve().stop().success());
    let output = place.command(&["doctor", "--format", "json"]).env_remove("ADMIN_PASSWORD").output().unwrap();
    let found = Examined::of(&output);
    let failed: Vec<_> = found.checks.iter().filter(|(_, (status, _))| status == "fail").collect();
    assert!(failed.is_empty(), "{failed:?}");
    found.has("administrator", "warn", "admin@localhost");
    found.has("public-url", "warn", "this machine alone");
    found.has("claude-cli", "ok", "conversations are not answered");
    assert_eq!(found.code, Some(1));
}

#[test]
fn settings_that_cannot_be_read_are_wrong() {
    let place = Place::new(TestDatabase::sqlite());
    let output = place.command(&["doctor"]).env("TRUSTED_PROXIES", "everybody").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
