//! `swarm memory`: the memory and CPU of waiting connections, whether they stay alive, and the memory after they have gone.

use std::{thread, time::Duration};

use ::tests::{Redis, Service};
use anyhow::{Result, ensure};
use clap::Args;

use super::environment::{Cores, await_connections, gateway_on_core, prepare};
use crate::client::{ClientPool, Endpoint, Plan, connections};
use crate::clock::{as_us, now_us};
use crate::load::{Appender, tokens};
use crate::markets::Markets;
use crate::options::{Sockets, Watched, counted, duration};
use crate::report::{
    Bound, Counts, Figure, Kernel, Labelled, Report, Usage, Used, allow_open_files, as_f64, progress, ratio,
    time,
};

#[derive(Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("gateway", |arg| arg.default_value(None::<&str>).help("A running gateway to load, instead of one that this starts; repeatable")),
    mut_arg("connections", |arg| arg.default_value("15000").help("Connections in the end")),
    mut_arg("markets", |arg| arg.default_value("200")),
    mut_arg("per_connection", |arg| arg.default_value("5")),
    mut_arg("in_flight", |arg| arg.default_value("64"))
)]
pub(crate) struct Options {
    #[command(flatten)]
    sockets: Sockets,
    #[command(flatten)]
    watched: Watched,

    /// Connections at first; default: a third
    #[arg(long, value_name = "N", value_parser = counted(1, 100_000))]
    some: Option<usize>,

    /// How long to hold all of them. A multiple of 15s has as many heartbeats as any other; more than 60s shows that
    /// pongs keep connections alive
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    hold: Duration,
}

const EXAMPLES: &str = "\
The gateway (WORKERS=1) has a core of its own. 100 connections come and go before the start. A connection's share is the slope
between the two numbers of connections. When they have gone, as many come at once, and go. Memory is read after 10 s of rest,
except in that storm. Kernel memory is that of the whole machine, both ends of every connection. With --gateway no bound has
to hold. Use a freshly started gateway, since memory that it has used before is used again.

Examples:
  swarm memory
  swarm memory --some 1000 --connections 5000 --hold 15s
  swarm memory --gateway http://127.0.0.1:8080 --connections 5000 --hold 75s";

pub(crate) fn run(options: &Options) -> Result<Report> {
    let Options { sockets, watched, hold, .. } = options;
    let (all, some) = (sockets.connections(), options.some.unwrap_or(sockets.connections() / 3));
    ensure!(some < all, "--some is less than --connections");
    let markets = sockets.markets()?;
    allow_open_files(all + 128)?;
    let (target, tokens) = if sockets.gateway.is_empty() {
        (Target::start(markets)?, tokens::of_users(1..all.div_ceil(sockets.per_user) + 1))
    } else {
        let tokens = tokens::for_run(sockets, &sockets.gateway, *hold + 5 * REST)?;
        (Target::running(&sockets.gateway, watched)?, tokens)
    };
    let open = || sockets.plan(target.gateways.clone(), tokens.clone());

    let warm = Plan { tokens: tokens.iter().take(WARM).cloned().collect(), per_user: 1, ..open() };
    drop(ClientPool::connect(warm, markets)?);
    let start = target.at_rest(0)?;
    let mut clients = ClientPool::new(open(), all, Counts::new(markets, all))?;
    let some_us = clients.ramp_whole(some)?;
    let some_connected = target.usage()?;
    let with_some = target.at_rest(some)?;
    let before_all = target.usage()?;
    let connected_us = some_us + clients.ramp_whole(all)?;
    let all_connected = target.usage()?;
    let with_all = target.at_rest(all)?;
    let held_us = hold_all(&mut clients, as_us(*hold))?;
    let held = target.usage()?.since(&with_all.usage);
    let pongs_missing = clients.ping(PINGS_PER_SECOND)?;

    let mut report = Report::titled(format!("memory: {all} connections that wait, on {markets}"));
    let counts = clients.counts();
    counts.report_ramp(&mut report, all, connected_us);
    let connecting = [some_connected.since(&start.usage), all_connected.since(&before_all)].concat();
    report.processes(&connecting);
    report.section(format!("held for {}", time(held_us)));
    let heartbeats = [
        ("ping messages", counts.ping_messages.into()),
        ("ping frames", counts.ping_frames.into()),
        ("pongs sent", counts.pongs.into()),
    ];
    report.row("heartbeats", heartbeats);
    report.times("ping to pong", &counts.round_trip);
    report.processes(&held);
    report.counts("errors", &counts.errors);
    report.fail(counts.failures());
    let too_few = held_us >= HEARTBEATS_DUE_US && counts.ping_messages < all as u64;
    report.fail_if(too_few, format_args!("{} heartbeats for {all} connections", counts.ping_messages));
    report.fail_if(pongs_missing > 0, format_args!("{pongs_missing} pings without a pong"));

    drop(clients);
    target.await_connections(0)?;
    let storm = Plan { in_flight: all, connect_rate: 0.0, ..open() };
    let mut storm = ClientPool::new(storm, all, Counts::new(markets, all))?;
    storm.ramp_whole(all)?;
    let in_storm = target.memory(all)?;
    drop(storm);
    let after = target.at_rest(0)?;

    report.section("memory");
    for (name, memory) in [
        ("at the start", &start),
        ("with some", &with_some),
        ("with all", &with_all),
        ("all at once", &in_storm),
        ("after", &after),
    ] {
        report.row(name, memory.figures());
    }
    let slope =
        |of: fn(&Memory) -> u64| ratio(of(&with_all).saturating_sub(of(&with_some)), (all - some) as u64);
    let cpu_us = |used: &[Used]| ratio(used.iter().map(|used| used.cpu_us).sum(), all as u64);
    let (rss_bytes, waiting_us) = (slope(|memory| memory.usage.rss_bytes()), cpu_us(&held));
    let waiting_us = waiting_us / Duration::from_micros(held_us).as_secs_f64();
    let each = [
        ("RSS, bytes", rss_bytes.into()),
        ("kernel, both ends: TCP buffers", slope(|memory| memory.kernel.tcp_bytes).into()),
        ("slabs", slope(|memory| memory.kernel.slab_bytes).into()),
        ("CPU to connect and subscribe, µs", cpu_us(&connecting).into()),
        ("CPU per second, µs", waiting_us.into()),
    ];
    report.row("per connection", each);
    if target.services.is_some() {
        let left = as_f64(after.usage.rss_bytes()) / as_f64(start.usage.rss_bytes());
        let what = format!("RSS after {all} came at once and went, × at the start");
        report.bounds([
            Bound::at_most("RSS per connection, bytes", rss_bytes, RSS_BYTES),
            Bound::at_most(what, left, LEFT),
            Bound::at_most("CPU per connection and second, µs", waiting_us, CPU_US),
        ]);
    }
    Ok(report)
}

