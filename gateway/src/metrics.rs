//! The names of every metric this service exports: one table.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use protocol::{close::CloseCode, error::Refusal};
use service::telemetry::{Histogram, export_build_info, start_counters, traces::SPAN_OUTCOMES};

/// Which build this is.
pub const BUILD_INFO: &str = "gateway_build_info";

/// Open sockets.
pub const CONNECTIONS: &str = "gateway_connections";
/// The most there may be.
pub const MAX_CONNECTIONS: &str = "gateway_max_connections";
/// Handshakes by outcome (`outcome`: [`HANDSHAKE_OUTCOMES`]).
pub const HANDSHAKES: &str = "gateway_handshakes_total";
/// How a handshake may end.
pub const HANDSHAKE_OUTCOMES: [&str; 8] =
    ["accepted", "unauthorized", "forbidden", "limited", "full", "draining", "not_ready", "bad_request"];
/// Connections that ended, by close code (`code`; `gone` when the peer just left).
pub const CLOSES: &str = "gateway_closes_total";
/// Messages delivered to clients: updates and snapshots.
pub const MESSAGES_SENT: &str = "gateway_messages_sent_total";
/// Socket writes that carried them.
pub const WRITES: &str = "gateway_socket_writes_total";
/// Client messages refused, by code.
pub const REFUSED: &str = "gateway_messages_refused_total";
/// Resumes, by outcome (`outcome`: [`RESUME_OUTCOMES`]).
pub const RESUMES: &str = "gateway_resumes_total";
/// How a market may be resumed.
pub const RESUME_OUTCOMES: [&str; 2] = ["recovered", "reset"];
/// Snapshots sent, by cause (`cause`: [`SNAPSHOT_CAUSES`]).
pub const SNAPSHOTS: &str = "gateway_snapshots_total";
/// Why a snapshot may be sent.
pub const SNAPSHOT_CAUSES: [&str; 3] = ["asked", "reset", "conflated"];
/// Markets this pod follows.
pub const MARKETS: &str = "gateway_markets_followed";
/// Markets that rang.
pub const TAIL_RUNG: &str = "gateway_tail_rung_total";
/// Followed markets that the sweep marked, rung or not.
pub const TAIL_SWEPT: &str = "gateway_tail_swept_total";
/// Times that listening for changes began: the first, and each after a connection was lost.
pub const TAIL_CONNECTS: &str = "gateway_tail_connects_total";
/// Markets in one read of the tail.
pub const TAIL_READ_MARKETS: &str = "gateway_tail_read_markets";
/// From an update's acceptance to its being in this pod's memory; clocks included.
pub const TAIL_LAG_SECONDS: &str = "gateway_tail_lag_seconds";
/// From an update's acceptance to its being written to a client's socket, replays apart; clocks included. One for each
/// delivery.
pub static UPDATE_AGE: Histogram = Histogram::new(
    "gateway_update_age_seconds",
    "How old an update was when it was written to a client's socket, replays apart",
);
/// What is measured besides the recorder.
pub static HISTOGRAMS: [&Histogram; 1] = [&UPDATE_AGE];
/// Updates the tail read.
pub const TAIL_UPDATES: &str = "gateway_tail_updates_total";
/// How long a read of the tail took.
pub const TAIL_READ_SECONDS: &str = "gateway_tail_read_seconds";
/// Markets loaded.
pub const MARKET_LOADS: &str = "gateway_market_loads_total";
/// Holes in a log, or new epochs, that were healed by loading the market anew.
pub const GAPS_HEALED: &str = "gateway_tail_gaps_healed_total";
/// HTTP requests answered, by `route` and `status`.
pub const HTTP_REQUESTS: &str = "gateway_http_requests_total";
/// From a request's head to its answer's, by `route`.
pub const HTTP_SECONDS: &str = "gateway_http_request_seconds";
/// Spans of traces, by `outcome`: [`SPAN_OUTCOMES`].
pub const TRACE_SPANS: &str = "gateway_trace_spans_total";
/// Revocations this pod knows.
pub const REVOCATIONS: &str = "gateway_revocations";
/// 1 while this pod cannot vouch for fresh prices.
pub const STALE: &str = "gateway_stale";

/// Tells the recorder what each means, and what can be counted.
pub fn describe() {
    export_build_info(BUILD_INFO);
    describe_gauge!(CONNECTIONS, "Open sockets");
    describe_gauge!(MAX_CONNECTIONS, "The most sockets that may be open");
    describe_counter!(HANDSHAKES, "Handshakes by outcome");
    describe_counter!(CLOSES, "Connections that ended, by close code");
    describe_counter!(MESSAGES_SENT, "Updates and snapshots delivered to clients");
    describe_counter!(WRITES, "Socket writes that carried them");
    describe_counter!(REFUSED, "Client messages refused, by code");
    describe_counter!(RESUMES, "Resumed markets, by outcome");
    describe_counter!(SNAPSHOTS, "Snapshots sent, by cause");
    describe_gauge!(MARKETS, "Markets this pod follows");
    describe_counter!(TAIL_RUNG, "Markets that rang");
    describe_counter!(TAIL_SWEPT, "Followed markets that the sweep marked");
    describe_counter!(TAIL_CONNECTS, "Times that listening for changes began");
    describe_histogram!(TAIL_READ_MARKETS, "Markets in one read of the tail");
    describe_histogram!(
        TAIL_LAG_SECONDS,
        Unit::Seconds,
        "From an update's acceptance to its being in memory"
    );
    describe_counter!(TAIL_UPDATES, "Updates the tail read");
    describe_histogram!(TAIL_READ_SECONDS, Unit::Seconds, "Time of one read of the tail");
    describe_counter!(MARKET_LOADS, "Markets loaded");
    describe_counter!(GAPS_HEALED, "Holes and new epochs healed by loading a market anew");
    describe_counter!(HTTP_REQUESTS, "HTTP requests answered, by route and status");
    describe_histogram!(HTTP_SECONDS, Unit::Seconds, "From an HTTP request's head to its answer's, by route");
    describe_gauge!(REVOCATIONS, "Revocations this pod knows");
    describe_gauge!(STALE, "1 while this pod cannot vouch for fresh prices");

    describe_counter!(TRACE_SPANS, "Spans of traces, by what became of them");
    start_counters(TRACE_SPANS, "outcome", SPAN_OUTCOMES);
    start_counters(HANDSHAKES, "outcome", HANDSHAKE_OUTCOMES);
    let codes = CloseCode::ALL.map(|code| code.number().to_string());
    start_counters(CLOSES, "code", codes.into_iter().chain(["gone".to_owned()]));
    let refusals = [Refusal::BadMessage, Refusal::RateLimited, Refusal::Unauthorized];
    start_counters(REFUSED, "code", refusals.map(Refusal::as_str));
    start_counters(RESUMES, "outcome", RESUME_OUTCOMES);
    start_counters(SNAPSHOTS, "cause", SNAPSHOT_CAUSES);
    for name in
        [MESSAGES_SENT, WRITES, TAIL_RUNG, TAIL_SWEPT, TAIL_CONNECTS, TAIL_UPDATES, MARKET_LOADS, GAPS_HEALED]
    {
        metrics::counter!(name).increment(0);
    }
}
