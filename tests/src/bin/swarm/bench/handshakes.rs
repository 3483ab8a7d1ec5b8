//! `swarm handshakes`: the cost of accepting a client.

use std::net::SocketAddr;

use ::tests::{Redis, tokens::JWT_SECRET};
use anyhow::{Context, Result};
use clap::Args;
use protocol::Secret;
use service::token::{Audience, Keyring, WsClaims};

use super::baseline::{Baseline, Kind};
use super::environment::{Cores, await_connections, gateway_on_core, prepare};
use crate::client::{ClientPool, Endpoint, Plan};
use crate::load::{Appender, tokens};
use crate::report::{Bound, Report, Times, allow_open_files, cpu_ns, median, ratio};
use crate::{clock::thread_cpu_us, markets::Markets, options::counted};

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
Gateway (WORKERS=1) and baseline have a core of their own. All clients come at once, each with its own token, and subscribe to
one market that is followed already. The baseline checks nothing. CPU is that of the server's process until the last ack.

Examples:
  swarm handshakes
  swarm handshakes --connections 1000 --rounds 3";

struct Round {
    cpu_us_per_client: f64,
    handshake: Times,
    subscribe: Times,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    prepare();
    allow_open_files(options.connections + 128)?;
    let cores = Cores::divide()?;
    let redis = Redis::start();
    Appender::new(&redis, Markets::new(1, 1), 1, 0)?;
    let gateway = gateway_on_core(&cores, &redis)?;
    let baseline = cores.measured(|| Baseline::start(Kind::Send))??;
    // It keeps the market followed.
    let _first = connect(gateway.api, tokens::of_users(1..2))?;
    let tokens = tokens::of_users(2..options.connections + 2);
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds {
        rounds[0].push(round(baseline.process.id(), baseline.address, &tokens)?);
        rounds[1].push(round(gateway.process.id(), gateway.api, &tokens)?);
        await_connections(&[Endpoint::from(gateway.api)], 1)?;
    }

    let mut report = Report::titled(format!(
        "handshakes: {} clients at once, with token and subscribe; medians of {}",
        options.connections, options.rounds
    ));
    let median_us = |rounds: &[Round]| median(rounds.iter().map(|round| round.cpu_us_per_client));
    for (name, rounds) in ["no checks", "gateway"].into_iter().zip(&rounds) {
        let cpu_us = median_us(rounds);
        report.row(name, [("CPU per client, µs", cpu_us.into()), ("per CPU-second", (1e6 / cpu_us).into())]);
        for round in rounds {
            report.detail("  each round", [("CPU per client, µs", round.cpu_us_per_client.into())]);
        }
        if let Some(last) = rounds.last() {
            report.times("  handshake", &last.handshake);
            report.times("  to its ack", &last.subscribe);
        }
    }
    let [bare, full] = &rounds;
    let times = full.iter().zip(bare).map(|(full, bare)| full.cpu_us_per_client / bare.cpu_us_per_client);
    report.row("gateway ÷ no checks", [("CPU", median(times).into())]);
    report.row("verifying the token", [("CPU, µs", verify_us(&tokens)?.into())]);
    report.bounds([Bound::at_least("clients accepted per CPU-second", 1e6 / median_us(full), LEAST)]);
    Ok(report)
}

const LEAST: f64 = 10_000.0;

fn connect(address: SocketAddr, tokens: Vec<String>) -> Result<ClientPool> {
    ClientPool::connect(Plan::all_at_once(vec![Endpoint::from(address)], tokens), Markets::new(1, 1))
}

fn round(pid: u32, address: SocketAddr, tokens: &[String]) -> Result<Round> {
    let before_ns = cpu_ns(pid)?;
    let mut clients = connect(address, tokens.to_vec())?;
    let cpu_us = (cpu_ns(pid)? - before_ns) / 1000;
    let counts = clients.counts();
    Ok(Round {
        cpu_us_per_client: ratio(cpu_us, tokens.len() as u64),
        handshake: counts.handshake.clone(),
        subscribe: counts.subscribe.clone(),
    })
}

/// CPU per token to verify these as the gateway does it.
fn verify_us(tokens: &[String]) -> Result<f64> {
    let keys = Keyring::parse(&Secret::new(JWT_SECRET), Audience::Ws)?;
    let began_us = thread_cpu_us();
    for token in tokens {
        keys.verify::<WsClaims>(token).context("a token that was just signed")?;
    }
    Ok(ratio(thread_cpu_us() - began_us, tokens.len() as u64))
}
