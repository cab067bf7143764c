//! Counts the statements that are sent to the database, for the metrics: a list whose count grows with its rows shows there.
//! In a trace each has a span, which says neither its text nor what it was sent with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use diesel::connection::{Instrumentation, InstrumentationEvent};

use super::lease::Activity;
use crate::logs::TRACES;

/// How many statements were sent, over all connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Statements(Arc<AtomicU64>);

/// What one connection tells of its statements.
struct Observed {
    statements: Statements,
    activity: Activity,
}

impl Statements {
    pub(super) fn sent(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// What a connection is to be observed by.
    pub(super) fn observe(self, activity: Activity) -> impl Instrumentation {
        Observed { statements: self, activity }
    }
}

impl Instrumentation for Observed {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartQuery { .. } => {
                self.statements.0.fetch_add(1, Ordering::Relaxed);
                self.activity.begin_statement(tracing::info_span!(target: TRACES, "statement", otel.kind = "client"));
            }
            InstrumentationEvent::FinishQuery { .. } => {
                self.activity.end_statement();
            }
            _ => {}
        }
    }
}
