//! `swarm tail`: what it costs Redis to be followed.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ::tests::tokens::JWT_SECRET;
use ::tests::{Commands, Launch, Redis, Service};
use anyhow::{Result, ensure};
use backbone::keys;
use clap::Args;
use indicatif::ProgressBar;
use protocol::{MarketId, Position};
use redis::streams::StreamReadReply;
use redis::{Connection, cmd};
use serde::Serialize;

use crate::append::{Appender, Way};
use crate::bed::{Cores, FIRST_MARKET, TOKEN_LIFE_S, prepare, redis_cpu_ns};
use crate::clock::{as_us, now_us, sleep_until};
use crate::hive::{Hive, Plan};
use crate::http::Endpoint;
use crate::markets::Markets;
use crate::message::{intended_us, payload_bytes};
use crate::options::{counted, duration, rate};
use crate::publish::Schedule;
use crate::report::{self, Bound, Percentiles, Report, Table, per_second, ratio, time};
use crate::tally::{Tally, Times};
use crate::tokens::sign;

/// Flags of `swarm tail`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Markets, all of them followed by every gateway
    #[arg(long, value_name = "M", default_value_t = 10_000, value_parser = counted(1, 100_000))]
    markets: usize,

    /// Updates a second, over all markets at random; repeatable
    #[arg(long, value_name = "RATE", default_values_t = [300.0, 1000.0], value_parser = rate)]
    rate: Vec<f64>,

    /// How long each measurement takes; a multiple of 3s has as many of the tail's sweeps as any other
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    duration: Duration,

    /// How often each is taken; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(1, 99))]
    rounds: usize,

    /// Gateways, at most
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(1, 8))]
    gateways: usize,

    /// Size of an update as a WebSocket message, at least
    #[arg(long, value_name = "BYTES", default_value_t = 145, value_parser = counted(0, 16_000))]
    update_bytes: usize,

    /// Measure only what the primary is spared by gateways that follow a replica (TAIL_FROM=replica)
    #[arg(long)]
    replica: bool,
}

const EXAMPLES: &str = "\
Starts a redis-server on a core of its own, and gateways on the others. Every market has a log, and every gateway has
subscribers of all of them. Updates are appended with bare XADDs when they are due, to markets at random, while the CPU
time of Redis is read from the scheduler. What following costs is compared with the same XADDs while nobody follows,
just before and after.

Examples:
  swarm tail
  swarm tail --replica
  swarm tail --markets 1000 --rate 5000 --gateways 1";

/// What `swarm tail` found.
#[derive(Serialize)]
pub(crate) struct Followed {
    markets: usize,
    rounds: usize,
    rows: Vec<Row>,
    bounds: Vec<Bound>,
}

/// One measurement, and what an append cost around it.
#[derive(Serialize)]
struct Row {
    rate: f64,
    what: What,
    /// CPU of Redis for an append while nobody follows, just before and after.
    bare_us_per_update: f64,
    #[serde(flatten)]
    measured: Measured,
}

#[derive(Serialize)]
struct Measured {
    updates: u64,
    /// CPU of Redis.
    redis_us_per_update: f64,
    /// Its share of one core.
    redis_busy: f64,
    /// `XREAD`s and what they took Redis, without reading them and writing their answers.
    xreads_per_update: f64,
    xread_us_per_update: f64,
    /// From intended to sent.
    late: Percentiles,
    /// From intended to received.
    latency: Percentiles,
    undelivered: u64,
    wrong: Vec<String>,
}

/// What went on while it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum What {
    /// The publisher's script instead of `XADD`s, and nobody follows.
    Script,
    /// `XADD`s, followed by this many gateways.
    Gateways { linger_ms: u64, count: usize, replica: bool },
    /// `XADD`s, followed by one `XREAD BLOCK` over all logs.
    XreadBlock,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Followed> {
    prepare();
    let redis = Cores::divide()?.measured(Redis::start)?;
    let _replica = options.replica.then(|| Redis::replica_of(redis.port()));
    let per_connection = MARKETS_PER_SOCKET.min(options.markets);
    let markets = Markets { first: FIRST_MARKET, count: options.markets, per_connection };
    let log = Appender::new(&redis, markets)?;
    let mut bench = Bench { options, markets, redis: &redis, log };
    let mut rows = Vec::new();
    for &rate in &options.rate {
        let mut before = bench.measure(rate, Way::Xadd, &mut [])?;
        let mut rounds = BTreeMap::<What, Vec<Row>>::new();
        for _ in 0..options.rounds {
            for what in options.cases() {
                let mut followers = bench.followers(what)?;
                let way = if what == What::Script { Way::Script } else { Way::Xadd };
                let measured = bench.measure(rate, way, &mut followers)?;
                drop(followers);
                let after = bench.measure(rate, Way::Xadd, &mut [])?;
                let bare_us_per_update = f64::midpoint(before.redis_us_per_update, after.redis_us_per_update);
                rounds.entry(what).or_default().push(Row { rate, what, bare_us_per_update, measured });
                before = after;
            }
        }
        rows.extend(rounds.into_values().map(median));
    }
    Ok(Followed { markets: options.markets, rounds: options.rounds, bounds: bounds(&rows), rows })
}

