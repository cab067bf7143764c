//! Settings: defaults, wrong ones, secrets.

use claviger::settings::{DataDir, DatabaseUrl, Settings, Sources, TABLE, markdown};
use proptest::prelude::*;
use secrecy::ExposeSecret as _;

fn load(pairs: &[(&str, &str)]) -> Result<Settings, String> {
    Settings::load(&Sources::from_pairs(pairs.iter().copied())).map_err(|error| error.to_string())
}

#[test]
fn without_settings_there_is_a_working_default() {
    let settings = load(&[]).unwrap();
    assert_eq!(settings.listen.to_string(), "127.0.0.1:3001");
    assert!(
        matches!(settings.database_url, DatabaseUrl::Sqlite(path) if path == std::path::Path::new("./data/claviger.db"))
    );
    assert_eq!(load(&[("PORT", "")]).unwrap().listen.port(), 3001, "an empty value counts as not set");
}

#[test]
fn every_wrong_setting_names_itself() {
    for (name, value) in [
        ("DATABASE_URL", "mysql://h/d"),
        ("DATABASE_URL", "claviger.db"),
        ("DATABASE_URL", "sqlite://:memory:"),
        ("DATABASE_POOL_SIZE", "0"),
        ("HOST", "localhost"),
        ("PORT", "70000"),
        ("JWT_SECRET", "short"),
        ("ADMIN_EMAIL", "nobody"),
        ("FRONTEND_URL", "https://a.example/path"),
        ("FRONTEND_URL", "*"),
        ("PUBLIC_URL", "ftp://x"),
        ("TRUSTED_PROXIES", "proxy"),
        ("ANTHROPIC_BASE_URL", "x"),
        ("UPSTREAM_ALLOWED_HOSTS", "http://x/"),
        ("LOG_LEVEL", "=="),
        ("LOG_FORMAT", "xml"),
        ("INTROSPECTION", "maybe"),
        ("PLAYGROUND", "1"),
        ("REQUEST_TIMEOUT", "0"),
        ("SHUTDOWN_TIMEOUT", "-1"),
        ("PROT", "1"),
    ] {
        let error = load(&[(name, value)]).unwrap_err();
        assert!(error.contains(&format!("\n  {name}: ")), "{name}={value}: {error}");
    }
}

#[test]
fn all_wrong_settings_are_named_at_once() {
    let error = load(&[("PORT", "x"), ("HOST", "y"), ("LOG_FORMAT", "z")]).unwrap_err();
    insta::assert_snapshot!(error, @r#"
    the settings are not valid:
      HOST: is not an IP address [as given]
      LOG_FORMAT: is neither "pretty" nor "json" [as given]
      PORT: is not a port number (0 to 65535) [as given]
    "#);
}

#[test]
fn a_secret_is_read_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "a secret of more than thirty-two bytes\n").unwrap();
    let path = path.to_str().unwrap();
    let settings = load(&[("JWT_SECRET_FILE", path)]).unwrap();
    assert_eq!(settings.jwt_secret.unwrap().expose_secret(), "a secret of more than thirty-two bytes");
    assert!(load(&[("JWT_SECRET_FILE", "/does/not/exist")]).unwrap_err().contains("JWT_SECRET_FILE: cannot be read"));
    assert!(load(&[("JWT_SECRET_FILE", path), ("JWT_SECRET", path)]).unwrap_err().contains("together with JWT_SECRET"));
}

#[test]
fn no_secret_is_printed() {
    let canary = "canary-canary-canary-canary-canary";
    let url = format!("postgres://user:{canary}@host/db");
    let pairs = [
        ("JWT_SECRET", canary),
        ("CREDENTIAL_ENCRYPTION_KEYS", canary),
        ("ADMIN_PASSWORD", canary),
        ("DATABASE_URL", url.as_str()),
    ];
    assert!(!format!("{:?}", load(&pairs).unwrap()).contains(canary));
    assert!(!load(&[("DATABASE_URL", &format!("mysql://u:{canary}@h"))]).unwrap_err().contains(canary));
}

#[test]
fn the_readme_has_the_table_of_settings() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    assert!(readme.contains(&markdown()), "README.md lacks this table:\n{}", markdown());
}

#[test]
fn generated_secrets_stay_and_are_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let racers: Vec<_> = (0..8)
        .map(|n| {
            let path = path.clone();
            std::thread::spawn(move || {
                let dir = DataDir::open(&path).unwrap();
                dir.secret("key", || format!("secret {n}").into()).unwrap().0.expose_secret().to_owned()
            })
        })
        .collect();
    let secrets: std::collections::BTreeSet<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
    assert_eq!(secrets.len(), 1);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("key"))), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1, "no draft is left");
}

proptest! {
    #[test]
    fn no_value_makes_the_settings_panic(index in 0..TABLE.len(), value in ".{0,60}") {
        let _ = load(&[(TABLE[index].name, &value)]);
    }
}
