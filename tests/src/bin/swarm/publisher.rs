//! `swarm publisher`: overrides a second, as a share of what the bare append script does.

use std::process::Command;
use std::slice;
use std::time::Duration;

use ::tests::tokens::admin;
use ::tests::{Launch, Postgres, Redis, Service};
use anyhow::{Context, Result, ensure};
use backbone::Retention;
use clap::Args;
use serde::Serialize;
use service::token::Role;

use crate::bed::{Cores, await_metric, counter, prepare};
use crate::clock::now_us;
use crate::http::{Endpoint, runtime};
use crate::message::{payload, payload_bytes};
use crate::options::{counted, duration};
use crate::overrides::{self, Overridden};
use crate::report::{Bound, Report, Table, median, per_second};

/// Flags of `swarm publisher`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Keep-alive connections, each with one override at a time
    #[arg(long, short = 'n', value_name = "N", default_value_t = 64, value_parser = counted(1, 1024))]
    connections: usize,

    /// Overrides in a batch
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = counted(2, 1000))]
    batch: usize,

    /// Connections that send batches
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = counted(1, 64))]
    batch_connections: usize,

    /// Markets, at random for the script and in turn for the publisher
    #[arg(long, value_name = "M", default_value_t = 1000, value_parser = counted(1, 100_000))]
    markets: usize,

    /// Appends of the bare script
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = counted(1000, 10_000_000))]
    appends: usize,

    /// How long overrides are sent
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = duration)]
    duration: Duration,

    /// How often each is taken, in turn; the median of the ratios counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(1, 9))]
    rounds: usize,

    /// Single overrides also with a publisher that copies its audit to a PostgreSQL
    #[arg(long)]
    postgres: bool,
}

const EXAMPLES: &str = "\
Starts a redis-server on the first core and a publisher on any; the clients, and redis-benchmark in its turn, have the
others. redis-benchmark calls the publisher's append script with the same kind of arguments, 16 calls in a pipeline.
With --postgres also another publisher, with a redis-server on the first core and a PostgreSQL on any.

Examples:
  swarm publisher
  swarm publisher --postgres
  swarm publisher --batch 1000 --batch-connections 4";

/// What `swarm publisher` found.
#[derive(Serialize)]
pub(crate) struct Published {
    connections: usize,
    batch: usize,
    batch_connections: usize,
    rounds: Vec<Round>,
    bounds: Vec<Bound>,
}

#[derive(Serialize)]
struct Round {
    script_per_second: f64,
    single: Overridden,
    batches: Overridden,
    copied: Option<Copied>,
}

/// Single overrides whose audit is copied to a PostgreSQL.
#[derive(Serialize)]
struct Copied {
    single: Overridden,
    /// Rows that were there when the last override was accepted, and then until all were, a second.
    rows_per_second: [f64; 2],
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Published> {
    prepare();
    let cores = Cores::divide()?;
    let redis = cores.measured(Redis::start)?;
    let publisher = cores.all(|| Launch::publisher(&redis).start())?;
    let copying = options.postgres.then(|| Copying::start(&cores)).transpose()?;
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(Round {
            script_per_second: options.script(&redis)?,
            single: options.overrides(&publisher, options.connections, 1)?,
            batches: options.overrides(&publisher, options.batch_connections, options.batch)?,
            copied: copying.as_ref().map(|copying| copying.overrides(options)).transpose()?,
        });
    }
    let Options { connections, batch, batch_connections, .. } = *options;
    Ok(Published { connections, batch, batch_connections, bounds: bounds(&rounds), rounds })
}

const APPEND: &str = include_str!("../../../../shared/backbone/src/append.lua");

/// Calls in one pipeline of redis-benchmark.
const PIPELINED: usize = 16;

/// A publisher that copies its audit, alone with its Redis.
struct Copying {
    publisher: Service,
    _redis: Redis,
    _postgres: Postgres,
}

impl Copying {
    fn start(cores: &Cores) -> Result<Self> {
        let redis = cores.measured(Redis::start)?;
        let postgres = cores.all(Postgres::start)?;
        let database = runtime()?.block_on(postgres.database());
        let launch = Launch::publisher(&redis).env("DATABASE_URL", database.url());
        Ok(Self { publisher: cores.all(|| launch.start())?, _redis: redis, _postgres: postgres })
    }

    fn overrides(&self, options: &Options) -> Result<Copied> {
        let count = |name| runtime()?.block_on(counter(slice::from_ref(&self.publisher), name));
        let (before, began_us) = (count(ROWS)?, now_us());
        let single = options.overrides(&self.publisher, options.connections, 1)?;
        let (while_busy, ended_us) = (count(ROWS)?, now_us());
        let accepted = count(ACCEPTED)?;
        await_metric(&self.publisher, ROWS, accepted)?;
        let rows_per_second = [
            per_second(while_busy - before, ended_us - began_us),
            per_second(accepted - while_busy, now_us() - ended_us),
        ];
        Ok(Copied { single, rows_per_second })
    }
}

const ACCEPTED: &str = r#"publisher_overrides_total{outcome="appended"}"#;
const ROWS: &str = "publisher_audit_exported_total";