/// As many as a gateway allows by default.
const MARKETS_PER_SOCKET: usize = 200;

/// The `TAIL_LINGER` that is compared with none.
const LINGER_MS: u64 = 2;

/// Time to get into step before each measurement.
const WARMUP: Duration = Duration::from_secs(1);

/// How long to wait for what is still missing after each.
const DRAIN: Duration = Duration::from_secs(5);

/// How long one blocking read waits.
const BLOCK_MS: usize = 100;

struct Bench<'a> {
    options: &'a Options,
    markets: Markets,
    redis: &'a Redis,
    log: Appender,
}

/// Whoever follows all the markets.
enum Follower {
    /// A gateway, whose clients check everything.
    Gateway {
        /// Stopped when dropped.
        _gateway: Service,
        hive: Box<Hive>,
    },
    /// One `XREAD BLOCK` after another.
    Block { connection: Connection, markets: Markets, cursors: Vec<Position> },
}

/// What a follower has seen.
struct Seen {
    latency: Times,
    undelivered: u64,
    wrong: Option<String>,
}

/// What a measurement begins and ends with.
struct Reading {
    at_us: u64,
    cpu_ns: u64,
    answered: u64,
}

impl Options {
    /// What is measured at each rate.
    fn cases(&self) -> Vec<What> {
        let gateways = |linger_ms, replica| {
            (1..=self.gateways).map(move |count| What::Gateways { count, linger_ms, replica })
        };
        if self.replica {
            return gateways(0, true).collect();
        }
        let mut cases = vec![What::Script];
        cases.extend(gateways(0, false).chain(gateways(LINGER_MS, false)));
        cases.push(What::XreadBlock);
        cases
    }
}

impl Bench<'_> {
    fn followers(&self, what: What) -> Result<Vec<Follower>> {
        match what {
            What::Script => Ok(Vec::new()),
            What::Gateways { count, linger_ms, replica } => {
                let launch = Launch::gateway(self.redis)
                    .without("WORKERS")
                    .env("TAIL_LINGER", &format!("{linger_ms}ms"))
                    .env("TAIL_FROM", if replica { "replica" } else { "primary" });
                (0..count).map(|_| Follower::gateway(launch.clone(), self.markets)).collect()
            }
            What::XreadBlock => {
                let connection = redis::Client::open(self.redis.url())?.get_connection()?;
                let cursors = self.log.tops().to_vec();
                Ok(vec![Follower::Block { connection, markets: self.markets, cursors }])
            }
        }
    }

    /// Appends at this rate, and reads what Redis uses meanwhile.
    fn measure(&mut self, rate: f64, way: Way, followers: &mut [Follower]) -> Result<Measured> {
        let start_us = now_us() + 50_000;
        let from_us = start_us + as_us(WARMUP);
        let until_us = from_us + as_us(self.options.duration);
        let schedule = self.schedule(start_us, rate);
        let (answered, tops) = (AtomicU64::new(0), OnceLock::new());
        let (redis, log) = (self.redis, &mut self.log);
        let read = || -> Result<Reading> {
            let answered = answered.load(Ordering::Relaxed);
            Ok(Reading { at_us: now_us(), cpu_ns: redis_cpu_ns(redis)?, answered })
        };
        let (before, after, commands, late, seen) = thread::scope(|scope| {
            let appending = scope.spawn(|| log.run(schedule, way, &answered).map(|late| (late, log.tops())));
            let following = followers.iter_mut().map(|follower| {
                let tops = &tops;
                scope.spawn(move || follower.follow(from_us, tops, until_us + as_us(DRAIN)))
            });
            let following: Vec<_> = following.collect();
            sleep_until(from_us);
            // These questions are not measured.
            let commands = Commands::so_far(redis);
            let before = read();
            sleep_until(until_us);
            let after = read();
            let commands = commands.and_then(|earlier| Ok(Commands::so_far(redis)?.since(&earlier)));
            let appended = appending.join().expect("the appending thread does not panic");
            // Before any error is given back: the followers wait for this.
            let ends = appended.as_ref().map_or(Vec::new(), |(_, tops)| tops.to_vec());
            tops.get_or_init(|| ends);
            let seen = following.into_iter().map(|thread| thread.join().expect("a follower does not panic"));
            let seen = seen.collect::<Result<Vec<_>>>();
            anyhow::Ok((before?, after?, commands?, appended?.0, seen?))
        })?;
        let mut latency = Times::default();
        for seen in &seen {
            latency.add(&seen.latency);
        }
        let updates = after.answered - before.answered;
        let each = |total: u64| ratio(total, updates).unwrap_or_default();
        let cpu_ns = after.cpu_ns - before.cpu_ns;
        let xreads = commands.of("xread");
        Ok(Measured {
            updates,
            redis_us_per_update: each(cpu_ns) / 1e3,
            redis_busy: per_second(cpu_ns, after.at_us - before.at_us) / 1e9,
            xreads_per_update: each(xreads.calls),
            xread_us_per_update: each(xreads.usec),
            late: (&late).into(),
            latency: (&latency).into(),
            undelivered: seen.iter().map(|seen| seen.undelivered).sum(),
            wrong: seen.into_iter().filter_map(|seen| seen.wrong).collect(),
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 100 000/s for 50 min"
    )]
    fn schedule(&self, start_us: u64, rate: f64) -> Schedule {
        Schedule {
            start_us,
            rate,
            updates: (rate * (WARMUP + self.options.duration).as_secs_f64()).ceil() as usize,
            payload_bytes: payload_bytes(self.options.update_bytes),
        }
    }
}

