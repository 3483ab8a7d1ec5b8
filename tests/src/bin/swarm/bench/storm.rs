//! `swarm storm`: many clients that come back at once, each with updates to catch up on.

use ::tests::{Commands, Launch, Redis, Service};
use anyhow::{Result, ensure};
use clap::Args;

use super::environment::{metric, prepare};
use crate::client::{ClientPool, Endpoint, Plan, payload_bytes};
use crate::clock::now_us;
use crate::load::{Appender, tokens};
use crate::options::{Subscriptions, counted};
use crate::report::{Bound, Counts, Figure, Report, Usage, Used, allow_open_files, as_f64, ratio};

#[derive(Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("connections", |arg| arg.default_value("15000").help("Clients that come back")),
    mut_arg("markets", |arg| arg.default_value("200")),
    mut_arg("per_connection", |arg| arg.default_value("5"))
)]
pub(crate) struct Options {
    #[command(flatten)]
    subscriptions: Subscriptions,

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
All clients connect at once, twice: first to subscribe, and to resume at gateways that were just started. Each must get
exactly the updates that it has missed, in order.

Examples:
  swarm storm
  swarm storm --connections 2000 --markets 50 --missed 20";

struct Storm {
    title: String,
    clients: ClientPool,
    /// From the first connect until every client was acknowledged.
    acked_us: u64,
    /// From the first connect until every client had every update.
    complete_us: u64,
    /// Updates that were to come.
    expected: u64,
    /// Markets that were to be recovered.
    recovered: u64,
    redis: Commands,
    /// Markets that the gateways loaded.
    loads: u64,
    used: Vec<Used>,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { subscriptions, missed, gateways, .. } = *options;
    let (connections, markets) = (subscriptions.connections, subscriptions.markets()?);
    ensure!(missed <= options.updates, "--missed is at most --updates");
    prepare();
    allow_open_files(connections + 64)?;
    let redis = Redis::start();
    let log = Appender::new(&redis, markets, options.updates, payload_bytes(options.update_bytes))?;
    let offsets = log.latest().iter().map(|latest| latest.seq.get() - missed as u64).collect();
    let mut subscribing =
        options.storm(&redis, Counts::new(markets, connections), "subscribing".to_owned())?;
    let title = format!("resuming, {missed} updates of each market missed");
    let mut resuming = options.storm(&redis, Counts::resuming(markets, connections, offsets), title)?;

    let mut report = Report::titled(format!(
        "storm: {connections} clients at once on {markets}, over {gateways} gateways"
    ));
    subscribing.report(&mut report);
    resuming.report(&mut report);
    let times = |of: fn(&Storm) -> u64| Figure::Number(ratio(of(&resuming), of(&subscribing)));
    report.section("resuming ÷ subscribing");
    report.row("until acknowledged", [("", times(|storm| storm.acked_us))]);
    report.row("until complete", [("", times(|storm| storm.complete_us))]);
    // All subscribers of a market share one load of it.
    let most = as_f64((markets.count * gateways) as u64);
    let hgetall = as_f64(resuming.redis.of("hgetall").calls);
    report.bounds([
        Bound::at_most("loads of a market", as_f64(resuming.loads), most),
        Bound::at_most("HGETALL", hgetall, most),
    ]);
    Ok(report)
}

/// How long to wait for what is still missing when all are acknowledged.
const DRAIN_US: u64 = 30_000_000;

impl Options {
    /// All clients at once, to gateways that know nothing yet.
    fn storm(&self, redis: &Redis, counts: Counts, title: String) -> Result<Storm> {
        let gateways: Vec<Service> =
            (0..self.gateways).map(|_| Launch::gateway(redis).without("WORKERS").start()).collect();
        let endpoints = gateways.iter().map(|gateway| Endpoint::from(gateway.api)).collect();
        let connections = self.subscriptions.connections;
        let subscriptions = connections * counts.check.markets.per_connection;
        let recovered = if counts.check.is_resuming() { subscriptions as u64 } else { 0 };
        let expected = recovered * self.missed as u64;
        let plan = Plan::all_at_once(endpoints, tokens::of_users(1..connections + 1));
        let mut clients = ClientPool::new(plan, connections, counts)?;

        let processes: Vec<_> = gateways.iter().map(|gateway| ("gateway", gateway.process.id())).collect();
        let (usage, commands) = (Usage::read(&processes)?, Commands::so_far(redis)?);
        let began_us = now_us();
        let acked_us = clients.ramp()?;
        let give_up_us = now_us() + DRAIN_US;
        clients.receive(|clients| {
            clients.counts().deliveries < expected && clients.open_clients() > 0 && now_us() < give_up_us
        })?;
        let complete_us = now_us() - began_us;
        let used = Usage::read(&processes)?.since(&usage);
        let redis = Commands::so_far(redis)?.since(&commands);
        let loads = gateways.iter().map(|gateway| metric(gateway, "gateway_market_loads_total"));
        let loads = loads.sum::<Result<_>>()?;
        // An update that comes twice has come by the end of this.
        let settled_us = now_us() + SETTLE_US;
        clients.receive(|_| now_us() < settled_us)?;
        Ok(Storm { title, clients, acked_us, complete_us, expected, recovered, redis, loads, used })
    }
}

/// How long nothing more may come at the end.
const SETTLE_US: u64 = 1_000_000;

impl Storm {
    fn report(&mut self, report: &mut Report) {
        let live = self.clients.live();
        let counts = self.clients.counts();
        report.section(self.title.as_str());
        counts.report_ramp(report, live, self.acked_us);
        if self.expected > 0 {
            let replayed = [
                ("", counts.deliveries.into()),
                ("of", self.expected.into()),
                ("in", Figure::Time(self.complete_us)),
            ];
            report.row("replayed", replayed);
        }
        report.row("commands to Redis", READS.map(|name| (name, self.redis.of(name).calls.into())));
        report.row("markets loaded", [("", self.loads.into())]);
        report.processes(&self.used);

        let (deliveries, recovered, snapshots) =
            (counts.deliveries, counts.check.recovered, counts.snapshots);
        let mut fail_if = |failed: bool, what: String| {
            report.fail_if(failed, format_args!("{}: {what}", self.title));
        };
        fail_if(
            deliveries != self.expected,
            format!("{deliveries} updates came instead of {}", self.expected),
        );
        let wanted = self.recovered;
        fail_if(recovered != wanted, format!("{recovered} markets recovered instead of {wanted}"));
        fail_if(snapshots > 0, format!("{snapshots} snapshots"));
        fail_if(!counts.errors.is_empty(), format!("errors: {:?}", counts.errors));
        let failures = counts.failures().map(|failure| format!("{}: {failure}", self.title));
        report.fail(failures);
    }
}

/// What a gateway may ask Redis for a market.
const READS: [&str; 4] = ["xread", "xrange", "xrevrange", "hgetall"];
