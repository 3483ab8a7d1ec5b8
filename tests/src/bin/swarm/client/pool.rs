//! A pool of clients: all their connections, in one thread over epoll.

use std::net::{IpAddr, Ipv4Addr};
use std::{io, sync::OnceLock, time::Duration};

use ::tests::raw::upgrade_request;
use anyhow::{Context, Result, anyhow, bail, ensure};
use mio::{Events, Poll, Token};

use super::connection::{Connection, Shared};
use super::http::{Endpoint, unreachable};
use super::session::{Ended, Session};
use crate::clock::{now_us, offset_us, thread_cpu_us};
use crate::markets::Markets;
use crate::report::{Counts, Times, progress, ratio};

/// The clients of a run: opened by `ramp`, then served by `receive` and `ping`.
pub(crate) struct ClientPool {
    plan: Plan,
    poll: Poll,
    events: Events,
    connections: Vec<Option<Connection>>,
    shared: Shared,
    opened: usize,
    pending: usize,
    live: usize,
    /// The first end before a client was live, with what to do about it.
    obstacle: Option<String>,
}

/// The end of a load.
#[derive(Debug)]
pub(crate) struct End {
    /// By market index, the latest seq; empty if it is not known.
    pub(crate) latest: Vec<u64>,
    /// When to stop waiting for what is missing.
    pub(crate) give_up_us: u64,
}

/// What clients have seen of a load.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// From due to received.
    pub(crate) latency: Times,
    /// Updates that had not come when waiting for them was over.
    pub(crate) undelivered: u64,
    /// The first fault of the delivery.
    pub(crate) wrong: Option<String>,
    /// The share of its time that the receiving thread did not wait.
    pub(crate) busy: f64,
}

/// The clients to open.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) gateways: Vec<Endpoint>,
    /// Of each user.
    pub(crate) tokens: Vec<String>,
    /// Connections of each user.
    pub(crate) per_user: usize,
    /// Handshakes at the same time.
    pub(crate) in_flight: usize,
    /// New connections per second; 0 for no limit.
    pub(crate) connect_rate: f64,
    /// Source addresses; 0 for as many as needed.
    pub(crate) sources: usize,
    /// Receive buffers are as small as Linux allows.
    pub(crate) small_buffers: bool,
}

impl Plan {
    /// A client for each token. No client waits for another.
    pub(crate) fn all_at_once(gateways: Vec<Endpoint>, tokens: Vec<String>) -> Self {
        Self { in_flight: tokens.len(), gateways, tokens, per_user: 1, ..Self::default() }
    }

    /// The same, 64 at a time: the memory of a server shows how many handshakes it once had at the same time.
    pub(crate) fn in_turn(self) -> Self {
        Self { in_flight: HANDSHAKES_IN_TURN, ..self }
    }

    /// The gateway of a client. Not round-robin: markets are, and every gateway has to get every market.
    fn gateway(&self, index: usize) -> &Endpoint {
        // 2^32 divided by the golden ratio spreads consecutive numbers, and every n-th of them, evenly.
        let spread = (index as u64).wrapping_mul(0x9E37_79B9) & 0xFFFF_FFFF;
        let gateway = (spread * self.gateways.len() as u64) >> 32;
        &self.gateways[usize::try_from(gateway).expect("below the number of gateways")]
    }

    /// A client's gateway, source address and request.
    fn client(&self, index: usize) -> (&Endpoint, Option<IpAddr>, String) {
        let gateway = self.gateway(index);
        let needed = (self.tokens.len() * self.per_user).div_ceil(CONNECTIONS_PER_SOURCE);
        let sources = if self.sources > 0 { self.sources } else { needed };
        let source = u8::try_from(index % sources + 1).ok();
        let spread = sources > 1 && gateway.address.is_ipv4() && gateway.address.ip().is_loopback();
        let from = source.filter(|_| spread).map(|last| Ipv4Addr::new(127, 0, 0, last).into());
        (gateway, from, upgrade_request(&gateway.authority, &self.tokens[index / self.per_user]))
    }
}

