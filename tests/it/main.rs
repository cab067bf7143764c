//! All tests in one binary: one module a noun or behaviour, each behaviour on both databases.

// A test's failure is its answer: what cannot be had is unwrapped.
#![allow(clippy::unwrap_used, missing_docs)]

mod api_key;
mod api_key_life;
mod architecture;
mod audit;
mod audit_chain;
mod audit_command;
mod backup;
mod billing;
mod buckets;
mod budget;
mod bus;
mod calls;
mod canary;

mod claude_account;
mod client;
mod coalesced;
mod command_line;

mod contract;
mod credential;
mod crypto;
mod data_dir;
mod doctor;
mod durability;
mod examples;
mod faults;
mod http;
mod invitation;
mod jobs;
mod keys;
mod limit_notices;
mod limits;
mod logs;
mod many_servers;
mod metering;
mod new_password;
mod notification;
mod null_propagation;
mod operations;
mod organization;
mod outbox;

mod page_walks;
mod paging;
mod password;
mod password_key;
mod prices;
mod profile;
mod redis;
mod refused;
mod registration;
mod relay;
mod relay_chat;
mod relay_clients;
mod relay_failures;
mod relay_keys;
mod relay_pool;
mod relay_secrets;
mod roles;
mod schema;
mod search;
mod session;
mod settings;
mod socket;
mod statements;
mod subscription;
mod support;
mod tenants;
mod traces;
mod usage;
mod user;
mod walls;
