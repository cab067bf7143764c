//! Where mails arrive: an SMTP server on loopback that behaves as it is told, and the folder of a server that has none.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_parser::MessageParser;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsAcceptor;

use super::app::TestApp;
use super::live::in_time;

/// A mail as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    /// All of it, as it was sent.
    pub(crate) raw: String,
    /// Whom the envelope names; nobody for a file.
    pub(crate) recipients: Vec<String>,
    pub(crate) to: String,
    pub(crate) subject: String,
    pub(crate) text: String,
    pub(crate) html: String,
}

impl Mail {
    fn parse(raw: &[u8], recipients: Vec<String>) -> Self {
        let message = MessageParser::default().parse(raw).unwrap();
        Self {
            raw: String::from_utf8(raw.to_vec()).unwrap(),
            recipients,
            to: message.to().unwrap().first().unwrap().address().unwrap().to_owned(),
            subject: message.subject().unwrap().to_owned(),
            text: message.body_text(0).unwrap().into_owned(),
            html: message.body_html(0).unwrap().into_owned(),
        }
    }

    /// The value of a header that stands there once, in one line.
    pub(crate) fn header(&self, name: &str) -> &str {
        let head = self.raw.split("\r\n\r\n").next().unwrap();
        let mut found = head.split("\r\n").filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let value = found.next().unwrap_or_else(|| panic!("{name}: {head}"));
        assert!(found.next().is_none(), "{name}: {head}");
        value
    }

    /// The token in the link to a page.
    pub(crate) fn token(&self, page: &str) -> Option<&str> {
        let (_, rest) = self.text.split_once(&format!("/{page}#token="))?;
        rest.split_whitespace().next()
    }
}

/// How the SMTP server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Takes every mail.
    Take,
    /// Answers so when it is told the sender.
    Sender(&'static str),
    /// Answers so when it is told the recipient.
    Recipient(&'static str),
    /// Answers so when it has the whole mail.
    Content(&'static str),
    /// Answers so when it is told the password.
    Password(&'static str),
    /// Has the whole mail, and is gone before it says so.
    Vanish,
    /// Says nothing when it has the whole mail.
    Hang,
    /// Takes every mail, and does not say goodbye.
    Rude,
}

/// How the SMTP server protects its connections.
#[derive(Clone)]
pub(crate) enum Tls {
    None,
    Immediate(TlsAcceptor),
    Upgraded(TlsAcceptor),
}

/// What a server needs for TLS as `localhost`, and its certificate, for whoever is to trust it.
pub(crate) fn tls_of_localhost() -> (TlsAcceptor, String) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), cert.pem())
}

/// An SMTP server.
pub(crate) struct SmtpSink {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    taken: tokio::sync::Mutex<mpsc::UnboundedReceiver<Mail>>,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    /// All that were sent as a whole, whatever was answered.
    seen: Mutex<Vec<Mail>>,
    credentials: Mutex<Vec<String>>,
    arrived: Notify,
    taken: mpsc::UnboundedSender<Mail>,
}