impl Options {
    fn overrides(&self, publisher: &Service, connections: usize, batch: usize) -> Result<Overridden> {
        let target = overrides::Target {
            endpoint: Endpoint::from(publisher.api),
            admin_token: admin(Role::Trader),
            pid: publisher.process.id(),
            markets: self.markets,
        };
        overrides::run(&overrides::Options::at(target, connections, batch, self.duration))
    }

    /// Appends a second of the bare script.
    fn script(&self, redis: &Redis) -> Result<f64> {
        let mut connection = redis::Client::open(redis.url())?.get_connection()?;
        let sha: String = redis::cmd("SCRIPT").arg("LOAD").arg(APPEND).query(&mut connection)?;
        let Retention { history_len, audit_len, idempotency_ttl, .. } = Retention::default();
        let payload = payload(now_us(), payload_bytes(UPDATE_BYTES));
        // The one line in it, as the publisher hands it over.
        let line = payload.strip_prefix(r#"{"swarm":"#).and_then(|rest| rest.strip_suffix('}'));
        let line = line.context("a payload of one line")?;
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &redis.port().to_string(), "-q", "-c", &self.connections.to_string()]);
        command.args([
            "-P",
            &PIPELINED.to_string(),
            "-n",
            &self.appends.to_string(),
            "-r",
            &self.markets.to_string(),
        ]);
        command.args(["EVALSHA", &sha, "3"]);
        command.args(["log", "state", "audit"].map(|kind| format!("odds:{kind}:{{__rand_int__}}")));
        // Neither an expected seq nor an idempotency key, and nothing remembered.
        command.args([&payload, "", "", &idempotency_ttl.as_secs().to_string(), "0", "0"]);
        command.args([history_len.to_string(), audit_len.to_string()]);
        command.args(["desk-1", "swarm", "", "swarm", "\"swarm\"", line]);
        let output = command.output().context("redis-benchmark, which comes with redis-server")?;
        ensure!(output.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        calls_per_second(&said).with_context(|| format!("redis-benchmark said {said}"))
    }
}

/// Size of an update as a WebSocket message: what `overrides` sends by default.
const UPDATE_BYTES: usize = 145;

/// The last rate that redis-benchmark says: `…: 24154.59 requests per second, p50=…`.
fn calls_per_second(said: &str) -> Option<f64> {
    let before = &said[..said.rfind(" requests per second")?];
    before.rsplit(' ').next()?.parse().ok()
}

/// What has to hold.
fn bounds(rounds: &[Round]) -> Vec<Bound> {
    let share = |of: fn(&Round) -> &Overridden| {
        median(rounds.iter().map(|round| of(round).per_second() / round.script_per_second))
    };
    let single = "single overrides a second, × the bare script".to_owned();
    let batches = "overrides a second in batches, × the bare script".to_owned();
    let mut bounds = vec![
        Bound::at_least(single, share(|round| &round.single), SINGLE),
        Bound::at_least(batches, share(|round| &round.batches), BATCHES),
    ];
    let copied: Vec<f64> = rounds
        .iter()
        .filter_map(|round| Some(round.copied.as_ref()?.single.per_second() / round.single.per_second()))
        .collect();
    if !copied.is_empty() {
        let what = "single overrides a second with the audit copied, × without".to_owned();
        bounds.push(Bound::at_least(what, median(copied.into_iter()), COPIED));
    }
    bounds
}

const SINGLE: f64 = 0.4;
const BATCHES: f64 = 0.7;
const COPIED: f64 = 0.5;

fn rates(figures: impl Iterator<Item = f64>) -> String {
    figures.map(|figure| format!("{figure:7.0}/s")).collect::<Vec<_>>().join("  ")
}

impl Report for Published {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "publisher: single overrides over {} connections, batches of {} over {}; rounds in order",
            self.connections, self.batch, self.batch_connections
        ));
        let rounds = || self.rounds.iter();
        table.row("the bare script", rates(rounds().map(|round| round.script_per_second)));
        table.row("single overrides", rates(rounds().map(|round| round.single.per_second())));
        table.row("in batches", rates(rounds().map(|round| round.batches.per_second())));
        let copied: Vec<&Copied> = rounds().filter_map(|round| round.copied.as_ref()).collect();
        if !copied.is_empty() {
            table.row("single, copied", rates(copied.iter().map(|copied| copied.single.per_second())));
            table.row("rows meanwhile", rates(copied.iter().map(|copied| copied.rows_per_second[0])));
            table.row("rows afterwards", rates(copied.iter().map(|copied| copied.rows_per_second[1])));
        }
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        for round in &self.rounds {
            let copied = round.copied.as_ref().map(|copied| &copied.single);
            let all = [&round.single, &round.batches].into_iter().chain(copied);
            failures.extend(all.flat_map(Overridden::failures));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rate_that_redis_benchmark_says_counts() {
        let said = "EVALSHA a: rps=1.0\r\nEVALSHA {\"a\":1}: 24154.59 requests per second, p50=1.5 msec\n\n";
        assert!((calls_per_second(said).unwrap() - 24154.59).abs() < f64::EPSILON);
        assert_eq!(calls_per_second("ERR"), None);
    }
}
