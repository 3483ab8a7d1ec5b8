//! `swarm handshakes`: what it costs to let a client in.

use std::net::SocketAddr;

use ::tests::tokens::JWT_SECRET;
use ::tests::{Launch, Redis};
use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::ProgressBar;
use protocol::Secret;
use serde::Serialize;
use service::token::{Audience, Keyring, WsClaims};

use crate::append::Appender;
use crate::baseline::{Baseline, Kind};
use crate::bed::{Cores, FIRST_MARKET, TOKEN_LIFE_S, await_connections, cpu_ns, prepare};
use crate::clock::thread_cpu_us;
use crate::hive::{Hive, Plan};
use crate::http::Endpoint;
use crate::markets::Markets;
use crate::options::counted;
use crate::process;
use crate::report::{Bound, Percentiles, Report, Table, median, ratio};
use crate::tally::Tally;
use crate::tokens::sign;

/// Flags of `swarm handshakes`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Clients that come at once
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4000, value_parser = counted(1, 18_000))]
    connections: usize,

    /// How often they come; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = counted(1, 9))]
    rounds: usize,
}

const EXAMPLES: &str = "\
Starts a gateway with WORKERS=1 and the baseline on a core of their own, Redis and the clients on the others. All clients
come at once, each with a token of its own, and subscribe to one market that is followed already. The baseline answers
the same requests and checks nothing. What is measured is CPU of the server's process, from the first connect to the last
ack.

Examples:
  swarm handshakes
  swarm handshakes --connections 1000 --rounds 3";

/// What `swarm handshakes` found.
#[derive(Serialize)]
pub(crate) struct LetIn {
    connections: usize,
    baseline: Vec<Round>,
    gateway: Vec<Round>,
    /// To verify one token, and nothing else.
    verify_us: f64,
    bounds: Vec<Bound>,
}

#[derive(Serialize)]
struct Round {
    /// CPU for one client.
    cpu_us: f64,
    handshake: Percentiles,
    subscribe: Percentiles,
}

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<LetIn> {
    prepare();
    process::allow_open_files(options.connections + 128)?;
    let cores = Cores::divide()?;
    let redis = Redis::start();
    Appender::new(&redis, MARKETS)?;
    let gateway = cores.measured(|| Launch::gateway(&redis).env("WORKERS", "1").start())?;
    let baseline = cores.measured(|| Baseline::start(Kind::Send))??;
    // Keeps the market followed.
    let _first = come(gateway.api, &sign(JWT_SECRET, 1, 1, TOKEN_LIFE_S)?)?;
    let tokens = sign(JWT_SECRET, 2, options.connections, TOKEN_LIFE_S)?;
    let (mut bare, mut full) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        bare.push(round(baseline.process.id(), baseline.address, &tokens)?);
        full.push(round(gateway.process.id(), gateway.api, &tokens)?);
        await_connections(&gateway, 1)?;
    }
    let per_cpu_second = 1e6 / median(full.iter().map(|round| round.cpu_us));
    let bounds = vec![Bound::at_least("clients let in a CPU-second".to_owned(), per_cpu_second, LEAST)];
    let verify_us = verify(&tokens)?;
    Ok(LetIn { connections: options.connections, baseline: bare, gateway: full, verify_us, bounds })
}

const MARKETS: Markets = Markets { first: FIRST_MARKET, count: 1, per_connection: 1 };

const LEAST: f64 = 10_000.0;

fn come(address: SocketAddr, tokens: &[String]) -> Result<Hive> {
    let plan = Plan::all_at_once(vec![Endpoint::from(address)], tokens.to_vec(), tokens.len());
    let mut hive = Hive::new(plan, Tally::new(MARKETS, tokens.len()))?;
    let live = hive.ramp(&ProgressBar::hidden())?.live;
    ensure!(live == tokens.len(), "only {live} of {} sockets could subscribe", tokens.len());
    Ok(hive)
}

fn round(pid: u32, address: SocketAddr, tokens: &[String]) -> Result<Round> {
    let before_ns = cpu_ns(pid)?;
    let mut hive = come(address, tokens)?;
    let cpu_us = (cpu_ns(pid)? - before_ns) / 1000;
    let tally = hive.tally();
    Ok(Round {
        cpu_us: ratio(cpu_us, tokens.len() as u64).unwrap_or_default(),
        handshake: (&tally.handshake).into(),
        subscribe: (&tally.subscribe).into(),
    })
}

/// CPU to verify each of these, as the gateway does it.
fn verify(tokens: &[String]) -> Result<f64> {
    let keys = Keyring::parse(&Secret::new(JWT_SECRET), Audience::Ws)?;
    let began_us = thread_cpu_us();
    for token in tokens {
        keys.verify::<WsClaims>(token).context("a token that was just signed")?;
    }
    Ok(ratio(thread_cpu_us() - began_us, tokens.len() as u64).unwrap_or_default())
}

impl Report for LetIn {
    fn table(&self, table: &mut Table) {
        table.section(&format!(
            "handshakes: {} clients at once, with token and subscribe; medians of {}",
            self.connections,
            self.gateway.len()
        ));
        for (name, rounds) in [("no checks", &self.baseline), ("gateway", &self.gateway)] {
            let cpu_us = median(rounds.iter().map(|round| round.cpu_us));
            table.row(name, format!("{cpu_us:6.1} µs of CPU a client, {:6.0} a CPU-second", 1e6 / cpu_us));
            if let Some(last) = rounds.last() {
                table.times("  handshake", &last.handshake);
                table.times("  to its ack", &last.subscribe);
            }
        }
        let times =
            self.gateway.iter().zip(&self.baseline).map(|(gateway, bare)| gateway.cpu_us / bare.cpu_us);
        table.row("gateway ÷ no checks", format!("{:.2} × the CPU", median(times)));
        table.row("verifying the token", format!("{:.1} µs of it", self.verify_us));
        table.bounds(&self.bounds);
    }

    fn failures(&self) -> Vec<String> {
        self.bounds.iter().filter_map(Bound::failure).collect()
    }
}
