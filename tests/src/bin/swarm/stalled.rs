//! `swarm stalled`: sockets that nobody reads, beside healthy ones.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ::tests::Service;
use ::tests::tokens::JWT_SECRET;
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::bed::{Cores, FIRST_MARKET, Kernel, TOKEN_LIFE_S, await_connections, prepare};
use crate::frame::{self, Opcode};
use crate::markets::Markets;
use crate::options::{counted, rate};
use crate::process::{self, rss_bytes};
use crate::report::{Bound, Report, Table, bytes, median, ratio};
use crate::session::upgrade_request;
use crate::subject::{Clients, Load, Measured, Subject, Taking};
use crate::tokens::sign;

/// Flags of `swarm stalled`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Sockets that are read
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4000, value_parser = counted(1, 15_000))]
    healthy: usize,

    /// Sockets that subscribe and are never read again
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = counted(1, 4000))]
    stalled: usize,

    /// Updates a second
    #[arg(long, value_name = "RATE", default_value_t = 20.0, value_parser = rate)]
    rate: f64,

    #[command(flatten)]
    taking: Taking,
}

const EXAMPLES: &str = "\
Starts a redis-server and, on a core of its own, a gateway with WORKERS=1. All sockets are on one market. In each round
the healthy ones are measured alone; then the others come, with small receive buffers, updates are published until their
sockets are full, and the healthy ones are measured again. Then the stalled ones go.

Examples:
  swarm stalled
  swarm stalled --healthy 1000 --stalled 250";

/// What `swarm stalled` found.
#[derive(Serialize)]
pub(crate) struct Beside {
    healthy: usize,
    stalled: usize,
    rate: f64,
    rounds: Vec<Round>,
    bounds: Vec<Bound>,
}

