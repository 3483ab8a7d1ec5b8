//! `swarm tail`: what it costs Redis to be followed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ::tests::redis::until;
use ::tests::tokens::JWT_SECRET;
use ::tests::{Launch, Redis, Service};
use anyhow::{Result, ensure};
use clap::Args;
use indicatif::ProgressBar;
use redis::streams::StreamReadReply;
use redis::{Connection, cmd};
use serde::Serialize;
use shared::backbone::keys;
use shared::{MarketId, Position};

use crate::append::{Appender, Way};
use crate::bed::{Commands, end_children_on_panic, on_its_own_core, redis_cpu_ns};
use crate::clock::{as_us, now_us, sleep_until};
use crate::hive::{Hive, Plan};
use crate::http::Endpoint;
use crate::markets::Markets;
use crate::message::intended_us;
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
    #[arg(long, value_name = "TIME", default_value = "9s", value_parser = duration)]
    duration: Duration,

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
time of Redis is read from the scheduler. What following costs is compared with the same XADDs while nobody follows.

Examples:
  swarm tail
  swarm tail --replica
  swarm tail --markets 1000 --rate 5000 --gateways 1";

/// What `swarm tail` found.
#[derive(Serialize)]
pub(crate) struct Followed {
    markets: usize,
    rows: Vec<Row>,
    bounds: Vec<Bound>,
}

/// One measurement.
#[derive(Serialize)]
struct Row {
    rate: f64,
    what: What,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum What {
    /// `XADD`s, and nobody follows.
    Bare,
    /// The publisher's script instead, and nobody follows.
    Script,
    /// `XADD`s, followed by this many gateways.
    Gateways { count: usize, linger_ms: u64, replica: bool },
    /// `XADD`s, followed by one `XREAD BLOCK` over all logs.
    XreadBlock,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Followed> {
    end_children_on_panic();
    let redis = on_its_own_core(Redis::start)?;
    let _replica = options.replica.then(|| replica_of(&redis));
    let per_connection = MARKETS_PER_SOCKET.min(options.markets);
    let markets = Markets { first: FIRST_MARKET, count: options.markets, per_connection };
    let log = Appender::new(&redis, markets)?;
    let mut bench = Bench { options, markets, redis: &redis, log, rows: Vec::new() };
    for &rate in &options.rate {
        bench.measure(rate, What::Bare, &mut [])?;
        if options.replica {
            bench.gateways(rate, 0)?;
        } else {
            bench.measure(rate, What::Script, &mut [])?;
            bench.gateways(rate, 0)?;
            bench.measure(rate, What::Bare, &mut [])?;
            bench.gateways(rate, LINGER_MS)?;
            bench.measure(rate, What::XreadBlock, &mut [bench.block()?])?;
        }
        bench.measure(rate, What::Bare, &mut [])?;
    }
    let bounds = bounds(&bench.rows);
    Ok(Followed { markets: options.markets, rows: bench.rows, bounds })
}

/// Lowest market id.
const FIRST_MARKET: u64 = 900_000_001;

/// As many as a gateway allows by default.
const MARKETS_PER_SOCKET: usize = 200;

/// The `TAIL_LINGER` that is compared with none.
const LINGER_MS: u64 = 2;

/// Time to get into step before each measurement.
const WARMUP: Duration = Duration::from_secs(2);

/// How long to wait for what is still missing after each.
const DRAIN: Duration = Duration::from_secs(5);

/// What an update message has around its payload.
const ENVELOPE_BYTES: usize = 83;

/// How long one blocking read waits.
const BLOCK_MS: usize = 100;

struct Bench<'a> {
    options: &'a Options,
    markets: Markets,
    redis: &'a Redis,
    log: Appender,
    rows: Vec<Row>,
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

impl Bench<'_> {
    /// Measures with one gateway, with two, and so on.
    fn gateways(&mut self, rate: f64, linger_ms: u64) -> Result<()> {
        let replica = self.options.replica;
        let mut followers = Vec::new();
        for count in 1..=self.options.gateways {
            let launch = Launch::gateway(self.redis)
                .without("WORKERS")
                .env("TAIL_LINGER", &format!("{linger_ms}ms"))
                .env("TAIL_FROM", if replica { "replica" } else { "primary" });
            followers.push(Follower::gateway(launch, self.markets)?);
            self.measure(rate, What::Gateways { count, linger_ms, replica }, &mut followers)?;
        }
        Ok(())
    }

    /// Appends at this rate, and reads what Redis uses meanwhile.
    fn measure(&mut self, rate: f64, what: What, followers: &mut [Follower]) -> Result<()> {
        let progress = report::progress(1, "measuring");
        progress.set_message(format!("{} at {rate}/s", what.name()));
        let start_us = now_us() + 50_000;
        let from_us = start_us + as_us(WARMUP);
        let until_us = from_us + as_us(self.options.duration);
        let schedule = self.schedule(start_us, rate);
        let way = if what == What::Script { Way::Script } else { Way::Xadd };
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
        self.rows.push(Row {
            rate,
            what,
            updates,
            redis_us_per_update: each(cpu_ns) / 1e3,
            redis_busy: per_second(cpu_ns, after.at_us - before.at_us) / 1e9,
            xreads_per_update: each(xreads.calls),
            xread_us_per_update: each(xreads.usec),
            late: (&late).into(),
            latency: (&latency).into(),
            undelivered: seen.iter().map(|seen| seen.undelivered).sum(),
            wrong: seen.into_iter().filter_map(|seen| seen.wrong).collect(),
        });
        progress.finish_and_clear();
        Ok(())
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
            payload_bytes: self.options.update_bytes.saturating_sub(ENVELOPE_BYTES),
        }
    }

