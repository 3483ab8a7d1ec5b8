//! A service under test on the measured core, with its clients, and the cost of a delivery.

use std::{iter, net::SocketAddr, sync::OnceLock, sync::atomic::AtomicU64, time::Duration};

use ::tests::{Launch, Redis, Service};
use anyhow::Result;
use clap::Args;
use rustix::process::nice;

use super::baseline::{Baseline, Kind};
use super::environment::Cores;
use crate::client::{ClientPool, End, Endpoint, Plan, Seen, payload_bytes};
use crate::load::{Appender, Way, Window, measure, tokens};
use crate::options::{counted, duration};
use crate::report::{Figure, Labelled, Report, Times, as_f64, cpu_ns, median, per_second, ratio, rss_bytes};
use crate::{clock::now_us, markets::Markets};

pub(crate) struct ServiceUnderTest {
    server: Server,
    markets: Markets,
    clients: ClientPool,
    /// How much of the server's memory a client takes that waits.
    pub(crate) rss_bytes_per_client: f64,
}

/// Stopped when dropped.
enum Server {
    /// Updates are appended to its Redis, from the cores that load.
    Gateway { service: Service, log: Box<Appender>, _redis: Box<Redis> },
    /// It makes its updates itself.
    Baseline(Baseline),
}

#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Measuring {
    /// How long each measurement takes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub(crate) duration: Duration,

    /// How often each is taken, in turn with its baseline; the median of the ratios counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(1, 99))]
    pub(crate) rounds: usize,

    /// Size of an update as a WebSocket message, at least
    #[arg(long, value_name = "BYTES", default_value_t = 145, value_parser = counted(0, 16_000))]
    update_bytes: usize,
}

impl Measuring {
    pub(crate) fn payload_bytes(&self) -> usize {
        payload_bytes(self.update_bytes)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) deliveries: u64,
    /// CPU of the server in that time: all its threads, system calls included.
    pub(crate) cpu_us: u64,
    pub(crate) took_us: u64,
    /// From due to sent, for updates that are appended to Redis.
    pub(crate) late: Times,
    /// Snapshots in place of updates, for clients that were too slow.
    pub(crate) snapshots: u64,
    pub(crate) seen: Seen,
}

impl Measured {
    pub(crate) fn per_cpu_second(&self) -> f64 {
        per_second(self.deliveries, self.cpu_us)
    }

    pub(crate) fn p99_us(&self) -> f64 {
        as_f64(self.seen.latency.p99_us())
    }

    pub(crate) fn figures(&self) -> Vec<Labelled> {
        let mut figures = vec![
            ("per CPU-second", self.per_cpu_second().into()),
            ("per second", per_second(self.deliveries, self.took_us).into()),
            ("busy", Figure::Share(ratio(self.cpu_us, self.took_us))),
        ];
        figures.extend(self.seen.latency.figures());
        figures.push(("receiver busy", Figure::Share(self.seen.busy)));
        if self.late.count() > 0 {
            figures.push(("appended late by p99", Figure::Time(self.late.p99_us())));
        }
        if self.snapshots > 0 {
            figures.push(("snapshots", self.snapshots.into()));
        }
        figures
    }

    pub(crate) fn failures(&self, name: &str) -> impl Iterator<Item = String> {
        let missing = self.seen.undelivered;
        let missing = (missing > 0).then(|| format!("{missing} updates never came"));
        self.seen.wrong.clone().into_iter().chain(missing).map(move |wrong| format!("{name}: {wrong}"))
    }
}

/// The measurements of one service, in rounds that it takes in turn with others.
pub(crate) struct Rounds {
    pub(crate) name: String,
    pub(crate) all: Vec<Measured>,
}

impl Rounds {
    pub(crate) fn of(name: impl Into<String>) -> Self {
        Self { name: name.into(), all: Vec::new() }
    }

    /// A figure of each round, as a multiple of the baseline's in the same round.
    pub(crate) fn times(&self, baseline: &Self, of: impl Fn(&Measured) -> f64) -> Vec<f64> {
        self.all.iter().zip(&baseline.all).map(|(one, bare)| of(one) / of(bare)).collect()
    }