impl ClientPool {
    /// A pool of `connections` clients that are not open yet.
    pub(crate) fn new(plan: Plan, connections: usize, counts: Counts) -> Result<Self> {
        Ok(Self {
            poll: Poll::new().context("epoll")?,
            events: Events::with_capacity(1024),
            connections: (0..connections).map(|_| None).collect(),
            plan,
            shared: Shared { counts, out: Vec::new(), buffer: Vec::new() },
            opened: 0,
            pending: 0,
            live: 0,
            obstacle: None,
        })
    }

    /// Opens all clients of a plan with one connection per user. Fails unless all become live.
    pub(crate) fn connect(plan: Plan, markets: Markets) -> Result<Self> {
        let connections = plan.tokens.len();
        let mut pool = Self::new(plan, connections, Counts::new(markets, connections))?;
        pool.ramp_whole(connections)?;
        Ok(pool)
    }

    /// Opens all clients. Returns how long it took until each was live or had failed.
    pub(crate) fn ramp(&mut self) -> Result<u64> {
        self.ramp_to(self.connections.len())
    }

    /// Opens clients, a bounded number at a time, up to this number. Returns how long it took until each was live or
    /// had failed. Fails with the reason and a remedy if more than one in a hundred failed.
    pub(crate) fn ramp_to(&mut self, connections: usize) -> Result<u64> {
        let (began_us, first) = (now_us(), self.opened);
        let (mut pending, mut changed_us) = (0, began_us);
        let progress = progress(connections, "connections");
        while self.opened < connections || self.pending > 0 {
            while self.opened < connections && self.pending < self.plan.in_flight {
                let due_us = began_us + offset_us(self.opened - first, self.plan.connect_rate);
                if due_us > now_us() {
                    break;
                }
                self.open(if self.plan.connect_rate > 0.0 { due_us } else { now_us() })?;
            }
            self.turn(TICK)?;
            progress.set_position(self.live as u64);
            if self.pending != pending || pending == 0 {
                (pending, changed_us) = (self.pending, now_us());
            }
            ensure!(
                now_us() < changed_us + HANDSHAKE_TIMEOUT_US,
                "{pending} connections were not upgraded and subscribed within 10 s"
            );
            let failed = self.opened - self.pending - self.live;
            if failed > connections / 100 {
                let reason = self.obstacle.take().unwrap_or_default();
                bail!("{failed} of the first {} connections failed, the first with: {reason}", self.opened);
            }
        }
        progress.finish_and_clear();
        Ok(now_us() - began_us)
    }

    /// Opens clients up to this number. Fails unless all become live.
    pub(crate) fn ramp_whole(&mut self, connections: usize) -> Result<u64> {
        let took_us = self.ramp_to(connections)?;
        ensure!(self.live == connections, "only {} of {connections} connections could subscribe", self.live);
        Ok(took_us)
    }

    /// Receives as long as `go_on` says so; it is called every few milliseconds.
    pub(crate) fn receive(&mut self, mut go_on: impl FnMut(&mut Self) -> bool) -> Result<()> {
        while go_on(self) {
            self.turn(TICK)?;
        }
        Ok(())
    }

    /// Receives until everything up to the end has come, once that is known.
    pub(crate) fn follow(&mut self, end: &OnceLock<End>) -> Result<Seen> {
        let (began_us, began_cpu_us, mut look_us) = (now_us(), thread_cpu_us(), 0);
        self.receive(|clients| {
            let (end, now_us) = (end.get(), now_us());
            if now_us < look_us {
                return true;
            }
            look_us = now_us + LOOK_EVERY_US;
            end.is_none_or(|end| now_us < end.give_up_us && clients.undelivered(&end.latest) > 0)
        })?;
        let busy = ratio(thread_cpu_us() - began_cpu_us, now_us() - began_us);
        let undelivered = end.get().map_or(0, |end| self.undelivered(&end.latest));
        let counts = self.counts();
        Ok(Seen { latency: counts.latency.clone(), undelivered, wrong: counts.failures().next(), busy })
    }

