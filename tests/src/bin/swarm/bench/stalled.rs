//! `swarm stalled`: connections that are never read, beside healthy ones.

use std::{fs, time::Duration};

use ::tests::Launch;
use anyhow::{Context, Result};
use clap::Args;

use super::environment::{Cores, await_connections, prepare};
use super::service::{Measuring, ServiceUnderTest};
use crate::client::{ClientPool, Endpoint, Plan};
use crate::load::tokens;
use crate::markets::Markets;
use crate::options::{counted, rate};
use crate::report::{Bound, Figure, Kernel, LISTEN, Report, allow_open_files, as_f64, median, rss_bytes};

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Connections that are read
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4000, value_parser = counted(1, 15_000))]
    healthy: usize,

    /// Connections that subscribe and are never read again
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = counted(1, 4000))]
    stalled: usize,

    /// Updates per second
    #[arg(long, value_name = "RATE", default_value_t = 20.0, value_parser = rate)]
    rate: f64,

    #[command(flatten)]
    measuring: Measuring,
}

const EXAMPLES: &str = "\
The gateway (WORKERS=1) has a core of its own. Each round measures the healthy ones alone. Then the others come, with small
receive buffers, updates fill their sockets, and the healthy ones are measured again.

Examples:
  swarm stalled
  swarm stalled --healthy 1000 --stalled 250";

pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { healthy, stalled, rate, measuring } = *options;
    prepare();
    allow_open_files(healthy + stalled + 128)?;
    let cores = Cores::divide()?;
    let start = |launch: Launch| cores.measured(|| launch.env("WORKERS", "1").start());
    let mut service = ServiceUnderTest::gateway(Markets::new(1, 1), healthy, start)?;
    let address = service.service().context("a gateway was started")?.api;
    let endpoints = vec![Endpoint::from(address)];
    let (duration, payload_bytes) = (measuring.duration, measuring.payload_bytes());
    // More than the send buffer of a socket and the receive buffer of a stalled one take.
    let fill = |service: &mut ServiceUnderTest| service.measure(200.0, Duration::from_secs(6), payload_bytes);
    // What the gateway keeps after many updates is not due to the stalled connections.
    fill(&mut service)?;
    let rss_before = rss_bytes(service.pid())?;
    let tokens = tokens::of_users(FIRST_STALLED_USER..FIRST_STALLED_USER + stalled);
    let mut report = Report::titled(format!(
        "stalled: {stalled} connections that are never read beside {healthy} healthy ones, one market, {rate} updates \
         per second"
    ));
    let (mut p99_times, mut fewest_full, mut most_rss) = (Vec::new(), stalled, 0);
    for round in 1..=measuring.rounds {
        let alone = service.measure(rate, duration, payload_bytes)?;
        let tcp_before = Kernel::read()?.tcp_bytes;
        let plan = Plan::all_at_once(endpoints.clone(), tokens.clone()).in_turn();
        // Once connected they read nothing.
        let unread = ClientPool::connect(Plan { small_buffers: true, ..plan }, Markets::new(1, 1))?;
        fill(&mut service)?;
        let beside = service.measure(rate, duration, payload_bytes)?;
        let tcp = fs::read_to_string("/proc/net/tcp")?;
        let full = tcp.lines().filter(|line| has_unsent(line, address.port())).count();
        let rss_growth = rss_bytes(service.pid())?.saturating_sub(rss_before);
        let tcp_growth = Kernel::read()?.tcp_bytes.saturating_sub(tcp_before);
        drop(unread);
        await_connections(&endpoints, healthy as u64)?;

        report.section(format!("round {round}"));
        report.row("healthy ones alone", alone.figures());
        report.row("beside stalled ones", beside.figures());
        let growth = [
            ("RSS +", Figure::Bytes(rss_growth)),
            ("the kernel's TCP buffers +", Figure::Bytes(tcp_growth)),
            ("connections full", full.into()),
        ];
        report.row("memory", growth);
        report.fail(alone.failures("alone").chain(beside.failures("beside")));
        p99_times.push(beside.p99_us() / alone.p99_us());
        (fewest_full, most_rss) = (fewest_full.min(full), most_rss.max(rss_growth));
    }
    let p99_times = median(p99_times.into_iter());
    let (fewest_full, all) = (as_f64(fewest_full as u64), as_f64(stalled as u64));
    report.bounds([
        Bound::at_most("p99 of the healthy ones, × without stalled ones", p99_times, P99),
        Bound::at_most("RSS growth per stalled connection, bytes", as_f64(most_rss) / all, HELD_BYTES),
        Bound::at_least("stalled connections that are full", fewest_full, all),
    ]);
    Ok(report)
}

/// None of the healthy connections' users.
const FIRST_STALLED_USER: usize = 1_000_000;

const P99: f64 = 1.2;

/// How many unsent bytes of replies a connection may hold. It holds no updates.
const HELD_BYTES: f64 = 16_384.0;

/// Whether a line of `/proc/net/tcp` is a connection of the server at this port that holds something unsent.
fn has_unsent(line: &str, port: u16) -> bool {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, queues, ..] = fields[..] else { return false };
    let unsent =
        queues.split_once(':').is_some_and(|(sending, _)| sending.bytes().any(|digit| digit != b'0'));
    local.ends_with(&format!(":{port:04X}")) && state != LISTEN && unsent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_with_something_unsent_is_told_from_others() {
        let line = |local: &str, state: &str, unsent: &str| {
            format!(
                "   1: {local} 0100007F:9C40 {state} {unsent}:00000000 00:00000000 00000000     0        0 1 1 0"
            )
        };
        assert!(has_unsent(&line("0100007F:1F90", "01", "0000A000"), 8080));
        assert!(!has_unsent(&line("0100007F:1F90", "01", "00000000"), 8080));
        assert!(!has_unsent(&line("0100007F:1F91", "01", "0000A000"), 8080));
        assert!(!has_unsent(&line("0100007F:1F90", "0A", "0000A000"), 8080));
        assert!(!has_unsent("  sl  local_address rem_address   st tx_queue rx_queue", 8080));
    }
}
