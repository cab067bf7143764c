//! The settings of mail: where it is handed over, and who it is from.

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

use crate::model::{Email, breaks_a_line};

/// A server that takes mails.
#[derive(Debug, Clone)]
pub struct SmtpServer {
    /// Its name, which its certificate has to have, or its address.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: SmtpTls,
    /// The user and the password; none: it takes mails from anybody here.
    pub credentials: Option<(String, SecretString)>,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// From the first byte on.
    Immediate,
    /// From STARTTLS on, which the server has to offer.
    StartTls,
    /// Not at all.
    None,
}

impl SmtpServer {
    /// Reads `smtps://user:password@host:port` or `smtp://…?tls=none`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "is not a URL like smtps://user:password@mail.example.com or smtp://mail.example.com:587";
        let url = Url::parse(text).map_err(|_| FORM)?;
        if url.fragment().is_some() || !matches!(url.path(), "" | "/") {
            return Err(FORM.to_owned());
        }
        // Of a scheme that the library does not know, it takes any text for a host: an address is read as a name.
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(FORM)?;
        let host = Host::parse(host).map_err(|_| FORM)?;
        let is_here = match &host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(ip) => ip.is_loopback(),
            Host::Ipv6(ip) => ip.is_loopback(),
        };
        let tls = match (url.scheme(), url.query()) {
            ("smtps", None | Some("tls=required")) => SmtpTls::Immediate,
            ("smtp", None) if is_here => SmtpTls::None,
            ("smtp", None | Some("tls=required")) => SmtpTls::StartTls,
            ("smtp", Some("tls=none")) => SmtpTls::None,
            ("smtp" | "smtps", Some(_)) => {
                return Err("takes tls=required or, with smtp://, tls=none after the ?".into());
            }
            _ => return Err(FORM.to_owned()),
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| FORM);
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            ("", Some(_)) | (_, None) => return Err("needs a user name and a password, or neither".to_owned()),
            (user, Some(password)) => Some((decoded(user)?, decoded(password)?.into())),
        };
        if credentials.is_some() && tls == SmtpTls::None && !is_here {
            return Err("would send the password over the network without TLS".to_owned());
        }
        let default_port = match tls {
            SmtpTls::Immediate => 465,
            SmtpTls::StartTls => 587,
            SmtpTls::None => 25,
        };
        Ok(Self { host, port: url.port().unwrap_or(default_port), tls, credentials })
    }
}

/// Who mails are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The name that is shown.
    pub name: Option<String>,
    /// The address.
    pub email: Email,
}

impl Sender {
    /// Who mails are from that are written into a folder.
    pub(super) fn nobody() -> Self {
        Self { name: Some("Claviger".to_owned()), email: "claviger@localhost".parse().expect("the text is an address") }
    }

    /// Reads `address` or `Name <address>`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "is neither an address nor of the form Name <address>".to_owned();
        let (name, email) = match text.strip_suffix('>').and_then(|text| text.split_once('<')) {
            Some((name, email)) => (name.trim().trim_matches('"'), email),
            None => ("", text),
        };
        if name.contains(breaks_a_line) || name.contains(['<', '>', '"']) {
            return Err(wrong());
        }
        let email = email.parse().map_err(|_| wrong())?;
        Ok(Self { name: (!name.is_empty()).then(|| name.to_owned()), email })
    }
}
