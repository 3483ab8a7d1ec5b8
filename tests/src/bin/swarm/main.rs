//! `swarm`: puts bounded load on a running KMarket and checks every update that comes back.
//!
//! It speaks the protocol (docs/protocol.md) and knows nothing else about the services, except that the benches start
//! them, through the harness of the tests, and append to Redis as the publisher does. One thread owns all the clients'
//! connections through epoll; publishing happens on threads of its own:
//!
//! ```text
//! load (open loop) ──HTTP──▶ publisher ─▶ … ─▶ gateway ──WebSocket──▶ client (one epoll thread) ─▶ report
//!      └── due time inside the payload ──────────────────────────────────▶ latency, from when it was due
//! ```
//!
//! Modules import from those to their right only: `bench`, `load`, `options`, `client`, `report`, `markets`, `clock`.
//! Exit code: 0 all checks hold, 1 a check failed, 2 the run could not be done.

mod bench;
mod client;
mod clock;
mod load;
mod markets;
mod options;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bench::{baseline, fan_out, handshakes, memory, publisher, spread, stalled, storm, tail};
use crate::load::deliver;

/// Puts bounded load on a running KMarket and checks every update that comes back.
///
/// Every run ends by itself. Exit code 0: all checks hold; 1: a check failed; 2: the run could not be done.
#[derive(Parser)]
#[command(name = "swarm", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print one JSON object on stdout instead of a table (times in microseconds, sizes in bytes)
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Publish on a schedule, receive on many connections, check every update, measure the way between
    Deliver(deliver::Options),
    /// Overrides per second against the bare append script; also of a running publisher
    Publisher(publisher::Options),
    /// Memory and CPU of waiting connections, and whether they stay alive; also of a running gateway
    Memory(memory::Options),
    /// Updates of one market to many connections, against a bare send(2) loop
    FanOut(fan_out::Options),
    /// Updates of many markets to connections on some of them each, with and without FLUSH_INTERVAL
    Spread(spread::Options),
    /// Connections that are never read beside healthy ones
    Stalled(stalled::Options),
    /// Handshakes with token and subscribe per second of CPU
    Handshakes(handshakes::Options),
    /// The cost to Redis of gateways that follow it
    Tail(tail::Options),
    /// Many clients that come back at once and resume
    Storm(storm::Options),
    /// What the benches compare a gateway with
    #[command(hide = true)]
    Baseline(baseline::Options),
}

const EXAMPLES: &str = "\
All but `deliver` are benches: they start all they need and end with what has to hold. `deliver`, and some benches with an
option, load a running system. Start it so that its own rate limits do not measure themselves:
  HANDSHAKE_RATE_LIMIT=0 TOKEN_RATE_LIMIT=0 cargo run --release
  export ADMIN_TOKEN=<the admin token it prints>
  cargo run --release -p tests --bin swarm -- deliver --connections 1000 --rate 100
`swarm <command> --help` has an example for each command.";

fn main() -> ExitCode {
    let Cli { command, json } = Cli::parse();
    let report = match command {
        Command::Deliver(options) => deliver::run(&options),
        Command::Publisher(options) => publisher::run(&options),
        Command::Memory(options) => memory::run(&options),
        Command::FanOut(options) => fan_out::run(&options),
        Command::Spread(options) => spread::run(&options),
        Command::Stalled(options) => stalled::run(&options),
        Command::Handshakes(options) => handshakes::run(&options),
        Command::Tail(options) => tail::run(&options),
        Command::Storm(options) => storm::run(&options),
        Command::Baseline(options) => baseline::run(&options).map(|()| report::Report::default()),
    };
    match report {
        Ok(report) => {
            println!("{}", if json { report.json() } else { report.to_string() });
            ExitCode::from(u8::from(!report.failures().is_empty()))
        }
        Err(error) => {
            eprintln!("swarm: {error:#}");
            ExitCode::from(2)
        }
    }
}
