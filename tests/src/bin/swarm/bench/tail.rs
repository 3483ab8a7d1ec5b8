//! `swarm tail`: the cost to Redis of gateways that follow it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use ::tests::{Commands, Launch, Redis, Service};
use anyhow::Result;
use backbone::keys;
use clap::Args;
use protocol::{MarketId, Position};
use redis::{Connection, cmd, streams::StreamReadReply};

use super::environment::{Cores, prepare};
use super::service::Measuring;
use crate::client::{ClientPool, End, Endpoint, Plan, Seen, due_us};
use crate::load::{Appender, Way, Window, measure, tokens};
use crate::options::{counted, rate};
use crate::report::{Bound, Figure, Labelled, Report, Times, main_thread_cpu_ns, per_second, ratio};
use crate::{clock::now_us, markets::Markets};

#[derive(Args)]
#[command(after_help = EXAMPLES, mut_arg("duration", |arg| arg.default_value("3s").help(DURATION)))]
pub(crate) struct Options {
    /// Markets, all of them followed by every gateway
    #[arg(long, value_name = "M", default_value_t = 10_000, value_parser = counted(1, 100_000))]
    markets: usize,

    /// Updates per second, over all markets at random; repeatable
    #[arg(long, value_name = "RATE", default_values_t = [300.0, 1000.0], value_parser = rate)]
    rate: Vec<f64>,

    /// Gateways, at most
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(1, 8))]
    gateways: usize,

    /// Measure only what gateways that follow a replica (TAIL_FROM=replica) cost the primary
    #[arg(long)]
    replica: bool,

    #[command(flatten)]
    measuring: Measuring,
}

const DURATION: &str =
    "How long each measurement takes; a multiple of 3s has as many of the tail's sweeps as any other";

const EXAMPLES: &str = "\
Redis has a core of its own. Every gateway has subscribers of all markets. Updates are appended with bare XADDs when they are
due, to markets at random. The CPU of Redis is compared with the same XADDs without followers, just before and after.

Examples:
  swarm tail
  swarm tail --replica
  swarm tail --markets 1000 --rate 5000 --gateways 1";

/// One measurement, and what an append cost around it.
struct Row {
    rate: f64,
    case: Case,
    /// CPU of Redis for an append without followers, just before and after.
    bare_us_per_update: f64,
    measured: Measured,
}

#[derive(Default)]
struct Measured {
    updates: u64,
    redis_us_per_update: f64,
    /// Its share of one core.
    redis_busy: f64,
    xreads_per_update: f64,
    /// The time that Redis took to execute them.
    xread_us_per_update: f64,
    /// From due to sent.
    late: Times,
    latency: Times,
    undelivered: u64,
    wrong: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// The publisher's script instead of `XADD`s, without followers.
    Script,
    /// `XADD`s, followed by this many gateways.
    Gateways { linger_ms: u64, count: usize, replica: bool },
    /// `XADD`s, followed by one `XREAD BLOCK` over all logs.
    XreadBlock,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    prepare();
    let redis = Cores::divide()?.measured(Redis::start)?;
    let _replica = options.replica.then(|| Redis::replica_of(redis.port()));
    let markets = Markets::new(options.markets, MARKETS_PER_CONNECTION.min(options.markets));
    let log = Appender::new(&redis, markets, 1, 0)?;
    let mut bench = Bench { options, markets, redis: &redis, log };
    let mut rows = Vec::new();
    for &rate in &options.rate {
        let mut before = bench.measure(rate, Way::Xadd, &mut [])?;
        let mut rounds = BTreeMap::<Case, Vec<Row>>::new();
        for _ in 0..options.measuring.rounds {
            for case in options.cases() {
                let mut followers = bench.followers(case)?;
                let way = if case == Case::Script { Way::Script } else { Way::Xadd };
                let measured = bench.measure(rate, way, &mut followers)?;
                drop(followers);
                let after = bench.measure(rate, Way::Xadd, &mut [])?;
                let bare_us_per_update = f64::midpoint(before.redis_us_per_update, after.redis_us_per_update);
                rounds.entry(case).or_default().push(Row { rate, case, bare_us_per_update, measured });
                before = after;
            }
        }
        rows.extend(rounds.into_values().map(median));
    }
    Ok(options.report(&rows))
}

/// As many as a gateway allows by default.
const MARKETS_PER_CONNECTION: usize = 200;

/// The `TAIL_LINGER` that is compared with none.
const LINGER_MS: u64 = 2;

const LEAD_US: u64 = 50_000;

/// Time to get into step before each measurement.
const WARMUP: Duration = Duration::from_secs(1);

