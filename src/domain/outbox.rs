//! The mails that deeds write, and that are sent once those are committed: by whichever server comes first, until they are sent or
//! given up. None is lost, and none is sent for what was rolled back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::context::{Cx, Services};
use super::error::{Error, Result};
use crate::crypto::{Aad, OpenError, SealError, Sealed, SecretText};
use crate::mail::{Mailer, Message, NotSent};
use crate::model::{OrganizationId, Timestamp};
use crate::store::outbox::{self as outbox, WaitingMail};
use crate::store::{self, Tx};

/// How long a mail is tried that holds no link.
pub(super) const THREE_DAYS: TimeDelta = TimeDelta::days(3);
/// How long nobody else sends what one server is sending: longer than that may take.
const LEASE: TimeDelta = TimeDelta::minutes(5);
/// When the second attempt follows the first; each time twice as long.
const FIRST_PAUSE: TimeDelta = TimeDelta::minutes(1);
const LONGEST_PAUSE: TimeDelta = TimeDelta::hours(6);
/// How many mails are read at once.
const BATCH: i64 = 50;
/// How many are sent at once.
const AT_ONCE: usize = 4;
/// What stands before a mail that is not to be sent.
const DECOY: &str = "decoy\n";

/// Sends mails, and counts them.
pub struct Outbox {
    mailer: Mailer,
    due: Notify,
    tally: Tally,
}

/// What became of mails on this server, and how many wait.
#[derive(Debug, Default)]
pub struct Tally {
    /// Handed over.
    pub sent: AtomicU64,
    /// Put off, each time.
    pub deferred: AtomicU64,
    /// Refused for good.
    pub refused: AtomicU64,
    /// Given up, for their time was over.
    pub given_up: AtomicU64,
    /// Those that waited when this server last looked, whichever wrote them.
    pub waiting: AtomicU64,
}

impl Outbox {
    /// Sends by the mailer.
    #[must_use]
    pub fn new(mailer: Mailer) -> Self {
        Self { mailer, due: Notify::new(), tally: Tally::default() }
    }

    /// Says that a mail was committed.
    pub(super) fn wake(&self) {
        self.due.notify_one();
    }

    /// Waits until a mail was committed on this server.
    pub async fn woken(&self) {
        self.due.notified().await;
    }