/// The round in the middle, with whatever was wrong in any.
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
        let sockets = markets.count.div_ceil(markets.per_connection);
        let tokens = sign(JWT_SECRET, 1, sockets, TOKEN_LIFE_S)?;
        let plan = Plan::all_at_once(vec![Endpoint::from(gateway.api)], tokens, sockets);
        let mut hive = Box::new(Hive::new(plan, Tally::new(markets, sockets))?);
        let live = hive.ramp(&ProgressBar::hidden())?.live;
        ensure!(live == sockets, "only {live} of {sockets} sockets could subscribe");
        Ok(Self::Gateway { _gateway: gateway, hive })
    }

    /// Follows until everything up to `tops` has come, once that is known, or until then.
    fn follow(&mut self, from_us: u64, tops: &OnceLock<Vec<Position>>, until_us: u64) -> Result<Seen> {
        match self {
            Self::Gateway { hive, .. } => {
                let ends = || Some(tops.get()?.iter().map(|top| top.seq.get()).collect::<Vec<_>>());
                hive.tally().measure_anew(from_us);
                hive.receive(|hive| {
                    now_us() < until_us && ends().is_none_or(|ends| hive.undelivered(&ends) > 0)
                })?;
                let undelivered = ends().map_or(0, |ends| hive.undelivered(&ends));
                let tally = hive.tally();
                let ended = tally.ended.keys().next().cloned();
                Ok(Seen {
                    latency: tally.latency.clone(),
                    undelivered,
                    wrong: tally.checks.first.clone().or(ended),
                })
            }
            Self::Block { connection, markets, cursors } => {
                let mut latency = Times::default();
                let mut undelivered = 0;
                while now_us() < until_us {
                    undelivered = tops.get().map_or(0, |tops| missing(cursors, tops));
                    if tops.get().is_some() && undelivered == 0 {
                        break;
                    }
                    for due_us in read_all(connection, *markets, cursors)? {
                        if due_us >= from_us {
                            latency.record(now_us() - due_us);
                        }
                    }
                }
                Ok(Seen { latency, undelivered, wrong: None })
            }
        }
    }
}

/// One blocking read of all logs: when each update that came was due.
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
            due.extend(entry.get::<String>("p").as_deref().and_then(intended_us));
        }
    }
    Ok(due)
}

fn missing(cursors: &[Position], tops: &[Position]) -> u64 {
    cursors.iter().zip(tops).map(|(cursor, top)| top.seq.distance_from(cursor.seq)).sum()
}

