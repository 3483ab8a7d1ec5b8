//! `swarm overrides`: how many overrides a second the publisher accepts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::bed::FIRST_MARKET;
use crate::clock::{as_us, now_us};
use crate::http::{Endpoint, Http, runtime};
use crate::markets::Markets;
use crate::options::{Publisher, Watched, counted, duration};
use crate::process::{self, Used};
use crate::publish::Desk;
use crate::report::{Percentiles, Report, Table, per_second, ratio, time};
use crate::tally::Times;

/// Flags of `swarm overrides`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    #[command(flatten)]
    publisher: Publisher,
    #[command(flatten)]
    watched: Watched,

    /// Where the admin API is when --publisher is not given
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    gateway: Endpoint,

    /// Keep-alive connections, each with one request at a time
    #[arg(long, short = 'n', value_name = "N", default_value_t = 64, value_parser = counted(1, 4096))]
    connections: usize,

    /// Overrides in a request; 1 = POST /admin/odds/override, more = POST /admin/odds/batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = counted(1, 1000))]
    batch: usize,

    /// Markets to use in turn, numbered from --first-market
    #[arg(long, value_name = "M", default_value_t = 1000, value_parser = counted(1, 1_000_000))]
    markets: usize,

    /// Lowest market id; keep away from markets people bet on
    #[arg(long, value_name = "ID", default_value_t = FIRST_MARKET)]
    first_market: u64,

    /// Size of a payload, at least
    #[arg(long, value_name = "BYTES", default_value_t = PAYLOAD_BYTES, value_parser = counted(0, 16_000))]
    payload_bytes: usize,

    /// How long to send
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
}

const EXAMPLES: &str = "\
A closed loop: each connection sends its next request when it has the answer to the last.

Examples:
  swarm overrides --admin-token $ADMIN_TOKEN
  swarm overrides --publisher http://127.0.0.1:8081 --batch 100 --connections 8 --duration 30s";

/// What `swarm overrides` found.
#[derive(Serialize)]
pub(crate) struct Overridden {
    connections: usize,
    batch: usize,
    took_us: u64,
    requests: u64,
    accepted: u64,
    overrides_per_second: f64,
    answer_us: Percentiles,
    failed: BTreeMap<String, u64>,
    same_seq_twice: u64,
    servers: Vec<Used>,
    cpu_us_per_override: Option<f64>,
}

/// A publisher that a bench has started.
pub(crate) struct Target {
    /// Its admin API.
    pub(crate) endpoint: Endpoint,
    /// A token with role trader.
    pub(crate) admin_token: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Markets to use in turn.
    pub(crate) markets: usize,
}

impl Options {
    /// As the flags are by default, but for these.
    pub(crate) fn at(target: Target, connections: usize, batch: usize, duration: Duration) -> Self {
        Self {
            publisher: Publisher {
                publisher: Some(target.endpoint.clone()),
                admin_token: Some(target.admin_token),
            },
            watched: Watched { gateway_pid: Vec::new(), publisher_pid: Some(target.pid) },
            gateway: target.endpoint,
            connections,
            batch,
            markets: target.markets,
            first_market: FIRST_MARKET,
            payload_bytes: PAYLOAD_BYTES,
            duration,
        }
    }
}

impl Overridden {
    /// Overrides accepted a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.overrides_per_second
    }
}

const PAYLOAD_BYTES: usize = 62;

/// Runs it.
///
/// # Errors
/// With what to do, when the run cannot be done. What the run finds wrong is in the report.
pub(crate) fn run(options: &Options) -> Result<Overridden> {
    process::allow_open_files(options.connections + 64)?;
    let markets = Markets { first: options.first_market, count: options.markets, per_connection: 0 };
    let desk = Desk::new(&options.publisher, &options.gateway, markets);
    desk.try_one()?;
    let watch = options.watched.find(&[], Some(&desk.endpoint))?;
    let load = Load {
        desk,
        batch: options.batch,
        payload_bytes: options.payload_bytes,
        totals: RefCell::new(Totals { seqs: vec![Seqs::default(); options.markets], ..Totals::default() }),
    };
    let load = Rc::new(load);
    let before = watch.read();
    let took_us = runtime()?.block_on(send(&load, options.connections, as_us(options.duration)))?;
    let servers = watch.used(&before, &watch.read());
    let cpu_us = servers.iter().map(|used| used.cpu_us).sum();
    let totals = load.totals.take();
    Ok(Overridden {
        connections: options.connections,
        batch: options.batch,
        took_us,
        requests: totals.answers.histogram().len(),
        accepted: totals.accepted,
        overrides_per_second: per_second(totals.accepted, took_us),
        answer_us: (&totals.answers).into(),
        failed: totals.failed,
        same_seq_twice: totals.seqs.iter().map(Seqs::too_many).sum(),
        cpu_us_per_override: ratio(cpu_us, totals.accepted).filter(|_| cpu_us > 0),
        servers,
    })
}

