//! `swarm baseline`: the servers that a gateway is compared with. Each speaks just enough of the protocol for the clients
//! of this tool: it accepts every client, acknowledges one subscribe, and on a schedule sends updates to subscribers.
//!
//! ```text
//! bench ── POST /run {schedule} ──▶ baseline ──WebSocket──▶ clients
//!       ◀── the latest seq of each market, at the end of the schedule
//! ```

mod naive;
mod protocol;
mod send_loop;

use std::{collections::HashMap, env, net::SocketAddr, process::Command, time::Duration};

use ::tests::process::Process;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use hyper::Method;
use rustix::process::{Signal, set_parent_process_death_signal};

use self::protocol::{LISTENING, RUN, Run};
use crate::client::{Endpoint, Http, TIMEOUT, runtime};
use crate::{clock::now_us, load::Schedule, markets::Markets};

#[derive(Args)]
pub(crate) struct Options {
    /// Which baseline
    #[arg(long, value_enum)]
    kind: Kind,
}

/// What a gateway is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// One thread that calls send(2) for every socket and update, and does nothing else: the lowest cost of a delivery
    /// with a write of its own
    Send,
    /// The usual design: axum, a task per socket that tungstenite writes to, and a `tokio::sync::broadcast` between
    Naive,
}

/// Serves until it is killed, or its parent ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match options.kind {
        Kind::Send => send_loop::serve(),
        Kind::Naive => naive::serve(),
    }
}

/// A baseline that runs as a child.
pub(crate) struct Baseline {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Baseline {
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let kind = kind.to_possible_value().context("every kind has a name")?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["baseline", "--kind", kind.get_name()]);
        let process = Process::spawn("baseline", &mut command);
        let address = process.expect_line("its address", |line| line.strip_prefix(LISTENING)?.parse().ok());
        Ok(Self { process, address })
    }

    /// Has it follow a schedule until `until_us` at most. Returns the latest seq of each market after that.
    pub(crate) fn follow(&self, schedule: Schedule, until_us: u64, markets: Markets) -> Result<Vec<u64>> {
        let patience = Duration::from_micros(until_us.saturating_sub(now_us())) + TIMEOUT;
        let run = serde_json::to_string(&Run { schedule, until_us })?;
        let mut http = Http::new(&Endpoint::from(self.address), None);
        let response = runtime()?.block_on(http.send(Method::POST, RUN, run, patience))?;
        ensure!(response.status == 200, "the baseline responded with {}", response.status);
        let latest: HashMap<u64, u64> = serde_json::from_slice(&response.body)?;
        let ids = (0..markets.count).map(|index| markets.id(index));
        Ok(ids.map(|id| latest.get(&id).copied().unwrap_or_default()).collect())
    }
}
