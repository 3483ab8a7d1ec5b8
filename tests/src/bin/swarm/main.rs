//! `swarm`: puts bounded load on a running KMarket and checks every update that comes back.
//!
//! It speaks the contract (docs/protocol.md) and knows nothing else about the services, except that the benches
//! start them, through the harness of the tests, and append to Redis as the publisher does.
//! One thread owns all the sockets through epoll; publishing happens on threads of its own:
//!
//! ```text
//! publish (open loop) ──HTTP──▶ publisher ─▶ … ─▶ gateway ──WebSocket──▶ hive (one epoll thread) ─▶ tally
//!      └── intended send time inside the payload ─────────────────────────────────▶ latency, from intention
//! ```
//!
//! Exit code: 0 all checks hold, 1 a check failed, 2 the run could not be done.

mod append;
mod baseline;
mod bed;
mod clock;
mod connection;
mod deliver;
mod fan_out;
mod frame;
mod handshakes;
mod hive;
mod http;
mod idle;
mod markets;
mod memory;
mod message;
mod naive;
mod options;
mod overrides;
mod process;
mod publish;
mod publisher;
mod report;
mod sequence;
mod session;
mod spread;
mod stalled;
mod storm;
mod subject;
mod tail;
mod tally;
mod tokens;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::report::Report;

/// Puts bounded load on a running KMarket and checks every update that comes back.
///
/// Every run ends by itself. Exit code 0: all checks hold; 1: a check failed; 2: the run could not be done.
#[derive(Parser)]
#[command(name = "swarm", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print one JSON object on stdout instead of a table (times in microseconds)
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Publish on a schedule, receive on many sockets, check every update, measure the way between
    Deliver(deliver::Options),
    /// Overrides accepted a second, one by one or in batches
    Overrides(overrides::Options),
    /// Connect many sockets and hold them: what they cost, and whether heartbeats are answered
    Idle(idle::Options),
    /// What it costs Redis to be followed by gateways; starts all it needs
    Tail(tail::Options),
    /// Many clients that come back at once and resume; starts all it needs
    Storm(storm::Options),
    /// Updates of one market to many sockets, against a bare send(2) loop; starts all it needs
    FanOut(fan_out::Options),
    /// Updates of many markets to sockets on some of them each, with and without FLUSH_INTERVAL; starts all it needs
    Spread(spread::Options),
    /// What sockets that wait cost in memory and CPU; starts all it needs
    Memory(memory::Options),
    /// Handshakes with token and subscribe for a second of CPU; starts all it needs
    Handshakes(handshakes::Options),
    /// Sockets that are never read beside healthy ones; starts all it needs
    Stalled(stalled::Options),
    /// Overrides a second against the bare append script; starts all it needs
    Publisher(publisher::Options),
    /// What the benches compare a gateway with
    #[command(hide = true)]
    Baseline(baseline::Options),
}

const EXAMPLES: &str = "\
Start the system so that its own rate limits do not measure themselves, then load it:
  HANDSHAKE_RATE_LIMIT=0 TOKEN_RATE_LIMIT=0 cargo run --release
  export ADMIN_TOKEN=<the admin token it prints>
  cargo run --release -p tests --bin swarm -- deliver --connections 1000 --rate 100
Those that start all they need are benches: they end with what has to hold.
`swarm <command> --help` has an example for each command.";

fn main() -> ExitCode {
    let Cli { command, json } = Cli::parse();
    let outcome = match command {
        Command::Deliver(options) => deliver::run(&options).map(|report| show(&report, json)),
        Command::Overrides(options) => overrides::run(&options).map(|report| show(&report, json)),
        Command::Idle(options) => idle::run(&options).map(|report| show(&report, json)),
        Command::Tail(options) => tail::run(&options).map(|report| show(&report, json)),
        Command::Storm(options) => storm::run(&options).map(|report| show(&report, json)),
        Command::FanOut(options) => fan_out::run(&options).map(|report| show(&report, json)),
        Command::Spread(options) => spread::run(&options).map(|report| show(&report, json)),
        Command::Memory(options) => memory::run(&options).map(|report| show(&report, json)),
        Command::Handshakes(options) => handshakes::run(&options).map(|report| show(&report, json)),
        Command::Stalled(options) => stalled::run(&options).map(|report| show(&report, json)),
        Command::Publisher(options) => publisher::run(&options).map(|report| show(&report, json)),
        Command::Baseline(options) => baseline::run(&options).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("swarm: {error:#}");
        ExitCode::from(2)
    })
}

fn show(report: &impl Report, json: bool) -> ExitCode {
    let failures = report.failures();
    println!("{}", if json { report::json(report, &failures) } else { report::text(report, &failures) });
    ExitCode::from(u8::from(!failures.is_empty()))
}
