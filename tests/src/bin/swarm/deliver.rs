//! `swarm deliver`: publish on a schedule, receive on many sockets, check and measure.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::clock::{as_us, now_us, sleep_until, thread_cpu_us};
use crate::hive::{Hive, Plan, Ramp};
use crate::http::expect_gateway;
use crate::message::payload_bytes;
use crate::options::{Publisher, Sockets, Watched, counted, duration, rate};
use crate::process::{self, Used};
use crate::publish::{Desk, Published, Schedule, publish};
use crate::report::{self, Percentiles, Report, Table, per_second, ratio};
use crate::tally::{Checks, Tally};
use crate::tokens::tokens;

/// Flags of `swarm deliver`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    #[command(flatten)]
    sockets: Sockets,
    #[command(flatten)]
    publisher: Publisher,
    #[command(flatten)]
    watched: Watched,

    /// Updates to publish a second, over all markets in turn; 0 = only listen, while another swarm publishes
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
Latency is from the time an update was meant to be sent until a socket has received it.

Examples:
  # one market, 5000 subscribers, 40 updates a second: 200 000 deliveries a second
  swarm deliver --connections 5000 --rate 40 --admin-token $ADMIN_TOKEN
  # 10 000 markets over two gateways, each socket on 20 of them
  swarm deliver --gateway http://127.0.0.1:8080 --gateway http://127.0.0.1:8090 \\
        --publisher http://127.0.0.1:8081 -n 2000 --markets 10000 --per-connection 20 --rate 300
  # more sockets than one process may open: start listeners first, then one that publishes
  swarm deliver -n 15000 --first-user 1 --rate 0 --duration 60s";

/// What `swarm deliver` found.
#[derive(Serialize)]
pub(crate) struct Delivered {
    connections: usize,
    live: usize,
    markets: usize,
    per_connection: usize,
    rate: f64,

    ramp_us: u64,
    handshakes_per_second: f64,
    handshake_us: Percentiles,
    subscribe_us: Percentiles,

    published: Option<Published>,
    deliveries: u64,
    measured: u64,
    measured_for_us: u64,
    deliveries_per_second: f64,
    latency_us: Percentiles,

    checks: Checks,
    undelivered: u64,
    snapshots: u64,
    conflated: u64,
    resets: u64,
    stale: u64,
    errors: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,