/// How long to wait for what is still missing after each.
const DRAIN: Duration = Duration::from_secs(5);

const BLOCK_MS: usize = 100;

struct Bench<'a> {
    options: &'a Options,
    markets: Markets,
    redis: &'a Redis,
    log: Appender,
}

/// A follower of all the markets.
enum Follower {
    /// A gateway, whose clients check every update. Stopped when dropped.
    Gateway { _gateway: Service, clients: Box<ClientPool> },
    /// One `XREAD BLOCK` after another.
    Block { connection: Connection, markets: Markets, cursors: Vec<Position> },
}

struct Reading {
    /// CPU of Redis, before and after its count of commands was read.
    cpu_ns: [u64; 2],
    commands: Commands,
    replied: u64,
}

impl Options {
    fn cases(&self) -> Vec<Case> {
        let gateways = |linger_ms, replica| {
            (1..=self.gateways).map(move |count| Case::Gateways { count, linger_ms, replica })
        };
        if self.replica {
            return gateways(0, true).collect();
        }
        let lingering = gateways(0, false).chain(gateways(LINGER_MS, false));
        [Case::Script].into_iter().chain(lingering).chain([Case::XreadBlock]).collect()
    }

    fn report(&self, rows: &[Row]) -> Report {
        let mut report = Report::titled(format!(
            "tail: {} markets; CPU of Redis per update, × a bare append; medians of {}",
            self.markets, self.measuring.rounds
        ));
        for (rate, rows) in by_rate(rows) {
            report.section(format!("at {rate} updates per second"));
            for row in rows {
                let (name, Measured { undelivered, wrong, .. }) = (row.case.name(), &row.measured);
                report.row(name.as_str(), row.figures());
                report.fail(wrong.iter().map(|wrong| format!("{name} at {rate}/s: {wrong}")));
                let missing = format_args!("{name} at {rate}/s: {undelivered} updates never came");
                report.fail_if(*undelivered > 0, missing);
            }
        }
        report.bounds(bounds(rows));
        report
    }
}

impl Bench<'_> {
    fn followers(&self, case: Case) -> Result<Vec<Follower>> {
        match case {
            Case::Script => Ok(Vec::new()),
            Case::Gateways { count, linger_ms, replica } => {
                let launch = Launch::gateway(self.redis)
                    .without("WORKERS")
                    .env("TAIL_LINGER", &format!("{linger_ms}ms"))
                    .env("TAIL_FROM", if replica { "replica" } else { "primary" });
                (0..count).map(|_| Follower::gateway(launch.clone(), self.markets)).collect()
            }
            Case::XreadBlock => {
                let connection = redis::Client::open(self.redis.url())?.get_connection()?;
                let cursors = self.log.latest().to_vec();
                Ok(vec![Follower::Block { connection, markets: self.markets, cursors }])
            }
        }
    }

    /// Appends at this rate, and reads what Redis uses meanwhile.
    fn measure(&mut self, rate: f64, way: Way, followers: &mut [Follower]) -> Result<Measured> {
        let Options { measuring, .. } = *self.options;
        let (start_us, payload_bytes) = (now_us() + LEAD_US, measuring.payload_bytes());
        let window = Window::new(start_us, rate, WARMUP, measuring.duration, payload_bytes);
        let replied = AtomicU64::new(0);
        let (redis, log) = (self.redis, &mut self.log);
        let cpu_ns = || main_thread_cpu_ns(redis.process().id());
        let read = || {
            let (replied, before_ns) = (replied.load(Ordering::Relaxed), cpu_ns()?);
            let commands = Commands::so_far(redis)?;
            Ok(Reading { cpu_ns: [before_ns, cpu_ns()?], commands, replied })
        };
        let send = || log.run(window.schedule, way, &replied);
        let follow = |follower| move |end: &OnceLock<End>| Follower::follow(follower, window.from_us, end);
        let followers = followers.iter_mut().map(follow);
        let (late, seen, [before, after]) = measure(window, DRAIN, send, followers, read)?;
        let mut latency = Times::default();
        for seen in &seen {
            latency.add(&seen.latency);
        }
        let updates = after.replied - before.replied;
        let cpu_ns = after.cpu_ns[0] - before.cpu_ns[1];
        let xreads = after.commands.since(&before.commands).of("xread");
        Ok(Measured {
            updates,
            redis_us_per_update: ratio(cpu_ns, updates) / 1e3,
            redis_busy: per_second(cpu_ns, window.until_us - window.from_us) / 1e9,
            xreads_per_update: ratio(xreads.calls, updates),
            xread_us_per_update: ratio(xreads.usec, updates),
            late,
            latency,
            undelivered: seen.iter().map(|seen| seen.undelivered).sum(),
            wrong: seen.into_iter().filter_map(|seen| seen.wrong).collect(),
        })
    }
}

