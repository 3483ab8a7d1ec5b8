//! The names of what the publisher counts.

use metrics::{Unit, describe_counter, describe_histogram};

/// Overrides handled, by `outcome`: `appended`, `replayed`, `conflict`, `key_reused`, `invalid`, `unavailable`.
pub const OVERRIDES: &str = "publisher_overrides_total";
/// How long the backbone took to append: one override, or one part of a batch.
pub const APPEND_SECONDS: &str = "publisher_append_seconds";
/// HTTP requests answered, by `route` and `status`.
pub const HTTP_REQUESTS: &str = "publisher_http_requests_total";
/// From a request's head to its answer, by `route`.
pub const HTTP_SECONDS: &str = "publisher_http_request_seconds";

/// Gives each its help text. Once a process, after the recorder is installed.
pub fn describe() {
    describe_counter!(OVERRIDES, Unit::Count, "Overrides handled, by outcome");
    describe_histogram!(
        APPEND_SECONDS,
        Unit::Seconds,
        "Time the backbone took to append an override or a part of a batch"
    );
    describe_counter!(HTTP_REQUESTS, Unit::Count, "HTTP requests answered, by route and status");
    describe_histogram!(HTTP_SECONDS, Unit::Seconds, "From an HTTP request's head to its answer, by route");
}

/// Counts one override.
pub(crate) fn count_override(outcome: &'static str) {
    metrics::counter!(OVERRIDES, "outcome" => outcome).increment(1);
}
