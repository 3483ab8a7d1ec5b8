//! `swarm publisher`: overrides per second, as a share of what the bare append script does.

use std::{process::Command, time::Duration};

use ::tests::{Launch, Postgres, Redis, Service, tokens::admin, wait::until_within};
use anyhow::{Context, Result, ensure};
use clap::Args;
use service::token::Role;

use super::environment::{Cores, metric, prepare};
use crate::client::{Endpoint, payload, payload_bytes, runtime};
use crate::clock::now_us;
use crate::load::{APPEND, AdminApi, Sent, closed_loop, script_args};
use crate::markets::{FIRST_MARKET, Markets};
use crate::options::{Publisher, Watched, counted, duration};
use crate::report::{Bound, Figure, Report, Usage, Used, allow_open_files, median, per_second, ratio};

#[derive(Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("publisher", |arg| arg.help("The admin API of a running publisher to load, instead of one that this starts"))
)]
pub(crate) struct Options {
    #[command(flatten)]
    publisher: Publisher,
    #[command(flatten)]
    watched: Watched,

    /// Keep-alive connections, each with one override at a time
    #[arg(long, short = 'n', value_name = "N", default_value_t = 64, value_parser = counted(1, 4096))]
    connections: usize,

    /// Overrides in a batch
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = counted(1, 1000))]
    batch: usize,

    /// Connections that send batches
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = counted(1, 4096))]
    batch_connections: usize,

    /// Markets, at random for the script and in turn for the publisher
    #[arg(long, value_name = "M", default_value_t = 1000, value_parser = counted(1, 1_000_000))]
    markets: usize,

    /// Lowest market id; keep away from markets that people bet on
    #[arg(long, value_name = "ID", default_value_t = FIRST_MARKET)]
    first_market: u64,

    /// Size of a payload, at least
    #[arg(long, value_name = "BYTES", default_value_t = payload_bytes(145), value_parser = counted(0, 16_000))]
    payload_bytes: usize,

    /// Appends of the bare script
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = counted(1000, 10_000_000))]
    appends: usize,

    /// How long overrides are sent
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = duration)]
    duration: Duration,

    /// How often each is measured, in turn; the median of the ratios counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(1, 9))]
    rounds: usize,

    /// Single overrides also with a publisher that copies its audit to a PostgreSQL
    #[arg(long, conflicts_with = "publisher")]
    postgres: bool,
}

const EXAMPLES: &str = "\
A closed loop: each connection sends its next request when it has the response to the last. Redis has the first core, the
publisher and PostgreSQL any, the clients the others. redis-benchmark calls the publisher's append script, 16 calls in a
pipeline. With --publisher it only loads a running publisher.

Examples:
  swarm publisher
  swarm publisher --postgres
  swarm publisher --batch 1000 --batch-connections 4
  swarm publisher --publisher http://127.0.0.1:8080 --admin-token $ADMIN_TOKEN --duration 30s --rounds 1";

pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { connections, batch, batch_connections, .. } = *options;
    allow_open_files(connections.max(batch_connections) + 64)?;
    let (target, copying) = match &options.publisher.publisher {
        Some(endpoint) => (Target::running(options, endpoint)?, None),
        None => {
            prepare();
            let cores = Cores::divide()?;
            let target = Target::start(options, &cores, false)?;
            (target, options.postgres.then(|| Target::start(options, &cores, true)).transpose()?)
        }
    };
    let mut script = Vec::new();
    let [mut single, mut batches, mut copied] =
        ["single overrides", "in batches", "single, copied"].map(|name| Case { name, ..Case::default() });
    let (mut rows_meanwhile, mut rows_afterwards) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        if let Some(services) = &target.services {
            script.push(options.script(&services.redis)?);
        }
        single.measure(options, &target, connections, 1)?;
        batches.measure(options, &target, batch_connections, batch)?;
        if let Some((copying, publisher)) = copying.as_ref().zip(copying.as_ref().and_then(Target::publisher))
        {
            let (before, began_us) = (metric(publisher, ROWS)?, now_us());
            copied.measure(options, copying, connections, 1)?;
            let (meanwhile, ended_us) = (metric(publisher, ROWS)?, now_us());
            let accepted = metric(publisher, ACCEPTED)?;
            let are_there = || (metric(publisher, ROWS).ok()? == accepted).then_some(());
            until_within(PATIENCE, "all rows in PostgreSQL", are_there);
            rows_meanwhile.push(per_second(meanwhile - before, ended_us - began_us));
            rows_afterwards.push(per_second(accepted - meanwhile, now_us() - ended_us));
        }
    }

    let mut report = Report::titled(format!(
        "publisher: single overrides over {connections} connections, batches of {batch} over {batch_connections}; \
         rounds in order"
    ));
    let rates = |rates: &[f64]| [("per second", Figure::Numbers(rates.to_vec()))];
    if target.services.is_some() {
        report.row("the bare script", rates(&script));
    }
    for case in [&single, &batches, &copied] {
        case.report(&mut report);
    }
    if copying.is_some() {
        report.row("rows meanwhile", rates(&rows_meanwhile));
        report.row("rows afterwards", rates(&rows_afterwards));
        let what = "single overrides per second with the audit copied, × without";
        report.bounds([Bound::at_least(what, share(&copied.rates(), &single.rates()), COPIED)]);
    }
    if target.services.is_some() {
        let [single, batches] = [single, batches].map(|case| share(&case.rates(), &script));
        report.bounds([
            Bound::at_least("single overrides per second, × the bare script", single, SINGLE),
            Bound::at_least("overrides per second in batches, × the bare script", batches, BATCHES),
        ]);
    }
    Ok(report)
}

