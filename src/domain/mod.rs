//! The deeds, one file a noun: what may be done, by whom, under which rules. Knows neither GraphQL nor HTTP nor SQL.

mod attempts;
mod context;
mod deed;
mod error;
mod sample_usage;
mod validation;

pub mod api_key;
pub mod audit_checkpoint;
pub mod audit_export;
pub mod audit_integrity;
pub mod audit_log;
pub mod audit_retention;
pub mod billing;
pub mod budget;
pub mod bus;
pub mod claude_account;
pub mod client;
pub mod commits;
pub mod credential;
pub mod demonstration;
pub mod encryption_key;
pub mod expired;
pub mod invitation;
pub mod keys;
pub mod mail_token;
pub mod organization;
pub mod outbox;
pub mod password;
pub mod prices;
pub mod profile;
pub mod quota;
pub mod registration;
pub mod relay_account;
pub mod scale;
pub mod session;
pub mod system_stats;
pub mod task;
pub mod usage;
pub mod usage_report;
pub mod user;

pub use context::{Cx, Record, Services};
pub use deed::{audited, record_failure};
pub use error::{Code, Error, FieldError, Result, whole_seconds};
pub use validation::Patch;
