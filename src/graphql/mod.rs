//! The API's face: one file a noun, with its type, queries, mutations and inputs; around them the walls, the guard, the
//! audit middleware and the one translation of errors.

mod connection;
mod context;
mod declarations;
mod error;
mod feed;
mod inputs;
mod loaders;
mod middleware;
mod node;
mod scalars;
mod schema;

pub mod collected;
pub mod response;
mod rows;
pub mod schema_types;
pub mod variables;
pub mod walls;

mod api_key;
mod audit_log;
mod billing;
mod buckets;
mod claude_account;
mod client;
mod conversation;
mod credential;
mod invitation;
mod message;
mod models;
mod notification;
mod organization;
mod password;
mod password_key;
mod profile;
mod quota;
mod registration;
mod session;
mod system_stats;
mod task;
mod turn;
mod usage;
mod user;
mod viewer;
mod worker;

pub use context::Caller;
pub use error::{finish_errors, log_error};
pub use feed::Feed;
pub use schema::{Api, Step, sdl};
