//! Every metric of the gateway, by name. `docs/operations.md#metrics` describes them.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use protocol::{close::CloseCode, error::Refusal};
use service::telemetry::{Histogram, export_build_info, start_counters, traces::SPAN_OUTCOMES};

pub const BUILD_INFO: &str = "gateway_build_info";

pub const CONNECTIONS: &str = "gateway_connections";
pub const MAX_CONNECTIONS: &str = "gateway_max_connections";
/// By `outcome`: one of [`HANDSHAKE_OUTCOMES`].
pub const HANDSHAKES: &str = "gateway_handshakes_total";
pub const HANDSHAKE_OUTCOMES: [&str; 8] =
    ["accepted", "unauthorized", "forbidden", "limited", "full", "draining", "not_ready", "bad_request"];
/// By `code`: the close code, or `gone` when the peer left without one.
pub const CLOSES: &str = "gateway_closes_total";
/// Updates and snapshots only.
pub const MESSAGES_SENT: &str = "gateway_messages_sent_total";
/// Of any content.
pub const WRITES: &str = "gateway_socket_writes_total";
/// By `code`: the name of a [`Refusal`].
pub const REFUSED: &str = "gateway_messages_refused_total";
/// Per market, by `outcome`: one of [`RESUME_OUTCOMES`].
pub const RESUMES: &str = "gateway_resumes_total";
pub const RESUME_OUTCOMES: [&str; 2] = ["recovered", "reset"];
/// By `cause`: one of [`SNAPSHOT_CAUSES`].
pub const SNAPSHOTS: &str = "gateway_snapshots_total";
pub const SNAPSHOT_CAUSES: [&str; 3] = ["asked", "reset", "conflated"];
pub const MARKETS: &str = "gateway_markets_followed";
/// Markets that the change listener reported. Dashboards use this name, so it stays.
pub const TAIL_CHANGED: &str = "gateway_tail_rung_total";
/// Followed markets that the sweep read, reported as changed or not.
pub const TAIL_SWEPT: &str = "gateway_tail_swept_total";
/// Times that listening for changes began: at start, and after each lost connection.
pub const TAIL_CONNECTS: &str = "gateway_tail_connects_total";
pub const TAIL_READ_MARKETS: &str = "gateway_tail_read_markets";
/// From an update's acceptance to its arrival in this pod's memory, clock differences included.
pub const TAIL_LAG_SECONDS: &str = "gateway_tail_lag_seconds";
/// From an update's acceptance to its write to a client's socket, clock differences included. One observation per
/// delivery. Replays and snapshots are not observed.
pub static UPDATE_AGE: Histogram = Histogram::new(
    "gateway_update_age_seconds",
    "How old an update was when it was written to a client's socket, replays apart",
);
/// Histograms that `/metrics` adds to those of the recorder.
pub static HISTOGRAMS: [&Histogram; 1] = [&UPDATE_AGE];
pub const TAIL_UPDATES: &str = "gateway_tail_updates_total";
pub const TAIL_READ_SECONDS: &str = "gateway_tail_read_seconds";
/// For a first subscriber, for older updates, or after a gap.
pub const MARKET_LOADS: &str = "gateway_market_loads_total";
/// Holes, new epochs and lost history that were found in a log. Each reloads the market.
pub const GAPS_HEALED: &str = "gateway_tail_gaps_healed_total";
/// By `route` and `status`.
pub const HTTP_REQUESTS: &str = "gateway_http_requests_total";
/// By `route`.
pub const HTTP_SECONDS: &str = "gateway_http_request_seconds";
/// By `outcome`: one of [`SPAN_OUTCOMES`].
pub const TRACE_SPANS: &str = "gateway_trace_spans_total";
pub const REVOCATIONS: &str = "gateway_revocations";
pub const STALE: &str = "gateway_stale";

/// Describes every metric to the recorder, and starts the counters at 0 whose labels are known.
pub fn describe() {
    export_build_info(BUILD_INFO);
    describe_gauge!(CONNECTIONS, "Open sockets");
    describe_gauge!(MAX_CONNECTIONS, "The most sockets that may be open");
    describe_counter!(HANDSHAKES, "Handshakes by outcome");
    describe_counter!(CLOSES, "Connections that ended, by close code");
    describe_counter!(MESSAGES_SENT, "Updates and snapshots delivered to clients");
    describe_counter!(WRITES, "Writes to sockets, of any content");
    describe_counter!(REFUSED, "Client messages refused, by code");
    describe_counter!(RESUMES, "Resumed markets, by outcome");
    describe_counter!(SNAPSHOTS, "Snapshots sent, by cause");
    describe_gauge!(MARKETS, "Markets this pod follows");
    describe_counter!(TAIL_CHANGED, "Markets that Redis reported as changed");
    describe_counter!(TAIL_SWEPT, "Followed markets that the sweep read");
    describe_counter!(TAIL_CONNECTS, "Times that listening for changes began");
    describe_histogram!(TAIL_READ_MARKETS, "Markets in one read of the tail");
    describe_histogram!(
        TAIL_LAG_SECONDS,
        Unit::Seconds,
        "From an update's acceptance to its arrival in memory"
    );
    describe_counter!(TAIL_UPDATES, "Updates the tail read");
    describe_histogram!(TAIL_READ_SECONDS, Unit::Seconds, "Time of one read of the tail");
    describe_counter!(MARKET_LOADS, "Markets loaded from Redis");
    describe_counter!(GAPS_HEALED, "Holes and new epochs that were healed by reloading a market");
    describe_counter!(HTTP_REQUESTS, "HTTP requests answered, by route and status");
    describe_histogram!(
        HTTP_SECONDS,
        Unit::Seconds,
        "From the head of an HTTP request to the head of its response, by route"
    );
    describe_gauge!(REVOCATIONS, "Revocations this pod knows");
    describe_gauge!(STALE, "1 while this pod cannot vouch for fresh prices");

    describe_counter!(TRACE_SPANS, "Spans of traces, by outcome");
    start_counters(TRACE_SPANS, "outcome", SPAN_OUTCOMES);
    start_counters(HANDSHAKES, "outcome", HANDSHAKE_OUTCOMES);
    let codes = CloseCode::ALL.map(|code| code.number().to_string());
    start_counters(CLOSES, "code", codes.into_iter().chain(["gone".to_owned()]));
    let refusals = [Refusal::BadMessage, Refusal::RateLimited, Refusal::Unauthorized];
    start_counters(REFUSED, "code", refusals.map(Refusal::as_str));
    start_counters(RESUMES, "outcome", RESUME_OUTCOMES);
    start_counters(SNAPSHOTS, "cause", SNAPSHOT_CAUSES);
    for name in [
        MESSAGES_SENT,
        WRITES,
        TAIL_CHANGED,
        TAIL_SWEPT,
        TAIL_CONNECTS,
        TAIL_UPDATES,
        MARKET_LOADS,
        GAPS_HEALED,
    ] {
        metrics::counter!(name).increment(0);
    }
}