const SINGLE: f64 = 0.4;
const BATCHES: f64 = 0.7;
const COPIED: f64 = 0.5;

/// How long rows may take to arrive after the last override.
const PATIENCE: Duration = Duration::from_mins(1);

const ACCEPTED: &str = r#"publisher_overrides_total{outcome="appended"}"#;
const ROWS: &str = "publisher_audit_exported_total";

fn share(rates: &[f64], of: &[f64]) -> f64 {
    median(rates.iter().zip(of).map(|(rate, of)| rate / of))
}

/// What is measured, by its name in the report.
#[derive(Default)]
struct Case {
    name: &'static str,
    sent: Vec<Sent>,
    used: Vec<Used>,
}

impl Case {
    fn measure(
        &mut self,
        options: &Options,
        target: &Target,
        connections: usize,
        batch: usize,
    ) -> Result<()> {
        let before = Usage::read(&target.processes)?;
        let Options { payload_bytes, duration, .. } = *options;
        self.sent.push(closed_loop(&target.api, connections, batch, payload_bytes, duration)?);
        self.used = Usage::read(&target.processes)?.since(&before);
        Ok(())
    }

    fn rates(&self) -> Vec<f64> {
        self.sent.iter().map(Sent::per_second).collect()
    }

    fn report(&self, report: &mut Report) {
        let Some(last) = self.sent.last() else { return };
        report.row(self.name, [("per second", Figure::Numbers(self.rates()))]);
        report.times("  response", &last.responses);
        let cpu_us = self.used.iter().map(|used| used.cpu_us).sum();
        let figures = [
            ("accepted", last.accepted.into()),
            ("in", Figure::Time(last.took_us)),
            ("CPU per override, µs", ratio(cpu_us, last.accepted).into()),
        ];
        report.row("  the last round", figures);
        report.processes(&self.used);
        for sent in &self.sent {
            report.fail(sent.failures().map(|failure| format!("{}: {failure}", self.name)));
        }
    }
}

/// The publisher that takes the overrides.
struct Target {
    api: AdminApi,
    processes: Vec<(&'static str, u32)>,
    /// What was started for this run.
    services: Option<Services>,
}

struct Services {
    publisher: Service,
    redis: Redis,
    _postgres: Option<Postgres>,
}

impl Target {
    fn running(options: &Options, endpoint: &Endpoint) -> Result<Self> {
        let api = AdminApi::new(&options.publisher, endpoint, options.all_markets());
        api.try_one()?;
        Ok(Self { api, processes: options.watched.find(&[], Some(endpoint)), services: None })
    }

    /// Starts a publisher with a Redis and perhaps a PostgreSQL of its own.
    fn start(options: &Options, cores: &Cores, with_postgres: bool) -> Result<Self> {
        let redis = cores.measured(Redis::start)?;
        let postgres = with_postgres.then(|| cores.all(Postgres::start)).transpose()?;
        let mut launch = Launch::publisher(&redis);
        if let Some(postgres) = &postgres {
            launch = launch.env("DATABASE_URL", runtime()?.block_on(postgres.database()).url());
        }
        let publisher = cores.all(|| launch.start())?;
        let (endpoint, token) = (Endpoint::from(publisher.api), Some(admin(Role::Trader)));
        let processes = vec![("publisher", publisher.process.id())];
        let api = AdminApi { endpoint, token, markets: options.all_markets() };
        Ok(Self { api, processes, services: Some(Services { publisher, redis, _postgres: postgres }) })
    }

    fn publisher(&self) -> Option<&Service> {
        self.services.as_ref().map(|services| &services.publisher)
    }
}

/// Calls in one pipeline of redis-benchmark.
const PIPELINED: usize = 16;

impl Options {
    fn all_markets(&self) -> Markets {
        Markets { first: self.first_market, ..Markets::new(self.markets, 0) }
    }

    /// Appends per second of the bare script.
    fn script(&self, redis: &Redis) -> Result<f64> {
        let mut connection = redis::Client::open(redis.url())?.get_connection()?;
        let sha: String = redis::cmd("SCRIPT").arg("LOAD").arg(APPEND).query(&mut connection)?;
        let keys = ["log", "state", "audit"].map(|kind| format!("odds:{kind}:{{__rand_int__}}"));
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &redis.port().to_string(), "-q", "-c", &self.connections.to_string()]);
        command.args(["-P", &PIPELINED.to_string(), "-n", &self.appends.to_string()]);
        command.args(["-r", &self.markets.to_string(), "EVALSHA", &sha]);
        command.args(script_args(keys, &payload(now_us(), self.payload_bytes)));
        let output = command.output().context("redis-benchmark, which comes with redis-server")?;
        ensure!(output.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        calls_per_second(&said).with_context(|| format!("redis-benchmark said {said}"))
    }
}

/// The last rate that redis-benchmark says: `…: 24154.59 requests per second, p50=…`.
fn calls_per_second(said: &str) -> Option<f64> {
    let before = &said[..said.rfind(" requests per second")?];
    before.rsplit(' ').next()?.parse().ok()
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
