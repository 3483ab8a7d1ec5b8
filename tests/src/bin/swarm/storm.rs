//! `swarm storm`: many clients that come back at once, each with updates to catch up on.

use std::collections::BTreeMap;

use ::tests::tokens::{JWT_SECRET, admin};
use ::tests::{Commands, Launch, Redis, Service};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use service::token::Role;

use crate::bed::{FIRST_MARKET, TOKEN_LIFE_S, counter, prepare};
use crate::clock::now_us;
use crate::hive::{Hive, Plan};
use crate::http::{Endpoint, runtime};
use crate::markets::Markets;
use crate::message::payload_bytes;
use crate::options::{Publisher, counted};
use crate::process::{self, Used, Watch};
use crate::publish::Desk;
use crate::report::{self, Bound, Percentiles, Report, Table, per_second, ratio, time};
use crate::tally::{Checks, Tally};
use crate::tokens::sign;

/// Flags of `swarm storm`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Clients that come back
    #[arg(long, short = 'n', value_name = "N", default_value_t = 15_000, value_parser = counted(1, 100_000))]
    connections: usize,

    /// Markets, each with as many subscribers as any other
    #[arg(long, value_name = "M", default_value_t = 200, value_parser = counted(1, 10_000))]
    markets: usize,

    /// Markets of each client
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = counted(1, 200))]
    per_connection: usize,

    /// Updates of each market
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = counted(1, 1000))]
    updates: usize,

    /// How many of them each client has missed
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = counted(0, 500))]
    missed: usize,

    /// Gateways
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = counted(1, 8))]
    gateways: usize,

    /// Size of an update as a WebSocket message, at least
    #[arg(long, value_name = "BYTES", default_value_t = 150, value_parser = counted(0, 16_000))]
    update_bytes: usize,
}

const EXAMPLES: &str = "\
Starts a redis-server, a publisher and gateways, and publishes. Then all clients connect at once, twice: first to
subscribe, and after the gateways were started anew, so that they remember nothing, to resume. Each must get exactly what
it has missed, in order.

Examples:
  swarm storm
  swarm storm --connections 2000 --markets 50 --missed 20";

/// What `swarm storm` found.
#[derive(Serialize)]
pub(crate) struct Stormed {
    connections: usize,
    markets: usize,
    per_connection: usize,
    missed: usize,
    gateways: usize,
    subscribing: Storm,
    resuming: Storm,
    /// How much longer resuming took until all were acknowledged, and until all had everything.
    acked_ratio: f64,
    complete_ratio: f64,
    bounds: Vec<Bound>,
}

/// One storm.
#[derive(Serialize)]
struct Storm {
    live: usize,
    /// From the first connect until every client was acknowledged.
    acked_us: u64,
    /// From the first connect until every client had everything.
    complete_us: u64,
    handshake_us: Percentiles,
    subscribe_us: Percentiles,
    recovered: u64,
    deliveries: u64,
    /// Updates that were to come.
    expected: u64,
    checks: Checks,
    snapshots: u64,
    errors: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,
    /// What Redis was asked.
    redis: Commands,
    /// Markets that the gateways loaded.
    loads: u64,
    servers: Vec<Used>,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Stormed> {
    ensure!(options.missed <= options.updates, "--missed is at most --updates");
    ensure!(options.per_connection <= options.markets, "--per-connection is at most --markets");
    prepare();
    process::allow_open_files(options.connections + 64)?;
    let redis = Redis::start();
    let tops = options.publish(&redis)?;
    let offsets = tops.iter().map(|top| top - options.missed as u64).collect();
    let (markets, connections) = (options.all_markets(), options.connections);
    let subscribing = options.storm(&redis, Tally::new(markets, connections), 0)?;
    let resuming = options.storm(&redis, Tally::resuming(markets, connections, offsets), options.missed)?;
    let times = |of: fn(&Storm) -> u64| ratio(of(&resuming), of(&subscribing)).unwrap_or_default();
    Ok(Stormed {
        connections,
        markets: options.markets,
        per_connection: options.per_connection,
        missed: options.missed,
        gateways: options.gateways,
        acked_ratio: times(|storm| storm.acked_us),
        complete_ratio: times(|storm| storm.complete_us),
        bounds: options.bounds(&resuming),
        subscribing,
        resuming,
    })
}

/// Overrides in one request.
const BATCH: usize = 1000;

/// How long to wait for what is still missing when all are acknowledged.
const DRAIN_US: u64 = 30_000_000;

impl Options {
    fn all_markets(&self) -> Markets {
        Markets { first: FIRST_MARKET, count: self.markets, per_connection: self.per_connection }
    }

    /// Publishes to every market in turn; answers with the last `seq` of each.
    fn publish(&self, redis: &Redis) -> Result<Vec<u64>> {
        let publisher = Launch::publisher(redis).start();
        let endpoint = Endpoint::from(publisher.api);
        let options = Publisher { publisher: Some(endpoint.clone()), admin_token: Some(admin(Role::Trader)) };
        let desk = Desk::new(&options, &endpoint, self.all_markets());
        let payload_bytes = payload_bytes(self.update_bytes);
        let total = self.markets * self.updates;
        let mut tops = vec![0; self.markets];
        runtime()?.block_on(async {
            let mut http = desk.http();
            for first in (0..total).step_by(BATCH) {
                let indices = first..total.min(first + BATCH);
                let seqs = desk.send(&mut http, indices.clone(), payload_bytes).await;
                for (index, seq) in indices.zip(seqs.map_err(anyhow::Error::msg)?) {
                    tops[index % self.markets] = seq.map_err(anyhow::Error::msg).context("an override")?;
                }
            }
            anyhow::Ok(tops)
        })
    }

