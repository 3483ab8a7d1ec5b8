//! `swarm spread`: many markets, each socket on some of them: what collecting updates before a write is worth.

use std::slice;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::baseline::Kind;
use crate::bed::{Cores, FIRST_MARKET, counter, prepare};
use crate::http::runtime;
use crate::markets::Markets;
use crate::options::{counted, rate};
use crate::process;
use crate::report::{Bound, Report, Table, median, millis, ratio};
use crate::subject::{Clients, Load, Measured, Subject, Taking};

/// Flags of `swarm spread`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Sockets
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000, value_parser = counted(1, 6000))]
    connections: usize,

    /// Markets
    #[arg(long, value_name = "M", default_value_t = 200, value_parser = counted(1, 10_000))]
    markets: usize,

    /// Markets of each socket
    #[arg(long, value_name = "K", default_value_t = 50, value_parser = counted(1, 200))]
    per_connection: usize,

    /// Updates a second, over all markets at random
    #[arg(long, value_name = "RATE", default_value_t = 1000.0, value_parser = rate)]
    rate: f64,

    #[command(flatten)]
    taking: Taking,
}

const EXAMPLES: &str = "\
Starts two gateways with WORKERS=1, one of them with FLUSH_INTERVAL=5ms, and a bare send(2) loop as the baseline, on a
core of their own; the clients, Redis and whoever appends share the others. 1000 sockets on 50 of 200 markets each are
250 deliveries an update.

Examples:
  swarm spread
  swarm spread --connections 2000 --rate 500";

/// What `swarm spread` found.
#[derive(Serialize)]
pub(crate) struct Spread {
    connections: usize,
    markets: usize,
    per_connection: usize,
    rate: f64,
    cases: Vec<Case>,
    bounds: Vec<Bound>,
}

/// One server.
#[derive(Serialize)]
struct Case {
    name: &'static str,
    rounds: Vec<Round>,
}

#[derive(Serialize)]
struct Round {
    #[serde(flatten)]
    measured: Measured,
    /// System calls that wrote, by what the gateway counts, warm-up included.
    writes_per_delivery: f64,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Spread> {
    let Options { connections, markets, per_connection, rate, .. } = *options;
    ensure!(per_connection <= markets, "--per-connection is at most --markets");
    prepare();
    process::allow_open_files(3 * connections + 128)?;
    let cores = Cores::divide()?;
    let clients =
        Clients { markets: Markets { first: FIRST_MARKET, count: markets, per_connection }, connections };
    let gateway = |flush: &str| {
        let start = |launch: ::tests::Launch| {
            cores.measured(|| launch.env("WORKERS", "1").env("FLUSH_INTERVAL", flush).start())
        };
        Subject::gateway(clients, start)
    };
    let mut subjects = [Subject::baseline(Kind::Send, clients, &cores)?, gateway("0ms")?, gateway(FLUSH)?];
    let names = ["send(2) loop", "FLUSH_INTERVAL=0ms", "FLUSH_INTERVAL=5ms"];
    let mut cases = names.map(|name| Case { name, rounds: Vec::new() });
    let load = options.taking.load(rate);
    for _ in 0..options.taking.rounds {
        for (subject, case) in subjects.iter_mut().zip(&mut cases) {
            case.rounds.push(round(subject, load)?);
        }
    }
    let bounds = bounds(&cases);
    Ok(Spread { connections, markets, per_connection, rate, cases: cases.into(), bounds })
}

/// The `FLUSH_INTERVAL` that is compared with none.
const FLUSH: &str = "5ms";

fn round(subject: &mut Subject, load: Load) -> Result<Round> {
    let before = written(subject)?;
    let measured = subject.measure(load)?;
    let after = written(subject)?;
    let writes_per_delivery = match (before, after) {
        (Some(before), Some(after)) => ratio(after.writes - before.writes, after.messages - before.messages)
            .context("nothing was sent")?,
        // A write a delivery is what it is.
        _ => 1.0,
    };
    Ok(Round { measured, writes_per_delivery })
}

struct Written {
    writes: u64,
    messages: u64,
}

fn written(subject: &Subject) -> Result<Option<Written>> {
    let Some(service) = subject.service() else { return Ok(None) };
    let read = |name| runtime()?.block_on(counter(slice::from_ref(service), name));
    Ok(Some(Written {
        writes: read("gateway_socket_writes_total")?,
        messages: read("gateway_messages_sent_total")?,
    }))
}

impl Case {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    fn p99_ms(&self) -> f64 {
        self.median(|round| millis(round.measured.latency.p99))
    }
}

/// What has to hold, with `FLUSH_INTERVAL=5ms`.
fn bounds(cases: &[Case; 3]) -> Vec<Bound> {
    let [_, _, flushed] = cases;
    let writes = flushed.median(|round| round.writes_per_delivery);
    vec![
        Bound::new(format!("{}, writes a delivery", flushed.name), writes, WRITES),
        Bound::new(format!("{}, p99 in ms", flushed.name), flushed.p99_ms(), P99_MS),
    ]
}

const WRITES: f64 = 0.5;
const P99_MS: f64 = 15.0;

impl Report for Spread {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "spread: {} sockets on {} of {} markets each, {} updates a second; medians of {}",
            self.connections,
            self.per_connection,
            self.markets,
            self.rate,
            self.cases.first().map_or(0, |case| case.rounds.len())
        ));
        let Some(bare) = self.cases.first() else { return };
        for case in &self.cases {
            let mut rounds: Vec<_> = case.rounds.iter().collect();
            rounds.sort_by(|a, b| a.measured.per_cpu_second().total_cmp(&b.measured.per_cpu_second()));
            let Some(middle) = rounds.get(rounds.len() / 2) else { continue };
            table.row(case.name, middle.measured.text());
            let both = case.rounds.iter().zip(&bare.rounds);
            let times =
                both.map(|(one, bare)| one.measured.per_cpu_second() / bare.measured.per_cpu_second());
            let writes = case.median(|round| round.writes_per_delivery);
            table.row(
                "",
                format!(
                    "{:.2} × the send(2) loop a CPU-second, {writes:.2} writes a delivery",
                    median(times)
                ),
            );
        }
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        for case in &self.cases {
            for round in &case.rounds {
                failures.extend(round.measured.failures().map(|wrong| format!("{}: {wrong}", case.name)));
            }
        }
        failures
    }
}
