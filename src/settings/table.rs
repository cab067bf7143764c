//! The table of all settings: what `--help` and the documentation show.

use std::fmt::Write as _;

/// One setting, as it is documented.
#[derive(Debug)]
pub struct Setting {
    /// The variable; in `claviger.toml` the same in lower case.
    pub name: &'static str,
    /// What holds where it is not set.
    pub default: &'static str,
    /// What it is.
    pub about: &'static str,
}

macro_rules! settings {
    ($($name:literal, $default:literal, $about:literal;)+) => {
        /// Every setting.
        pub const TABLE: &[Setting] = &[$(Setting { name: $name, default: $default, about: $about }),+];
    };
}

settings! {
    "DATABASE_URL", "sqlite://<DATA_DIR>/claviger.db", "`sqlite://<path>` or `postgres://…`";
    "DATABASE_POOL_SIZE", "10", "connections to the database at most, 1 to 500";
    "DATA_DIR", "./data", "where files are kept; made with mode 0700";
    "HOST", "127.0.0.1", "the address to listen on";
    "PORT", "3001", "the port to listen on; 0 takes a free one";
    "JWT_SECRET", "generated into DATA_DIR", "signs access tokens, at least 32 bytes; also `JWT_SECRET_FILE`";
    "CREDENTIAL_ENCRYPTION_KEYS", "generated into DATA_DIR", "`v2:base64,v1:base64`: the first seals, all open; also `CREDENTIAL_ENCRYPTION_KEYS_FILE`";
    "ADMIN_EMAIL", "admin@localhost", "the first administrator's address, for the first start";
    "ADMIN_PASSWORD", "generated and printed once", "the first administrator's password, for the first start; also `ADMIN_PASSWORD_FILE`";
    "FRONTEND_URL", "none", "origins that browsers may call from, comma-separated";
    "PUBLIC_URL", "from HOST and PORT", "where the server is reached from outside";
    "TRUSTED_PROXIES", "none", "addresses and networks whose X-Forwarded-For is believed, comma-separated";
    "ANTHROPIC_BASE_URL", "https://api.anthropic.com", "the default upstream";
    "UPSTREAM_ALLOWED_HOSTS", "none", "hosts, with or without a port, that accounts may name over plain HTTP or at private addresses";
    "LOG_LEVEL", "info", "`error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,claviger=debug`";
    "LOG_FORMAT", "pretty on a terminal, else json", "`pretty` or `json`";
    "INTROSPECTION", "on", "whether the schema may be asked for";
    "PLAYGROUND", "on", "whether the playground is served at `/`";
    "REQUEST_TIMEOUT", "30", "seconds that a request may take, 1 to 600";
    "SHUTDOWN_TIMEOUT", "30", "seconds that requests may still run when the server is told to stop, 0 to 600";
}

/// The table in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| variable | default | |\n|---|---|---|\n");
    for Setting { name, default, about } in TABLE {
        let _ = writeln!(text, "| `{name}` | {default} | {about} |");
    }
    text
}