    servers: Vec<Used>,
    gateway_cpu_us_per_delivery: Option<f64>,
    deliveries_per_gateway_cpu_second: Option<f64>,
    receiver_busy: f64,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Delivered> {
    let sockets = &options.sockets;
    let markets = sockets.markets()?;
    ensure!(
        markets.per_connection > 0,
        "--per-connection must be at least 1: without subscriptions nothing arrives"
    );
    process::allow_open_files(sockets.connections + options.publish_connections * FILES_PER_PUBLISHER + 64)?;
    sockets.gateway.iter().try_for_each(expect_gateway)?;
    let desk = (options.rate > 0.0).then(|| Desk::new(&options.publisher, &sockets.gateway[0], markets));
    desk.as_ref().map_or(Ok(()), Desk::try_one)?;
    let watch = options.watched.find(&sockets.gateway, desk.as_ref().map(|desk| &desk.endpoint))?;

    let tokens = tokens(sockets, options.warmup + options.duration + options.drain)?;
    let hive = Hive::new(Plan::new(sockets, tokens), Tally::new(markets, sockets.connections))?;
    let (ready, is_ready) = mpsc::channel();
    let (orders, taken) = mpsc::channel();
    let (received, published, servers) = thread::scope(|scope| {
        let orders = orders;
        let hive_thread = scope.spawn(move || receive(hive, sockets.connections, &ready, &taken));
        if is_ready.recv().is_err() {
            let received = hive_thread.join().expect("the receiving thread does not panic");
            return Err(received.err().context("the receiving thread ended early")?);
        }
        let start_us = now_us() + 100_000;
        let measure_from_us = start_us + as_us(options.warmup);
        orders.send(Order::MeasureFrom(measure_from_us))?;
        let publishing = desk.as_ref().map(|desk| {
            scope.spawn(move || publish(desk, options.schedule(start_us), options.publish_connections))
        });
        sleep_until(measure_from_us);
        let before = watch.read();
        let published = match publishing {
            Some(thread) => Some(thread.join().expect("the publishing thread does not panic")?),
            None => None,
        };
        sleep_until(measure_from_us + as_us(options.duration));
        let tops = published.as_ref().map(|published| published.tops.clone());
        orders.send(Order::Finish { tops, before_us: now_us() + as_us(options.drain) })?;
        let received = hive_thread.join().expect("the receiving thread does not panic")?;
        Ok((received, published, watch.used(&before, &watch.read())))
    })?;
    Ok(options.report(received, published, servers))
}

impl Options {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 100 000/s for 50 min"
    )]
    fn schedule(&self, start_us: u64) -> Schedule {
        Schedule {
            start_us,
            rate: self.rate,
            updates: (self.rate * (self.warmup + self.duration).as_secs_f64()).ceil() as usize,
            payload_bytes: payload_bytes(self.update_bytes),
        }
    }

    fn report(&self, received: Received, published: Option<Published>, servers: Vec<Used>) -> Delivered {
        let Received { mut hive, ramp, undelivered, receiver_busy } = received;
        let tally = hive.tally();
        let measured_for_us = tally.last_measured_us.saturating_sub(tally.measured_from_us);
        let cpu_us = servers.iter().filter(|used| used.role == "gateway").map(|used| used.cpu_us).sum();
        let measured = tally.measured;
        Delivered {
            connections: self.sockets.connections,
            live: ramp.live,
            markets: self.sockets.markets,
            per_connection: self.sockets.per_connection,
            rate: self.rate,
            ramp_us: ramp.took_us,
            handshakes_per_second: per_second(ramp.live as u64, ramp.took_us),
            handshake_us: (&tally.handshake).into(),
            subscribe_us: (&tally.subscribe).into(),
            published,
            deliveries: tally.deliveries,
            measured,
            measured_for_us,
            deliveries_per_second: per_second(measured, measured_for_us),
            latency_us: (&tally.latency).into(),
            checks: tally.checks.clone(),
            undelivered,
            snapshots: tally.snapshots,
            conflated: tally.conflated,
            resets: tally.resets,
            stale: tally.stale,
            errors: tally.errors.clone(),
            ended: tally.ended.clone(),
            gateway_cpu_us_per_delivery: ratio(cpu_us, measured).filter(|_| cpu_us > 0),
            deliveries_per_gateway_cpu_second: ratio(measured, cpu_us).map(|each_us| each_us * 1e6),
            servers,
            receiver_busy,
        }
    }
}

/// A socket, and what its runtime keeps open.
const FILES_PER_PUBLISHER: usize = 4;

/// What the receiving thread is told.
enum Order {
    /// What comes from then on is measured.
    MeasureFrom(u64),
    /// End when everything up to these tops (by market index) has arrived, or at this time.
    Finish { tops: Option<Vec<u64>>, before_us: u64 },
}

/// What the receiving thread leaves.
struct Received {
    hive: Hive,
    ramp: Ramp,
    undelivered: u64,
    /// Share of its time the thread was not waiting.
    receiver_busy: f64,
}

