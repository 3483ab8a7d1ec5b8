//! A server on the core for what is measured, with its clients, and what a delivery costs it.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use ::tests::process::Process;
use ::tests::tokens::JWT_SECRET;
use ::tests::{Launch, Redis, Service};
use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::ProgressBar;
use rustix::process::nice;
use serde::Serialize;

use crate::append::{Appender, Way};
use crate::baseline::{Baseline, Kind, work_off};
use crate::bed::{Cores, TOKEN_LIFE_S, cpu_ns};
use crate::clock::{now_us, thread_cpu_us};
use crate::hive::{Hive, Plan, offset_us};
use crate::http::Endpoint;
use crate::markets::Markets;
use crate::message::payload_bytes;
use crate::options::{counted, duration};
use crate::process::rss_bytes;
use crate::publish::Schedule;
use crate::report::{Percentiles, per_second, ratio, time};
use crate::tally::{Tally, Times};
use crate::tokens::sign;

/// Who receives what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clients {
    /// What they subscribe to.
    pub(crate) markets: Markets,
    /// How many they are.
    pub(crate) connections: usize,
}

/// A server with its clients.
pub(crate) struct Subject {
    server: Server,
    feed: Feed,
    clients: Clients,
    hive: Hive,
    /// How much memory a client that waits takes of the server.
    pub(crate) rss_bytes_per_socket: f64,
}

/// Stopped when dropped.
enum Server {
    Gateway(Service),
    Baseline(Process),
}

/// How updates get there.
enum Feed {
    /// They are appended to a Redis of its own, from the cores that load.
    Redis { log: Box<Appender>, _redis: Box<Redis> },
    /// It makes them itself.
    Itself(SocketAddr),
}

/// How measurements are taken.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Taking {
    /// How long each measurement takes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub(crate) duration: Duration,

    /// How often each is taken, in turn with what it is compared with; the median of the ratios counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(1, 99))]
    pub(crate) rounds: usize,

    /// Size of an update as a WebSocket message, at least
    #[arg(long, value_name = "BYTES", default_value_t = 145, value_parser = counted(0, 16_000))]
    update_bytes: usize,
}

impl Taking {
    /// This many updates a second, for a measurement of the usual length.
    pub(crate) fn load(&self, rate: f64) -> Load {
        let payload_bytes = payload_bytes(self.update_bytes);
        let warmup = WARMUP.max(Duration::from_secs_f64(WARMUP_UPDATES / rate));
        Load { rate, warmup, duration: self.duration, payload_bytes }
    }
}

const WARMUP: Duration = Duration::from_millis(500);
/// After a pause Linux acknowledges the first 16 segments of a connection at once, on the sender's CPU: whoever had
/// paused for longer before a measurement would pay for more of these.
const WARMUP_UPDATES: f64 = 24.0;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Updates a second, over all markets at random.
    pub(crate) rate: f64,
    /// Time to get into step.
    pub(crate) warmup: Duration,
    /// Time to measure.
    pub(crate) duration: Duration,
    /// Of each update.
    pub(crate) payload_bytes: usize,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    /// Received in the measured time.
    pub(crate) deliveries: u64,
    /// CPU of the server in that time, all its threads, system calls included.
    pub(crate) cpu_us: u64,
    /// The measured time.
    pub(crate) took_us: u64,
    /// From intended to received.
    pub(crate) latency: Percentiles,
    /// From intended to sent to Redis, where that is how updates come.
    pub(crate) late: Percentiles,
    /// Share of its time the receiving thread was not waiting.
    pub(crate) receiver_busy: f64,
    /// Snapshots in place of updates, of those that were too slow.
    pub(crate) snapshots: u64,
    /// Updates that had not come when waiting for them was over.
    pub(crate) undelivered: u64,
    /// What broke a promise.
    pub(crate) wrong: Option<String>,
}

impl Measured {
    /// Deliveries for a second of the server's CPU.
    pub(crate) fn per_cpu_second(&self) -> f64 {
        per_second(self.deliveries, self.cpu_us)
    }

    /// How many cores the server kept busy.
    pub(crate) fn busy(&self) -> f64 {
        ratio(self.cpu_us, self.took_us).unwrap_or_default()
    }

