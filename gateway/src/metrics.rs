//! The names of every metric this service exports: one table.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use shared::telemetry::Tally;

/// Open sockets.
pub const CONNECTIONS: &str = "gateway_connections";
/// Handshakes by outcome (`outcome`: accepted, unauthorized, forbidden, limited, full, bad_request).
pub const HANDSHAKES: &str = "gateway_handshakes_total";
/// Connections that ended, by close code (`code`; `gone` when the peer just left).
pub const CLOSES: &str = "gateway_closes_total";
/// Messages delivered to clients: updates and snapshots.
pub const MESSAGES_SENT: &str = "gateway_messages_sent_total";
/// Socket writes that carried them.
pub const WRITES: &str = "gateway_socket_writes_total";
/// Client messages refused, by code.
pub const REFUSED: &str = "gateway_messages_refused_total";
/// Resumes, by outcome (`outcome`: recovered, reset).
pub const RESUMES: &str = "gateway_resumes_total";
/// Snapshots sent, by cause (`cause`: asked, reset, conflated).
pub const SNAPSHOTS: &str = "gateway_snapshots_total";
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
pub static UPDATE_AGE: Tally = Tally::new(
    "gateway_update_age_seconds",
    "How old an update was when it was written to a client's socket, replays apart",
);
/// What is measured besides the recorder.
pub static TALLIES: [&Tally; 1] = [&UPDATE_AGE];
/// Updates the tail read.
pub const TAIL_UPDATES: &str = "gateway_tail_updates_total";
/// How long a read of the tail took.
pub const TAIL_READ_SECONDS: &str = "gateway_tail_read_seconds";
/// Markets loaded.
pub const MARKET_LOADS: &str = "gateway_market_loads_total";
/// Holes in a log, or new epochs, that were healed by loading the market anew.
pub const GAPS_HEALED: &str = "gateway_tail_gaps_healed_total";
/// Revocations this pod knows.
pub const REVOCATIONS: &str = "gateway_revocations";
/// 1 while this pod cannot vouch for fresh prices.
pub const STALE: &str = "gateway_stale";

/// Tells the recorder what each means.
pub fn describe() {
    describe_gauge!(CONNECTIONS, "Open sockets");
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
    describe_gauge!(REVOCATIONS, "Revocations this pod knows");
    describe_gauge!(STALE, "1 while this pod cannot vouch for fresh prices");
}
