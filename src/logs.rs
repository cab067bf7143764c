//! The log: lines for people or JSON for machines, on the standard error, with the request's id in each line of a request.
//! Beside it, where the settings ask for them, traces.

mod json;
mod traces;

use std::io::IsTerminal as _;

use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::settings::{LogFormat, Settings};
pub use traces::{TRACES, Traces, TracesError, follow};

/// Starts logging, once in the life of a process.
///
/// # Panics
/// Where it is called twice, or with a filter that the settings have not checked.
pub fn init(settings: &Settings, traces: Option<&Traces>) {
    subscriber(settings, traces, std::io::stderr, std::io::stderr().is_terminal()).init();
}

/// What `init` logs with, writing to `writer`, in colours where it is for people and `is_terminal`, unless
/// `NO_COLOR` is set.
///
/// # Panics
/// With a filter that the settings have not checked.
pub fn subscriber<W>(
    settings: &Settings,
    traces: Option<&Traces>,
    writer: W,
    is_terminal: bool,
) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(&settings.log_level).expect("the settings have checked it");
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match settings.log_format {
        LogFormat::Json => lines.fmt_fields(JsonFields::new()).event_format(json::Line).boxed(),
        LogFormat::Pretty if is_terminal => lines.with_target(false).boxed(),
        LogFormat::Pretty => lines.with_target(false).with_ansi(false).boxed(),
    };
    let filter = filter.and(filter_fn(|metadata| metadata.target() != TRACES));
    // A layer that is none would be taken for one that wants all spans. Some layers together are told neither when their subscriber is
    // registered nor when a span is another's clone, of which these need to know nothing.
    let mut layers = vec![lines.with_filter(filter).boxed()];
    layers.extend(traces.map(|traces| traces.layer().boxed()));
    tracing_subscriber::registry().with(layers)
}
