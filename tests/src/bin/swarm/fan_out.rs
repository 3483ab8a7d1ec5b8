//! `swarm fan-out`: one market to many sockets, what a delivery costs.

use ::tests::Service;
use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::baseline::Kind;
use crate::bed::{Cores, FIRST_MARKET, prepare};
use crate::markets::Markets;
use crate::options::{counted, rate};
use crate::process;
use crate::report::{Bound, Report, Table, median, per_second, ratio};
use crate::subject::{Clients, Measured, Subject, Taking};

/// Flags of `swarm fan-out`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Sockets, all on the one market
    #[arg(long, short = 'n', value_name = "N", default_value_t = 5000, value_parser = counted(1, 18_000))]
    connections: usize,

    /// Updates a second; repeatable
    #[arg(long, value_name = "RATE", default_values_t = [20.0, 50.0], value_parser = rate)]
    rate: Vec<f64>,

    /// Updates a second that are too many for the send(2) loop; repeatable
    #[arg(long, value_name = "RATE", default_values_t = [100.0, 200.0], value_parser = rate)]
    overload: Vec<f64>,

    /// What the gateway is compared with
    #[arg(long, value_enum, default_value = "send")]
    against: Kind,

    /// Compare a gateway that has this many WORKERS, and every core, with the one that has one of each
    #[arg(long, value_name = "N", value_parser = counted(1, 64), conflicts_with = "against")]
    workers: Option<usize>,

    #[command(flatten)]
    taking: Taking,
}

const EXAMPLES: &str = "\
Starts a gateway with WORKERS=1 and the baseline on a core of their own. The clients, Redis and whoever appends share the
others; a baseline makes its updates itself. What is compared is deliveries for a second of CPU of the server's process,
all its threads and system calls included, and nothing of Redis.

Examples:
  swarm fan-out
  swarm fan-out --against naive
  swarm fan-out --workers 2
  swarm fan-out --rate 40 --rounds 1 --duration 10s";

/// What `swarm fan-out` found.
#[derive(Serialize)]
pub(crate) struct FannedOut {
    connections: usize,
    rounds: usize,
    against: Against,
    rows: Vec<Row>,
    /// RSS of a socket that waits: of the baseline, and of the gateway.
    rss_bytes_per_socket: [f64; 2],
    bounds: Vec<Bound>,
}

/// What a gateway is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Against {
    Baseline(Kind),
    /// A gateway with one worker is the baseline, and this many are measured.
    OneWorker {
        workers: usize,
    },
}

/// One rate.
#[derive(Serialize)]
struct Row {
    rate: f64,
    part: Part,
    rounds: Vec<Round>,
}

/// What a rate is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    /// What a delivery costs when there is time for it.
    Steady,
    /// Half of what saturates the baseline.
    HalfLoad,
    /// The baseline does not keep up.
    Overload,
}

#[derive(Serialize)]
struct Round {
    baseline: Measured,
    gateway: Measured,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<FannedOut> {
    prepare();
    process::allow_open_files(2 * options.connections + 128)?;
    let cores = Cores::divide()?;
    let against = match options.workers {
        Some(workers) => Against::OneWorker { workers },
        None => Against::Baseline(options.against),
    };
    let mut pair = options.pair(against, &cores)?;
    let mut rows = Vec::new();
    for (rate, part) in options.rates(against, &mut pair[0])? {
        rows.push(Row { rate, part, rounds: Vec::new() });
    }
    for round in 0..options.taking.rounds {
        for row in &mut rows {
            let load = options.taking.load(row.rate);
            let [baseline, gateway] = &mut pair;
            // Neither always comes first.
            let both = if round % 2 == 0 {
                let baseline = baseline.measure(load)?;
                Round { baseline, gateway: gateway.measure(load)? }
            } else {
                let gateway = gateway.measure(load)?;
                Round { gateway, baseline: baseline.measure(load)? }
            };
            row.rounds.push(both);
        }
    }
    let rss_bytes_per_socket = pair.each_ref().map(|subject| subject.rss_bytes_per_socket);
    let bounds = bounds(against, &rows, options.connections, rss_bytes_per_socket);
    let Options { connections, taking: Taking { rounds, .. }, .. } = *options;
    Ok(FannedOut { connections, rounds, against, rows, rss_bytes_per_socket, bounds })
}

impl Options {
    /// The baseline, and the gateway that is compared with it.
    fn pair(&self, against: Against, cores: &Cores) -> Result<[Subject; 2]> {
        let markets = Markets { first: FIRST_MARKET, count: 1, per_connection: 1 };
        let clients = Clients { markets, connections: self.connections };
        let one =
            || Subject::gateway(clients, |launch| cores.measured(|| launch.env("WORKERS", "1").start()));
        match against {
            Against::Baseline(kind) => Ok([Subject::baseline(kind, clients, cores)?, one()?]),
            Against::OneWorker { workers } => {
                let start = |launch: ::tests::Launch| -> Result<Service> {
                    cores.all(|| launch.env("WORKERS", &workers.to_string()).start())
                };
                Ok([one()?, Subject::gateway(clients, start)?])
            }
        }
    }

