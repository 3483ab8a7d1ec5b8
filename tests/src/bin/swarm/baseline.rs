//! `swarm baseline`: what a gateway is compared with. It speaks just enough of the contract for the clients of this
//! tool: every socket is let in, its one subscribe is acknowledged, and on a schedule updates go to whom they are for.
//!
//! ```text
//! parent ── GET /run?start_us=…&rate=… ──▶ baseline ──WebSocket──▶ hive
//!        ◀── the last seq of each market, when the schedule has been worked off
//! ```

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;
use std::{env, thread};

use ::tests::process::Process;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use protocol::time::unix_ms;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

use crate::clock::{now_us, sleep_until};
use crate::frame::server_frame;
use crate::message::payload;
use crate::naive;
use crate::publish::Schedule;
use crate::session::ACCEPT;

/// Flags of `swarm baseline`.
#[derive(Args)]
pub(crate) struct Options {
    /// Which one
    #[arg(long, value_enum)]
    kind: Kind,
}

/// What a gateway is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// One thread that calls send(2) for every socket and update, and does nothing else: the least that a delivery of
    /// its own costs
    Send,
    /// What one would write otherwise: axum's WebSocket, a task a socket, and a `tokio::sync::broadcast` between
    Naive,
}

/// Serves until it is killed, or its parent ends.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn run(options: &Options) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match options.kind {
        Kind::Send => SendLoop::new()?.serve(),
        Kind::Naive => naive::serve(),
    }
}

/// A baseline that runs as a child.
pub(crate) struct Baseline {
    /// Its process.
    pub(crate) process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Baseline {
    /// Starts one.
    ///
    /// # Errors
    /// When this binary is gone.
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let kind = kind.to_possible_value().context("every kind has a name")?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["baseline", "--kind", kind.get_name()]);
        let process = Process::spawn("baseline", &mut command);
        let address =
            process.expect_line("where it listens", |line| line.strip_prefix(LISTENING)?.parse().ok());
        Ok(Self { process, address })
    }
}

/// Has the baseline at this address work a schedule off, and leave out what is left of it at `until_us`. Answers with the
/// last seq of each market in `ids` when that is done.
///
/// # Errors
/// When it does not answer.
pub(crate) fn work_off(
    address: SocketAddr,
    schedule: Schedule,
    until_us: u64,
    ids: impl Iterator<Item = u64>,
) -> Result<Vec<u64>> {
    let Schedule { start_us, rate, updates, payload_bytes } = schedule;
    let mut stream = TcpStream::connect(address)?;
    let patience = Duration::from_micros(until_us.saturating_sub(now_us())) + PATIENCE;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "GET {RUN}?start_us={start_us}&rate={rate}&updates={updates}&payload_bytes={payload_bytes}&until_us={until_us} \
         HTTP/1.1\r\nHost: baseline\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the baseline's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("the baseline answered {answer}");
    }
    let tops: HashMap<u64, u64> = serde_json::from_str(body)?;
    Ok(ids.map(|id| tops.get(&id).copied().unwrap_or_default()).collect())
}

/// How long an answer may take beyond the schedule.
const PATIENCE: Duration = Duration::from_secs(10);

const LISTENING: &str = "listening on ";

/// Says where, for `Baseline::start`.
pub(crate) fn announce(address: SocketAddr) {
    println!("{LISTENING}{address}");
}

/// Where a baseline is told what to do.
pub(crate) const RUN: &str = "/run";

/// What it is told.
#[derive(Debug, Deserialize, PartialEq, Clone, Copy)]
pub(crate) struct Run {
    start_us: u64,
    rate: f64,
    updates: usize,
    payload_bytes: usize,
    until_us: u64,
}

impl Run {
    /// When each update is due, in turn, and its payload. Whoever takes them sleeps in between; nothing is due any more
    /// when the time is over.
    pub(crate) fn due(self) -> impl Iterator<Item = (u64, String)> {
        let Self { start_us, rate, updates, payload_bytes, until_us } = self;
        let schedule = Schedule { start_us, rate, updates, payload_bytes };
        let due = (0..updates).map(move |update| schedule.due_us(update));
        due.take_while(move |_| now_us() < until_us)
            .map(move |due_us| (due_us, payload(due_us, payload_bytes)))
    }

