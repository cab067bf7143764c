//! Connections to PostgreSQL: how they are made and driven, and when one is given up.

use std::error::Error as StdError;
use std::time::Duration;

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, SimpleAsyncConnection as _};
use futures_util::FutureExt as _;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::announcements::Endpoint;
use super::backend::{CHECKOUT_TIMEOUT, PgConn, Pool};
use super::lease::{Activity, Manager, ToLog};
use super::postgres_url::place;
use super::statements::Statements;

/// How long making one may take: less, so that a server that never answers holds up no place of the pool for longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long PostgreSQL may take to hear that a statement is to be stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How much longer than PostgreSQL lets a statement run its answer is waited for. Then PostgreSQL has fallen silent.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a transaction may wait for its next statement, at most.
const LONGEST_IDLE: Duration = Duration::from_secs(60);

/// A pool of connections, one of which has been made: what is wrong with the URL is told at once.
///
/// # Errors
/// Where PostgreSQL is not to be had.
pub(super) async fn postgres_pool(
    endpoint: Endpoint,
    size: u32,
    statement_timeout: Duration,
    statements: &Statements,
) -> Result<Pool<PgConn>, Box<dyn StdError + Send + Sync>> {
    let sink = ToLog::of(&place(&endpoint.config));
    // The language of messages is a superuser's to choose: see `is_passing`.
    let session = format!(
        "SET default_transaction_read_only = on;
         DO $$ BEGIN SET lc_messages = 'C'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
         SET TimeZone = 'UTC'; SET statement_timeout = {timeout}; SET lock_timeout = {timeout};
         SET idle_in_transaction_session_timeout = {idle};",
        timeout = statement_timeout.as_millis(),
        // What a server holds locked that cannot be reached any more, others wait for.
        idle = LONGEST_IDLE.min(statement_timeout + SILENCE).as_millis(),
    );
    let statements = statements.clone();
    let connect = move |activity| {
        let opening =
            open_postgres(endpoint.clone(), session.clone(), statement_timeout + SILENCE, statements.clone(), activity);
        async {
            // A server that hangs takes the connection, and says nothing.
            timeout(CONNECT_TIMEOUT, opening).await.unwrap_or_else(|_| {
                Err(ConnectionError::BadConnection(format!("no answer within {} seconds", CONNECT_TIMEOUT.as_secs())))
            })
        }
    };
    // The pool would try again and again, and then say only that it took too long.
    drop(connect(Activity::default()).await?);
    Ok(bb8::Pool::builder()
        .max_size(size)
        .test_on_check_out(true)
        .connection_timeout(CHECKOUT_TIMEOUT)
        .error_sink(Box::new(sink))
        .build_unchecked(Manager::new(connect)))
}

async fn open_postgres(
    endpoint: Endpoint,
    session: String,
    longest: Duration,
    statements: Statements,
    activity: Activity,
) -> ConnectionResult<PgConn> {
    let (client, connection) = endpoint
        .config
        .connect(endpoint.tls.clone())
        .await
        .map_err(|error| ConnectionError::BadConnection(describe(&error)))?;
    let cancel = client.cancel_token();
    // Until the connection is ready, its end is that of whoever makes it.
    let driver = AbortOnDropHandle::new(tokio::spawn(drive(connection, activity.clone(), longest)));
    let abort = driver.abort_handle();
    activity.stop_by(move || {
        let (cancel, tls, abort) = (cancel.clone(), endpoint.tls.clone(), abort.clone());
        async move {
            match timeout(STOP_TIMEOUT, cancel.cancel_query(tls)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(error = &error as &dyn StdError, "a statement that was given up was not stopped");
                }
                Err(_) => tracing::debug!("a statement that was given up was not stopped in time"),
            }
            // It would wait for the statement's end.
            abort.abort();
        }
        .boxed()
    });
    let mut conn = AsyncPgConnection::try_from(client).await?;
    conn.batch_execute(&session).await.map_err(ConnectionError::CouldntSetupConfiguration)?;
    conn.set_instrumentation(statements.observe(activity));
    drop(driver.detach());
    Ok(conn)
}

/// Drives a connection to its end; or until PostgreSQL has been silent for longer than a statement may run, since it hangs or
/// cannot be reached any more. Whoever waits is then told that the connection is closed.
async fn drive(
    connection: impl Future<Output = Result<(), tokio_postgres::Error>>,
    activity: Activity,
    longest: Duration,
) {
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(error = &error as &dyn StdError, "a connection to the database broke");
        },
        () = activity.is_overdue(longest) => tracing::warn!("the database does not answer: a connection is given up"),
    }
}

/// An error with its causes in one line: what goes wrong in a handshake stands in the last of them.
fn describe(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
