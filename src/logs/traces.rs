//! Traces: what a request waited for, sent to a collector as OTLP over HTTP.
//!
//! Their spans stand apart from the log's, under a target of their own: without a collector they cost nothing, and what they
//! say is chosen here and there, so that no argument, name or address of a caller gets into them.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

/// The target of spans that are sent to the collector, and of nothing else.
pub const TRACES: &str = "claviger::traces";

/// Sends traces.
pub struct Traces(SdkTracerProvider);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent")]
pub struct TracesError(#[from] ExporterBuildError);

impl Traces {
    /// Sends them to the collector at `endpoint`, from a thread of its own, in batches. What the standard's other variables
    /// say holds too: `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`.
    ///
    /// # Errors
    /// Where the exporter cannot be made.
    pub fn to(endpoint: &Url) -> Result<Self, TracesError> {
        let url = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_endpoint(url).build()?;
        let is_named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
        let resource = Resource::builder();
        let resource = if is_named { resource } else { resource.with_service_name(env!("CARGO_PKG_NAME")) };
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build()))
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'l> LookupSpan<'l> + Send + Sync,
    {
        let tracer = self.0.tracer(env!("CARGO_PKG_NAME"));
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        layer.with_filter(filter_fn(|metadata| metadata.target() == TRACES))
    }

    /// Sends what has not been sent. It blocks until that is done, for seconds at most.
    pub fn finish(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the last traces were not sent");
        }
    }
}

/// Makes the span part of the trace that a `traceparent` of W3C's form names; of a trace of its own, where it names none.
pub fn follow(span: &Span, traceparent: &str) {
    if !span.is_disabled() {
        let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
        // Refused only where nothing listens to the span.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
    }
}