/// Connections that come and go before anything is measured.
const WARM: usize = 100;

/// 1.5 KB.
const RSS_BYTES: f64 = 1500.0;
const LEFT: f64 = 1.2;
const CPU_US: f64 = 1.0;

/// Time for what a gateway does behind the last reply, and to give memory back.
const REST: Duration = Duration::from_secs(10);

/// Slow enough to measure a reply rather than a queue.
const PINGS_PER_SECOND: f64 = 2000.0;

/// After this long, every connection must have had a heartbeat: twice their interval, and some.
const HEARTBEATS_DUE_US: u64 = 35_000_000;

struct Target {
    gateways: Vec<Endpoint>,
    processes: Vec<(&'static str, u32)>,
    /// Connections of other clients.
    others: u64,
    /// What was started for this run.
    services: Option<(Service, Redis)>,
}

struct Memory {
    connections: usize,
    usage: Usage,
    kernel: Kernel,
}

impl Target {
    /// Starts a gateway and its Redis, in which all markets have a log.
    fn start(markets: Markets) -> Result<Self> {
        prepare();
        let (cores, redis) = (Cores::divide()?, Redis::start());
        Appender::new(&redis, markets, 1, 0)?;
        let gateway = gateway_on_core(&cores, &redis)?;
        let processes = vec![("gateway", gateway.process.id())];
        let gateways = vec![Endpoint::from(gateway.api)];
        Ok(Self { gateways, processes, others: 0, services: Some((gateway, redis)) })
    }

    fn running(gateways: &[Endpoint], watched: &Watched) -> Result<Self> {
        let others = gateways.iter().map(connections).sum::<Result<_>>()?;
        let processes = watched.find(gateways, None);
        Ok(Self { gateways: gateways.to_vec(), processes, others, services: None })
    }

    fn await_connections(&self, connections: usize) -> Result<()> {
        await_connections(&self.gateways, self.others + connections as u64)
    }

    fn usage(&self) -> Result<Usage> {
        Usage::read(&self.processes)
    }

    fn memory(&self, connections: usize) -> Result<Memory> {
        Ok(Memory { connections, usage: self.usage()?, kernel: Kernel::read()? })
    }

    /// The memory when the gateways have this many connections and some time to come to rest.
    fn at_rest(&self, connections: usize) -> Result<Memory> {
        self.await_connections(connections)?;
        thread::sleep(REST);
        self.memory(connections)
    }
}

impl Memory {
    fn figures(&self) -> [Labelled; 4] {
        [
            ("connections", self.connections.into()),
            ("RSS", Figure::Bytes(self.usage.rss_bytes())),
            ("kernel: TCP buffers", Figure::Bytes(self.kernel.tcp_bytes)),
            ("slabs", Figure::Bytes(self.kernel.slab_bytes)),
        ]
    }
}

/// Lets all clients receive, and reply to heartbeats. Returns for how long.
fn hold_all(clients: &mut ClientPool, for_us: u64) -> Result<u64> {
    let (progress, began_us) = (progress(usize::try_from(for_us / 1_000_000)?, "seconds"), now_us());
    clients.receive(|clients| {
        let held_us = now_us() - began_us;
        progress.set_position(held_us / 1_000_000);
        held_us < for_us && clients.open_clients() > 0
    })?;
    progress.finish_and_clear();
    Ok(now_us() - began_us)
}