    /// What to measure, in this order. Half a load is what the baseline, when it is overloaded, says it is.
    fn rates(&self, against: Against, baseline: &mut Subject) -> Result<Vec<(f64, Part)>> {
        let mut rates: Vec<_> = self.rate.iter().map(|&rate| (rate, Part::Steady)).collect();
        if against == Against::Baseline(Kind::Send)
            && let Some(&most) = self.overload.iter().max_by(|a, b| a.total_cmp(b))
        {
            let saturated = baseline.measure(self.taking.load(most))?.per_cpu_second();
            let sockets = ratio(self.connections as u64, 1).unwrap_or_default();
            rates.push(((saturated / sockets / 2.0).round().max(1.0), Part::HalfLoad));
            rates.extend(self.overload.iter().map(|&rate| (rate, Part::Overload)));
        }
        ensure!(!rates.is_empty(), "no --rate");
        Ok(rates)
    }
}

impl Row {
    /// Of the gateway, as a multiple of the baseline's in the same round.
    fn times(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.rounds.iter().map(|round| of(&round.gateway) / of(&round.baseline)))
    }

    fn p99_times(&self) -> f64 {
        self.times(|measured| ratio(measured.latency.p99, 1).unwrap_or_default())
    }

    /// How much of what was due the baseline delivered in time.
    fn kept_up(&self, connections: usize) -> f64 {
        let due = ratio(connections as u64, 1).unwrap_or_default() * self.rate;
        median(
            self.rounds
                .iter()
                .map(|round| per_second(round.baseline.deliveries, round.baseline.took_us) / due),
        )
    }

    /// The round in the middle by this.
    fn middle(&self, of: fn(&Round) -> &Measured) -> Option<&Measured> {
        let mut rounds: Vec<_> = self.rounds.iter().map(of).collect();
        rounds.sort_by(|a, b| a.per_cpu_second().total_cmp(&b.per_cpu_second()));
        rounds.get(rounds.len() / 2).copied()
    }
}

/// With less than this share of what is due the baseline is saturated.
const SATURATED: f64 = 0.95;

/// What has to hold.
fn bounds(against: Against, rows: &[Row], connections: usize, rss_bytes_per_socket: [f64; 2]) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let least = |row: &Row, least| {
        let what = format!("{}/s, deliveries a CPU-second, × the baseline's", row.rate);
        Bound::at_least(what, row.times(Measured::per_cpu_second), least)
    };
    for row in rows {
        match (against, row.part) {
            (Against::Baseline(Kind::Send), Part::Steady) => bounds.push(least(row, OF_SEND)),
            (Against::Baseline(Kind::Send), Part::HalfLoad) => {
                let what = format!("{}/s, p99, × the baseline's", row.rate);
                bounds.push(Bound::new(what, row.p99_times(), P99_OF_SEND));
            }
            (Against::Baseline(Kind::Send), Part::Overload) => {
                let what = format!("{}/s, share of what is due that the baseline delivers", row.rate);
                bounds.push(Bound::new(what, row.kept_up(connections), SATURATED));
                bounds.push(least(row, OF_SEND_OVERLOADED));
            }
            (Against::Baseline(Kind::Naive), _) => bounds.push(least(row, OF_NAIVE)),
            (Against::OneWorker { .. }, Part::Steady) => bounds.push(least(row, OF_ONE_WORKER)),
            (Against::OneWorker { .. }, _) => {}
        }
    }
    if against == Against::Baseline(Kind::Naive) {
        let [baseline, gateway] = rss_bytes_per_socket;
        bounds.push(Bound::new(
            "RSS a socket, × the baseline's".to_owned(),
            gateway / baseline,
            RSS_OF_NAIVE,
        ));
    }
    bounds
}

const OF_SEND: f64 = 0.95;
const OF_SEND_OVERLOADED: f64 = 1.5;
const P99_OF_SEND: f64 = 1.2;
const OF_NAIVE: f64 = 2.5;
const RSS_OF_NAIVE: f64 = 1.0 / 30.0;
const OF_ONE_WORKER: f64 = 0.85;

impl Against {
    fn names(self) -> [String; 2] {
        match self {
            Self::Baseline(Kind::Send) => ["send(2) loop".to_owned(), "gateway".to_owned()],
            Self::Baseline(Kind::Naive) => ["naive".to_owned(), "gateway".to_owned()],
            Self::OneWorker { workers } => ["1 worker".to_owned(), format!("{workers} workers")],
        }
    }
}

