//! What PostgreSQL tells beside answers: NOTIFY within a transaction, LISTEN on a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use futures_util::StreamExt as _;
use futures_util::stream::poll_fn;
use rustls_platform_verifier::ConfigVerifierExt as _;
use tokio::sync::mpsc::{Receiver, channel};
use tokio_postgres::{AsyncMessage, Client};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use super::audit_log::NewAuditLog;
use super::backend::{Conn, Db, PgConn};
use super::error::{Error, Result};
use super::tx::Tx;
use crate::events::{CHANNEL, Message, News};

/// How long an answer on the listening connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many messages may wait to be taken: further ones wait in PostgreSQL.
const QUEUE: usize = 256;

diesel::define_sql_function! {
    /// Tells whoever listens, once the transaction is committed. It returns nothing, and nothing is read.
    fn pg_notify(channel: Text, payload: Text) -> Bool;
}

/// Where a PostgreSQL server is, and how it is spoken to.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) config: Arc<tokio_postgres::Config>,
    pub(super) tls: MakeRustlsConnect,
}

impl Endpoint {
    /// With certificates as the machine believes them.
    pub(super) fn new(config: tokio_postgres::Config) -> Result<Self, rustls::Error> {
        let tls = MakeRustlsConnect::new(rustls::ClientConfig::with_platform_verifier()?);
        Ok(Self { config: Arc::new(config), tls })
    }
}

/// A connection that hears what other servers tell.
pub struct Announcements {
    texts: Receiver<String>,
    /// Without it the connection is closed.
    _client: Client,
    /// Drives the connection, and ends with this: by itself it would wait for what PostgreSQL still owes.
    _driver: AbortOnDropHandle<()>,
}

impl Announcements {
    /// The next message; none: the connection broke. Nothing is lost where the wait is given up.
    pub async fn next(&mut self) -> Option<String> {
        self.texts.recv().await
    }
}

async fn within<T>(work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(answered) => answered.map_err(|error| Error::Unavailable(error.into())),
        Err(late) => Err(Error::Unavailable(late.into())),
    }
}

impl Db {
    /// Whether servers can tell each other something by this database.
    #[must_use]
    pub fn can_notify(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Tells other servers of each commit from now on, in the name of this one, where the database can.
    #[must_use]
    pub fn telling_as(mut self, server: &str) -> Self {
        self.tells_as = self.endpoint.is_some().then(|| server.into());
        self
    }

    /// Listens to what servers tell, on a connection beside the pool. None: this database tells nothing.
    ///
    /// # Errors
    /// Where no connection is to be had.
    pub async fn listen(&self) -> Result<Option<Announcements>> {
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let mut config = (*endpoint.config).clone();
        config.application_name("claviger events");
        let (client, mut connection) = within(config.connect(endpoint.tls.clone())).await?;
        let (sender, texts) = channel(QUEUE);
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut messages = poll_fn(move |cx| connection.poll_message(cx));
            while let Some(message) = messages.next().await {
                match message {
                    Ok(AsyncMessage::Notification(told)) => {
                        // Where nobody listens any more, this ends too.
                        let _ = sender.send(told.payload().to_owned()).await;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "the listening connection broke");
                        return;
                    }
                }
            }
        }));
        within(client.batch_execute(&format!("LISTEN {CHANNEL}"))).await?;
        Ok(Some(Announcements { texts, _client: client, _driver: driver }))
    }
}

impl Db {
    /// Tells whoever listens, itself too, past all transactions: on a connection of the pool, where the database can.
    ///
    /// # Errors
    /// Where the database fails.
    pub async fn notify(&self, message: &Message) -> Result<()> {
        if let Conn::Postgres(conn) = &mut self.read().await? {
            let conn: &mut PgConn = &mut *conn;
            diesel::select(pg_notify(CHANNEL, message.to_string())).execute(conn).await?;
        }
        Ok(())
    }
}

/// Tells other servers of an entry, exactly if it is committed.
pub(super) async fn tell(tx: &mut Tx, entry: &NewAuditLog, sequence: i64) -> Result<()> {
    let news = News::Committed {
        organization: entry.organization_id,
        sequence,
        about: entry.resource_type,
        changes_access: entry.changes_access,
    };
    tell_news(tx, news).await
}

/// Tells other servers what holds exactly if the transaction is committed.
pub(super) async fn tell_news(tx: &mut Tx, news: News) -> Result<()> {
    let Some(from) = tx.tells_as() else { return Ok(()) };
    let text = Message { from: from.to_string(), news }.to_string();
    if let Conn::Postgres(conn) = tx.conn().await? {
        diesel::select(pg_notify(CHANNEL, text)).execute(conn).await?;
    }
    Ok(())
}