fn receive(mut hive: Hive, total: usize, ready: &Sender<()>, orders: &Receiver<Order>) -> Result<Received> {
    let progress = report::progress(total, "sockets");
    let ramp = hive.ramp(&progress)?;
    progress.finish_and_clear();
    ready.send(())?;

    let (began_us, began_cpu_us) = (now_us(), thread_cpu_us());
    let mut tops = None;
    let mut end_us = u64::MAX;
    let mut look_us = u64::MAX;
    hive.receive(|hive| {
        match orders.try_recv() {
            Ok(Order::MeasureFrom(from_us)) => hive.tally().measure_from_us = from_us,
            Ok(Order::Finish { tops: published, before_us }) => {
                tops = published;
                end_us = before_us;
                look_us = now_us();
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return false,
        }
        if now_us() < look_us {
            return true;
        }
        look_us = now_us() + LOOK_EVERY_US;
        let missing = tops.as_ref().is_some_and(|tops| hive.undelivered(tops) > 0);
        missing && now_us() < end_us
    })?;
    let spent_us = now_us() - began_us;
    let receiver_busy = ratio(thread_cpu_us() - began_cpu_us, spent_us).unwrap_or_default();
    let undelivered = tops.map_or(0, |tops| hive.undelivered(&tops));
    Ok(Received { hive, ramp, undelivered, receiver_busy })
}

const LOOK_EVERY_US: u64 = 20_000;

/// Above this share of its time the receiving thread is what limits a run.
const BUSY: f64 = 0.9;

impl Report for Delivered {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "deliver: {} sockets on {} of {} markets each",
            self.connections, self.per_connection, self.markets
        ));
        table.row(
            "connected",
            format!("{} in {} ({:.0}/s)", self.live, report::time(self.ramp_us), self.handshakes_per_second),
        );
        table.times("handshake", &self.handshake_us);
        table.times("subscribe to ack", &self.subscribe_us);

        if let Some(published) = &self.published {
            table.section(&format!("published, {} a second wanted", self.rate));
            table.row("accepted", format!("{} of {}", published.accepted, published.scheduled));
            table.row_if(!published.failed.is_empty(), "failed", format!("{:?}", published.failed));
            table.times("answered", &published.answered);
            table.times("sent late by", &published.late);
            table.row("schedule", published.kept_schedule().err().unwrap_or_else(|| "kept".into()));
        }

        table.section("received");
        table.row("deliveries", format!("{} ({} with warm-up)", self.measured, self.deliveries));
        table.row("deliveries/s", format!("{:.0}", self.deliveries_per_second));
        table.times("latency", &self.latency_us);
        let Checks { holes, duplicates, reordered, unexpected, backward, .. } = self.checks;
        table.row(
            "checks",
            format!(
                "holes {holes}, duplicates {duplicates}, reordered {reordered}, unexpected {}, never came {}",
                unexpected + backward,
                self.undelivered
            ),
        );
        table.row_if(
            self.snapshots > 0,
            "snapshots",
            format!(
                "{}, of them {} conflated (too slow), {} resets",
                self.snapshots, self.conflated, self.resets
            ),
        );
        table.row_if(self.stale > 0, "stale", format!("{} times told that prices may be stale", self.stale));
        table.row_if(!self.errors.is_empty(), "errors", format!("{:?}", self.errors));
        table.row_if(!self.ended.is_empty(), "sockets lost", format!("{:?}", self.ended));
        let bottleneck = if self.receiver_busy > BUSY {
            ": THE LIMIT of this run, spread it over several swarms"
        } else {
            ""
        };
        table.row("receiving thread", format!("{:.0} % busy{bottleneck}", self.receiver_busy * 100.0));

        table.section("servers, while measured");
        table.processes(&self.servers);
        if let (Some(each_us), Some(a_second)) =
            (self.gateway_cpu_us_per_delivery, self.deliveries_per_gateway_cpu_second)
        {
            table.row(
                "gateway CPU",
                format!("{each_us:.2} µs a delivery, {a_second:.0} deliveries a CPU-second"),
            );
        }
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        failures.extend(self.checks.failure());
        if self.undelivered > 0 {
            failures.push(format!("{} acknowledged updates never came", self.undelivered));
        }
        if !self.ended.is_empty() {
            failures.push(format!("sockets ended: {:?}", self.ended));
        }
        if let Some(published) = self.published.as_ref().filter(|published| !published.failed.is_empty()) {
            failures.push(format!("overrides failed: {:?}", published.failed));
        }
        if self.measured == 0 {
            failures.push("nothing was received in the measured time".into());
        }
        failures
    }
}
