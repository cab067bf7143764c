//! What the database tells: of itself, of the keys that it was used with, and of what servers have done in it.

use std::time::Duration;

use crate::app::open_database;
use crate::crypto::{KeyRing, Random, SecretText};
use crate::domain::audit_integrity::glance;
use crate::domain::organization::is_begun;
use crate::domain::{self, encryption_key, keys};
use crate::identity::password::{Hasher, PasswordHash, Verdict};
use crate::model::{Clock, Timestamp, UserStatus};
use crate::settings::{DatabaseUrl, Settings};
use crate::store::{self, Db, MigrationError, database_clock, job_lease, user as users};
use secrecy::ExposeSecret as _;

use super::Finding;

/// How many of each organization's last audit entries are looked at.
const GLANCE: i64 = 1000;
/// How far clocks may be apart before it is worth a word, and before tokens and leases end too soon.
const APART: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// After how long without success a job that is done every hour is missed.
const MISSED: Duration = Duration::from_secs(6 * 60 * 60);

/// Looks at it as far as it lets itself be looked at.
pub(super) async fn check(settings: &Settings, ring: Option<&KeyRing>) -> Vec<Finding> {
    const CHECK: &str = "database";
    if let DatabaseUrl::Sqlite(path) = &settings.database_url
        && !path.exists()
    {
        let message = format!("{} is not there", path.display());
        return vec![Finding::warn(CHECK, message, "look at DATABASE_URL; the first start makes the file")];
    }
    let opened = async {
        let db = open_database(settings).await?;
        db.read().await?;
        Ok::<_, crate::app::StartError>(db)
    };
    let db = match opened.await {
        Ok(db) => db,
        Err(error) => {
            let message = format!("{}; what is in it was not looked at", chained(&error));
            return vec![Finding::fail(
                CHECK,
                message,
                "look at DATABASE_URL, at the server and at the network between",
            )];
        }
    };
    let now = Clock::system().now();
    let mut found = vec![Finding::ok(CHECK, format!("{} {}", db.kind(), db.place()))];
    found.push(clock(&db).await);
    let (migrations, is_current) = migrations(&db).await;
    found.push(migrations);
    if !is_current {
        return found;
    }
    match is_begun(&db).await {
        Ok(true) => {}
        Ok(false) => {
            let message = "there is no organization yet";
            found.push(Finding::warn("first-start", message, "start the server, which makes one with its first ADMIN"));
            return found;
        }
        Err(error) => {
            found.push(unread("first-start", &error));
            return found;
        }
    }
    found.push(administrator(settings, &db).await);
    if let Some(ring) = ring {
        found.extend(key_ring(&db, ring, now).await);
    }
    found.push(audit_log(&db).await);
    found.push(jobs(&db, now).await);
    found
}

fn unread(check: &'static str, error: &(dyn std::error::Error + 'static)) -> Finding {
    Finding::fail(check, format!("cannot be read: {}", chained(error)), "look at the database's own log")
}

