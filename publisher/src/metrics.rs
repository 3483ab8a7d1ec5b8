//! The names and descriptions of the publisher's metrics (`docs/operations.md#metrics`).

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use service::telemetry::{export_build_info, start_counters, traces::SPAN_OUTCOMES};

/// Version and commit of this build.
pub(crate) const BUILD_INFO: &str = "publisher_build_info";
/// Overrides handled, by `outcome`: [`OVERRIDE_OUTCOMES`].
pub(crate) const OVERRIDES: &str = "publisher_overrides_total";
/// The outcomes of an override.
pub(crate) const OVERRIDE_OUTCOMES: [&str; 7] =
    ["appended", "replayed", "conflict", "key_reused", "invalid", "unavailable", "not_replicated"];
/// Time Redis took to append one override, or one chunk of a batch.
pub(crate) const APPEND_SECONDS: &str = "publisher_append_seconds";
/// HTTP requests answered, by `route` and `status`.
pub(crate) const HTTP_REQUESTS: &str = "publisher_http_requests_total";
/// Audit entries that this publisher inserted into Postgres, without those that were there already.
pub(crate) const AUDIT_EXPORTED: &str = "publisher_audit_exported_total";
/// Failed attempts to copy audit entries, by `cause`: [`AUDIT_EXPORT_CAUSES`].
pub(crate) const AUDIT_EXPORT_FAILURES: &str = "publisher_audit_export_failures_total";
/// The servers that may fail.
pub(crate) const AUDIT_EXPORT_CAUSES: [&str; 2] = ["postgres", "redis"];
/// Age of the oldest audit entry that this publisher knows of and that may not be in Postgres yet.
pub(crate) const AUDIT_EXPORT_LAG_SECONDS: &str = "publisher_audit_export_lag_seconds";
/// Audit entries that will not come to Postgres, by `cause`: [`AUDIT_LOST_CAUSES`].
pub(crate) const AUDIT_LOST: &str = "publisher_audit_lost_total";
/// The reasons why an entry is lost.
pub(crate) const AUDIT_LOST_CAUSES: [&str; 3] = ["trimmed", "malformed", "displaced"];
/// From the head of a request to its response, by `route`.
pub(crate) const HTTP_SECONDS: &str = "publisher_http_request_seconds";

/// Spans of traces, by `outcome`: [`SPAN_OUTCOMES`].
pub(crate) const TRACE_SPANS: &str = "publisher_trace_spans_total";

/// Describes the metrics, and starts the counters at 0. Call once per process, after the recorder is installed.
pub fn describe() {
    export_build_info(BUILD_INFO);
    describe_counter!(OVERRIDES, Unit::Count, "Overrides handled, by outcome");
    describe_histogram!(
        APPEND_SECONDS,
        Unit::Seconds,
        "Time Redis took to append an override, or a chunk of a batch"
    );
    describe_counter!(HTTP_REQUESTS, Unit::Count, "Admin requests answered, by route and status");
    describe_counter!(
        AUDIT_EXPORTED,
        Unit::Count,
        "Audit entries that this publisher inserted into Postgres"
    );
    describe_counter!(
        AUDIT_EXPORT_FAILURES,
        Unit::Count,
        "Failed attempts to copy audit entries to Postgres, by cause"
    );
    describe_gauge!(
        AUDIT_EXPORT_LAG_SECONDS,
        Unit::Seconds,
        "Age of the oldest known audit entry that may not be in Postgres yet"
    );
    describe_counter!(AUDIT_LOST, Unit::Count, "Audit entries that will not come to Postgres, by cause");
    describe_histogram!(
        HTTP_SECONDS,
        Unit::Seconds,
        "From an admin request's head to its response, by route"
    );
    describe_counter!(TRACE_SPANS, Unit::Count, "Spans of traces, by outcome");
    start_counters(TRACE_SPANS, "outcome", SPAN_OUTCOMES);
    start_counters(OVERRIDES, "outcome", OVERRIDE_OUTCOMES);
}

/// Starts the metrics of the audit's copy at 0.
pub(crate) fn begin_audit_copy() {
    metrics::counter!(AUDIT_EXPORTED).increment(0);
    start_counters(AUDIT_EXPORT_FAILURES, "cause", AUDIT_EXPORT_CAUSES);
    start_counters(AUDIT_LOST, "cause", AUDIT_LOST_CAUSES);
    metrics::gauge!(AUDIT_EXPORT_LAG_SECONDS).set(0.0);
}

/// Counts one override by its outcome.
pub(crate) fn count_override(outcome: &'static str) {
    metrics::counter!(OVERRIDES, "outcome" => outcome).increment(1);
}

/// Counts audit entries that will not come to Postgres.
pub(crate) fn count_lost_audit(cause: &'static str, entries: u64) {
    metrics::counter!(AUDIT_LOST, "cause" => cause).increment(entries);
}