    fn parse(query: &str) -> Option<Self> {
        let fields: HashMap<_, _> = query.split('&').filter_map(|field| field.split_once('=')).collect();
        Some(Self {
            start_us: fields.get("start_us")?.parse().ok()?,
            rate: fields.get("rate")?.parse().ok()?,
            updates: fields.get("updates")?.parse().ok()?,
            payload_bytes: fields.get("payload_bytes")?.parse().ok()?,
            until_us: fields.get("until_us")?.parse().ok()?,
        })
    }
}

/// An update as the contract has it.
pub(crate) fn update(market: u64, seq: u64, payload: &str) -> String {
    let ts = unix_ms();
    format!(r#"{{"type":"odds_update","marketId":{market},"seq":{seq},"ts":{ts},"payload":{payload}}}"#)
}

/// The ack of a subscribe: these markets, each where its log is.
pub(crate) fn ack(positions: &[(u64, u64)]) -> String {
    let list = |one: fn(&(u64, u64)) -> String| positions.iter().map(one).collect::<Vec<_>>().join(",");
    let subscribed = list(|(market, _)| market.to_string());
    let positions = list(|(market, seq)| format!(r#""{market}":{{"epoch":1,"seq":{seq}}}"#));
    format!(r#"{{"type":"ack","ok":true,"subscribed":[{subscribed}],"positions":{{{positions}}}}}"#)
}

/// The markets that a subscribe names; `None` when it is something else.
pub(crate) fn subscribed(text: &[u8]) -> Option<Vec<u64>> {
    #[derive(Deserialize)]
    struct Subscribe {
        markets: Vec<String>,
    }

    let subscribe: Subscribe = serde_json::from_slice(text).ok()?;
    subscribe.markets.iter().map(|market| market.parse().ok()).collect()
}

/// The bare loop.
struct SendLoop {
    poll: Poll,
    listener: TcpListener,
    clients: Slab<Client>,
    markets: HashMap<u64, Market>,
    /// The markets in the order of their ids, for taking one at random.
    ids: Vec<u64>,
}

struct Client {
    stream: mio::net::TcpStream,
    received: Vec<u8>,
    upgraded: bool,
}

#[derive(Default)]
struct Market {
    seq: u64,
    subscribers: Vec<usize>,
}

/// What a client that is still being attended to wants.
#[derive(Debug, PartialEq)]
enum Wants {
    Upgrade,
    Subscribe(Vec<u64>),
    Run(Run),
}

/// Linux allows no more by default.
const BACKLOG: i32 = 4096;

const LISTENER: Token = Token(usize::MAX);

impl SendLoop {
    fn new() -> Result<Self> {
        let poll = Poll::new()?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(socket.into());
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        announce(listener.local_addr()?);
        Ok(Self { poll, listener, clients: Slab::new(), markets: HashMap::new(), ids: Vec::new() })
    }

    fn serve(mut self) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(id) => self.attend(id)?,
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            stream.set_nodelay(true)?;
            let entry = self.clients.vacant_entry();
            self.poll.registry().register(&mut stream, Token(entry.key()), Interest::READABLE)?;
            entry.insert(Client { stream, received: Vec::new(), upgraded: false });
        }
    }

    fn attend(&mut self, id: usize) -> Result<()> {
        let Some(client) = self.clients.get_mut(id) else { return Ok(()) };
        let open = client.read();
        while let Some(client) = self.clients.get_mut(id) {
            let Some(wants) = client.wants() else { break };
            let answer = match wants {
                Wants::Upgrade => format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-accept: {ACCEPT}\r\n\r\n"
                )
                .into_bytes(),
                Wants::Subscribe(markets) => server_frame(TEXT, ack(&self.subscribe(id, markets)).as_bytes()),
                Wants::Run(run) => {
                    self.work_off(run);
                    let tops: HashMap<_, _> =
                        self.markets.iter().map(|(id, market)| (id, market.seq)).collect();
                    let tops = serde_json::to_string(&tops)?;
                    format!("HTTP/1.1 200 OK\r\n\r\n{tops}").into_bytes()
                }
            };
            let client = &mut self.clients[id];
            send(&mut client.stream, &answer);
            if !client.upgraded {
                self.leave(id);
            }
        }
        if !open {
            self.leave(id);
        }
        Ok(())
    }

    fn subscribe(&mut self, id: usize, markets: Vec<u64>) -> Vec<(u64, u64)> {
        let positions = markets.into_iter().map(|market| {
            let log = self.markets.entry(market).or_default();
            log.subscribers.push(id);
            (market, log.seq)
        });
        let positions = positions.collect();
        self.ids = self.markets.keys().copied().collect();
        positions
    }

    fn leave(&mut self, id: usize) {
        if self.clients.try_remove(id).is_some() {
            for market in self.markets.values_mut() {
                market.subscribers.retain(|&subscriber| subscriber != id);
            }
        }
    }

    /// The loop itself.
    fn work_off(&mut self, run: Run) {
        for (due_us, payload) in run.due() {
            sleep_until(due_us);
            let id = self.ids[rand::random_range(0..self.ids.len())];
            let Some(market) = self.markets.get_mut(&id) else { continue };
            market.seq += 1;
            let frame = server_frame(TEXT, update(id, market.seq, &payload).as_bytes());
            for &subscriber in &market.subscribers {
                send(&mut self.clients[subscriber].stream, &frame);
            }
        }
    }
}

/// The first byte of a whole text message.
const TEXT: u8 = 0x81;

/// Sends all of it: at once, as long as the client keeps reading. One that is gone is noticed when it is read.
fn send(stream: &mut mio::net::TcpStream, mut bytes: &[u8]) {
    loop {
        match stream.write(bytes) {
            Ok(sent) if sent == bytes.len() => return,
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

impl Client {
    /// Reads what there is. `false`: nothing more will come.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => self.received.extend(&buffer[..read]),
                Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
            }
        }
    }

    /// Takes the next thing out of what was received.
    fn wants(&mut self) -> Option<Wants> {
        let (wants, length) =
            if self.upgraded { subscribe(&self.received)? } else { request(&self.received)? };
        self.upgraded |= wants == Wants::Upgrade;
        self.received.drain(..length);
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        Some(wants)
    }
}

fn request(bytes: &[u8]) -> Option<(Wants, usize)> {
    let length = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..length]).ok()?;
    let target = head.split(' ').nth(1)?;
    let run = target.strip_prefix(RUN).and_then(|query| Run::parse(query.strip_prefix('?')?));
    Some((run.map_or(Wants::Upgrade, Wants::Run), length))
}