    pub(crate) fn median(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.all.iter().map(of))
    }

    /// Adds the round in the middle by deliveries per CPU-second, each round for JSON, and the failures of all.
    pub(crate) fn report(&self, report: &mut Report, when: &str) {
        let mut rounds: Vec<_> = self.all.iter().collect();
        rounds.sort_by(|a, b| a.per_cpu_second().total_cmp(&b.per_cpu_second()));
        report.row(&self.name, rounds[rounds.len() / 2].figures());
        for round in &self.all {
            report.detail("each round", round.figures());
            report.fail(round.failures(&format!("{}{when}", self.name)));
        }
    }
}

impl ServiceUnderTest {
    pub(crate) fn gateway(
        markets: Markets,
        connections: usize,
        start: impl FnOnce(Launch) -> Result<Service>,
    ) -> Result<Self> {
        let redis = Box::new(Redis::start());
        let log = Box::new(Appender::new(&redis, markets, 1, 0)?);
        let service = start(Launch::gateway(&*redis))?;
        let (pid, address) = (service.process.id(), service.api);
        Self::new(Server::Gateway { service, log, _redis: redis }, pid, address, markets, connections)
    }

    /// A baseline on the core for what is measured, and all its clients.
    pub(crate) fn baseline(kind: Kind, markets: Markets, connections: usize, cores: &Cores) -> Result<Self> {
        let baseline = cores.measured(|| Baseline::start(kind))??;
        let (pid, address) = (baseline.process.id(), baseline.address);
        Self::new(Server::Baseline(baseline), pid, address, markets, connections)
    }

    fn new(
        server: Server,
        pid: u32,
        address: SocketAddr,
        markets: Markets,
        connections: usize,
    ) -> Result<Self> {
        let plan = Plan::all_at_once(vec![Endpoint::from(address)], tokens::of_users(1..connections + 1));
        let before = rss_bytes(pid)?;
        let clients = ClientPool::connect(plan.in_turn(), markets)?;
        let rss_bytes_per_client = ratio(rss_bytes(pid)?.saturating_sub(before), connections as u64);
        Ok(Self { server, markets, clients, rss_bytes_per_client })
    }

    /// The gateway; `None` for a baseline.
    pub(crate) fn service(&self) -> Option<&Service> {
        match &self.server {
            Server::Gateway { service, .. } => Some(service),
            Server::Baseline(_) => None,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.server {
            Server::Gateway { service, .. } => service.process.id(),
            Server::Baseline(baseline) => baseline.process.id(),
        }
    }

    /// Puts this many updates per second on it, over all markets at random.
    pub(crate) fn measure(
        &mut self,
        rate: f64,
        duration: Duration,
        payload_bytes: usize,
    ) -> Result<Measured> {
        let pid = self.pid();
        let Self { server, markets, clients, .. } = self;
        let warmup = WARMUP.max(Duration::from_secs_f64(WARMUP_UPDATES / rate));
        let window = Window::new(now_us() + LEAD_US, rate, warmup, duration, payload_bytes);
        clients.counts().measure(window.from_us..window.until_us);
        let snapshots = clients.counts().snapshots;
        let follow = |end: &OnceLock<End>| {
            // The appender and Redis share these cores and must not wait for the receiver, which would count as latency.
            nice(YIELDING)?;
            clients.follow(end)
        };
        let send = || server.send(window, *markets);
        let (late, mut seen, [before_ns, after_ns]) =
            measure(window, DRAIN, send, iter::once(follow), || cpu_ns(pid))?;
        let counts = clients.counts();
        Ok(Measured {
            deliveries: counts.measured,
            cpu_us: (after_ns - before_ns) / 1000,
            took_us: window.until_us - window.from_us,
            late,
            snapshots: counts.snapshots - snapshots,
            seen: seen.remove(0),
        })
    }
}

const YIELDING: i32 = 10;

const LEAD_US: u64 = 20_000;

/// How long to wait for what is still missing at the end.
const DRAIN: Duration = Duration::from_secs(10);

const WARMUP: Duration = Duration::from_millis(500);
/// After a pause Linux acknowledges the first 16 segments of a connection at once, on the sender's CPU. Without a
/// warm-up, the server that had paused for longer would pay for more of these.
const WARMUP_UPDATES: f64 = 24.0;

impl Server {
    /// Follows the schedule. Returns how late updates were, and the latest seq of each market.
    fn send(&mut self, window: Window, markets: Markets) -> Result<(Times, Vec<u64>)> {
        match self {
            Self::Gateway { log, .. } => log.run(window.schedule, Way::Xadd, &AtomicU64::new(0)),
            Self::Baseline(baseline) => {
                Ok((Times::default(), baseline.follow(window.schedule, window.until_us, markets)?))
            }
        }
    }
}
