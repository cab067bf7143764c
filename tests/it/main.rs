//! All tests in one binary: one module a noun or behaviour, each behaviour on both databases.

// A test's failure is its answer: what cannot be had is unwrapped.
#![allow(clippy::unwrap_used, missing_docs)]

mod architecture;
mod audit;
mod claude_account;
mod client;
mod command_line;
mod credential;
mod crypto;
mod data_dir;
mod durability;
mod http;
mod invitation;
mod keys;
mod logs;
mod null_propagation;
mod organization;
mod paging;
mod password;
mod schema;
mod session;
mod settings;
mod statements;
mod subscription;
mod support;
mod user;
mod walls;
