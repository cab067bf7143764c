//! The only place with SQL. One query code for every database; each file holds the queries of one noun.
//!
//! Functions take a connection, not a pool, so that they compose in one transaction: reads take a [`Conn`], writes a
//! [`Tx`], which can only be committed together with its audit entry. Organization data is reached with a
//! [`Permit`](crate::model::Permit), which also says whose rows they are.
//!
//! To add a noun: a migration under the same name for each database, its table in `tables.rs`, a file here.

mod announcements;
mod backend;
mod bulk;
mod error;
mod fields;
mod lease;
mod locks;
mod migrations;
mod page;
mod postgres_pool;
mod postgres_url;
mod ranked;
mod sealed;
mod search;
mod statements;
mod statistics;
mod tables;
mod tx;

pub mod api_key;
pub mod audit_chain;
pub mod audit_log;
pub mod backup;
pub mod budget;
pub mod claude_account;
pub mod client;
pub mod conversation;
pub mod conversation_lease;
pub mod credential;
pub mod database_clock;
pub mod device;
pub mod encryption_key;
pub mod expired;
pub mod invitation;
pub mod job_lease;
pub mod keys;
pub mod mail_token;
pub mod message;
pub mod notification;
pub mod organization;
pub mod outbox;
pub mod password_key;
pub mod session;
pub mod system_stats;
pub mod task;
pub mod usage;
pub mod usage_rollup;
pub mod user;

pub use announcements::Announcements;
pub use backend::{Conn, Db, PoolState};
pub use error::{Error, OpenError, Result};
pub use fields::fold;
pub use migrations::{Migration, MigrationError};
pub use tx::Tx;
