//! The names of what the publisher counts.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Overrides handled, by `outcome`: `appended`, `replayed`, `conflict`, `key_reused`, `invalid`, `unavailable`.
pub const OVERRIDES: &str = "publisher_overrides_total";
/// How long the backbone took to append: one override, or one part of a batch.
pub const APPEND_SECONDS: &str = "publisher_append_seconds";
/// HTTP requests answered, by `route` and `status`.
pub const HTTP_REQUESTS: &str = "publisher_http_requests_total";
/// Audit entries that this publisher was the one to bring to Postgres.
pub const AUDIT_EXPORTED: &str = "publisher_audit_exported_total";
/// Attempts to bring audit entries to Postgres that failed, by `cause`: `postgres`, `redis`.
pub const AUDIT_EXPORT_FAILURES: &str = "publisher_audit_export_failures_total";
/// Age of the oldest audit entry that this publisher knows of and that may not be in Postgres yet.
pub const AUDIT_EXPORT_LAG_SECONDS: &str = "publisher_audit_export_lag_seconds";
/// Audit entries that will not come to Postgres, by `cause`: `trimmed`, `malformed`, `displaced`.
pub const AUDIT_LOST: &str = "publisher_audit_lost_total";
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
}

/// Counts one override.
pub(crate) fn count_override(outcome: &'static str) {
    metrics::counter!(OVERRIDES, "outcome" => outcome).increment(1);
}

/// Counts audit entries that will not come to Postgres.
pub(crate) fn count_lost_audit(cause: &'static str, entries: u64) {
    metrics::counter!(AUDIT_LOST, "cause" => cause).increment(entries);
}