impl SmtpSink {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        Self::start_with(behaviour, Tls::None).await
    }

    pub(crate) async fn start_with(behaviour: Behaviour, tls: Tls) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, taken) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            seen: Mutex::default(),
            credentials: Mutex::default(),
            arrived: Notify::new(),
            taken: sender,
        });
        let state = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (state.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Tls::None => drop(state.serve(stream, Some("220 sink.example"), false).await),
                        Tls::Immediate(acceptor) => {
                            let stream = acceptor.accept(stream).await.ok()?;
                            state.serve(stream, Some("220 sink.example"), false).await;
                        }
                        Tls::Upgraded(acceptor) => {
                            let stream = state.serve(stream, Some("220 sink.example"), true).await?;
                            state.serve(acceptor.accept(stream).await.ok()?, None, false).await;
                        }
                    }
                    Some(())
                });
            }
        });
        Self { address, shared, taken: tokio::sync::Mutex::new(taken) }
    }

    /// The settings of a server that sends by this one.
    pub(crate) fn settings(&self) -> [(&'static str, String); 2] {
        [("SMTP_URL", self.url("")), ("MAIL_FROM", "Claviger <noreply@claviger.example>".to_owned())]
    }

    pub(crate) fn url(&self, credentials: &str) -> String {
        format!("smtp://{credentials}{}", self.address)
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// Waits for the next mail that is taken.
    pub(crate) async fn next(&self) -> Mail {
        in_time("a mail", async { self.taken.lock().await.recv().await.unwrap() }).await
    }

    /// The mails that have been taken and not been asked for yet.
    pub(crate) async fn rest(&self) -> Vec<Mail> {
        let mut taken = self.taken.lock().await;
        std::iter::from_fn(|| taken.try_recv().ok()).collect()
    }

    /// Waits until a mail was sent as a whole, taken or not.
    pub(crate) async fn arrived(&self) {
        in_time("a mail", self.shared.arrived.notified()).await;
    }

    /// All mails that were sent as a whole, taken or not.
    pub(crate) fn seen(&self) -> Vec<Mail> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// What was given for a password, decoded.
    pub(crate) fn credentials(&self) -> Vec<String> {
        self.shared.credentials.lock().unwrap().clone()
    }
}

impl Shared {
    fn behaviour(&self) -> Behaviour {
        *self.behaviour.lock().unwrap()
    }

    /// Speaks SMTP, as far as a client needs it; a client that is gone ends it. Returns the stream for TLS to begin on it, where the
    /// client asks for that.
    async fn serve<S>(&self, stream: S, greeting: Option<&str>, offers_tls: bool) -> Option<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = BufReader::new(stream);
        let mut recipients = Vec::new();
        if let Some(greeting) = greeting {
            say(&mut stream, greeting).await?;
        }
        loop {
            let line = line(&mut stream).await?;
            let (verb, rest) = line.split_at(line.find([' ', ':']).unwrap_or(line.len()));
            match (verb.to_ascii_uppercase().as_str(), self.behaviour()) {
                ("EHLO", _) if offers_tls => say(&mut stream, "250-sink.example\r\n250 STARTTLS").await?,
                ("STARTTLS", _) if offers_tls => {
                    say(&mut stream, "220 go on").await?;
                    return Some(stream.into_inner());
                }
                ("EHLO", _) => say(&mut stream, "250-sink.example\r\n250 AUTH PLAIN").await?,
                ("AUTH", behaviour) => {
                    let given = STANDARD.decode(rest.trim_start_matches(" PLAIN ")).unwrap();
                    self.credentials.lock().unwrap().push(String::from_utf8(given).unwrap());
                    let answer = if let Behaviour::Password(answer) = behaviour { answer } else { "235 welcome" };
                    say(&mut stream, answer).await?;
                }
                ("MAIL", Behaviour::Sender(answer)) | ("RCPT", Behaviour::Recipient(answer)) => {
                    say(&mut stream, answer).await?;
                }
                ("RCPT", _) => {
                    recipients.push(rest.trim_start_matches(" TO:<").trim_end_matches('>').to_owned());
                    say(&mut stream, "250 ok").await?;
                }
                ("DATA", _) => {
                    say(&mut stream, "354 go on").await?;
                    let mail = Mail::parse(&content(&mut stream).await?, std::mem::take(&mut recipients));
                    self.seen.lock().unwrap().push(mail.clone());
                    self.arrived.notify_one();
                    match self.behaviour() {
                        Behaviour::Content(answer) => say(&mut stream, answer).await?,
                        Behaviour::Vanish => return None,
                        // Until the client is gone.
                        Behaviour::Hang => {
                            let _ = stream.read_line(&mut String::new()).await;
                            return None;
                        }
                        _ => {
                            // Before the client knows it: it may be gone by then, and has handed it over all the same.
                            let _ = self.taken.send(mail);
                            say(&mut stream, "250 taken").await?;
                        }
                    }
                }
                ("QUIT", Behaviour::Rude) => {
                    let _ = stream.read_line(&mut String::new()).await;
                    return None;
                }
                ("QUIT", _) => {
                    say(&mut stream, "221 bye").await?;
                    return None;
                }
                _ => say(&mut stream, "250 ok").await?,
            }
        }
    }
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>, text: &str) -> Option<()> {
    stream.get_mut().write_all(format!("{text}\r\n").as_bytes()).await.ok()?;
    stream.get_mut().flush().await.ok()
}

async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<String> {
    let mut line = String::new();
    let length = stream.read_line(&mut line).await.ok()?;
    (length > 0).then(|| line.trim_end().to_owned())
}

/// The lines up to the dot, those with a dot in front without it.
async fn content<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Vec<u8>> {
    let mut content = String::new();
    loop {
        let line = line(stream).await?;
        if line == "." {
            return Some(content.into_bytes());
        }
        content += line.strip_prefix('.').unwrap_or(&line);
        content += "\r\n";
    }
}

impl TestApp {
    /// The folder that mails are written into.
    pub(crate) fn outbox(&self) -> PathBuf {
        self.data_dir.path().join("outbox")
    }

    /// Waits for a mail to an address that `is_meant`, and takes it out of the folder.
    pub(crate) async fn mail_to(&self, to: &str, is_meant: impl Fn(&Mail) -> bool) -> Mail {
        in_time(&format!("a mail to {to}"), async {
            loop {
                let files = std::fs::read_dir(self.outbox()).into_iter().flatten().flatten();
                for path in files.map(|file| file.path()).filter(|path| path.extension().is_some()) {
                    let mail = Mail::parse(&std::fs::read(&path).unwrap(), Vec::new());
                    if mail.to == to && is_meant(&mail) {
                        std::fs::remove_file(path).unwrap();
                        return mail;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// How many mails to an address are in the folder.
    pub(crate) fn mails_to(&self, to: &str) -> usize {
        let files = std::fs::read_dir(self.outbox()).into_iter().flatten().flatten();
        let paths = files.map(|file| file.path()).filter(|path| path.extension().is_some());
        paths.filter(|path| Mail::parse(&std::fs::read(path).unwrap(), Vec::new()).to == to).count()
    }

    /// The token that comes by mail to an address, in the link to a page.
    pub(crate) async fn token_to(&self, to: &str, page: &str) -> String {
        self.mail_to(to, |mail| mail.token(page).is_some()).await.token(page).unwrap().to_owned()
    }

    /// Waits until every mail that was written has been sent or given up.
    pub(crate) async fn until_no_mail_waits(&self) {
        in_time("the end of the mails", async {
            while !self.database.texts("SELECT id AS text FROM outbox").await.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}