    fn block(&self) -> Result<Follower> {
        let connection = redis::Client::open(self.redis.url())?.get_connection()?;
        let cursors = self.log.tops().to_vec();
        Ok(Follower::Block { connection, markets: self.markets, cursors })
    }
}

/// A replica that has caught up.
fn replica_of(primary: &Redis) -> Redis {
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]);
    until("a replica in step", || {
        let info: String = replica.ask("INFO replication").ok()?;
        info.contains("master_link_status:up").then_some(())
    });
    replica
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

/// Tokens outlive every run.
const TOKEN_LIFE_S: u64 = 3600;

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

/// What has to hold: of each rate, what is measured beside its bare appends.
fn bounds(rows: &[Row]) -> Vec<Bound> {
    let mut bounds = Vec::new();
    for Rated { rate, bare_us, rows } in by_rate(rows) {
        let cost = |count, linger_ms, replica| {
            let wanted = What::Gateways { count, linger_ms, replica };
            let row = rows.iter().find(|row| row.what == wanted)?;
            Some((row.redis_us_per_update / bare_us, row))
        };
        if let Some((cost, row)) = cost(1, 0, false) {
            bounds.push(Bound::new(format!("{rate}/s, one gateway and the appends, × bare"), cost, WITH_ONE));
            let p99_ms = report::millis(row.latency.p99);
            bounds.push(Bound::new(format!("{rate}/s, one gateway, p99 in ms"), p99_ms, P99_MS));
        }
        // The linger is for those who have many updates.
        let (linger_ms, most) = if rate < MANY { (0, FURTHER) } else { (LINGER_MS, FURTHER_LINGERING) };
        let last = (2..).map_while(|count| Some((count - 1, cost(count, linger_ms, false)?.0))).last();
        if let (Some((further, last)), Some((first, _))) = (last, cost(1, linger_ms, false)) {
            let what =
                format!("{rate}/s, TAIL_LINGER={linger_ms}ms, each of {further} further gateways, × bare");
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            bounds.push(Bound::new(what, (last - first) / further as f64, most));
        }
        for count in 1.. {
            let Some((cost, _)) = cost(count, 0, true) else { break };
            let what = format!("{rate}/s, {count} gateways at a replica add to the primary, × bare");
            bounds.push(Bound::new(what, cost - 1.0, NOTHING));
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

/// The rows of one rate, and what a bare append costs there, on average.
struct Rated<'a> {
    rate: f64,
    bare_us: f64,
    rows: &'a [Row],
}

fn by_rate(rows: &[Row]) -> impl Iterator<Item = Rated<'_>> {
    rows.chunk_by(|a, b| a.rate.total_cmp(&b.rate).is_eq()).map(|rows| {
        let bare = rows.iter().filter(|row| row.what == What::Bare);
        let (sum, count) =
            bare.fold((0.0, 0.0), |(sum, count), row| (sum + row.redis_us_per_update, count + 1.0));
        Rated { rate: rows[0].rate, bare_us: sum / count, rows }
    })
}

impl What {
    fn name(self) -> String {
        match self {
            Self::Bare => "bare XADD".to_owned(),
            Self::Script => "append script".to_owned(),
            Self::Gateways { count, replica: true, .. } => format!("{count} gw at a replica"),
            Self::Gateways { count, linger_ms, .. } => format!("{count} gateways, {linger_ms} ms"),
            Self::XreadBlock => "one XREAD BLOCK".to_owned(),
        }
    }
}

impl Report for Followed {
    fn table(&self, table: &mut Table) {
        table.section(&format!("tail: {} markets; CPU of Redis an update, with its append", self.markets));
        for Rated { rate, bare_us, rows } in by_rate(&self.rows) {
            table.section(&format!("at {rate} updates a second; bare append {bare_us:.1} µs"));
            for row in rows {
                table.row(&row.what.name(), row.text(bare_us));
            }
        }
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        for row in &self.rows {
            let name = format!("{} at {}/s", row.what.name(), row.rate);
            failures.extend(row.wrong.iter().map(|wrong| format!("{name}: {wrong}")));
            if row.undelivered > 0 {
                failures.push(format!("{name}: {} updates never came", row.undelivered));
            }
        }
        failures
    }
}

impl Row {
    fn text(&self, bare_us: f64) -> String {
        let us = self.redis_us_per_update;
        let mut parts = vec![
            format!("{us:6.1} µs"),
            format!("{:5.2} ×", us / bare_us),
            format!("busy {:3.0} %", self.redis_busy * 100.0),
        ];
        if self.latency.count > 0 {
            parts.push(format!("p50 {:8}", time(self.latency.p50)));
            parts.push(format!("p99 {:8}", time(self.latency.p99)));
            parts.push(format!(
                "{:.2} XREAD, {:.1} µs of it",
                self.xreads_per_update, self.xread_us_per_update
            ));
        }
        if self.late.p99 > LATE_US {
            parts.push(format!("(sent late: p99 {})", time(self.late.p99)));
        }
        parts.join("  ")
    }
}

/// Up to this late at p99 nothing is said about it.
const LATE_US: u64 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rate: f64, what: What, redis_us_per_update: f64) -> Row {
        let none = Percentiles::from(&Times::default());
        Row {
            rate,
            what,
            updates: 1,
            redis_us_per_update,
            redis_busy: 0.1,
            xreads_per_update: 0.0,
            xread_us_per_update: 0.0,
            late: none,
            latency: none,
            undelivered: 0,
            wrong: Vec::new(),
        }
    }

    fn gateways(rate: f64, count: usize, linger_ms: u64, replica: bool, us: f64) -> Row {
        row(rate, What::Gateways { count, linger_ms, replica }, us)
    }

    fn found(rows: &[Row]) -> Vec<(String, bool)> {
        bounds(rows).iter().map(|bound| (format!("{bound}"), bound.failure().is_none())).collect()
    }

    #[test]
    fn a_gateway_is_compared_with_the_bare_appends_of_its_rate() {
        let rows = [
            row(300.0, What::Bare, 40.0),
            gateways(300.0, 1, 0, false, 100.0),
            gateways(300.0, 2, 0, false, 140.0),
            gateways(300.0, 3, 0, false, 220.0),
            gateways(300.0, 1, 2, false, 90.0),
            row(300.0, What::Bare, 60.0),
            row(1000.0, What::Bare, 10.0),
            gateways(1000.0, 1, 0, false, 26.0),
            gateways(1000.0, 1, 2, false, 20.0),
            gateways(1000.0, 2, 2, false, 25.0),
        ];
        let (names, holds): (Vec<_>, Vec<_>) = found(&rows).into_iter().unzip();
        assert_eq!(holds, [true, true, false, false, true, true], "{names:?}");
        assert!(names[2].contains("each of 2 further gateways, × bare: 1.20"), "{names:?}");
        assert!(names[5].contains("TAIL_LINGER=2ms, each of 1 further gateways, × bare: 0.50"), "{names:?}");
    }

    #[test]
    fn gateways_at_a_replica_may_add_nothing() {
        let rows = [
            row(300.0, What::Bare, 100.0),
            gateways(300.0, 1, 0, true, 105.0),
            gateways(300.0, 2, 0, true, 120.0),
        ];
        assert_eq!(found(&rows).into_iter().map(|(_, holds)| holds).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn what_was_not_read_is_missing() {
        let at = |seq| Position::new(1, seq);
        assert_eq!(missing(&[at(3), at(5)], &[at(4), at(9)]), 5);
    }
}
