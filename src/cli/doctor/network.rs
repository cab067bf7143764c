//! What the server needs besides: Redis, the way of mails, and the Claude CLI.

use std::path::Path;

use super::Finding;
use crate::mail::Mailer;
use crate::redis::Redis;
use crate::settings::{DatabaseUrl, Settings};
use crate::workers::find_program;

/// Asks each whether it is there.
pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    vec![redis(settings).await, mail(settings).await, claude_cli(&settings.claude_cli)]
}

async fn redis(settings: &Settings) -> Finding {
    const CHECK: &str = "redis";
    let Some(url) = &settings.redis_url else {
        return Finding::ok(
            CHECK,
            match settings.database_url {
                DatabaseUrl::Sqlite(_) => "none, as one server needs none",
                DatabaseUrl::Postgres(_) => "none: each server counts rate limits by itself",
            },
        );
    };
    match Redis::open(url).await {
        Ok(redis) if redis.is_there() => Finding::ok(CHECK, "is there, and takes scripts"),
        Ok(_) => Finding::fail(
            CHECK,
            "is away, or takes no scripts",
            "look at REDIS_URL, at Redis and at the network between: the log line above says more",
        ),
        Err(error) => {
            Finding::fail(CHECK, format!("REDIS_URL cannot be used: {error}"), "set it as docs/operations.md says")
        }
    }
}

async fn mail(settings: &Settings) -> Finding {
    const CHECK: &str = "mail";
    let Some(server) = &settings.smtp else {
        let message = "without SMTP_URL mails are files in DATA_DIR: nobody gets them";
        return Finding::warn(CHECK, message, "set SMTP_URL and MAIL_FROM");
    };
    let place = format!("{}:{}", server.host, server.port);
    let advice = "look at SMTP_URL, at the mail server and at the network between";
    match Mailer::new(settings) {
        Ok(mailer) => match mailer.check().await {
            Ok(()) => Finding::ok(CHECK, format!("{place} lets this server in")),
            Err(error) => Finding::fail(CHECK, format!("{place}: {error}"), advice),
        },
        Err(error) => Finding::fail(CHECK, error.to_string(), "look at MAIL_FROM and SMTP_URL"),
    }
}

fn claude_cli(named: &Path) -> Finding {
    const CHECK: &str = "claude-cli";
    match find_program(named) {
        Some(place) => Finding::ok(CHECK, place.display().to_string()),
        // The default: nobody has asked for it.
        None if named == Path::new("claude") => {
            Finding::ok(CHECK, "claude is not in PATH: conversations are not answered")
        }
        None => Finding::warn(
            CHECK,
            format!("{} is not there: conversations are not answered", named.display()),
            "install the Claude CLI, and name it in CLAUDE_CLI",
        ),
    }
}
