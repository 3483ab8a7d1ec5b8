//! `swarm spread`: many markets with each connection on some of them, and the gain of collecting updates before a write.

use ::tests::Launch;
use anyhow::{Result, ensure};
use clap::Args;

use super::baseline::Kind;
use super::environment::{Cores, metric, prepare};
use super::service::{Measured, Measuring, Rounds, ServiceUnderTest};
use crate::options::{Subscriptions, rate};
use crate::report::{Bound, Report, allow_open_files, median, ratio};

#[derive(Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("markets", |arg| arg.default_value("200")),
    mut_arg("per_connection", |arg| arg.default_value("50"))
)]
pub(crate) struct Options {
    #[command(flatten)]
    subscriptions: Subscriptions,

    /// Updates per second, over all markets at random
    #[arg(long, value_name = "RATE", default_value_t = 1000.0, value_parser = rate)]
    rate: f64,

    #[command(flatten)]
    measuring: Measuring,
}

const EXAMPLES: &str = "\
Two gateways (WORKERS=1), one with FLUSH_INTERVAL=5ms, and a bare send(2) loop as the baseline have a core of their own.
1000 connections on 50 of 200 markets each are 250 deliveries per update.

Examples:
  swarm spread
  swarm spread --connections 2000 --rate 500";

pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { subscriptions, rate, measuring } = *options;
    let (connections, markets) = (subscriptions.connections, subscriptions.markets()?);
    prepare();
    allow_open_files(3 * connections + 128)?;
    let cores = Cores::divide()?;
    let gateway = |flush: &str| {
        let launch = |launch: Launch| launch.env("WORKERS", "1").env("FLUSH_INTERVAL", flush);
        let start = |bare| cores.measured(|| launch(bare).start());
        ServiceUnderTest::gateway(markets, connections, start)
    };
    let baseline = ServiceUnderTest::baseline(Kind::Send, markets, connections, &cores)?;
    let mut services = [baseline, gateway("0ms")?, gateway("5ms")?];
    let names = ["send(2) loop", "FLUSH_INTERVAL=0ms", "FLUSH_INTERVAL=5ms"];
    // Each with its system calls that wrote per delivery, as the gateway counts them, warm-up included.
    let mut cases = names.map(|name| (Rounds::of(name), Vec::new()));
    for _ in 0..measuring.rounds {
        for (service, (rounds, writes)) in services.iter_mut().zip(&mut cases) {
            let before = written(service)?;
            rounds.all.push(service.measure(rate, measuring.duration, measuring.payload_bytes())?);
            let [written, sent] = written(service)?;
            let is_baseline = service.service().is_none();
            ensure!(is_baseline || sent > before[1], "nothing was sent");
            // The baseline writes once per delivery.
            writes.push(if is_baseline { 1.0 } else { ratio(written - before[0], sent - before[1]) });
        }
    }

    let mut report = Report::titled(format!(
        "spread: {connections} connections on {markets}, {rate} updates per second; medians of {}",
        measuring.rounds
    ));
    let writes_per_delivery = |writes: &[f64]| median(writes.iter().copied());
    for (rounds, writes) in &cases {
        rounds.report(&mut report, "");
        let times = median(rounds.times(&cases[0].0, Measured::per_cpu_second).into_iter());
        let writes = writes_per_delivery(writes);
        let ratios = [("per CPU-second", times.into()), ("writes per delivery", writes.into())];
        report.row("  ÷ send(2) loop", ratios);
    }
    let (flushed, writes) = &cases[2];
    let [what_writes, what_p99] =
        ["writes per delivery", "p99 in ms"].map(|what| format!("{}, {what}", names[2]));
    report.bounds([
        Bound::at_most(what_writes, writes_per_delivery(writes), WRITES),
        Bound::at_most(what_p99, flushed.median(Measured::p99_us) / 1000.0, P99_MS),
    ]);
    Ok(report)
}

const WRITES: f64 = 0.5;
const P99_MS: f64 = 15.0;

/// The writes and the messages that a gateway has counted so far.
fn written(service: &ServiceUnderTest) -> Result<[u64; 2]> {
    let Some(service) = service.service() else { return Ok([0; 2]) };
    Ok([metric(service, "gateway_socket_writes_total")?, metric(service, "gateway_messages_sent_total")?])
}
