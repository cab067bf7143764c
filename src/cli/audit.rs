//! `claviger audit`.

use std::io::{self, Write as _};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;

use super::audit_export::{self, Format};
use super::{Failure, as_operator_of, with_causes};
use crate::app::App;
use crate::audit::Statement;
use crate::domain::audit_integrity::{Broken, Fault, Integrity, verify};
use crate::model::{ChainPoint, Clock, OrganizationId, Timestamp};
use crate::settings::Settings;
use crate::store::keys::organizations;

/// What to do with the audit log.
#[derive(Subcommand)]
pub(super) enum Audit {
    /// Compute the hash chains again; name the first entry that breaks one.
    #[command(
        after_help = "All logs are gone through, whatever is found in one. Exit codes: 0, every log is whole; 1, one is not, and \
        its first broken entry is named, or one cannot be read; 2, none is broken, but the arguments or the settings are wrong, \
        the key ring lacks a key, the checkpoint is not signed by a key of this server, or the retention has removed what \
        --expect names."
    )]
    Verify {
        /// An earlier head, SEQ:HASH as this command prints it, or a checkpoint from the log stream: the log must still have
        /// it.
        #[arg(long, value_name = "SEQ:HASH")]
        expect: Option<Expected>,
        /// Only this organization's log.
        #[arg(long, value_name = "ID")]
        organization: Option<OrganizationId>,
    },
    /// Print the entries, the oldest first. The export is itself an entry.
    Export {
        /// Not before this time, like 2026-11-21T00:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = time)]
        from: Option<Timestamp>,
        /// Before this time.
        #[arg(long, value_name = "TIME", value_parser = time)]
        to: Option<Timestamp>,
        /// How: a JSON object a line, or CSV with a heading, in which a quote stands before what a spreadsheet would compute.
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// This organization's log; the operator's own where it is left out.
        #[arg(long, value_name = "ID")]
        organization: Option<OrganizationId>,
    },
    /// Print the public keys that the signatures of checkpoints are checked with, the newest first.
    PublicKey,
}

/// What `--expect` takes.
#[derive(Debug, Clone)]
pub(super) enum Expected {
    Point(ChainPoint),
    Checkpoint(Box<Statement>),
}

impl FromStr for Expected {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let point = text.parse().map(Self::Point).ok();
        let either = point.or_else(|| text.parse().map(|statement| Self::Checkpoint(Box::new(statement))).ok());
        either.ok_or("is neither SEQ:HASH nor a signed checkpoint")
    }
}

/// Does what is asked for.
pub(super) async fn run(settings: &Settings, command: Audit) -> Result<(), Failure> {
    let app = App::of_begun(settings, Clock::system()).await?;
    match command {
        Audit::Verify { expect, organization } => verify_all(&app, expect, organization).await,
        Audit::Export { from, to, format, organization } => {
            let organization = match organization {
                Some(named) => known(&app, named).await?,
                None => app.services.home,
            };
            audit_export::run(&app, organization, from, to, format).await
        }
        Audit::PublicKey => {
            for (version, key) in app.services.keys.public_keys() {
                say(&format!("{version} {}", in_pem(&key)));
            }
            Ok(())
        }
    }
}

/// The key as the one line of a PEM file, which other programs read.
fn in_pem(key: &[u8]) -> String {
    /// What stands before an Ed25519 key in the DER of a `SubjectPublicKeyInfo` (RFC 8410).
    const HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    STANDARD.encode([&HEAD, key].concat())
}

async fn verify_all(app: &App, expect: Option<Expected>, organization: Option<OrganizationId>) -> Result<(), Failure> {
    let known = all(app).await?;
    let (of, point) = match expect {
        Some(Expected::Checkpoint(statement)) => {
            let wrong = |error| Failure::Usage(format!("--expect: {error}"));
            statement.check(&app.services.keys).map_err(wrong)?;
            if organization.is_some_and(|named| named != statement.organization) {
                return Err(Failure::Usage("--expect: the checkpoint is of another organization".to_owned()));
            }
            (Some(statement.organization), Some(statement.point))
        }
        Some(Expected::Point(point)) => {
            let only = if let [only] = known[..] { Some(only) } else { None };
            let of = organization.or(only);
            if of.is_none() {
                return Err(Failure::Usage("--expect: there are several organizations: add --organization".to_owned()));
            }
            (of, Some(point))
        }
        None => (None, None),
    };
    if let Some(named) = organization.filter(|named| !known.contains(named)) {
        return Err(Failure::Usage(format!("there is no organization {named}")));
    }
    // A checkpoint names an organization that the server has signed for: gone, its log is cut off whole.
    let gone = of.filter(|of| !known.contains(of));
    let mut faults = Vec::new();
    let mut unread = None;
    for organization in organization.map_or(known, |named| vec![named]).into_iter().chain(gone) {
        let expected = point.filter(|_| of == Some(organization));
        let found = as_operator_of(&app.services, organization, "audit verify", async |cx| verify(cx, expected).await);
        match found.await {
            Ok(found) => {
                say(&format!("{organization} {}", report(&found)));
                faults.extend(found.broken.map(|broken| broken.fault));
            }
            Err(failure) => {
                say(&format!("{organization} NOT VERIFIED: {}", with_causes(&failure)));
                unread = unread.or(Some(failure));
            }
        }
    }
    conclude(app, &faults, unread).await
}

