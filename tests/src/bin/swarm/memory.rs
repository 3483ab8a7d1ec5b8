//! `swarm memory`: what sockets cost that only wait, and what is left of them.

use std::thread;
use std::time::Duration;

use ::tests::tokens::JWT_SECRET;
use ::tests::{Launch, Redis, Service};
use anyhow::{Result, ensure};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::append::Appender;
use crate::bed::{Cores, FIRST_MARKET, Kernel, TOKEN_LIFE_S, await_connections, cpu_ns, prepare};
use crate::clock::{as_us, now_us};
use crate::hive::{Hive, Plan};
use crate::http::Endpoint;
use crate::markets::Markets;
use crate::options::{counted, duration};
use crate::process::{self, rss_bytes};
use crate::report::{Bound, Report, Table, bytes, ratio};
use crate::tally::Tally;
use crate::tokens::sign;

/// Flags of `swarm memory`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Sockets at first
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = counted(1, 18_000))]
    some: usize,

    /// Sockets in the end
    #[arg(long, short = 'n', value_name = "N", default_value_t = 15_000, value_parser = counted(2, 18_000))]
    connections: usize,

    /// Markets
    #[arg(long, value_name = "M", default_value_t = 200, value_parser = counted(1, 10_000))]
    markets: usize,

    /// Markets of each socket
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = counted(1, 200))]
    per_connection: usize,

    /// How long to hold all of them; a multiple of 15s has as many heartbeats as any other
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    hold: Duration,
}

const EXAMPLES: &str = "\
Starts a redis-server and, on a core of its own, a gateway with WORKERS=1. 100 sockets come and go first: what the
gateway has then is what it starts with. A socket's share is the slope between the two numbers of sockets, who come 64 at
a time. When they have gone, as many come at once, and go. Every figure but that storm's is taken after 10 s of rest.
Kernel memory is that of the whole machine, both ends of every socket.

Examples:
  swarm memory
  swarm memory --some 1000 --connections 5000 --hold 15s";

/// What `swarm memory` found.
#[derive(Serialize)]
pub(crate) struct Remembered {
    some: usize,
    connections: usize,
    per_connection: usize,
    start: Held,
    with_some: Held,
    with_all: Held,
    in_storm: Held,
    after: Held,
    rss_bytes_per_socket: f64,
    cpu_us_per_socket_second: f64,
    lost: usize,
    bounds: Vec<Bound>,
}

/// Memory at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
struct Held {
    rss_bytes: u64,
    #[serde(flatten)]
    kernel: Kernel,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Remembered> {
    let Options { some, connections, markets, per_connection, hold } = *options;
    ensure!(some < connections, "--some is less than --connections");
    ensure!(per_connection <= markets, "--per-connection is at most --markets");
    prepare();
    process::allow_open_files(connections + 128)?;
    let cores = Cores::divide()?;
    let redis = Redis::start();
    let markets = Markets { first: FIRST_MARKET, count: markets, per_connection };
    Appender::new(&redis, markets)?;
    let gateway = cores.measured(|| Launch::gateway(&redis).env("WORKERS", "1").start())?;

    let mut crowd = Crowd { gateway: &gateway, markets, next_user: 1 };
    drop(crowd.come(WARM)?);
    let start = crowd.settled(0)?;
    let first = crowd.come(some)?;
    let with_some = crowd.settled(some)?;
    let second = crowd.come(connections - some)?;
    let with_all = crowd.settled(connections)?;

    let mut hives = [first, second];
    let (from_us, before_ns) = (now_us(), cpu_ns(gateway.process.id())?);
    receive(&mut hives, from_us + as_us(hold))?;
    let (held_us, cpu_ns) = (now_us() - from_us, cpu_ns(gateway.process.id())? - before_ns);
    let lost = connections - hives.iter().map(Hive::open_clients).sum::<usize>();
    drop(hives);
    await_connections(&gateway, 0)?;
    let storm = crowd.come_at_once(connections)?;
    let in_storm = Held::of(&gateway)?;
    drop(storm);
    let after = crowd.settled(0)?;

    let each = |total: u64, sockets: usize| ratio(total, sockets as u64).unwrap_or_default();
    let grown = with_all.rss_bytes.saturating_sub(with_some.rss_bytes);
    let rss_bytes_per_socket = each(grown, connections - some);
    let cpu_us_per_socket_second =
        each(cpu_ns / 1000, connections) / Duration::from_micros(held_us).as_secs_f64();
    let bounds = vec![
        Bound::new("RSS a socket, bytes".to_owned(), rss_bytes_per_socket, RSS_BYTES),
        Bound::new(
            format!("RSS after {connections} came at once and went, × at the start"),
            ratio(after.rss_bytes, start.rss_bytes).unwrap_or(f64::NAN),
            LEFT,
        ),
        Bound::new("CPU a socket and second, µs".to_owned(), cpu_us_per_socket_second, CPU_US),
    ];
    Ok(Remembered {
        some,
        connections,
        per_connection,
        start,
        with_some,
        with_all,
        in_storm,
        after,
        rss_bytes_per_socket,
        cpu_us_per_socket_second,
        lost,
        bounds,
    })
}

/// Sockets that come and go before anything is measured.
const WARM: usize = 100;

/// 1.5 KB.
const RSS_BYTES: f64 = 1500.0;
const LEFT: f64 = 1.2;
const CPU_US: f64 = 1.0;

/// Time for what a gateway does behind the last answer, and to give memory back.
const SETTLE: Duration = Duration::from_secs(10);

/// Clients of one gateway, who come in several groups.
struct Crowd<'a> {
    gateway: &'a Service,
    markets: Markets,
    next_user: u64,
}

