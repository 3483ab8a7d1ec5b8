//! `swarm fan-out`: one market to many connections, and the cost of a delivery.

use ::tests::Launch;
use anyhow::{Result, ensure};
use clap::Args;

use super::baseline::Kind;
use super::environment::{Cores, prepare};
use super::service::{Measured, Measuring, Rounds, ServiceUnderTest};
use crate::markets::Markets;
use crate::options::{counted, rate};
use crate::report::{Bound, Figure, Report, allow_open_files, as_f64, median, per_second};

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Connections, all on the one market
    #[arg(long, short = 'n', value_name = "N", default_value_t = 5000, value_parser = counted(1, 18_000))]
    connections: usize,

    /// Updates per second; repeatable
    #[arg(long, value_name = "RATE", default_values_t = [20.0, 50.0], value_parser = rate)]
    rate: Vec<f64>,

    /// Updates per second that are too many for the send(2) loop; repeatable
    #[arg(long, value_name = "RATE", default_values_t = [100.0, 200.0], value_parser = rate)]
    overload: Vec<f64>,

    /// What the gateway is compared with
    #[arg(long, value_enum, default_value = "send")]
    against: Kind,

    /// Compare a gateway that has this many WORKERS, and every core, with a gateway that has one of each
    #[arg(long, value_name = "N", value_parser = counted(1, 64), conflicts_with = "against")]
    workers: Option<usize>,

    #[command(flatten)]
    measuring: Measuring,
}

const EXAMPLES: &str = "\
Gateway (WORKERS=1) and baseline have a core of their own. Clients, Redis and appender share the others; a baseline makes its
updates itself. CPU is that of the server's process: all its threads and system calls included, Redis not.

Examples:
  swarm fan-out
  swarm fan-out --against naive
  swarm fan-out --workers 2 --rate 20
  swarm fan-out --rate 40 --rounds 1 --duration 10s";

/// What a gateway is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Against {
    Baseline(Kind),
    /// A gateway with one worker is the baseline, and this many are measured.
    OneWorker(usize),
}

struct Case {
    rate: f64,
    purpose: Purpose,
    baseline: Rounds,
    gateway: Rounds,
}

/// What a rate is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// What a delivery costs when there is time for it.
    Steady,
    /// Half of what saturates the baseline.
    HalfLoad,
    /// The baseline does not keep up.
    Overload,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { connections, measuring, .. } = *options;
    prepare();
    allow_open_files(2 * connections + 128)?;
    let cores = Cores::divide()?;
    let against = options.workers.map_or(Against::Baseline(options.against), Against::OneWorker);
    let [mut baseline, mut gateway] = options.pair(against, &cores)?;
    let take = |service: &mut ServiceUnderTest, rate| {
        service.measure(rate, measuring.duration, measuring.payload_bytes())
    };
    let mut rates: Vec<_> = options.rate.iter().map(|&rate| (rate, Purpose::Steady)).collect();
    let most = options.overload.iter().copied().max_by(f64::total_cmp);
    if let Some(most) = most.filter(|_| against == Against::Baseline(Kind::Send)) {
        // Half a load is half of the baseline's deliveries under the highest overload.
        let half = take(&mut baseline, most)?.per_cpu_second() / as_f64(connections as u64) / 2.0;
        rates.push((half.round().max(1.0), Purpose::HalfLoad));
        rates.extend(options.overload.iter().map(|&rate| (rate, Purpose::Overload)));
    }
    ensure!(!rates.is_empty(), "no --rate");
    let case = |(rate, purpose)| {
        let [baseline, gateway] = against.names().map(Rounds::of);
        Case { rate, purpose, baseline, gateway }
    };
    let mut cases: Vec<_> = rates.into_iter().map(case).collect();
    for round in 0..measuring.rounds {
        for Case { rate, baseline: bare, gateway: full, .. } in &mut cases {
            let mut both = [(&mut baseline, bare), (&mut gateway, full)];
            // Neither always comes first.
            both.rotate_left(round % 2);
            for (service, rounds) in both {
                rounds.all.push(take(service, *rate)?);
            }
        }
    }

    let mut report = Report::titled(format!(
        "fan-out: {connections} connections on one market; deliveries per second of the server's CPU; medians of {}",
        measuring.rounds
    ));
    for case in &cases {
        case.report(&mut report);
    }
    report.section("memory");
    let rss = [baseline.rss_bytes_per_client, gateway.rss_bytes_per_client];
    for (name, bytes) in against.names().into_iter().zip(rss) {
        report.row(name, [("RSS per connection, bytes", bytes.into())]);
    }
    report.bounds(bounds(against, &cases, connections, rss));
    Ok(report)
}

impl Options {
    /// The baseline, and the gateway that is compared with it.
    fn pair(&self, against: Against, cores: &Cores) -> Result<[ServiceUnderTest; 2]> {
        let (markets, connections) = (Markets::new(1, 1), self.connections);
        let one = |launch: Launch| cores.measured(|| launch.env("WORKERS", "1").start());
        let one = || ServiceUnderTest::gateway(markets, connections, one);
        match against {
            Against::Baseline(kind) => {
                Ok([ServiceUnderTest::baseline(kind, markets, connections, cores)?, one()?])
            }
            Against::OneWorker(workers) => {
                let many = |launch: Launch| cores.all(|| launch.env("WORKERS", &workers.to_string()).start());
                Ok([one()?, ServiceUnderTest::gateway(markets, connections, many)?])
            }
        }
    }
}

