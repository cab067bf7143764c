//! The HTTP surface: every route, the GraphQL handler, probes, metrics, the playground.

mod client_address;
mod coalesced;
mod conversations;
mod documents;
mod event_stream;
mod graphql;
mod health;
mod live;
mod media_type;
mod metrics;
mod observe;
mod operations;
mod panics;
mod playground;
mod rate_limit;
mod relay;
mod request;
mod router;
mod serve;
mod socket;
mod subscription;
mod unread;
mod websocket;

pub use live::LiveLimits;
pub use metrics::Metrics;
pub use router::{Server, router};
pub use serve::{Limits, serve};
