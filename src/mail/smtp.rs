//! Hands mails over to an SMTP server.

use std::time::Duration;

use lettre::Message;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use secrecy::ExposeSecret as _;
use url::{Host, Url};

use super::mailer::NotSent;
use crate::settings::{SmtpServer, SmtpTls};

/// How long one mail may take, from the connection on.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long connecting may take where there is no mail.
const GREETING: Duration = Duration::from_secs(10);
/// How long the server is waited for to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// An SMTP server, and how to talk to it.
pub(super) struct Smtp {
    host: String,
    port: u16,
    tls: Option<TlsParameters>,
    /// Whether TLS begins with STARTTLS only.
    is_upgraded: bool,
    credentials: Option<Credentials>,
    /// What this server calls itself.
    name: ClientId,
}

impl Smtp {
    pub(super) fn new(server: &SmtpServer, public_url: &Url) -> Result<Self, Error> {
        // Without the brackets that an IPv6 address has in a URL.
        let host = match &server.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
        };
        let tls = (server.tls != SmtpTls::None).then(|| TlsParameters::new_rustls(host.clone())).transpose()?;
        let credentials = server.credentials.as_ref();
        Ok(Self {
            host,
            port: server.port,
            tls,
            is_upgraded: server.tls == SmtpTls::StartTls,
            credentials: credentials
                .map(|(user, password)| Credentials::new(user.clone(), password.expose_secret().to_owned())),
            name: match public_url.host() {
                Some(Host::Domain(name)) => ClientId::Domain(name.to_owned()),
                Some(Host::Ipv4(ip)) => ClientId::Ipv4(ip),
                Some(Host::Ipv6(ip)) => ClientId::Ipv6(ip),
                None => ClientId::default(),
            },
        })
    }

    /// Hands a mail over, on a connection of its own.
    pub(super) async fn send(&self, message: &Message) -> Result<(), NotSent> {
        let sent = tokio::time::timeout(TIMEOUT, self.hand_over(message)).await;
        let too_long = |_| NotSent::Failed(format!("it took more than {} s", TIMEOUT.as_secs()));
        let mut connection = sent.map_err(too_long)??;
        // It is handed over, however the connection ends.
        let _ = tokio::time::timeout(GOODBYE, connection.abort()).await;
        Ok(())
    }

    /// Connects as for a mail, and says goodbye.
    pub(super) async fn check(&self) -> Result<(), NotSent> {
        let connected = tokio::time::timeout(GREETING, self.connect()).await;
        let too_long = |_| NotSent::Failed(format!("it took more than {} s", GREETING.as_secs()));
        let mut connection =
            connected.map_err(too_long)?.map_err(|error| NotSent::Failed(without_addresses(&error)))?;
        let _ = tokio::time::timeout(GOODBYE, connection.abort()).await;
        Ok(())
    }

    async fn hand_over(&self, message: &Message) -> Result<AsyncSmtpConnection, NotSent> {
        // Before the mail is spoken of, nothing can be wrong with it: a password that is not accepted is the operator's to mend.
        let mut connection = self.connect().await.map_err(|error| NotSent::Failed(without_addresses(&error)))?;
        let (envelope, content) = (message.envelope(), message.formatted());
        let mut parameters = Vec::new();
        if !content.is_ascii() {
            // All but addresses is written in ASCII.
            if !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
                return Err(NotSent::Refused("the server takes no address that is not ASCII (SMTPUTF8)".to_owned()));
            }
            parameters = vec![MailParameter::SmtpUtfEight, MailParameter::Body(MailBodyParameter::EightBitMime)];
        }
        let mail = Mail::new(envelope.from().cloned(), parameters);
        // Nor can anything be, where it is the sender that is not accepted.
        connection.command(mail).await.map_err(|error| NotSent::Failed(without_addresses(&error)))?;
        for to in envelope.to() {
            connection.command(Rcpt::new(to.clone(), Vec::new())).await.map_err(|error| not_taken(&error))?;
        }
        connection.command(Data).await.map_err(|error| not_taken(&error))?;
        connection.message(&content).await.map_err(|error| not_taken(&error))?;
        Ok(connection)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let immediate = self.tls.clone().filter(|_| !self.is_upgraded);
        let server = (self.host.as_str(), self.port);
        let mut connection = AsyncSmtpConnection::connect_tokio1(server, None, &self.name, immediate, None).await?;
        if let Some(tls) = self.tls.clone().filter(|_| self.is_upgraded) {
            connection.starttls(tls, &self.name).await?;
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }
}

/// Why the server has not taken a mail whose sender it accepts. It refuses this one for good (5xx), unless it wants a password first
/// (RFC 4954, 6) or may not pass mails on for us (5.7.x of RFC 3463, which not every server says): the operator mends that.
fn not_taken(error: &Error) -> NotSent {
    const AUTHENTICATION: [&str; 3] = ["530", "534", "538"];
    let reason = without_addresses(error);
    let is_of_authentication = error.status().is_some_and(|code| AUTHENTICATION.contains(&code.to_string().as_str()));
    let is_of_policy = reason.split_whitespace().any(|word| word.starts_with("5.7.")) || reason.contains("relay");
    if error.is_permanent() && !is_of_authentication && !is_of_policy {
        NotSent::Refused(reason)
    } else {
        NotSent::Failed(reason)
    }
}

/// What an error says, but for addresses: it goes into the log.
fn without_addresses(error: &Error) -> String {
    let text = error.to_string();
    let words = text.split_whitespace().map(|word| if word.contains('@') { "[address]" } else { word });
    words.collect::<Vec<_>>().join(" ")
}
