//! Sends mails: to an SMTP server, or into a folder.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use lettre::Address;
use lettre::address::AddressError;
use lettre::message::header::{ContentTransferEncoding, ContentType, Date, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use url::Host;

use super::Message;
use super::smtp::Smtp;
use crate::model::{Email, MailId, Timestamp};
use crate::settings::{Sender, Settings};

/// Sends mails.
pub struct Mailer {
    from: Mailbox,
    way: Way,
}

enum Way {
    Smtp(Box<Smtp>),
    Folder(PathBuf),
}

/// Why mails cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum MailerError {
    /// Nobody could be written to from there.
    #[error("MAIL_FROM cannot be used in mails")]
    From(#[source] AddressError),
    /// TLS cannot be used.
    #[error("TLS cannot be used for mail")]
    Tls(#[source] lettre::transport::smtp::Error),
}

/// Why a mail was not sent. The text names no address.
#[derive(Debug)]
pub enum NotSent {
    /// It will never be: the server refuses this one, or it cannot be written.
    Refused(String),
    /// It may be later.
    Failed(String),
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) | Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl Mailer {
    /// Sends as it is set.
    ///
    /// # Errors
    /// Where TLS is to be used and cannot, or nobody could be written to from `MAIL_FROM`.
    pub fn new(settings: &Settings) -> Result<Self, MailerError> {
        let Sender { name, email } = &settings.mail_from;
        let from = Mailbox::new(name.clone(), address(email).map_err(MailerError::From)?);
        let way = match &settings.smtp {
            Some(server) => Way::Smtp(Box::new(Smtp::new(server, &settings.public_url).map_err(MailerError::Tls)?)),
            None => Way::Folder(settings.data_dir.join("outbox")),
        };
        Ok(Self { from, way })
    }

    /// Tries the way that mails go, as far as that goes without one: a connection, TLS, the password.
    ///
    /// # Errors
    /// Where a mail could not be handed over.
    pub async fn check(&self) -> Result<(), NotSent> {
        match &self.way {
            Way::Smtp(smtp) => smtp.check().await,
            Way::Folder(_) => Ok(()),
        }
    }

    /// Sends a mail under the id that it always has, so that who gets it twice can know.
    ///
    /// # Errors
    /// Says whether to try again.
    pub async fn send(&self, id: MailId, written_at: Timestamp, message: &Message) -> Result<(), NotSent> {
        let mail = self.envelop(id, written_at, message).map_err(|error| NotSent::Refused(error.to_string()))?;
        match &self.way {
            Way::Smtp(smtp) => smtp.send(&mail).await,
            Way::Folder(folder) => {
                let (folder, bytes) = (folder.clone(), mail.formatted());
                let written = tokio::task::spawn_blocking(move || write(&folder, id, &bytes)).await;
                written.map_err(std::io::Error::other).flatten().map_err(|error| NotSent::Failed(error.to_string()))
            }
        }
    }

    fn envelop(
        &self,
        id: MailId,
        written_at: Timestamp,
        message: &Message,
    ) -> Result<lettre::Message, lettre::error::Error> {
        let to = address(&message.to).map_err(|_| lettre::error::Error::MissingTo)?;
        let part = |content_type, text: &str| {
            SinglePart::builder()
                .header(content_type)
                .header(ContentTransferEncoding::QuotedPrintable)
                .body(text.to_owned())
        };
        let body = MultiPart::alternative()
            .singlepart(part(ContentType::TEXT_PLAIN, message.text.expose()))
            .singlepart(part(ContentType::TEXT_HTML, message.html.expose()));
        let automatic = HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned());
        lettre::Message::builder()
            .from(self.from.clone())
            // The address alone: a name is the recipient's own, or a stranger's.
            .to(Mailbox::new(None, to))
            .subject(message.subject.as_str())
            .header(Date::new(written_at.to_utc().into()))
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .raw_header(automatic)
            .multipart(body)
    }
}

/// The domain as DNS knows it: any server takes that, but not each takes another letter than those of ASCII.
fn address(email: &Email) -> Result<Address, AddressError> {
    let text = email.as_str();
    match text.rsplit_once('@').map(|(user, domain)| (user, Host::parse(domain))) {
        Some((user, Ok(Host::Domain(domain)))) => Address::new(user, domain),
        _ => text.parse(),
    }
}

/// Writes a mail into the folder, for its owner alone. Who finds the file finds all of it.
fn write(folder: &Path, id: MailId, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let draft = folder.join(format!(".{id}"));
    // One that was left by a server that was killed is written over.
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, folder.join(format!("{id}.eml")))?;
    std::fs::File::open(folder)?.sync_all()
}
