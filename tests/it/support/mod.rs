//! Starts the whole server on a database of its own, and talks to it as a client does.

mod app;
mod claude;
mod graphql;
mod live;
mod mail;
mod postgres;
mod proxy;
mod redis;
pub(crate) mod schema;
mod upstream;

pub(crate) use app::{OTHER_ORGANIZATION, PASSWORD, STAND_IN, TestApp};
pub(crate) use claude::{Claude, Reply, Seen, Step, TEXT, delta, event, events, message};
pub(crate) use graphql::{Answer, Client};
pub(crate) use live::{EventStream, Socket, gauge, in_time, until_gauge};
pub(crate) use mail::{Behaviour, Mail, SmtpSink, Tls, tls_of_localhost};
pub(crate) use postgres::{TestDatabase, TestPostgres, program};
pub(crate) use proxy::Proxy;
pub(crate) use redis::TestRedis;
pub(crate) use upstream::{GOOD_KEY, MockUpstream};

/// Runs each test once on SQLite and once on PostgreSQL.
macro_rules! both_databases {
    ($(async fn $name:ident($app:ident: TestApp) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "not every test needs all of its module")]
            use super::*;

            async fn run($app: $crate::support::TestApp) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                run($crate::support::TestApp::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                run($crate::support::TestApp::postgres().await).await;
            }
        }
    )+};
}
pub(crate) use both_databases;