    /// Lets every client send a `ping`, `rate` of them per second, and waits at most 5 s longer for the pongs. Returns
    /// how many are missing.
    pub(crate) fn ping(&mut self, rate: f64) -> Result<usize> {
        let began_us = now_us();
        let total = self.connections.len();
        let deadline_us = began_us + offset_us(total, rate) + 5_000_000;
        let mut next = 0;
        loop {
            while next < total && began_us + offset_us(next, rate) <= now_us() {
                self.ping_one(next);
                next += 1;
            }
            self.turn(TICK)?;
            let awaiting = self.connections.iter().flatten().filter(|open| open.session.awaits_pong());
            if next == total && (now_us() > deadline_us || awaiting.clone().next().is_none()) {
                return Ok(awaiting.count());
            }
        }
    }

    pub(crate) fn counts(&mut self) -> &mut Counts {
        &mut self.shared.counts
    }

    /// How many clients have been live.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn open_clients(&self) -> usize {
        self.connections.iter().flatten().count()
    }

    /// How many updates the open clients still miss of those up to `latest` (by market index).
    pub(crate) fn undelivered(&self, latest: &[u64]) -> u64 {
        let open =
            self.connections.iter().enumerate().filter_map(|(index, open)| open.as_ref().map(|_| index));
        self.shared.counts.check.undelivered(open, latest)
    }

    fn turn(&mut self, timeout: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        let mut ends = Vec::new();
        for event in &self.events {
            let Token(index) = event.token();
            let Some(connection) = &mut self.connections[index] else { continue };
            let was_live = connection.session.is_live();
            let handled = connection.handle(event, &mut self.shared);
            if !was_live && connection.session.is_live() {
                self.pending -= 1;
                self.live += 1;
            }
            ends.extend(handled.err().map(|ended| (index, ended)));
        }
        for (index, ended) in ends {
            self.end(index, ended);
        }
        Ok(())
    }

    fn open(&mut self, began_us: u64) -> Result<()> {
        let index = self.opened;
        let (gateway, from, request) = self.plan.client(index);
        let session = Session::new(index, began_us);
        let (small, registry) = (self.plan.small_buffers, self.poll.registry());
        let opened = Connection::open(gateway.address, from, small, request, session, registry, Token(index));
        self.connections[index] = Some(opened.map_err(|error| anyhow!(unreachable(gateway, &error)))?);
        self.opened += 1;
        self.pending += 1;
        Ok(())
    }

    fn ping_one(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        connection.session.ping(now_us(), &mut self.shared.out);
        if let Err(ended) = connection.send(&mut self.shared.out) {
            self.end(index, ended);
        }
    }

    fn end(&mut self, index: usize, ended: Ended) {
        let Some(connection) = self.connections[index].take() else { return };
        if !connection.session.is_live() {
            self.pending -= 1;
            let hint = ended.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
            self.obstacle.get_or_insert_with(|| format!("{}{hint}", ended.why));
        }
        *self.shared.counts.ended.entry(ended.why).or_default() += 1;
    }
}

/// How long epoll waits at most: the resolution of everything else that the thread does.
const TICK: Duration = Duration::from_millis(5);

/// How often to look whether something is still missing.
const LOOK_EVERY_US: u64 = 20_000;

const HANDSHAKES_IN_TURN: usize = 64;

/// How long a ramp may make no progress.
const HANDSHAKE_TIMEOUT_US: u64 = 10_000_000;