    /// What became of mails.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

/// Writes a mail in the transaction of the deed that it tells of. It is tried for so long.
pub(super) async fn queue(
    cx: Cx<'_>,
    tx: &mut Tx,
    organization: OrganizationId,
    message: &Message,
    lifetime: TimeDelta,
) -> Result<()> {
    insert(cx, tx, organization, message.to_secret(), lifetime).await
}

/// The same, or as much work for a mail that is not sent: who asks must not see in it whether an address is known.
pub(super) async fn queue_if(
    cx: Cx<'_>,
    tx: &mut Tx,
    is_sent: bool,
    organization: OrganizationId,
    message: &Message,
    lifetime: TimeDelta,
) -> Result<()> {
    let text = message.to_secret();
    let text = if is_sent { text } else { SecretText::from([DECOY, text.expose()].concat()) };
    insert(cx, tx, organization, text, lifetime).await
}

async fn insert(
    cx: Cx<'_>,
    tx: &mut Tx,
    organization: OrganizationId,
    text: SecretText,
    lifetime: TimeDelta,
) -> Result<()> {
    let now = cx.services.clock.now();
    let mut mail = WaitingMail {
        id: cx.services.new_id(),
        organization_id: organization,
        sealed: Vec::new(),
        key_version: String::new(),
        attempts: 0,
        due_at: now,
        created_at: now,
        give_up_at: now + lifetime,
    };
    seal(cx.services, &mut mail, &text).map_err(Error::internal)?;
    outbox::insert(tx, &mail).await?;
    cx.record.mail();
    Ok(())
}

fn aad(mail: &WaitingMail) -> Aad {
    Aad {
        organization: mail.organization_id.to_string(),
        record: mail.id.to_string(),
        field: "mail",
        secret_version: 1,
    }
}

fn seal(services: &Services, mail: &mut WaitingMail, text: &SecretText) -> Result<(), SealError> {
    let sealed = services.keys.seal(&services.random, &aad(mail), text)?;
    mail.sealed = sealed.bytes;
    mail.key_version = sealed.key_version;
    Ok(())
}

fn open(services: &Services, mail: &WaitingMail) -> Result<SecretText, OpenError> {
    let sealed = Sealed { key_version: mail.key_version.clone(), bytes: mail.sealed.clone() };
    services.keys.open(&aad(mail), &sealed)
}

/// Seals a mail with the newest key of the ring.
pub(super) fn reseal(cx: Cx<'_>, mail: &mut WaitingMail) -> Result<()> {
    let text = open(cx.services, mail).map_err(Error::internal)?;
    seal(cx.services, mail, &text).map_err(Error::internal)
}

/// Sends all mails that are due, whichever server wrote them. Told to stop, it begins no further one.
///
/// # Errors
/// Where the database fails: what is due then stays so.
pub async fn deliver(services: &Services, stop: &CancellationToken) -> store::Result<()> {
    loop {
        let due = outbox::due(&mut services.db.read().await?, services.clock.now(), BATCH).await?;
        let is_all = i64::try_from(due.len()).is_ok_and(|number| number < BATCH);
        let attempts = stream::iter(due).map(|mail| attempt(services, stop, mail)).buffer_unordered(AT_ONCE);
        // Each is finished, also after one for which the database failed.
        attempts.collect::<Vec<_>>().await.into_iter().collect::<store::Result<()>>()?;
        if is_all || stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// Counts the mails that wait, for the metrics.
///
/// # Errors
/// Where the database fails.
pub async fn count(services: &Services) -> store::Result<()> {
    let waiting = outbox::count(&mut services.db.read().await?).await?;
    services.outbox.tally.waiting.store(waiting.unsigned_abs(), Ordering::Relaxed);
    Ok(())
}

async fn attempt(services: &Services, stop: &CancellationToken, mail: WaitingMail) -> store::Result<()> {
    if stop.is_cancelled() {
        return Ok(());
    }
    let now = services.clock.now();
    let Some(mail) = outbox::claim(&services.db, &mail, now + LEASE).await? else { return Ok(()) };
    let tally = &services.outbox.tally;
    let count = |of: &AtomicU64| of.fetch_add(1, Ordering::Relaxed);
    if mail.give_up_at <= now && mail.give_up_at <= services.cautious_now().await? {
        count(&tally.given_up);
        tracing::error!(mail = %mail.id, attempts = mail.attempts, "a mail was given up: its time is over");
        return outbox::remove(&services.db, &mail).await;
    }
    match send(services, &mail).await {
        Ok(is_decoy) => {
            if !is_decoy {
                count(&tally.sent);
            }
            forget_sent(services, stop, &mail).await
        }
        Err(NotSent::Refused(reason)) => {
            count(&tally.refused);
            tracing::error!(mail = %mail.id, attempts = mail.attempts, reason, "a mail was given up: it was refused");
            outbox::remove(&services.db, &mail).await
        }
        Err(NotSent::Failed(reason)) => {
            count(&tally.deferred);
            let again = next_attempt(&mail, services.clock.now());
            tracing::warn!(mail = %mail.id, attempts = mail.attempts, reason, again = again.to_text(), "a mail was not sent yet");
            outbox::postpone(&services.db, &mail, again).await
        }
    }
}

/// Removes a mail that was sent. As long as it is this server's turn a failing database is asked again: left there, it would be sent
/// once more.
async fn forget_sent(services: &Services, stop: &CancellationToken, mail: &WaitingMail) -> store::Result<()> {
    let mut pause = Duration::from_millis(100);
    loop {
        match outbox::remove(&services.db, mail).await {
            Err(error) if services.clock.now() < mail.due_at && !stop.is_cancelled() => {
                tracing::warn!(mail = %mail.id, error = &error as &dyn std::error::Error, "a mail that was sent is not removed yet");
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
                pause = (2 * pause).min(Duration::from_secs(5));
            }
            done => return done,
        }
    }
}

/// When a mail is tried again; once more when its time is over, to be given up.
fn next_attempt(mail: &WaitingMail, now: Timestamp) -> Timestamp {
    let doublings = u32::try_from(mail.attempts - 1).unwrap_or_default().min(16);
    let pause = FIRST_PAUSE * 2_i32.pow(doublings);
    (now + pause.min(LONGEST_PAUSE)).min(mail.give_up_at)
}

/// Sends a mail, unless it is a decoy. Returns whether it was.
async fn send(services: &Services, mail: &WaitingMail) -> Result<bool, NotSent> {
    let text = open(services, mail).map_err(|error| match error {
        // The key may be put back.
        OpenError::UnknownKey(_) => NotSent::Failed(error.to_string()),
        OpenError::Corrupt => NotSent::Refused(error.to_string()),
    })?;
    if text.expose().starts_with(DECOY) {
        return Ok(true);
    }
    let message = Message::from_secret(&text).map_err(|error| NotSent::Refused(error.to_string()))?;
    services.outbox.mailer.send(mail.id, mail.created_at, &message).await?;
    Ok(false)
}
