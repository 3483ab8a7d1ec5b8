//! `swarm idle`: what sockets cost that only wait, and whether they stay alive.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::clock::{as_us, now_us};
use crate::hive::{Hive, Plan, Ramp};
use crate::http::expect_gateway;
use crate::options::{Sockets, Watched, duration};
use crate::process::{self, Used};
use crate::report::{self, Percentiles, Report, Table, bytes, per_second, ratio, time};
use crate::tally::{Checks, Tally};
use crate::tokens::tokens;

/// Flags of `swarm idle`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    #[command(flatten)]
    sockets: Sockets,
    #[command(flatten)]
    watched: Watched,

    /// How long to hold the sockets; more than 60s shows that answered heartbeats keep them alive
    #[arg(long, value_name = "TIME", default_value = "35s", value_parser = duration)]
    hold: Duration,
}

const EXAMPLES: &str = "\
Bytes a socket are what the gateway has grown by, so take a freshly started one: memory it has had before is used again.

Examples:
  # 15 000 sockets on one market
  swarm idle --connections 15000 --hold 75s
  # each on 20 of 1000 markets
  swarm idle -n 5000 --markets 1000 --per-connection 20";

/// What `swarm idle` found.
#[derive(Serialize)]
pub(crate) struct Held {
    connections: usize,
    live: usize,
    markets: usize,
    per_connection: usize,

    ramp_us: u64,
    handshakes_per_second: f64,
    handshake_us: Percentiles,
    subscribe_us: Percentiles,
    gateway_cpu_us_per_handshake: Option<f64>,
    gateway_rss_bytes_per_socket: Option<f64>,

    hold_us: u64,
    gateway_cpu_us_per_socket_second: Option<f64>,
    heartbeat_messages: u64,
    heartbeat_frames: u64,
    heartbeats_answered: u64,
    ping_round_trip_us: Percentiles,
    pings_unanswered: usize,

    checks: Checks,
    errors: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,
    servers_while_connecting: Vec<Used>,
    servers_while_holding: Vec<Used>,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Held> {
    let sockets = &options.sockets;
    let markets = sockets.markets()?;
    process::allow_open_files(sockets.connections + 64)?;
    sockets.gateway.iter().try_for_each(expect_gateway)?;
    let watch = options.watched.find(&sockets.gateway, None)?;
    let tokens = tokens(sockets, options.hold)?;
    let mut hive = Hive::new(Plan::new(sockets, tokens), Tally::new(markets, sockets.connections))?;

    let before = watch.read();
    let progress = report::progress(sockets.connections, "sockets");
    let ramp = hive.ramp(&progress)?;
    progress.finish_and_clear();
    let connected = watch.read();
    let hold_us = hold(&mut hive, as_us(options.hold))?;
    let held = watch.read();
    let pings_unanswered = hive.probe(PROBES_PER_SECOND)?;
    Ok(options.report(
        &mut hive,
        ramp,
        hold_us,
        pings_unanswered,
        watch.used(&before, &connected),
        watch.used(&connected, &held),
    ))
}

/// Slow enough to measure an answer rather than a queue.
const PROBES_PER_SECOND: f64 = 2000.0;

/// Hold at least this long before too few heartbeats are held against the server: twice their interval, and some.
const HEARTBEATS_DUE_US: u64 = 35_000_000;

fn hold(hive: &mut Hive, for_us: u64) -> Result<u64> {
    let progress = report::progress(usize::try_from(for_us / 1_000_000)?, "seconds");
    let began_us = now_us();
    hive.receive(|hive| {
        let held_us = now_us() - began_us;
        progress.set_position(held_us / 1_000_000);
        held_us < for_us && hive.open_clients() > 0
    })?;
    progress.finish_and_clear();
    Ok(now_us() - began_us)
}

impl Options {
    fn report(
        &self,
        hive: &mut Hive,
        ramp: Ramp,
        hold_us: u64,
        pings_unanswered: usize,
        servers_while_connecting: Vec<Used>,
        servers_while_holding: Vec<Used>,
    ) -> Held {
        let tally = hive.tally();
        let live = ramp.live as u64;
        let sum = |servers: &[Used], of: fn(&Used) -> u64| {
            (!servers.is_empty()).then(|| servers.iter().map(of).sum())
        };
        let a_socket = |total: Option<u64>| total.and_then(|total| ratio(total, live));
        let grown = |used: &Used| used.rss_after_bytes.saturating_sub(used.rss_before_bytes);
        let held_cpu_us = a_socket(sum(&servers_while_holding, |used| used.cpu_us));
        Held {
            connections: self.sockets.connections,
            live: ramp.live,
            markets: self.sockets.markets,
            per_connection: self.sockets.per_connection,
            ramp_us: ramp.took_us,
            handshakes_per_second: per_second(live, ramp.took_us),
            handshake_us: (&tally.handshake).into(),
            subscribe_us: (&tally.subscribe).into(),
            gateway_cpu_us_per_handshake: a_socket(sum(&servers_while_connecting, |used| used.cpu_us)),
            gateway_rss_bytes_per_socket: a_socket(sum(&servers_while_connecting, grown)),
            hold_us,
            gateway_cpu_us_per_socket_second: held_cpu_us
                .map(|us| us / Duration::from_micros(hold_us).as_secs_f64()),
            heartbeat_messages: tally.ping_messages,
            heartbeat_frames: tally.ping_frames,
            heartbeats_answered: tally.answered,
            ping_round_trip_us: (&tally.round_trip).into(),
            pings_unanswered,
            checks: tally.checks.clone(),
            errors: tally.errors.clone(),
            ended: tally.ended.clone(),
            servers_while_connecting,
            servers_while_holding,
        }
    }
}

impl Report for Held {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "idle: {} sockets on {} of {} markets each",
            self.connections, self.per_connection, self.markets
        ));
        table.row(
            "connected",
            format!("{} in {} ({:.0}/s)", self.live, time(self.ramp_us), self.handshakes_per_second),
        );
        table.times("handshake", &self.handshake_us);
        table.times("subscribe to ack", &self.subscribe_us);
        table.processes(&self.servers_while_connecting);
        if let (Some(cpu_us), Some(rss)) =
            (self.gateway_cpu_us_per_handshake, self.gateway_rss_bytes_per_socket)
        {
            table.row("a socket", format!("{cpu_us:.0} µs CPU to connect and subscribe, {rss:.0} bytes RSS"));
        }

        table.section(&format!("held for {}", time(self.hold_us)));
        let (messages, frames) = (self.heartbeat_messages, self.heartbeat_frames);
        table.row(
            "heartbeats",
            format!("{messages} messages, {frames} ping frames; {} answers sent", self.heartbeats_answered),
        );
        table.times("ping to pong", &self.ping_round_trip_us);
        if let Some(us) = self.gateway_cpu_us_per_socket_second {
            table.row("CPU", format!("{us:.2} µs a socket and second"));
        }
        for used in &self.servers_while_holding {
            table.row("RSS at the end", bytes(used.rss_after_bytes));
        }
        table.row_if(!self.errors.is_empty(), "errors", format!("{:?}", self.errors));
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.ended.is_empty() {
            failures.push(format!("sockets ended: {:?}", self.ended));
        }
        if self.hold_us >= HEARTBEATS_DUE_US && self.heartbeat_messages < self.live as u64 {
            failures.push(format!("{} heartbeats for {} sockets", self.heartbeat_messages, self.live));
        }
        if self.pings_unanswered > 0 {
            failures.push(format!("{} pings were not answered", self.pings_unanswered));
        }
        failures.extend(self.checks.failure());
        failures
    }
}