/// What has to hold at each rate.
fn bounds(rows: &[Row]) -> Vec<Bound> {
    let mut bounds = Vec::new();
    for (rate, rows) in by_rate(rows) {
        let with = |count, linger_ms, replica| {
            let wanted = What::Gateways { count, linger_ms, replica };
            rows.iter().find(|row| row.what == wanted)
        };
        if let Some(row) = with(1, 0, false) {
            let what = format!("{rate}/s, one gateway and the appends, × bare");
            bounds.push(Bound::new(what, row.times_bare(), WITH_ONE));
            let p99_ms = report::millis(row.measured.latency.p99);
            bounds.push(Bound::new(format!("{rate}/s, one gateway, p99 in ms"), p99_ms, P99_MS));
        }
        // The linger is for those who have many updates.
        let (linger_ms, most) = if rate < MANY { (0, FURTHER) } else { (LINGER_MS, FURTHER_LINGERING) };
        let last =
            (2_u8..).map_while(|count| Some((count - 1, with(usize::from(count), linger_ms, false)?))).last();
        if let (Some((further, last)), Some(first)) = (last, with(1, linger_ms, false)) {
            let what =
                format!("{rate}/s, TAIL_LINGER={linger_ms}ms, a further gateway (of {further}), × bare");
            let added = (last.times_bare() - first.times_bare()) / f64::from(further);
            bounds.push(Bound::new(what, added, most));
        }
        for count in 1.. {
            let Some(row) = with(count, 0, true) else { break };
            let what = format!("{rate}/s, {count} gateways at a replica add to the primary, × bare");
            bounds.push(Bound::new(what, row.times_bare() - 1.0, NOTHING));
        }
    }
    bounds
}

const WITH_ONE: f64 = 2.5;
const P99_MS: f64 = 10.0;
/// From this rate on, updates a second, a linger pays.
const MANY: f64 = 1000.0;
const FURTHER: f64 = 1.0;
const FURTHER_LINGERING: f64 = 0.6;
/// What two measurements of the same thing may differ by.
const NOTHING: f64 = 0.1;

fn by_rate(rows: &[Row]) -> impl Iterator<Item = (f64, &[Row])> {
    rows.chunk_by(|a, b| a.rate.total_cmp(&b.rate).is_eq()).map(|rows| (rows[0].rate, rows))
}

impl What {
    fn name(self) -> String {
        match self {
            Self::Script => "append script".to_owned(),
            Self::Gateways { count, replica: true, .. } => format!("gateways: {count}, replica"),
            Self::Gateways { count, linger_ms, .. } => format!("gateways: {count}, {linger_ms} ms"),
            Self::XreadBlock => "one XREAD BLOCK".to_owned(),
        }
    }
}

impl Report for Followed {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "tail: {} markets; CPU of Redis an update, × a bare append; medians of {}",
            self.markets, self.rounds
        ));
        for (rate, rows) in by_rate(&self.rows) {
            table.section(&format!("at {rate} updates a second"));
            for row in rows {
                table.row(&row.what.name(), row.text());
            }
        }
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        for row in &self.rows {
            let name = format!("{} at {}/s", row.what.name(), row.rate);
            failures.extend(row.measured.wrong.iter().map(|wrong| format!("{name}: {wrong}")));
            if row.measured.undelivered > 0 {
                failures.push(format!("{name}: {} updates never came", row.measured.undelivered));
            }
        }
        failures
    }
}

impl Row {
    fn times_bare(&self) -> f64 {
        self.measured.redis_us_per_update / self.bare_us_per_update
    }

    fn text(&self) -> String {
        let Measured { redis_us_per_update, redis_busy, latency, late, .. } = &self.measured;
        let mut parts = vec![
            format!("{:5.2} ×", self.times_bare()),
            format!("{redis_us_per_update:6.1} µs, bare {:5.1} µs", self.bare_us_per_update),
            format!("busy {:3.0} %", redis_busy * 100.0),
        ];
        if latency.count > 0 {
            parts.push(format!("p50 {:8}", time(latency.p50)));
            parts.push(format!("p99 {:8}", time(latency.p99)));
            let (calls, us) = (self.measured.xreads_per_update, self.measured.xread_us_per_update);
            parts.push(format!("{calls:.2} XREAD, {us:.1} µs of it"));
        }
        if late.p99 > LATE_US {
            parts.push(format!("(sent late: p99 {})", time(late.p99)));
        }
        parts.join("  ")
    }
}

/// Up to this late at p99 nothing is said about it.
const LATE_US: u64 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// With bare appends of 50 µs.
    fn gateways(rate: f64, count: usize, linger_ms: u64, replica: bool, redis_us_per_update: f64) -> Row {
        let none = Percentiles::from(&Times::default());
        let measured = Measured {
            updates: 1,
            redis_us_per_update,
            redis_busy: 0.1,
            xreads_per_update: 0.0,
            xread_us_per_update: 0.0,
            late: none,
            latency: none,
            undelivered: 0,
            wrong: Vec::new(),
        };
        Row { rate, what: What::Gateways { count, linger_ms, replica }, bare_us_per_update: 50.0, measured }
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
    fn the_round_in_the_middle_counts_and_what_was_wrong_in_any() {
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
        assert_eq!(missing(&[at(3), at(5)], &[at(4), at(9)]), 5);
    }
}