    /// A line of a table.
    pub(crate) fn text(&self) -> String {
        let mut parts = vec![
            format!("{:7.0} a CPU-second", self.per_cpu_second()),
            format!("{:7.0}/s", per_second(self.deliveries, self.took_us)),
            format!("busy {:3.0} %", self.busy() * 100.0),
            format!("p50 {:9}", time(self.latency.p50)),
            format!("p99 {:9}", time(self.latency.p99)),
            format!("p99.9 {:9}", time(self.latency.p99_9)),
            format!("receiver busy {:3.0} %", self.receiver_busy * 100.0),
        ];
        if self.late.count > 0 {
            parts.push(format!("appended late by p99 {}", time(self.late.p99)));
        }
        if self.snapshots > 0 {
            parts.push(format!("{} snapshots", self.snapshots));
        }
        parts.join("  ")
    }

    /// What was wrong, in words.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        let missing = (self.undelivered > 0).then(|| format!("{} updates never came", self.undelivered));
        self.wrong.clone().into_iter().chain(missing)
    }
}

impl Subject {
    /// A gateway with a Redis of its own, started as `cores` say.
    ///
    /// # Errors
    /// When not all clients can subscribe.
    pub(crate) fn gateway(clients: Clients, start: impl FnOnce(Launch) -> Result<Service>) -> Result<Self> {
        let redis = Redis::start();
        let log = Box::new(Appender::new(&redis, clients.markets)?);
        let service = start(Launch::gateway(&redis))?;
        Self::new(Server::Gateway(service), Feed::Redis { log, _redis: Box::new(redis) }, clients)
    }

    /// A baseline on the core for what is measured.
    ///
    /// # Errors
    /// When not all clients can subscribe.
    pub(crate) fn baseline(kind: Kind, clients: Clients, cores: &Cores) -> Result<Self> {
        let Baseline { process, address } = cores.measured(|| Baseline::start(kind))??;
        Self::new(Server::Baseline(process), Feed::Itself(address), clients)
    }

    fn new(server: Server, feed: Feed, clients: Clients) -> Result<Self> {
        let Clients { markets, connections } = clients;
        let (pid, address) = match (&server, &feed) {
            (Server::Gateway(service), _) => (service.process.id(), service.api),
            (Server::Baseline(process), Feed::Itself(address)) => (process.id(), *address),
            (Server::Baseline(_), Feed::Redis { .. }) => unreachable!("a baseline makes its updates itself"),
        };
        let tokens = sign(JWT_SECRET, 1, connections, TOKEN_LIFE_S)?;
        let plan = Plan::all_at_once(vec![Endpoint::from(address)], tokens, connections).in_turn();
        let mut hive = Hive::new(plan, Tally::new(markets, connections))?;
        let before = rss_bytes(pid)?;
        let live = hive.ramp(&ProgressBar::hidden())?.live;
        ensure!(live == connections, "only {live} of {connections} sockets could subscribe");
        let rss_bytes_per_socket =
            ratio(rss_bytes(pid)?.saturating_sub(before), connections as u64).unwrap_or_default();
        Ok(Self { server, feed, clients, hive, rss_bytes_per_socket })
    }