/// The round in the middle, with the faults of all rounds.
fn median(mut rounds: Vec<Row>) -> Row {
    rounds.sort_by(|a, b| a.times_bare().total_cmp(&b.times_bare()));
    let wrong = rounds.iter_mut().flat_map(|row| std::mem::take(&mut row.measured.wrong)).collect();
    let undelivered = rounds.iter().map(|row| row.measured.undelivered).sum();
    let mut row = rounds.swap_remove(rounds.len() / 2);
    row.measured = Measured { undelivered, wrong, ..row.measured };
    row
}

impl Follower {
    /// A new gateway, with enough clients that it follows every market.
    fn gateway(launch: Launch, markets: Markets) -> Result<Self> {
        let gateway = launch.start();
        let tokens = tokens::of_users(1..markets.count.div_ceil(markets.per_connection) + 1);
        let plan = Plan::all_at_once(vec![Endpoint::from(gateway.api)], tokens);
        Ok(Self::Gateway { _gateway: gateway, clients: Box::new(ClientPool::connect(plan, markets)?) })
    }

    /// Follows until everything up to the end has come, once that is known.
    fn follow(&mut self, from_us: u64, end: &OnceLock<End>) -> Result<Seen> {
        match self {
            Self::Gateway { clients, .. } => {
                clients.counts().measure(from_us..u64::MAX);
                clients.follow(end)
            }
            Self::Block { connection, markets, cursors } => {
                let mut seen = Seen::default();
                loop {
                    if let Some(end) = end.get() {
                        seen.undelivered = missing(cursors, &end.latest);
                        if seen.undelivered == 0 || now_us() >= end.give_up_us {
                            return Ok(seen);
                        }
                    }
                    for due_us in read_all(connection, *markets, cursors)? {
                        if due_us >= from_us {
                            seen.latency.record(now_us() - due_us);
                        }
                    }
                }
            }
        }
    }
}

/// One blocking read of all logs. Returns when each update that came was due.
fn read_all(connection: &mut Connection, markets: Markets, cursors: &mut [Position]) -> Result<Vec<u64>> {
    let mut read = cmd("XREAD");
    read.arg("BLOCK").arg(BLOCK_MS).arg("STREAMS");
    for index in 0..markets.count {
        read.arg(keys::log(MarketId::new(markets.id(index))?));
    }
    for cursor in &*cursors {
        read.arg(cursor.to_string());
    }
    let reply: Option<StreamReadReply> = read.query(connection)?;
    let mut due = Vec::new();
    for stream in reply.into_iter().flat_map(|reply| reply.keys) {
        let index = keys::market_of_log(&stream.key).and_then(|market| markets.index(market.get()));
        for entry in stream.ids {
            if let Some(index) = index {
                cursors[index] = entry.id.parse()?;
            }
            due.extend(entry.get::<String>("p").as_deref().and_then(due_us));
        }
    }
    Ok(due)
}

fn missing(cursors: &[Position], latest: &[u64]) -> u64 {
    cursors.iter().zip(latest).map(|(cursor, latest)| latest.saturating_sub(cursor.seq.get())).sum()
}

fn bounds(rows: &[Row]) -> Vec<Bound> {
    let mut bounds = Vec::new();
    for (rate, rows) in by_rate(rows) {
        let with = |count, linger_ms, replica| {
            let wanted = Case::Gateways { count, linger_ms, replica };
            rows.iter().find(|row| row.case == wanted)
        };
        if let Some(row) = with(1, 0, false) {
            let what = format!("{rate}/s, one gateway and the appends, × bare");
            bounds.push(Bound::at_most(what, row.times_bare(), WITH_ONE));
            let p99_ms = ratio(row.measured.latency.p99_us(), 1000);
            bounds.push(Bound::at_most(format!("{rate}/s, one gateway, p99 in ms"), p99_ms, P99_MS));
        }
        // The linger is for many updates.
        let (linger_ms, most) = if rate < MANY { (0, FURTHER) } else { (LINGER_MS, FURTHER_LINGERING) };
        let last =
            (2_u8..).map_while(|count| Some((count - 1, with(usize::from(count), linger_ms, false)?))).last();
        if let (Some((further, last)), Some(first)) = (last, with(1, linger_ms, false)) {
            let what =
                format!("{rate}/s, TAIL_LINGER={linger_ms}ms, a further gateway (of {further}), × bare");
            let added = (last.times_bare() - first.times_bare()) / f64::from(further);
            bounds.push(Bound::at_most(what, added, most));
        }
        for count in 1.. {
            let Some(row) = with(count, 0, true) else { break };
            let what = format!("{rate}/s, {count} gateways at a replica add to the primary, × bare");
            bounds.push(Bound::at_most(what, row.times_bare() - 1.0, NOTHING));
        }
    }
    bounds
}

