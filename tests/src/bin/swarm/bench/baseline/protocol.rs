//! What baselines say to benches and to clients.

use std::net::SocketAddr;

use protocol::time::unix_ms;
use serde::{Deserialize, Serialize};

use crate::{client::payload, clock::now_us, load::Schedule};

/// Before the address that a baseline prints.
pub(super) const LISTENING: &str = "listening on ";

/// Prints the address, for the bench.
pub(super) fn announce(address: SocketAddr) {
    println!("{LISTENING}{address}");
}

/// The path of the request that runs a schedule.
pub(super) const RUN: &str = "/run";

#[derive(Debug, Serialize, Deserialize, PartialEq, Clone, Copy)]
pub(super) struct Run {
    pub(super) schedule: Schedule,
    pub(super) until_us: u64,
}

impl Run {
    /// When each update is due, in turn, and its payload. The caller sleeps in between; nothing is due after `until_us`.
    pub(super) fn due(self) -> impl Iterator<Item = (u64, String)> {
        let Self { schedule, until_us } = self;
        let due = (0..schedule.updates).map(move |update| schedule.due_us(update));
        due.take_while(move |_| now_us() < until_us)
            .map(move |due_us| (due_us, payload(due_us, schedule.payload_bytes)))
    }
}

pub(super) fn update(market: u64, seq: u64, payload: &str) -> String {
    let ts = unix_ms();
    format!(r#"{{"type":"odds_update","marketId":{market},"seq":{seq},"ts":{ts},"payload":{payload}}}"#)
}

/// The ack of a subscribe to these markets, each with its latest seq.
pub(super) fn ack(latest: &[(u64, u64)]) -> String {
    let list = |one: fn(&(u64, u64)) -> String| latest.iter().map(one).collect::<Vec<_>>().join(",");
    let subscribed = list(|(market, _)| market.to_string());
    let positions = list(|(market, seq)| format!(r#""{market}":{{"epoch":1,"seq":{seq}}}"#));
    format!(r#"{{"type":"ack","ok":true,"subscribed":[{subscribed}],"positions":{{{positions}}}}}"#)
}

/// The markets that a subscribe names; `None` for another message.
pub(super) fn subscribed(text: &[u8]) -> Option<Vec<u64>> {
    #[derive(Deserialize)]
    struct Subscribe {
        markets: Vec<String>,
    }

    let subscribe: Subscribe = serde_json::from_slice(text).ok()?;
    subscribe.markets.iter().map(|market| market.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_due_when_the_time_is_over() {
        let schedule = Schedule { start_us: 0, rate: 1e6, updates: 10, payload_bytes: 0 };
        let run = Run { schedule, until_us: u64::MAX };
        assert_eq!(run.due().map(|(due_us, _)| due_us).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert_eq!(Run { until_us: 0, ..run }.due().count(), 0);
    }
}