    /// The gateway that it is; `None`: it is a baseline.
    pub(crate) fn service(&self) -> Option<&Service> {
        match &self.server {
            Server::Gateway(service) => Some(service),
            Server::Baseline(_) => None,
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        match &self.server {
            Server::Gateway(service) => service.process.id(),
            Server::Baseline(process) => process.id(),
        }
    }

    /// Puts this load on it.
    ///
    /// # Errors
    /// When the server, or Redis, is gone.
    pub(crate) fn measure(&mut self, load: Load) -> Result<Measured> {
        let pid = self.pid();
        let Self { feed, clients, hive, .. } = self;
        let window = Window::new(load, now_us() + LEAD_US);
        let tally = hive.tally();
        tally.measure_anew(window.from_us);
        let snapshots = tally.snapshots;

        let ended = OnceLock::new();
        let (before, after, late, tops) = thread::scope(|scope| {
            let hive = &mut *hive;
            let receiving = scope.spawn(|| receive(hive, pid, window, &ended));
            let fed = feed.run(window, clients.markets);
            // Before any error is given back: the receiving thread waits for this.
            ended.get_or_init(|| fed.as_ref().ok().map(|(_, tops)| tops.clone()));
            let (before, after) = receiving.join().expect("the receiving thread does not panic")?;
            let (late, tops) = fed?;
            anyhow::Ok((before, after, late, tops))
        })?;
        let undelivered = hive.undelivered(&tops);
        let tally = hive.tally();
        Ok(Measured {
            deliveries: after.deliveries - before.deliveries,
            cpu_us: (after.cpu_ns - before.cpu_ns) / 1000,
            took_us: after.at_us - before.at_us,
            latency: (&tally.latency).into(),
            late: (&late).into(),
            receiver_busy: ratio(after.own_us - before.own_us, after.at_us - before.at_us)
                .unwrap_or_default(),
            snapshots: tally.snapshots - snapshots,
            undelivered,
            wrong: tally.checks.failure().or_else(|| tally.ended.keys().next().cloned()),
        })
    }
}

/// Receives until everything has come up to where the logs end, once that is known, or for some time after. What was used
/// and received at the beginning and at the end of the measured time.
fn receive(
    hive: &mut Hive,
    pid: u32,
    window: Window,
    ended: &OnceLock<Option<Vec<u64>>>,
) -> Result<(Reading, Reading)> {
    // Who appends and Redis share these cores and are never to wait for the receiver: that would count as latency.
    nice(YIELDING)?;
    let (mut before, mut after, mut look_us) = (None, None, 0);
    hive.receive(|hive| {
        let now_us = now_us();
        if before.is_none() && now_us >= window.from_us {
            before = Some(Reading::take(pid, hive));
        }
        if after.is_none() && now_us >= window.until_us {
            after = Some(Reading::take(pid, hive));
        }
        if after.is_none() || now_us < look_us {
            return true;
        }
        look_us = now_us + LOOK_EVERY_US;
        let missing = match ended.get() {
            None => true,
            Some(None) => false,
            Some(Some(tops)) => hive.undelivered(tops) > 0,
        };
        missing && now_us < window.until_us + DRAIN_US
    })?;
    Ok((before.context("receiving ended early")??, after.context("receiving ended early")??))
}

/// Added to the nice value.
const YIELDING: i32 = 10;

/// From now until the first update is due.
const LEAD_US: u64 = 20_000;

/// How long to wait for what is still missing at the end.
const DRAIN_US: u64 = 10_000_000;

const LOOK_EVERY_US: u64 = 20_000;

/// When what happens. The measured time begins and ends halfway between two updates.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    schedule: Schedule,
    from_us: u64,
    until_us: u64,
}

impl Window {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 100 000/s for 50 min"
    )]
    fn new(load: Load, start_us: u64) -> Self {
        let Load { rate, payload_bytes, .. } = load;
        let updates = |time: Duration| (rate * time.as_secs_f64()).ceil() as usize;
        let warmup = updates(load.warmup);
        let updates = warmup + updates(load.duration);
        let schedule = Schedule { start_us, rate, updates, payload_bytes };
        let half_us = offset_us(1, rate) / 2;
        let edge_us = |update| schedule.due_us(update) - half_us;
        Self { schedule, from_us: edge_us(warmup), until_us: edge_us(updates) }
    }
}

struct Reading {
    at_us: u64,
    cpu_ns: u64,
    own_us: u64,
    deliveries: u64,
}

impl Reading {
    fn take(pid: u32, hive: &mut Hive) -> Result<Self> {
        Ok(Self {
            at_us: now_us(),
            cpu_ns: cpu_ns(pid)?,
            own_us: thread_cpu_us(),
            deliveries: hive.tally().deliveries,
        })
    }
}

impl Feed {
    /// Works the schedule off: how late updates were, and the last seq of each market.
    fn run(&mut self, window: Window, markets: Markets) -> Result<(Times, Vec<u64>)> {
        let Window { schedule, until_us, .. } = window;
        match self {
            Self::Redis { log, .. } => {
                let late = log.run(schedule, Way::Xadd, &AtomicU64::new(0))?;
                let tops = log.tops().iter().map(|top| top.seq.get()).collect();
                Ok((late, tops))
            }
            Self::Itself(address) => {
                let ids = (0..markets.count).map(|index| markets.id(index));
                let tops = work_off(*address, schedule, until_us, ids)?;
                Ok((Times::default(), tops))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_time_has_a_whole_number_of_updates() {
        let load = Load {
            rate: 20.0,
            warmup: Duration::from_millis(490),
            duration: Duration::from_secs(2),
            payload_bytes: 0,
        };
        let window = Window::new(load, 1_000_000);
        assert_eq!((window.from_us, window.until_us), (1_475_000, 3_475_000));
        assert_eq!(window.schedule.updates, 50);
        let within = |update| (window.from_us..window.until_us).contains(&window.schedule.due_us(update));
        assert_eq!((0..50).filter(|&update| within(update)).count(), 40);
    }
}