/// What the command ends with: that a log is broken goes before all else.
async fn conclude(app: &App, faults: &[Fault], unread: Option<Failure>) -> Result<(), Failure> {
    if faults.iter().any(|fault| !matches!(fault, Fault::SealKeyMissing | Fault::ExpectedRemoved)) {
        return Err(Failure::Other("the audit log is not whole".to_owned()));
    }
    if let Some(failure) = unread {
        return Err(failure);
    }
    if faults.contains(&Fault::SealKeyMissing) {
        // Names the key, and what else it is needed for.
        app.check_keys().await?;
        return Err(Failure::Usage("the key ring lacks a key".to_owned()));
    }
    if faults.is_empty() {
        return Ok(());
    }
    let message = "--expect: names an entry that the retention has removed, so that nothing can be held against it: take a later one";
    Err(Failure::Usage(message.to_owned()))
}

async fn all(app: &App) -> Result<Vec<OrganizationId>, Failure> {
    let read = async { organizations(&mut app.services.db.read().await?).await };
    read.await.map_err(|error| Failure::Deed(error.into()))
}

async fn known(app: &App, named: OrganizationId) -> Result<OrganizationId, Failure> {
    let is_known = all(app).await?.contains(&named);
    if is_known { Ok(named) } else { Err(Failure::Usage(format!("there is no organization {named}"))) }
}

fn report(found: &Integrity) -> String {
    let head = found.head.map_or_else(|| "empty".to_owned(), |head| head.to_string());
    let sealed = match found.sealed {
        0 => String::new(),
        sealed => format!(", sealed up to {sealed}"),
    };
    match &found.broken {
        None => format!("intact: {} entries{sealed}, head {head}", found.entries),
        Some(broken) if broken.fault == Fault::SealKeyMissing => format!("NOT VERIFIED: {}", named(broken)),
        Some(broken) if broken.fault == Fault::ExpectedRemoved => {
            format!("intact, but {}: {} entries{sealed}, head {head}", named(broken), found.entries)
        }
        Some(broken) => {
            format!("BROKEN: {}; {} entries before it are whole{sealed}, up to {head}", named(broken), found.entries)
        }
    }
}

fn named(Broken { fault, sequence, id }: &Broken) -> String {
    let entry = match id {
        Some(id) => format!("entry {sequence} ({id})"),
        None => format!("entry {sequence}"),
    };
    match (fault, id) {
        (Fault::Altered, _) => format!("{entry} was altered"),
        (Fault::Missing, Some(_)) => format!("one or more entries are missing before {entry}"),
        (Fault::Missing, None) => format!("{entry} is missing, and all after it"),
        (Fault::OutOfPlace, _) => format!("{entry} stands where none may stand"),
        (Fault::HeadMismatch, _) => format!("the noted head of the log does not match its last, {entry}"),
        (Fault::SealForged, _) => format!("the seal at {entry} is not signed by a key of this server"),
        (Fault::SealKeyMissing, _) => format!("the seal at {entry} is signed by a key that the key ring lacks"),
        (Fault::ExpectedRemoved, _) => format!("{entry}, which was expected, was removed by the retention"),
        (Fault::NotAsExpected, _) => format!("{entry} is not the one that was expected: the log was rewritten"),
        (Fault::CutOff, _) => format!("{entry}, which was expected, is missing: the log was cut off"),
    }
}

fn time(text: &str) -> Result<Timestamp, &'static str> {
    let time = chrono::DateTime::parse_from_rfc3339(text).map_err(|_| "is not a time like 2026-11-21T00:00:00Z")?;
    Ok(time.to_utc().into())
}

/// Nobody has to read it: the exit code says it too.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