impl Report for FannedOut {
    fn table(&self, table: &mut Table) {
        let names = self.against.names();
        table.section(&format!(
            "fan-out: {} sockets on one market; deliveries a second of the server's CPU; medians of {}",
            self.connections, self.rounds
        ));
        for row in &self.rows {
            let part = match row.part {
                Part::Steady => "",
                Part::HalfLoad => ", half of what saturates the baseline",
                Part::Overload => ", too many for the baseline",
            };
            table.section(&format!("{} updates a second{part}", row.rate));
            let middles: [Option<&Measured>; 2] =
                [row.middle(|round| &round.baseline), row.middle(|round| &round.gateway)];
            for (name, middle) in names.iter().zip(middles) {
                table.row(name, middle.map(Measured::text).unwrap_or_default());
            }
            let each = row
                .rounds
                .iter()
                .map(|round| round.gateway.per_cpu_second() / round.baseline.per_cpu_second());
            let each: Vec<_> = each.map(|times| format!("{times:.2}")).collect();
            table.row(
                "gateway ÷ baseline",
                format!(
                    "{:.2} × a CPU-second ({}), {:.2} × p99",
                    row.times(Measured::per_cpu_second),
                    each.join(", "),
                    row.p99_times()
                ),
            );
        }
        let rss =
            names.iter().zip(self.rss_bytes_per_socket).map(|(name, bytes)| format!("{name} {bytes:.0} B"));
        table.section("memory");
        table.row("RSS a socket", rss.collect::<Vec<_>>().join(", "));
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        let [baseline, gateway] = self.against.names();
        for row in &self.rows {
            for round in &row.rounds {
                for (name, measured) in [(&baseline, &round.baseline), (&gateway, &round.gateway)] {
                    failures.extend(
                        measured.failures().map(|wrong| format!("{name} at {}/s: {wrong}", row.rate)),
                    );
                }
            }
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Percentiles;
    use crate::tally::Times;

    /// Of two seconds.
    fn measured(deliveries: u64, cpu_us: u64, p99_us: u64) -> Measured {
        let mut latency = Times::default();
        latency.record(p99_us);
        Measured {
            deliveries,
            cpu_us,
            took_us: 2_000_000,
            latency: (&latency).into(),
            late: Percentiles::from(&Times::default()),
            receiver_busy: 0.5,
            snapshots: 0,
            undelivered: 0,
            wrong: None,
        }
    }

    /// Ten sockets; in each round the gateway needs so much CPU for what the baseline does in a second.
    fn row(rate: f64, part: Part, deliveries: u64, cpu_us: [u64; 3]) -> Row {
        let rounds = cpu_us.map(|cpu_us| Round {
            baseline: measured(deliveries, 1_000_000, 100),
            gateway: measured(deliveries, cpu_us, 121),
        });
        Row { rate, part, rounds: rounds.into() }
    }

    fn failed(against: Against, rows: &[Row], rss: [f64; 2]) -> Vec<String> {
        bounds(against, rows, 10, rss).iter().filter_map(Bound::failure).collect()
    }

    #[test]
    fn the_median_of_the_rounds_ratios_is_what_has_to_hold() {
        let send = Against::Baseline(Kind::Send);
        let rows = [row(20.0, Part::Steady, 400, [1_000_000, 5_000_000, 1_040_000])];
        assert!(failed(send, &rows, [0.0; 2]).is_empty());
        let rows = [row(20.0, Part::Steady, 400, [1_000_000, 5_000_000, 1_100_000])];
        assert_eq!(failed(send, &rows, [0.0; 2]).len(), 1);
    }

    #[test]
    fn an_overload_that_the_baseline_keeps_up_with_shows_nothing() {
        let send = Against::Baseline(Kind::Send);
        let much_better = [500_000; 3];
        assert!(failed(send, &[row(100.0, Part::Overload, 1000, much_better)], [0.0; 2]).is_empty());
        let failed = failed(send, &[row(100.0, Part::Overload, 2000, much_better)], [0.0; 2]);
        assert!(failed.len() == 1 && failed[0].contains("share of what is due"), "{failed:?}");
    }

    #[test]
    fn at_half_load_latency_counts() {
        let send = Against::Baseline(Kind::Send);
        let failed = failed(send, &[row(10.0, Part::HalfLoad, 200, [9_000_000; 3])], [0.0; 2]);
        assert!(failed.len() == 1 && failed[0].contains("p99, × the baseline's: 1.21"), "{failed:?}");
    }

    #[test]
    fn beside_the_naive_one_memory_counts_too() {
        let rows = [row(20.0, Part::Steady, 400, [400_000; 3])];
        assert!(failed(Against::Baseline(Kind::Naive), &rows, [60_000.0, 2_000.0]).is_empty());
        assert_eq!(failed(Against::Baseline(Kind::Naive), &rows, [60_000.0, 2_001.0]).len(), 1);
    }

    #[test]
    fn more_workers_may_cost_a_little_more() {
        let two = Against::OneWorker { workers: 2 };
        assert!(failed(two, &[row(20.0, Part::Steady, 400, [1_170_000; 3])], [0.0; 2]).is_empty());
        assert_eq!(failed(two, &[row(20.0, Part::Steady, 400, [1_180_000; 3])], [0.0; 2]).len(), 1);
    }
}
