//! Claviger: a self-hosted control plane for an organization's Claude access.
//!
//! The modules, from the outermost to the innermost; each may use those below it, never one above or beside it.

pub mod domain;

pub mod audit;
pub mod identity;

pub mod store;

pub mod crypto;
pub mod upstream;

pub mod model;
pub mod settings;