struct Load {
    desk: Desk,
    batch: usize,
    payload_bytes: usize,
    totals: RefCell<Totals>,
}

#[derive(Default)]
struct Totals {
    next: usize,
    accepted: u64,
    failed: BTreeMap<String, u64>,
    answers: Times,
    seqs: Vec<Seqs>,
}

/// The range of a market's acknowledged seqs.
#[derive(Debug, Clone, Default)]
struct Seqs {
    count: u64,
    lowest: u64,
    highest: u64,
}

impl Seqs {
    fn add(&mut self, seq: u64) {
        self.lowest = if self.count == 0 { seq } else { self.lowest.min(seq) };
        self.highest = self.highest.max(seq);
        self.count += 1;
    }

    /// How many more there are than fit into their range: that many were given out twice.
    fn too_many(&self) -> u64 {
        self.count.saturating_sub(self.highest + 1 - self.lowest)
    }
}

/// Opens all connections, then sends on all of them; returns how long the sending took.
async fn send(load: &Rc<Load>, connections: usize, for_us: u64) -> Result<u64> {
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut http = load.desk.http();
        http.open().await?;
        open.push(http);
    }
    let began_us = now_us();
    let senders = LocalSet::new();
    for http in open {
        senders.spawn_local(Rc::clone(load).send_until(http, began_us + for_us));
    }
    senders.await;
    Ok(now_us() - began_us)
}

impl Load {
    async fn send_until(self: Rc<Self>, mut http: Http, end_us: u64) {
        let mut failed_in_a_row = 0;
        while now_us() < end_us && failed_in_a_row < GIVE_UP_AFTER {
            let first = self.totals.borrow().next;
            self.totals.borrow_mut().next += self.batch;
            let sent_us = now_us();
            let answer = self.desk.send(&mut http, first..first + self.batch, self.payload_bytes).await;
            let mut totals = self.totals.borrow_mut();
            match answer {
                Ok(items) => {
                    failed_in_a_row = 0;
                    totals.answers.record(now_us() - sent_us);
                    for (index, item) in (first..).zip(items) {
                        totals.note(index % self.desk.markets.count, item);
                    }
                }
                Err(why) => {
                    failed_in_a_row += 1;
                    totals.note(0, Err(why));
                }
            }
        }
    }
}

/// A connection that fails this often in a row stops, so that a dead server is not hammered.
const GIVE_UP_AFTER: u32 = 20;

impl Totals {
    fn note(&mut self, market: usize, item: Result<u64, String>) {
        match item {
            Ok(seq) => {
                self.accepted += 1;
                self.seqs[market].add(seq);
            }
            Err(why) => *self.failed.entry(why).or_default() += 1,
        }
    }
}

impl Report for Overridden {
    fn table(&self, table: &mut Table) {
        table.section(&format!("overrides: {} connections, {} in a request", self.connections, self.batch));
        table.row("accepted", format!("{} in {}", self.accepted, time(self.took_us)));
        table.row("overrides/s", format!("{:.0}", self.overrides_per_second));
        table.times("answer", &self.answer_us);
        table.row_if(!self.failed.is_empty(), "failed", format!("{:?}", self.failed));
        table.section("servers");
        table.processes(&self.servers);
        if let Some(each_us) = self.cpu_us_per_override {
            table.row("CPU", format!("{each_us:.1} µs an override"));
        }
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.failed.is_empty() {
            failures.push(format!("not accepted: {:?}", self.failed));
        }
        if self.same_seq_twice > 0 {
            failures.push(format!(
                "{} overrides were acknowledged with a seq another one has",
                self.same_seq_twice
            ));
        }
        if self.accepted == 0 {
            failures.push("nothing was accepted".into());
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seq_given_out_twice_shows() {
        let mut seqs = Seqs::default();
        assert_eq!(seqs.too_many(), 0);
        for seq in [7, 5, 6] {
            seqs.add(seq);
        }
        assert_eq!(seqs.too_many(), 0);
        seqs.add(6);
        assert_eq!(seqs.too_many(), 1);
    }
}
