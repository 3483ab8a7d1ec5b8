//! The names of what the publisher counts.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use service::telemetry::{export_build_info, start_counters, traces::SPAN_OUTCOMES};

/// Which build this is.
pub const BUILD_INFO: &str = "publisher_build_info";
/// Overrides handled, by `outcome`: [`OVERRIDE_OUTCOMES`].
pub const OVERRIDES: &str = "publisher_overrides_total";
/// What may become of an override.
pub const OVERRIDE_OUTCOMES: [&str; 7] =
    ["appended", "replayed", "conflict", "key_reused", "invalid", "unavailable", "not_replicated"];
/// How long the backbone took to append: one override, or one part of a batch.
pub const APPEND_SECONDS: &str = "publisher_append_seconds";
/// HTTP requests answered, by `route` and `status`.
pub const HTTP_REQUESTS: &str = "publisher_http_requests_total";
/// Audit entries that this publisher was the one to bring to Postgres.
pub const AUDIT_EXPORTED: &str = "publisher_audit_exported_total";
/// Attempts to bring audit entries to Postgres that failed, by `cause`: [`AUDIT_EXPORT_CAUSES`].
pub const AUDIT_EXPORT_FAILURES: &str = "publisher_audit_export_failures_total";
/// Who may have failed.
pub const AUDIT_EXPORT_CAUSES: [&str; 2] = ["postgres", "redis"];
/// Age of the oldest audit entry that this publisher knows of and that may not be in Postgres yet.
pub const AUDIT_EXPORT_LAG_SECONDS: &str = "publisher_audit_export_lag_seconds";
/// Audit entries that will not come to Postgres, by `cause`: [`AUDIT_LOST_CAUSES`].
pub const AUDIT_LOST: &str = "publisher_audit_lost_total";
/// Why one may not.
pub const AUDIT_LOST_CAUSES: [&str; 3] = ["trimmed", "malformed", "displaced"];
/// From a request's head to its answer, by `route`.
pub const HTTP_SECONDS: &str = "publisher_http_request_seconds";

/// Spans of traces, by `outcome`: [`SPAN_OUTCOMES`].
pub const TRACE_SPANS: &str = "publisher_trace_spans_total";

/// Gives each its help text, and begins what can be counted. Once a process, after the recorder is installed.
pub fn describe() {
    export_build_info(BUILD_INFO);
    describe_counter!(OVERRIDES, Unit::Count, "Overrides handled, by outcome");
    describe_histogram!(
        APPEND_SECONDS,
        Unit::Seconds,
        "Time the backbone took to append an override or a part of a batch"
    );
    describe_counter!(HTTP_REQUESTS, Unit::Count, "HTTP requests answered, by route and status");
    describe_counter!(AUDIT_EXPORTED, Unit::Count, "Audit entries brought to Postgres");
    describe_counter!(
        AUDIT_EXPORT_FAILURES,
        Unit::Count,
        "Failed attempts to bring audit entries to Postgres, by cause"
    );
    describe_gauge!(
        AUDIT_EXPORT_LAG_SECONDS,
        Unit::Seconds,
        "Age of the oldest audit entry known that may not be in Postgres yet"
    );
    describe_counter!(AUDIT_LOST, Unit::Count, "Audit entries that will not come to Postgres, by cause");
    describe_histogram!(HTTP_SECONDS, Unit::Seconds, "From an HTTP request's head to its answer, by route");
    describe_counter!(TRACE_SPANS, Unit::Count, "Spans of traces, by what became of them");
    start_counters(TRACE_SPANS, "outcome", SPAN_OUTCOMES);
    start_counters(OVERRIDES, "outcome", OVERRIDE_OUTCOMES);
}

/// Begins what is counted where the audit is copied to Postgres.
pub(crate) fn begin_audit_copy() {
    metrics::counter!(AUDIT_EXPORTED).increment(0);
    start_counters(AUDIT_EXPORT_FAILURES, "cause", AUDIT_EXPORT_CAUSES);
    start_counters(AUDIT_LOST, "cause", AUDIT_LOST_CAUSES);
    metrics::gauge!(AUDIT_EXPORT_LAG_SECONDS).set(0.0);
}

/// Counts one override.
pub(crate) fn count_override(outcome: &'static str) {
    metrics::counter!(OVERRIDES, "outcome" => outcome).increment(1);
}

/// Counts audit entries that will not come to Postgres.
pub(crate) fn count_lost_audit(cause: &'static str, entries: u64) {
    metrics::counter!(AUDIT_LOST, "cause" => cause).increment(entries);
}