/// Of the 28 232 ports that Linux gives to each source address by default.
const CONNECTIONS_PER_SOURCE: usize = 25_000;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::{net::TcpListener, sync::Arc, thread};

    use ::tests::frame::{frame, last, opcode, unmasked_frame};
    use ::tests::raw::ACCEPT;

    use super::*;

    const TEXT: u8 = last(opcode::TEXT);

    /// A gateway for two clients on market 5: accepts the upgrade, acknowledges at seq 3, then writes `pieces`.
    fn fake_gateway(pieces: Vec<Vec<u8>>) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::from(listener.local_addr().unwrap());
        let (request, pieces) = (upgrade_request(&endpoint.authority, "secret"), Arc::new(pieces));
        thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                let (mut stream, request, pieces) = (stream.unwrap(), request.clone(), Arc::clone(&pieces));
                thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    let mut expect = |wanted: &[u8], reply: &[u8]| {
                        let mut received = vec![0; wanted.len()];
                        stream.read_exact(&mut received).unwrap();
                        assert_eq!(received, wanted);
                        stream.write_all(reply).unwrap();
                    };
                    let switching = format!("HTTP/1.1 101 OK\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n");
                    expect(request.as_bytes(), switching.as_bytes());
                    let subscribe = frame(TEXT, br#"{"type":"subscribe","markets":["5"]}"#);
                    let ack =
                        br#"{"type":"ack","ok":true,"subscribed":[5],"positions":{"5":{"epoch":1,"seq":3}}}"#;
                    expect(&subscribe, &unmasked_frame(TEXT, ack));
                    pieces.iter().for_each(|piece| stream.write_all(piece).unwrap());
                    let _until_the_client_hangs_up = stream.read(&mut [0; 100]);
                });
            }
        });
        endpoint
    }

    fn pool(gateway: Endpoint) -> ClientPool {
        let plan = Plan::all_at_once(vec![gateway], vec!["secret".into(); 2]);
        let markets = Markets { first: 5, ..Markets::new(1, 1) };
        ClientPool::new(plan, 2, Counts::new(markets, 2)).unwrap()
    }

    fn update(seq: u64, pad: usize) -> Vec<u8> {
        let pad = "x".repeat(pad);
        let text = format!(
            r#"{{"type":"odds_update","marketId":5,"seq":{seq},"ts":1,"payload":{{"a":{{"b":"{pad}"}}}}}}"#
        );
        unmasked_frame(TEXT, text.as_bytes())
    }

    fn receive(pool: &mut ClientPool, deliveries: u64) {
        let deadline_us = now_us() + 10_000_000;
        pool.receive(|pool| pool.counts().deliveries < deliveries && now_us() < deadline_us).unwrap();
    }

    #[test]
    fn frames_cut_anywhere_and_larger_than_the_buffer_are_put_together() {
        let mut bytes: Vec<u8> = (4..50).flat_map(|seq| update(seq, 100)).collect();
        bytes.extend(update(50, 1 << 20));
        bytes.extend(update(51, 10));
        let mut pool = pool(fake_gateway(bytes.chunks(1000).map(<[u8]>::to_vec).collect()));
        pool.ramp_whole(2).unwrap();
        receive(&mut pool, 2 * 48);
        assert_eq!((pool.counts().deliveries, pool.counts().check.broken()), (96, 0));
        assert_eq!((pool.undelivered(&[51]), pool.undelivered(&[53])), (0, 4));
    }

    #[test]
    fn what_is_wrong_is_counted_and_a_close_ends_the_client() {
        let pieces = vec![
            update(4, 1),
            update(6, 1),
            update(6, 1),
            unmasked_frame(last(opcode::CLOSE), &[0x11, 0x39]),
        ];
        let mut pool = pool(fake_gateway(pieces));
        pool.ramp().unwrap();
        receive(&mut pool, 6);
        let deadline_us = now_us() + 10_000_000;
        pool.receive(|pool| pool.open_clients() > 0 && now_us() < deadline_us).unwrap();
        assert_eq!((pool.counts().check.holes, pool.counts().check.duplicates), (2, 2));
        assert_eq!(pool.counts().ended.get("closed by the server with 4409"), Some(&2));
    }

    #[test]
    fn a_server_that_hangs_up_is_a_failed_ramp() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::from(listener.local_addr().unwrap());
        thread::spawn(move || listener.incoming().take(2).for_each(|stream| drop(stream.unwrap())));
        let error = pool(endpoint).ramp().unwrap_err();
        assert!(error.to_string().contains("connections failed"), "{error}");
    }

    #[test]
    fn gateways_get_as_many_clients_each_and_of_every_market() {
        let endpoint: Endpoint = "http://127.0.0.1:80".parse().unwrap();
        let other = Endpoint { authority: "b".into(), ..endpoint.clone() };
        let plan = Plan::all_at_once(vec![endpoint, other], Vec::new());
        let is_first = |index: &usize| plan.gateway(*index).authority != "b";
        assert!((495..=505).contains(&(0..1000).filter(is_first).count()));
        for every in [2, 8, 40, 50] {
            let of_one_market = (0..1000).step_by(every).filter(is_first).count() * every;
            assert!((400..=600).contains(&of_one_market), "{of_one_market} of every {every}th");
        }
    }
}