#[derive(Serialize)]
struct Round {
    alone: Measured,
    beside: Measured,
    /// Stalled sockets whose send buffer has something in it, when nothing more is published.
    full: usize,
    /// By the end of the round, since before the first stalled socket came.
    rss_growth_bytes: u64,
    /// The same of the kernel's TCP buffers, both ends.
    tcp_growth_bytes: u64,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Beside> {
    let Options { healthy, stalled, rate, .. } = *options;
    prepare();
    process::allow_open_files(healthy + stalled + 128)?;
    let cores = Cores::divide()?;
    let clients = Clients { markets: MARKETS, connections: healthy };
    let mut subject =
        Subject::gateway(clients, |launch| cores.measured(|| launch.env("WORKERS", "1").start()))?;
    // What publishing much makes the gateway keep is not the stalled ones' doing.
    subject.measure(options.fill())?;
    let rss_before = rss_bytes(subject.pid())?;
    let tokens = sign(JWT_SECRET, FIRST_STALLED_USER, stalled, TOKEN_LIFE_S)?;
    let mut rounds = Vec::new();
    for _ in 0..options.taking.rounds {
        let alone = subject.measure(options.taking.load(rate))?;
        let tcp_before = Kernel::read()?.tcp_bytes;
        let address = service(&subject)?.api;
        let sockets = tokens.iter().map(|token| stall(address, token)).collect::<Result<Vec<_>>>()?;
        subject.measure(options.fill())?;
        let beside = subject.measure(options.taking.load(rate))?;
        let tcp = fs::read_to_string("/proc/net/tcp")?;
        rounds.push(Round {
            alone,
            beside,
            full: tcp.lines().filter(|line| has_unsent(line, address.port())).count(),
            rss_growth_bytes: rss_bytes(subject.pid())?.saturating_sub(rss_before),
            tcp_growth_bytes: Kernel::read()?.tcp_bytes.saturating_sub(tcp_before),
        });
        drop(sockets);
        await_connections(service(&subject)?, healthy as u64)?;
    }
    Ok(Beside { healthy, stalled, rate, bounds: bounds(&rounds, stalled), rounds })
}

const MARKETS: Markets = Markets { first: FIRST_MARKET, count: 1, per_connection: 1 };

/// None of the healthy ones.
const FIRST_STALLED_USER: u64 = 1_000_000;

/// As small as Linux allows.
const RECEIVE_BUFFER_BYTES: usize = 1;

fn service(subject: &Subject) -> Result<&Service> {
    subject.service().context("a gateway was started")
}

impl Options {
    /// More than the send buffer of a socket and the receive buffer of a stalled one take.
    fn fill(&self) -> Load {
        Load { duration: Duration::from_secs(6), ..self.taking.load(200.0) }
    }
}

/// A client that subscribes, and reads nothing after its ack.
fn stall(address: SocketAddr, token: &str) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.connect(&address.into())?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = upgrade_request(&address.to_string(), token).into_bytes();
    let subscribe = format!(r#"{{"type":"subscribe","markets":["{FIRST_MARKET}"]}}"#);
    frame::write(Opcode::Text, subscribe.as_bytes(), [1, 2, 3, 4], &mut request);
    stream.write_all(&request)?;
    let mut answer = Vec::new();
    while !answer.windows(ACK.len()).any(|window| window == ACK) {
        let mut some = [0; 256];
        let read = stream.read(&mut some).context("the ack of a socket that is to stall")?;
        ensure!(read > 0, "a socket that is to stall was refused: {}", String::from_utf8_lossy(&answer));
        answer.extend(&some[..read]);
    }
    Ok(stream)
}

const ACK: &[u8] = br#""type":"ack""#;

/// The state of a listener, whose queues mean something else.
const LISTEN: &str = "0A";

/// Whether a line of `/proc/net/tcp` is a connection of the server at this port that holds something unsent.
fn has_unsent(line: &str, port: u16) -> bool {
    let mut fields = line.split_ascii_whitespace();
    let is_local = |local: &str| local.ends_with(&format!(":{port:04X}"));
    let unsent = |queues: &str| {
        queues.split_once(':').is_some_and(|(sending, _)| sending.bytes().any(|digit| digit != b'0'))
    };
    fields.nth(1).is_some_and(is_local)
        && fields.nth(1).is_some_and(|state| state != LISTEN)
        && fields.next().is_some_and(unsent)
}

/// What has to hold.
fn bounds(rounds: &[Round], stalled: usize) -> Vec<Bound> {
    let p99 = |measured: &Measured| ratio(measured.latency.p99, 1).unwrap_or_default();
    let p99_times = median(rounds.iter().map(|round| p99(&round.beside) / p99(&round.alone)));
    let count = |count: usize| ratio(count as u64, 1).unwrap_or_default();
    let fewest = rounds.iter().map(|round| round.full).min().unwrap_or_default();
    let most = rounds.iter().map(|round| round.rss_growth_bytes).max().unwrap_or_default();
    let each = ratio(most, stalled as u64).unwrap_or_default();
    vec![
        Bound::new("p99 of the healthy ones, × without stalled ones".to_owned(), p99_times, P99),
        Bound::new("RSS growth a stalled socket, bytes".to_owned(), each, HELD_BYTES),
        Bound::at_least("stalled sockets that are full".to_owned(), count(fewest), count(stalled)),
    ]
}

const P99: f64 = 1.2;

/// What a connection may hold of unsent answers. Of updates none are kept.
const HELD_BYTES: f64 = 16_384.0;

impl Report for Beside {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "stalled: {} sockets that nobody reads beside {} healthy ones, one market, {} updates a second",
            self.stalled, self.healthy, self.rate
        ));
        for (number, round) in self.rounds.iter().enumerate() {
            table.section(&format!("round {}", number + 1));
            table.row("healthy ones alone", round.alone.text());
            table.row("beside stalled ones", round.beside.text());
            table.row(
                "memory",
                format!(
                    "RSS +{}, the kernel's TCP buffers +{}, {} sockets full",
                    bytes(round.rss_growth_bytes),
                    bytes(round.tcp_growth_bytes),
                    round.full
                ),
            );
        }
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        for round in &self.rounds {
            failures.extend(round.alone.failures().chain(round.beside.failures()));
        }
        failures
    }
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
