//! The log: lines for people or JSON for machines, on the standard error, with the request's id in each line of a request.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::{LogFormat, Settings};

/// Starts logging, once in the life of a process.
///
/// # Panics
/// Where it is called twice, or with a filter that the settings have not checked.
pub fn init(settings: &Settings) {
    let filter = EnvFilter::builder().parse(&settings.log_level).expect("the settings have checked it");
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Pretty => registry.with(lines.with_target(false)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_span_list(false)).init(),
    }
}