const WITH_ONE: f64 = 2.5;
const P99_MS: f64 = 10.0;
/// From this rate on, updates per second, a linger pays.
const MANY: f64 = 1000.0;
const FURTHER: f64 = 1.0;
const FURTHER_LINGERING: f64 = 0.6;
/// What two measurements of the same thing may differ by.
const NOTHING: f64 = 0.1;

fn by_rate(rows: &[Row]) -> impl Iterator<Item = (f64, &[Row])> {
    rows.chunk_by(|a, b| a.rate.total_cmp(&b.rate).is_eq()).map(|rows| (rows[0].rate, rows))
}

impl Case {
    fn name(self) -> String {
        match self {
            Self::Script => "append script".to_owned(),
            Self::Gateways { count, replica: true, .. } => format!("gateways: {count}, replica"),
            Self::Gateways { count, linger_ms, .. } => format!("gateways: {count}, {linger_ms} ms"),
            Self::XreadBlock => "one XREAD BLOCK".to_owned(),
        }
    }
}

impl Row {
    fn times_bare(&self) -> f64 {
        self.measured.redis_us_per_update / self.bare_us_per_update
    }

    fn figures(&self) -> Vec<Labelled> {
        let measured = &self.measured;
        let mut figures = vec![
            ("×", self.times_bare().into()),
            ("µs", measured.redis_us_per_update.into()),
            ("bare µs", self.bare_us_per_update.into()),
            ("busy", Figure::Share(measured.redis_busy)),
            ("updates", measured.updates.into()),
        ];
        if measured.latency.count() > 0 {
            figures.extend(measured.latency.figures());
            figures.push(("XREADs per update", measured.xreads_per_update.into()));
            figures.push(("µs of it", measured.xread_us_per_update.into()));
        }
        figures.push(("sent late by p99", Figure::Time(measured.late.p99_us())));
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With bare appends of 50 µs.
    fn gateways(rate: f64, count: usize, linger_ms: u64, replica: bool, redis_us_per_update: f64) -> Row {
        let measured = Measured { updates: 1, redis_us_per_update, ..Measured::default() };
        Row { rate, case: Case::Gateways { count, linger_ms, replica }, bare_us_per_update: 50.0, measured }
    }

    fn found(rows: &[Row]) -> Vec<(String, bool)> {
        bounds(rows).iter().map(|bound| (format!("{bound}"), bound.failure().is_none())).collect()
    }

    #[test]
    fn a_gateway_is_compared_with_the_bare_appends_of_its_rate() {
        let rows = [
            gateways(300.0, 1, 0, false, 100.0),
            gateways(300.0, 2, 0, false, 140.0),
            gateways(300.0, 3, 0, false, 220.0),
            gateways(300.0, 1, 2, false, 90.0),
            gateways(1000.0, 1, 0, false, 130.0),
            gateways(1000.0, 1, 2, false, 100.0),
            gateways(1000.0, 2, 2, false, 125.0),
        ];
        let (names, holds): (Vec<_>, Vec<_>) = found(&rows).into_iter().unzip();
        assert_eq!(holds, [true, true, false, false, true, true], "{names:?}");
        assert!(names[2].contains("a further gateway (of 2), × bare: 1.20"), "{names:?}");
        assert!(names[5].contains("TAIL_LINGER=2ms, a further gateway (of 1), × bare: 0.50"), "{names:?}");
    }

    #[test]
    fn the_round_in_the_middle_counts_and_the_faults_of_all_rounds() {
        let mut rounds = [70.0, 300.0, 50.0].map(|us| gateways(300.0, 1, 0, false, us));
        rounds[1].measured.wrong.push("a hole".to_owned());
        let row = median(rounds.into());
        assert!((row.measured.redis_us_per_update - 70.0).abs() < f64::EPSILON);
        assert_eq!(row.measured.wrong, ["a hole"]);
    }

    #[test]
    fn gateways_at_a_replica_may_add_nothing() {
        let rows = [gateways(300.0, 1, 0, true, 52.5), gateways(300.0, 2, 0, true, 60.0)];
        assert_eq!(found(&rows).into_iter().map(|(_, holds)| holds).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn what_was_not_read_is_missing() {
        let at = |seq| Position::new(1, seq);
        assert_eq!(missing(&[at(3), at(5)], &[4, 9]), 5);
    }
}