/// An error with its causes.
fn chained(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

async fn clock(db: &Db) -> Finding {
    const CHECK: &str = "clock";
    let clock = Clock::system();
    let before = clock.now();
    let asked = async { database_clock::now(&mut db.read().await?).await };
    let theirs = match asked.await {
        Ok(Some(theirs)) => theirs,
        Ok(None) => return Finding::ok(CHECK, "SQLite has none but this machine's"),
        Err(error) => return unread(CHECK, &error),
    };
    let after = clock.now();
    // Between the two it said so.
    let apart = (theirs - after).max(before - theirs).to_std().unwrap_or_default();
    let message =
        format!("{} ms from the database's at most", (theirs - after).max(before - theirs).num_milliseconds().max(0));
    let advice = "let both be set by NTP: what expires is judged by the servers' clocks, and they must agree";
    if apart >= APART.1 {
        Finding::fail(CHECK, message, advice)
    } else if apart >= APART.0 {
        Finding::warn(CHECK, message, advice)
    } else {
        Finding::ok(CHECK, message)
    }
}

async fn migrations(db: &Db) -> (Finding, bool) {
    const CHECK: &str = "migrations";
    match db.migrations().await {
        Ok(known) => {
            let pending = known.iter().filter(|migration| !migration.applied).count();
            match pending {
                0 => (Finding::ok(CHECK, format!("all {} are applied", known.len())), true),
                _ if pending == known.len() => {
                    let advice = "start the server, which makes the tables; if it has run, look at DATABASE_URL";
                    (Finding::warn(CHECK, "there are no tables yet", advice), false)
                }
                _ => {
                    let message = format!("{pending} of {} are not applied", known.len());
                    (Finding::fail(CHECK, message, "back up, then claviger migrate up, or start the server"), false)
                }
            }
        }
        Err(error @ MigrationError::FromTheFuture(_)) => (
            Finding::fail(
                CHECK,
                error.to_string(),
                "run the version that the database was migrated by, or a newer one",
            ),
            false,
        ),
        Err(error) => (unread(CHECK, &error), false),
    }
}

/// The first administrator, as the settings have it.
async fn administrator(settings: &Settings, db: &Db) -> Finding {
    const CHECK: &str = "administrator";
    let email = &settings.admin_email;
    let found = async { users::find_by_email(&mut db.read().await?, email).await };
    let found = match found.await {
        Ok(found) => found.filter(|(user, _)| user.status == UserStatus::Active),
        Err(error) => return unread(CHECK, &error),
    };
    let Some((_, hash)) = found else { return Finding::ok(CHECK, format!("{email} does not sign in")) };
    if let Some(password) = &settings.admin_password {
        let password = SecretText::from(password.expose_secret().to_owned());
        let verdict = Hasher::new(Random::system()).verify(&password, hash.map(PasswordHash::from)).await;
        if !matches!(verdict, Ok(Verdict::NoMatch)) {
            let message = format!("{email} still signs in with ADMIN_PASSWORD");
            return Finding::warn(
                CHECK,
                message,
                "change the password, and take ADMIN_PASSWORD out: only the first start reads it",
            );
        }
    }
    if email.as_str().ends_with("@localhost") {
        let message = format!("{email} signs in, to which no mail can be sent");
        let advice = "make one with an address: claviger admin create --email …; then delete this one, and set ADMIN_EMAIL to the new one";
        return Finding::warn(CHECK, message, advice);
    }
    Finding::ok(CHECK, format!("{email}, by a password of their own"))
}

async fn key_ring(db: &Db, ring: &KeyRing, now: Timestamp) -> Vec<Finding> {
    const CHECK: &str = "key-ring";
    let advice = "restore CREDENTIAL_ENCRYPTION_KEYS, or encryption-keys in DATA_DIR";
    let is_known = match encryption_key::is_known(db, ring, now).await {
        Ok(is_known) => is_known,
        Err(error) if error.code() == domain::Code::Conflict => {
            return vec![Finding::fail(CHECK, error.to_string(), advice)];
        }
        Err(error) => return vec![unread(CHECK, &error)],
    };
    let of_ring = match keys::missing(db, ring, now).await {
        Ok(missing) if missing.is_empty() => {
            let message =
                if is_known { "every key that records need is there" } else { "complete, with a key that is new" };
            Finding::ok(CHECK, message)
        }
        Ok(missing) => {
            let named: Vec<_> =
                missing.iter().map(|key| format!("{}, which {} records need", key.version, key.records)).collect();
            Finding::fail(CHECK, format!("lacks {}", named.join("; ")), "put it back, behind the newest")
        }
        Err(error) => unread(CHECK, &error),
    };
    vec![of_ring, rotation(db, ring, now).await]
}

async fn rotation(db: &Db, ring: &KeyRing, now: Timestamp) -> Finding {
    const CHECK: &str = "key-rotation";
    let counted = async {
        let records = keys::count_older(db, ring).await?;
        Ok::<_, store::Error>((records, keys::count_older_api_keys(db, ring, now).await?))
    };
    let newest = ring.newest_version();
    match counted.await {
        Ok((0, 0)) => Finding::ok(CHECK, format!("all is sealed with {newest}")),
        Ok((0, api_keys)) => Finding::ok(
            CHECK,
            format!("all is sealed with {newest}; {api_keys} API keys are found by an older key until each is used"),
        ),
        Ok((records, _)) => Finding::warn(
            CHECK,
            format!("{records} records are sealed with an older key than {newest}"),
            "claviger keys rotate",
        ),
        Err(error) => unread(CHECK, &error),
    }
}

async fn audit_log(db: &Db) -> Finding {
    const CHECK: &str = "audit-log";
    let organizations = async { store::keys::organizations(&mut db.scan().await?).await };
    let organizations = match organizations.await {
        Ok(organizations) => organizations,
        Err(error) => return unread(CHECK, &error),
    };
    let mut entries = 0;
    for organization in &organizations {
        match glance(db, *organization, GLANCE).await {
            Ok(Ok(whole)) => entries += whole,
            Ok(Err(broken)) => {
                let message = format!("of {organization} is not whole, at entry {}", broken.sequence);
                return Finding::fail(CHECK, message, "claviger audit verify says how; keep the database as it is");
            }
            Err(error) => return unread(CHECK, &error),
        }
    }
    let message = format!(
        "the last {entries} entries of {} organizations are whole; claviger audit verify looks at all",
        organizations.len()
    );
    Finding::ok(CHECK, message)
}

async fn jobs(db: &Db, now: Timestamp) -> Finding {
    const CHECK: &str = "jobs";
    let leases = async { job_lease::find_all(&mut db.read().await?).await };
    let leases = match leases.await {
        Ok(leases) => leases,
        Err(error) => return unread(CHECK, &error),
    };
    let is_missed = |at: &Timestamp| (now - *at).to_std().is_ok_and(|since| since > MISSED);
    let missed: Vec<_> = leases
        .iter()
        .filter(|lease| lease.finished_at.as_ref().is_some_and(is_missed))
        .map(|lease| lease.name.as_str())
        .collect();
    if missed.is_empty() {
        return Finding::ok(CHECK, format!("{} were done lately, or are new", leases.len()));
    }
    let message = format!("not done for more than {} hours: {}", MISSED.as_secs() / 3600, missed.join(", "));
    Finding::warn(CHECK, message, "is a server running? Its log says why they fail")
}
