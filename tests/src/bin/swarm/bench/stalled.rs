//! `swarm stalled`: connections that are never read, beside healthy ones.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ::tests::Launch;
use ::tests::frame::{frame, last, opcode};
use ::tests::raw::upgrade_request;
use anyhow::{Context, Result, ensure};
use clap::Args;
use socket2::{Domain, Protocol, Socket, Type};

use super::environment::{Cores, await_connections, prepare};
use super::service::{Measured, Measuring, ServiceUnderTest};
use crate::client::http::Endpoint;
use crate::load::tokens;
use crate::markets::{FIRST_MARKET, Markets};
use crate::options::{counted, rate};
use crate::report::usage::{Kernel, LISTEN, allow_open_files, rss_bytes};
use crate::report::{Bound, Figure, Report, as_f64, median, ratio};

/// Flags of `swarm stalled`.
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
Starts a redis-server and, on a core of its own, a gateway with WORKERS=1. All connections are on one market. Each round
measures the healthy ones alone. Then the others come, with small receive buffers, and updates are published until their
sockets are full. Then the healthy ones are measured again, and the stalled ones go.

Examples:
  swarm stalled
  swarm stalled --healthy 1000 --stalled 250";

struct Round {
    alone: Measured,
    beside: Measured,
    /// Stalled connections whose send buffer is not empty when nothing more is published.
    full: usize,
    /// By the end of the round, since before the first stalled connection came.
    rss_growth_bytes: u64,
    /// The same of the kernel's TCP buffers, both ends.
    tcp_growth_bytes: u64,
}

/// Runs it.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { healthy, stalled, rate, measuring } = *options;
    prepare();
    allow_open_files(healthy + stalled + 128)?;
    let cores = Cores::divide()?;
    let start = |launch: Launch| cores.measured(|| launch.env("WORKERS", "1").start());
    let mut service = ServiceUnderTest::gateway(Markets::new(1, 1), healthy, start)?;
    let address = service.service().context("a gateway was started")?.api;
    let payload_bytes = measuring.payload_bytes();
    // More than the send buffer of a socket and the receive buffer of a stalled one take.
    let fill = |service: &mut ServiceUnderTest| service.measure(200.0, Duration::from_secs(6), payload_bytes);
    // What the gateway keeps after many updates is not due to the stalled connections.
    fill(&mut service)?;
    let rss_before = rss_bytes(service.pid())?;
    let tokens = tokens::of_users(FIRST_STALLED_USER..FIRST_STALLED_USER + stalled);
    let mut rounds = Vec::new();
    for _ in 0..measuring.rounds {
        let alone = service.measure(rate, measuring.duration, payload_bytes)?;
        let tcp_before = Kernel::read()?.tcp_bytes;
        let sockets = tokens.iter().map(|token| stall(address, token)).collect::<Result<Vec<_>>>()?;
        fill(&mut service)?;
        let beside = service.measure(rate, measuring.duration, payload_bytes)?;
        let tcp = fs::read_to_string("/proc/net/tcp")?;
        rounds.push(Round {
            alone,
            beside,
            full: tcp.lines().filter(|line| has_unsent(line, address.port())).count(),
            rss_growth_bytes: rss_bytes(service.pid())?.saturating_sub(rss_before),
            tcp_growth_bytes: Kernel::read()?.tcp_bytes.saturating_sub(tcp_before),
        });
        drop(sockets);
        await_connections(&[Endpoint::from(address)], healthy as u64)?;
    }
    Ok(options.report(&rounds))
}

/// None of the healthy connections' users.
const FIRST_STALLED_USER: usize = 1_000_000;

/// Linux raises it to its minimum.
const RECEIVE_BUFFER_BYTES: usize = 1;

/// A client that subscribes, and reads nothing after its ack.
fn stall(address: SocketAddr, token: &str) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.connect(&address.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = upgrade_request(&address.to_string(), token).into_bytes();
    let subscribe = format!(r#"{{"type":"subscribe","markets":["{FIRST_MARKET}"]}}"#);
    request.extend(frame(last(opcode::TEXT), subscribe.as_bytes()));
    stream.write_all(&request)?;
    let mut received = Vec::new();
    while !received.windows(ACK.len()).any(|window| window == ACK) {
        let mut some = [0; 256];
        let read = stream.read(&mut some).context("the ack of a connection that is to stall")?;
        ensure!(
            read > 0,
            "a connection that is to stall was refused: {}",
            String::from_utf8_lossy(&received)
        );
        received.extend(&some[..read]);
    }
    Ok(stream)
}

const ACK: &[u8] = br#""type":"ack""#;

/// Whether a line of `/proc/net/tcp` is a connection of the server at this port that holds something unsent.
fn has_unsent(line: &str, port: u16) -> bool {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, queues, ..] = fields[..] else { return false };
    let unsent =
        queues.split_once(':').is_some_and(|(sending, _)| sending.bytes().any(|digit| digit != b'0'));
    local.ends_with(&format!(":{port:04X}")) && state != LISTEN && unsent
}

impl Options {
    fn report(&self, rounds: &[Round]) -> Report {
        let mut report = Report::titled(format!(
            "stalled: {} connections that are never read beside {} healthy ones, one market, {} updates per second",
            self.stalled, self.healthy, self.rate
        ));
        for (number, round) in (1..).zip(rounds) {
            report.section(format!("round {number}"));
            report.row("healthy ones alone", round.alone.figures());
            report.row("beside stalled ones", round.beside.figures());
            let growth = [
                ("RSS +", Figure::Bytes(round.rss_growth_bytes)),
                ("the kernel's TCP buffers +", Figure::Bytes(round.tcp_growth_bytes)),
                ("connections full", round.full.into()),
            ];
            report.row("memory", growth);
            report.fail(round.alone.failures("alone").chain(round.beside.failures("beside")));
        }
        let p99_times = median(rounds.iter().map(|round| round.beside.p99_us() / round.alone.p99_us()));
        let fewest = rounds.iter().map(|round| round.full).min().unwrap_or_default();
        let most = rounds.iter().map(|round| round.rss_growth_bytes).max().unwrap_or_default();
        let each = ratio(most, self.stalled as u64);
        let (fewest, stalled) = (as_f64(fewest as u64), as_f64(self.stalled as u64));
        report.bounds([
            Bound::at_most("p99 of the healthy ones, × without stalled ones", p99_times, P99),
            Bound::at_most("RSS growth per stalled connection, bytes", each, HELD_BYTES),
            Bound::at_least("stalled connections that are full", fewest, stalled),
        ]);
        report
    }
}

const P99: f64 = 1.2;

/// How many unsent bytes of replies a connection may hold. It holds no updates.
const HELD_BYTES: f64 = 16_384.0;

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
