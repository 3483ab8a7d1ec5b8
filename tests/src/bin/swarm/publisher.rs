//! `swarm publisher`: overrides a second, as a share of what the bare append script does.

use std::process::Command;
use std::time::Duration;

use ::tests::tokens::admin;
use ::tests::{Launch, Redis};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use shared::backbone::Retention;
use shared::token::Role;

use crate::bed::{Cores, prepare};
use crate::clock::now_us;
use crate::http::Endpoint;
use crate::message::{payload, payload_bytes};
use crate::options::{counted, duration};
use crate::overrides::{self, Overridden};
use crate::report::{Bound, Report, Table, median};

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
}

const EXAMPLES: &str = "\
Starts a redis-server on the first core and a publisher on any; the clients, and redis-benchmark in its turn, have the
others. redis-benchmark calls the publisher's append script with the same kind of arguments, 16 calls in a pipeline.

Examples:
  swarm publisher
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
    let endpoint = Endpoint::from(publisher.api);
    let overrides = |connections, batch| {
        let target = overrides::Target {
            endpoint: endpoint.clone(),
            admin_token: admin(Role::Trader),
            pid: publisher.process.id(),
            markets: options.markets,
        };
        overrides::run(&overrides::Options::at(target, connections, batch, options.duration))
    };
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(Round {
            script_per_second: options.script(&redis)?,
            single: overrides(options.connections, 1)?,
            batches: overrides(options.batch_connections, options.batch)?,
        });
    }
    let Options { connections, batch, batch_connections, .. } = *options;
    Ok(Published { connections, batch, batch_connections, bounds: bounds(&rounds), rounds })
}

const APPEND: &str = include_str!("../../../../shared/src/backbone/append.lua");

/// Calls in one pipeline of redis-benchmark.
const PIPELINED: usize = 16;

impl Options {
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
    vec![
        Bound::at_least(single, share(|round| &round.single), SINGLE),
        Bound::at_least(batches, share(|round| &round.batches), BATCHES),
    ]
}

const SINGLE: f64 = 0.4;
const BATCHES: f64 = 0.7;

impl Report for Published {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "publisher: single overrides over {} connections, batches of {} over {}; rounds in order",
            self.connections, self.batch, self.batch_connections
        ));
        let row = |of: &dyn Fn(&Round) -> f64| {
            self.rounds.iter().map(|round| format!("{:7.0}/s", of(round))).collect::<Vec<_>>().join("  ")
        };
        table.row("the bare script", row(&|round| round.script_per_second));
        table.row("single overrides", row(&|round| round.single.per_second()));
        table.row("in batches", row(&|round| round.batches.per_second()));
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        for round in &self.rounds {
            failures.extend(round.single.failures().into_iter().chain(round.batches.failures()));
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
