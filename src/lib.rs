//! Claviger: a self-hosted control plane for an organization's Claude access.
//!
//! The modules, from the outermost to the innermost. Each may use those of the groups below it, never one above, nor one
//! beside it; `tests/it/architecture.rs` holds that, and docs/architecture.md tells the way of a request through them.

// The roots are merged of one part a noun, each within the one before: a future for each of them.
#![recursion_limit = "256"]

pub mod cli;

pub mod app;

pub mod http;

pub mod graphql;
pub mod relay;

pub mod jobs;

pub mod domain;

pub mod audit;
pub mod identity;

pub mod limits;
pub mod store;

pub mod mail;
pub mod upstream;
pub mod workers;

pub mod redis;

pub mod events;

pub mod crypto;

pub mod logs;

pub mod settings;

pub mod model;
