//! `swarm deliver`: publishes on a schedule, receives on many connections, checks and measures.

use std::{iter, sync::OnceLock, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;

use super::overrides::{AdminApi, Sent, open_loop};
use super::schedule::{Window, measure};
use super::tokens;
use crate::client::{ClientPool, End, Seen, connections, payload_bytes};
use crate::clock::{now_us, sleep_until};
use crate::options::{Publisher, Sockets, Watched, counted, duration, rate};
use crate::report::{Counts, Figure, Report, Usage, Used, allow_open_files, per_second, ratio};

#[derive(Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("publisher", |arg| arg.help("The admin API. Default: the first --gateway, which serves it when it runs without REDIS_URL"))
)]
pub(crate) struct Options {
    #[command(flatten)]
    sockets: Sockets,
    #[command(flatten)]
    publisher: Publisher,
    #[command(flatten)]
    watched: Watched,

    /// Updates to publish per second, over all markets in turn; 0 = only listen, while another swarm publishes
    #[arg(long, value_name = "RATE", default_value_t = 100.0, value_parser = rate)]
    rate: f64,

    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,

    /// How long to publish before measuring
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    warmup: Duration,

    /// How long to wait for what is still missing at the end
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    drain: Duration,

    /// Size of an update as a WebSocket message, at least
    #[arg(long, value_name = "BYTES", default_value_t = 145, value_parser = counted(0, 16_000))]
    update_bytes: usize,

    /// Overrides in flight at the same time, each on a connection and thread of its own
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = counted(1, 256))]
    publish_connections: usize,
}

const EXAMPLES: &str = "\
Latency is from the time at which an update was due until a client has received it.

Examples:
  # one market, 5000 subscribers, 40 updates per second: 200 000 deliveries per second
  swarm deliver --connections 5000 --rate 40 --admin-token $ADMIN_TOKEN
  # 10 000 markets over two gateways, each connection on 20 of them
  swarm deliver --gateway http://127.0.0.1:8080 --gateway http://127.0.0.1:8090 \\
        --publisher http://127.0.0.1:8081 -n 2000 --markets 10000 --per-connection 20 --rate 300
  # more connections than one process may open: start listeners first, then a swarm that publishes
  swarm deliver -n 15000 --first-user 1 --rate 0 --duration 60s";

pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { sockets, rate, warmup, duration, drain, publish_connections, .. } = options;
    let (markets, gateways) = (sockets.markets()?, &sockets.gateway);
    ensure!(
        markets.per_connection > 0,
        "--per-connection must be at least 1: without subscriptions nothing arrives"
    );
    allow_open_files(sockets.connections() + publish_connections * FILES_PER_PUBLISHER + 64)?;
    gateways.iter().try_for_each(|gateway| connections(gateway).map(drop))?;
    let api = (*rate > 0.0).then(|| AdminApi::new(&options.publisher, &gateways[0], markets));
    api.as_ref().map_or(Ok(()), AdminApi::try_one)?;
    let watched = options.watched.find(gateways, api.as_ref().map(|api| &api.endpoint));

    let tokens = tokens::for_run(sockets, gateways, *warmup + *duration + *drain)?;
    let counts = Counts::new(markets, sockets.connections());
    let mut clients = ClientPool::new(sockets.plan(gateways.clone(), tokens), sockets.connections(), counts)?;
    let ramp_us = clients.ramp()?;
    let payload_bytes = payload_bytes(options.update_bytes);
    let window = Window::new(now_us() + LEAD_US, *rate, *warmup, *duration, payload_bytes);
    clients.counts().measure(window.from_us..u64::MAX);
    let send = || {
        let sent =
            api.as_ref().map(|api| open_loop(api, window.schedule, *publish_connections)).transpose()?;
        sleep_until(window.until_us);
        let latest = sent.as_ref().map_or(Vec::new(), Sent::latest);
        Ok((sent, latest))
    };
    let follow = iter::once(|end: &OnceLock<End>| clients.follow(end));
    let (sent, seen, [before, after]) = measure(window, *drain, send, follow, || Usage::read(&watched))?;
    Ok(options.report(&mut clients, ramp_us, sent.as_ref(), &seen[0], &after.since(&before)))
}

/// A socket, and what its runtime keeps open.
const FILES_PER_PUBLISHER: usize = 4;

const LEAD_US: u64 = 100_000;

/// Above this share of its time the receiving thread is what limits a run.
const BUSY: f64 = 0.9;

impl Options {
    fn report(
        &self,
        clients: &mut ClientPool,
        ramp_us: u64,
        sent: Option<&Sent>,
        seen: &Seen,
        used: &[Used],
    ) -> Report {
        let live = clients.live();
        let (counts, undelivered, busy) = (clients.counts(), seen.undelivered, seen.busy);
        let (check, measured) = (&counts.check, counts.measured);
        let connections = self.sockets.connections();
        let mut report = Report::titled(format!("deliver: {connections} connections on {}", check.markets));
        counts.report_ramp(&mut report, live, ramp_us);

        if let Some(sent) = sent {
            report.section(format!("published, {} per second wanted", self.rate));
            report.row("accepted", [("", sent.accepted.into()), ("of", sent.wanted.into())]);
            report.times("response", &sent.responses);
            report.times("sent late by", &sent.late);
            report.row("schedule", [("", Figure::Text(sent.schedule()))]);
            report.fail(sent.failures());
        }

        report.section("received");
        report.row("deliveries", [("", measured.into()), ("with warm-up", counts.deliveries.into())]);
        report.row("deliveries/s", [("", per_second(measured, counts.measured_for_us()).into())]);
        report.times("latency", &counts.latency);
        let checks = [
            ("holes", check.holes.into()),
            ("duplicates", check.duplicates.into()),
            ("reordered", check.reordered.into()),
            ("unexpected", (check.unexpected + check.backward).into()),
            ("never came", undelivered.into()),
        ];
        report.row("checks", checks);
        let snapshots = [
            ("", counts.snapshots.into()),
            ("conflated (too slow)", counts.conflated.into()),
            ("resets", counts.resets.into()),
        ];
        report.row("snapshots", snapshots);
        report.row("told that prices are stale", [("", counts.stale.into())]);
        report.counts("errors", &counts.errors);
        let limit = if busy > BUSY { "THE LIMIT of this run, spread it over several swarms" } else { "" };
        report.row("receiving thread", [("busy", Figure::Share(busy)), ("", limit.into())]);

        report.section("servers, while measured");
        report.processes(used);
        let gateway_us = used.iter().filter(|used| used.role == "gateway").map(|used| used.cpu_us).sum();
        let cpu = [
            ("per delivery, µs", ratio(gateway_us, measured).into()),
            ("deliveries per CPU-second", per_second(measured, gateway_us).into()),
        ];
        report.row("gateway CPU", cpu);

        report.fail(counts.failures());
        report.fail_if(undelivered > 0, format_args!("{undelivered} acknowledged updates never came"));
        report.fail_if(measured == 0, "nothing was received in the measured time");
        report
    }
}