impl Crowd<'_> {
    fn come(&mut self, connections: usize) -> Result<Hive> {
        self.open(connections, Plan::in_turn)
    }

    fn come_at_once(&mut self, connections: usize) -> Result<Hive> {
        self.open(connections, |plan| plan)
    }

    fn open(&mut self, connections: usize, order: fn(Plan) -> Plan) -> Result<Hive> {
        let tokens = sign(JWT_SECRET, self.next_user, connections, TOKEN_LIFE_S)?;
        self.next_user += connections as u64;
        let plan = Plan::all_at_once(vec![Endpoint::from(self.gateway.api)], tokens, connections);
        let mut hive = Hive::new(order(plan), Tally::new(self.markets, connections))?;
        let live = hive.ramp(&ProgressBar::hidden())?.live;
        ensure!(live == connections, "only {live} of {connections} sockets could subscribe");
        Ok(hive)
    }

    /// What is held when the gateway has this many connections and some time to come to rest.
    fn settled(&self, connections: usize) -> Result<Held> {
        await_connections(self.gateway, connections as u64)?;
        thread::sleep(SETTLE);
        Held::of(self.gateway)
    }
}

impl Held {
    fn of(gateway: &Service) -> Result<Self> {
        Ok(Self { rss_bytes: rss_bytes(gateway.process.id())?, kernel: Kernel::read()? })
    }
}

/// Lets all of them receive, and answer heartbeats.
fn receive(hives: &mut [Hive], until_us: u64) -> Result<()> {
    thread::scope(|scope| {
        let receiving = hives.iter_mut().map(|hive| scope.spawn(|| hive.receive(|_| now_us() < until_us)));
        let receiving: Vec<_> = receiving.collect();
        receiving.into_iter().try_for_each(|thread| thread.join().expect("a receiving thread does not panic"))
    })
}

impl Report for Remembered {
    fn table(&self, table: &mut Table) {
        table.section(&format!("memory: sockets that wait, on {} markets each", self.per_connection));
        for (name, sockets, held) in [
            ("at the start", 0, &self.start),
            ("with some", self.some, &self.with_some),
            ("with all", self.connections, &self.with_all),
            ("all at once", self.connections, &self.in_storm),
            ("after", 0, &self.after),
        ] {
            let Kernel { tcp_bytes, slab_bytes } = held.kernel;
            let (rss, tcp, slab) = (bytes(held.rss_bytes), bytes(tcp_bytes), bytes(slab_bytes));
            table.row(
                name,
                format!("{sockets:6} sockets  RSS {rss:10}  kernel: TCP buffers {tcp:10} slabs {slab}"),
            );
        }
        let sockets = (self.connections - self.some) as u64;
        let slope = |of: fn(&Held) -> u64| {
            ratio(of(&self.with_all).saturating_sub(of(&self.with_some)), sockets).unwrap_or_default()
        };
        table.row(
            "a socket",
            format!(
                "RSS {:.0} B; kernel, both ends: TCP buffers {:.0} B, slabs {:.0} B; CPU {:.2} µs a second",
                self.rss_bytes_per_socket,
                slope(|held| held.kernel.tcp_bytes),
                slope(|held| held.kernel.slab_bytes),
                self.cpu_us_per_socket_second
            ),
        );
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        let mut failures: Vec<String> = self.bounds.iter().filter_map(Bound::failure).collect();
        if self.lost > 0 {
            failures.push(format!("{} sockets ended", self.lost));
        }
        failures
    }
}