/// A masked frame of a subscribe, which is all that the clients of this tool send to one who sends no pings.
fn subscribe(bytes: &[u8]) -> Option<(Wants, usize)> {
    let &[_, second, ref rest @ ..] = bytes else { return None };
    let (length, rest) = match second & 0x7F {
        short @ 0..=125 => (usize::from(short), rest),
        _ => rest.split_first_chunk().map(|(&long, rest)| (usize::from(u16::from_be_bytes(long)), rest))?,
    };
    let (mask, rest) = rest.split_first_chunk::<4>()?;
    let text: Vec<u8> =
        rest.get(..length)?.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    Some((Wants::Subscribe(subscribed(&text).unwrap_or_default()), bytes.len() - rest.len() + length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, Opcode};
    use crate::session::upgrade_request;

    #[test]
    fn a_request_is_to_upgrade_or_to_run() {
        let upgrade = upgrade_request("h", "t");
        assert_eq!(request(upgrade.as_bytes()), Some((Wants::Upgrade, upgrade.len())));
        assert_eq!(request(&upgrade.as_bytes()[..upgrade.len() - 1]), None);
        let run = "GET /run?start_us=1&rate=2.5&updates=3&payload_bytes=4&until_us=5 HTTP/1.1\r\n\r\n";
        let wanted = Run { start_us: 1, rate: 2.5, updates: 3, payload_bytes: 4, until_us: 5 };
        assert_eq!(request(run.as_bytes()), Some((Wants::Run(wanted), run.len())));
    }

    #[test]
    fn a_subscribe_is_unmasked_when_all_of_it_is_there() {
        for markets in [1, 50] {
            let list: Vec<_> = (0..markets).map(|market| format!("\"{market}\"")).collect();
            let text = format!(r#"{{"type":"subscribe","markets":[{}]}}"#, list.join(","));
            let mut bytes = Vec::new();
            frame::write(Opcode::Text, text.as_bytes(), [1, 2, 3, 4], &mut bytes);
            assert_eq!(subscribe(&bytes), Some((Wants::Subscribe((0..markets).collect()), bytes.len())));
            assert_eq!(subscribe(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn nothing_is_due_when_the_time_is_over() {
        let run = Run { start_us: 0, rate: 1e6, updates: 10, payload_bytes: 0, until_us: u64::MAX };
        assert_eq!(run.due().map(|(due_us, _)| due_us).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert_eq!(Run { until_us: 0, ..run }.due().count(), 0);
    }
}
