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
    /// How its value is treated.
    pub kind: Kind,
}

/// How a setting's value is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message about it may show it.
    Plain,
    /// A URL may hold a password: no message shows it.
    Url,
    /// No message shows it, and `<name>_FILE` may name a file that holds it.
    Secret,
}

/// The setting that a variable sets, by itself or by a file.
pub(super) fn setting_of(variable: &str) -> Option<&'static Setting> {
    let file_of = variable.strip_suffix("_FILE");
    let is_meant =
        |setting: &&Setting| setting.name == variable || setting.kind == Kind::Secret && Some(setting.name) == file_of;
    TABLE.iter().find(is_meant)
}

macro_rules! settings {
    ($($kind:ident $name:literal, $default:literal, $about:literal;)+) => {
        /// Every setting.
        pub const TABLE: &[Setting] =
            &[$(Setting { name: $name, default: $default, about: $about, kind: Kind::$kind }),+];
    };
}

settings! {
    Url "DATABASE_URL", "`sqlite://<DATA_DIR>/claviger.db`", "`sqlite://<path>` or `postgres://…`";
    Plain "DATABASE_POOL_SIZE", "`10`", "connections to the database at most, 1 to 500";
    Url "REDIS_URL", "none: in memory", "`redis://…`, with TLS `rediss://…`, or `redis+unix:///…`: what several servers share";
    Plain "DATA_DIR", "`./data`", "where files are kept; made with mode 0700";
    Plain "HOST", "`127.0.0.1`", "the IP address to listen on, or a name: then the first of its addresses that can be listened on";
    Plain "PORT", "`3001`", "the port to listen on; 0 takes a free one";
    Secret "JWT_SECRET", "generated into DATA_DIR", "signs access tokens, at least 32 bytes; also `JWT_SECRET_FILE`";
    Secret "CREDENTIAL_ENCRYPTION_KEYS", "generated into DATA_DIR", "`v2:base64,v1:base64`: the first seals, all open; also `CREDENTIAL_ENCRYPTION_KEYS_FILE`";
    Plain "ADMIN_EMAIL", "`admin@localhost`", "the first administrator's address, for the first start";
    Secret "ADMIN_PASSWORD", "generated and printed once", "the first administrator's password, for the first start; also `ADMIN_PASSWORD_FILE`";
    Plain "REGISTRATION", "`closed`", "`open`: anybody may make an organization of their own";
    Secret "SMTP_URL", "none: mails are written to `<DATA_DIR>/outbox`", "where mails are handed over: `smtps://user:password@host` (TLS), `smtp://…` (STARTTLS; without TLS on this machine or with `?tls=none`); also `SMTP_URL_FILE`";
    Plain "MAIL_FROM", "`Claviger <claviger@localhost>`", "who mails are from; must be set where `SMTP_URL` is";
    Url "FRONTEND_URL", "none", "origins that browsers may call from, comma-separated; links in mails and invitations lead to the first";
    Url "PUBLIC_URL", "from HOST and PORT", "where the server is reached from outside, for links; with https, browsers are told to stay with it";
    Plain "TRUSTED_PROXIES", "none", "addresses and networks whose X-Forwarded-For, X-Request-Id and traceparent are believed, comma-separated";
    Url "ANTHROPIC_BASE_URL", "`https://api.anthropic.com`", "the default upstream; not the one that programs set: never this server itself";
    Plain "UPSTREAM_ALLOWED_HOSTS", "none", "hosts, with or without a port, that accounts may name over plain HTTP or at private addresses";
    Plain "UPSTREAM_TIMEOUT", "`600`", "seconds that an upstream may say nothing, before its answer and within it, 1 to 3600";
    Plain "CLAUDE_CLI", "`claude`", "the Claude CLI that answers conversations: a path, or a name in PATH; where it is missing, the server does without";
    Plain "CLAUDE_TOOLS", "none", "tools of the CLI that conversations may use, comma-separated, like `WebSearch,WebFetch`; some act on the server as its user (docs/conversations.md)";
    Plain "MAX_WORKERS", "`5`", "processes of the CLI at once, 1 to 100; each takes some 200 MB";
    Plain "WORKER_TIMEOUT", "`300`", "seconds that an answer in a conversation may take, 1 to 3600";
    Plain "WORKER_IDLE_TIMEOUT", "`300`", "seconds that a process waits for the next message of its conversation, 1 to 86400";
    Plain "TURN_TOKEN_BUDGET", "`1000000`", "tokens that an answer in a conversation may use, with what it reads, 1000 to 100000000; it ends where it is by then";
    Plain "AUDIT_CHECKPOINT_MINUTES", "`60`", "how often the ends of the audit logs are signed into the log, and when the server stops; 0 to 10080, 0: never";
    Plain "AUDIT_RETENTION_DAYS", "none: kept", "days that audit entries are kept, 1 to 36500; a signed seal keeps the rest verifiable";
    Plain "USAGE_RETENTION_DAYS", "none: kept", "days that usage records are kept, 1 to 36500; what they add up to stays, for reports and bills";
    Plain "PRICES_FILE", "the table in the program", "a JSON file with the prices of all models (docs/usage.md)";
    Plain "DEFAULT_RATE_LIMIT_PER_HOUR", "`1000`", "requests an hour of an API key that has no limits of its own, and of all conversations of a user who has signed in, up to 1000000; 0: any number";
    Plain "RATE_LIMIT_ANONYMOUS_PER_MINUTE", "`120`", "requests a minute from an address without a sign-in, up to 1000000; 0: any number";
    Plain "RATE_LIMIT_USER_PER_MINUTE", "`600`", "requests a minute of a signed-in user, up to 1000000; 0: any number";
    Plain "FAILED_SIGN_INS_PER_HOUR", "`60`", "sign-ins from an address that may fail in an hour, 1 to 1000000";
    Plain "REGISTRATIONS_PER_HOUR", "`5`", "organizations that an address may register in an hour, 1 to 1000000";
    Plain "RATE_LIMIT_WITHOUT_REDIS", "`local`", "while Redis is away: `local`, each server counts by itself; `open`, requests are not limited; `closed`, they are refused. What guards against guessing is `local` always";
    Plain "LOG_LEVEL", "`info`", "`error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,claviger=debug`";
    Plain "LOG_FORMAT", "`pretty` on a terminal, else `json`", "`pretty` or `json`";
    Url "OTEL_EXPORTER_OTLP_ENDPOINT", "none", "where traces are sent, as OTLP over HTTP, like `http://localhost:4318`";
    Plain "INTROSPECTION", "`on`", "whether queries may ask for the schema; its text is at `/schema.graphql` anyway";
    Plain "PLAYGROUND", "`on`", "whether the playground is served at `/`";
    Plain "REQUEST_TIMEOUT", "`30`", "seconds that a request may take, 1 to 600";
    Plain "SHUTDOWN_TIMEOUT", "`30`", "seconds that requests may still run when the server is told to stop, 0 to 600";
}

/// The table in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| variable | default | |\n|---|---|---|\n");
    for Setting { name, default, about, .. } in TABLE {
        let _ = writeln!(text, "| `{name}` | {default} | {about} |");
    }
    text
}
