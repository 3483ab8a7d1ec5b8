//! The trace that an update belongs to.

use std::sync::Arc;

/// A sampled span's W3C `traceparent`. It travels with the update from the publisher's request to the first delivery.
///
/// The text is opaque here: telemetry reads and writes it. A clone shares the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext(Arc<str>);

impl TraceContext {
    /// Wraps a `traceparent` of a sampled span.
    #[must_use]
    pub fn new(traceparent: &str) -> Self {
        Self(traceparent.into())
    }

    /// Returns the `traceparent`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the trace's id, as logs show it.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.0.split('-').nth(1).unwrap_or_default()
    }
}