    /// All clients at once, to gateways that know nothing yet; each is to get `missed` updates of each market.
    fn storm(&self, redis: &Redis, tally: Tally, missed: usize) -> Result<Storm> {
        let gateways: Vec<Service> =
            (0..self.gateways).map(|_| Launch::gateway(redis).without("WORKERS").start()).collect();
        let endpoints = gateways.iter().map(|gateway| Endpoint::from(gateway.api)).collect();
        let tokens = sign(JWT_SECRET, 1, self.connections, TOKEN_LIFE_S)?;
        let mut hive = Hive::new(Plan::all_at_once(endpoints, tokens, self.connections), tally)?;
        let expected = (self.connections * self.per_connection * missed) as u64;

        let watch = Watch::new(gateways.iter().map(|gateway| ("gateway", gateway.process.id())))?;
        let (cpu, commands) = (watch.read(), Commands::so_far(redis)?);
        let progress = report::progress(self.connections, "sockets");
        let began_us = now_us();
        let ramp = hive.ramp(&progress)?;
        progress.finish_and_clear();
        let give_up_us = now_us() + DRAIN_US;
        hive.receive(|hive| {
            hive.tally().deliveries < expected && hive.open_clients() > 0 && now_us() < give_up_us
        })?;
        let complete_us = now_us() - began_us;
        let servers = watch.used(&cpu, &watch.read());
        let commands = Commands::so_far(redis)?.since(&commands);
        let loads = runtime()?.block_on(counter(&gateways, "gateway_market_loads_total"))?;
        // Whatever would come twice has come by now: the gateways have answered after it.
        let settled_us = now_us() + SETTLE_US;
        hive.receive(|_| now_us() < settled_us)?;
        let tally = hive.tally();
        Ok(Storm {
            live: ramp.live,
            acked_us: ramp.took_us,
            complete_us,
            handshake_us: (&tally.handshake).into(),
            subscribe_us: (&tally.subscribe).into(),
            recovered: tally.recovered,
            deliveries: tally.deliveries,
            expected,
            checks: tally.checks.clone(),
            snapshots: tally.snapshots,
            errors: tally.errors.clone(),
            ended: tally.ended.clone(),
            redis: commands,
            loads,
            servers,
        })
    }

    fn bounds(&self, resuming: &Storm) -> Vec<Bound> {
        let most = self.markets * self.gateways;
        // All who want the same market share one load of it.
        let bound = |what: &str, is: u64| {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            Bound::new(what.to_owned(), is as f64, most as f64)
        };
        vec![bound("loads of a market", resuming.loads), bound("HGETALL", resuming.redis.of("hgetall").calls)]
    }
}

/// How long nothing more may come at the end.
const SETTLE_US: u64 = 1_000_000;

impl Storm {
    fn table(&self, table: &mut Table, title: &str) {
        table.section(title);
        table.row(
            "acknowledged",
            format!(
                "{} in {} ({:.0}/s)",
                self.live,
                time(self.acked_us),
                per_second(self.live as u64, self.acked_us)
            ),
        );
        table.times("handshake", &self.handshake_us);
        table.times("to its ack", &self.subscribe_us);
        if self.expected > 0 {
            table.row(
                "replayed",
                format!("{} of {} in {}", self.deliveries, self.expected, time(self.complete_us)),
            );
        }
        let asked = READS.map(|name| format!("{name} {}", self.redis.of(name).calls)).join(", ");
        table.row("Redis was asked", format!("{asked}; {} markets loaded", self.loads));
        table.processes(&self.servers);
    }

    fn failures(&self, title: &str, recovered: u64) -> Vec<String> {
        let mut failures = Vec::new();
        let mut unless = |holds: bool, what: String| {
            if !holds {
                failures.push(format!("{title}: {what}"));
            }
        };
        let broken = self.checks.failure();
        unless(broken.is_none(), broken.unwrap_or_default());
        unless(
            self.deliveries == self.expected,
            format!("{} updates came instead of {}", self.deliveries, self.expected),
        );
        unless(
            self.recovered == recovered,
            format!("{} markets recovered instead of {recovered}", self.recovered),
        );
        unless(self.snapshots == 0, format!("{} snapshots", self.snapshots));
        unless(self.ended.is_empty(), format!("sockets ended: {:?}", self.ended));
        unless(self.errors.is_empty(), format!("errors: {:?}", self.errors));
        failures
    }
}

/// What a gateway may ask Redis for a market.
const READS: [&str; 4] = ["xread", "xrange", "xrevrange", "hgetall"];

impl Report for Stormed {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "storm: {} clients at once on {} of {} markets each, over {} gateways",
            self.connections, self.per_connection, self.markets, self.gateways
        ));
        self.subscribing.table(table, "subscribing");
        self.resuming.table(table, &format!("resuming, {} updates of each market missed", self.missed));
        table.section("resuming beside subscribing");
        table.row("until acknowledged", format!("{:.2} ×", self.acked_ratio));
        table.row("until complete", format!("{:.2} ×", self.complete_ratio));
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let recovered = (self.connections * self.per_connection) as u64;
        let mut failures = self.subscribing.failures("subscribing", 0);
        failures.extend(self.resuming.failures("resuming", recovered));
        failures.extend(self.bounds.iter().filter_map(Bound::failure));
        failures
    }
}