impl Case {
    fn times(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.gateway.times(&self.baseline, of).into_iter())
    }

    /// The share of what was due that the baseline delivered in time.
    fn kept_up(&self, connections: usize) -> f64 {
        let due = as_f64(connections as u64) * self.rate;
        self.baseline.median(|measured| per_second(measured.deliveries, measured.took_us)) / due
    }

    fn report(&self, report: &mut Report) {
        let purpose = match self.purpose {
            Purpose::Steady => "",
            Purpose::HalfLoad => ", half of what saturates the baseline",
            Purpose::Overload => ", too many for the baseline",
        };
        report.section(format!("{} updates per second{purpose}", self.rate));
        for rounds in [&self.baseline, &self.gateway] {
            rounds.report(report, &format!(" at {}/s", self.rate));
        }
        let ratios = [
            ("per CPU-second", self.times(Measured::per_cpu_second).into()),
            ("of", Figure::Numbers(self.gateway.times(&self.baseline, Measured::per_cpu_second))),
            ("p99", self.times(Measured::p99_us).into()),
        ];
        report.row("gateway ÷ baseline", ratios);
    }
}

/// The baseline is saturated if it delivers less than this share of what is due.
const SATURATED: f64 = 0.95;

fn bounds(against: Against, cases: &[Case], connections: usize, rss: [f64; 2]) -> Vec<Bound> {
    let mut bounds = Vec::new();
    for case in cases {
        let rate = case.rate;
        let at_least = |least| {
            let what = format!("{rate}/s, deliveries per CPU-second, × the baseline's");
            Bound::at_least(what, case.times(Measured::per_cpu_second), least)
        };
        match (against, case.purpose) {
            (Against::Baseline(Kind::Send), Purpose::Steady) => bounds.push(at_least(OF_SEND)),
            (Against::Baseline(Kind::Send), Purpose::HalfLoad) => {
                let what = format!("{rate}/s, p99, × the baseline's");
                bounds.push(Bound::at_most(what, case.times(Measured::p99_us), P99_OF_SEND));
            }
            (Against::Baseline(Kind::Send), Purpose::Overload) => {
                let what = format!("{rate}/s, share of what is due that the baseline delivers");
                bounds.push(Bound::at_most(what, case.kept_up(connections), SATURATED));
                bounds.push(at_least(OF_SEND_OVERLOADED));
            }
            (Against::Baseline(Kind::Naive), _) => bounds.push(at_least(OF_NAIVE)),
            (Against::OneWorker(_), _) => bounds.push(at_least(OF_ONE_WORKER)),
        }
    }
    if against == Against::Baseline(Kind::Naive) {
        let what = "RSS per connection, × the baseline's";
        bounds.push(Bound::at_most(what, rss[1] / rss[0], RSS_OF_NAIVE));
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
            Self::OneWorker(workers) => ["1 worker".to_owned(), format!("{workers} workers")],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bounds that do not hold, with ten connections. A delivery of the baseline takes 100 µs; in each round the
    /// gateway needs so much CPU for the baseline's deliveries of one CPU-second.
    fn failed(
        against: Against,
        (rate, purpose): (f64, Purpose),
        deliveries: u64,
        cpu_us: [u64; 3],
        rss: [f64; 2],
    ) -> Vec<String> {
        let measured = |cpu_us, p99_us| {
            let mut measured = Measured { deliveries, cpu_us, took_us: 2_000_000, ..Measured::default() };
            measured.seen.latency.record(p99_us);
            measured
        };
        let [mut baseline, mut gateway] = against.names().map(Rounds::of);
        baseline.all = vec![measured(1_000_000, 100); 3];
        gateway.all = cpu_us.map(|cpu_us| measured(cpu_us, 121)).into();
        let case = Case { rate, purpose, baseline, gateway };
        bounds(against, &[case], 10, rss).iter().filter_map(Bound::failure).collect()
    }

    const SEND: Against = Against::Baseline(Kind::Send);
    const STEADY: (f64, Purpose) = (20.0, Purpose::Steady);

    #[test]
    fn the_median_of_the_rounds_ratios_is_what_has_to_hold() {
        assert!(failed(SEND, STEADY, 400, [1_000_000, 5_000_000, 1_040_000], [0.0; 2]).is_empty());
        assert_eq!(failed(SEND, STEADY, 400, [1_000_000, 5_000_000, 1_100_000], [0.0; 2]).len(), 1);
    }

    #[test]
    fn an_overload_that_the_baseline_keeps_up_with_shows_nothing() {
        let (overload, much_better) = ((100.0, Purpose::Overload), [500_000; 3]);
        assert!(failed(SEND, overload, 1000, much_better, [0.0; 2]).is_empty());
        let failed = failed(SEND, overload, 2000, much_better, [0.0; 2]);
        assert!(failed.len() == 1 && failed[0].contains("share of what is due"), "{failed:?}");
    }

    #[test]
    fn at_half_load_latency_counts() {
        let failed = failed(SEND, (10.0, Purpose::HalfLoad), 200, [9_000_000; 3], [0.0; 2]);
        assert!(failed.len() == 1 && failed[0].contains("p99, × the baseline's: 1.21"), "{failed:?}");
    }

    #[test]
    fn beside_the_naive_baseline_memory_counts_too() {
        let naive = Against::Baseline(Kind::Naive);
        assert!(failed(naive, STEADY, 400, [400_000; 3], [60_000.0, 2_000.0]).is_empty());
        assert_eq!(failed(naive, STEADY, 400, [400_000; 3], [60_000.0, 2_001.0]).len(), 1);
    }

    #[test]
    fn more_workers_may_cost_a_little_more() {
        let two = Against::OneWorker(2);
        assert!(failed(two, STEADY, 400, [1_170_000; 3], [0.0; 2]).is_empty());
        assert_eq!(failed(two, STEADY, 400, [1_180_000; 3], [0.0; 2]).len(), 1);
    }
}
