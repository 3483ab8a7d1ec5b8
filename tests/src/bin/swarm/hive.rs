//! All the sockets, in one thread over epoll.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use mio::{Events, Poll, Token};

use crate::clock::now_us;
use crate::connection::{Connection, Shared};
use crate::http::{Endpoint, unreachable};
use crate::options::Sockets;
use crate::session::{Ended, Outbox, Session, upgrade_request};
use crate::tally::Tally;

/// The clients of a run: opened by `ramp`, then served by `receive` and `probe`.
pub(crate) struct Hive {
    plan: Plan,
    poll: Poll,
    events: Events,
    connections: Vec<Option<Connection>>,
    shared: Shared,
    /// Opened and not live yet, oldest first; may contain some that are neither any more.
    waiting: VecDeque<usize>,
    pending: usize,
    live: usize,
    /// The first end before a client was live, with what to do about it.
    obstacle: Option<String>,
}

/// Which clients to open.
pub(crate) struct Plan {
    gateways: Vec<Endpoint>,
    /// One for each user; `per_user` connections use it.
    tokens: Vec<String>,
    per_user: usize,
    connections: usize,
    in_flight: usize,
    connect_rate: f64,
    sources: usize,
}

/// How opening went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ramp {
    /// Clients that upgraded and subscribed.
    pub(crate) live: usize,
    /// How long it took until all were, or had failed.
    pub(crate) took_us: u64,
}

impl Plan {
    /// What the flags ask for, with a token for each user.
    pub(crate) fn new(sockets: &Sockets, tokens: Vec<String>) -> Self {
        let mut plan = Self {
            per_user: sockets.per_user,
            connect_rate: sockets.connect_rate,
            ..Self::all_at_once(sockets.gateway.clone(), tokens, sockets.connections)
        };
        plan.in_flight = sockets.in_flight;
        if sockets.sources > 0 {
            plan.sources = sockets.sources;
        }
        plan
    }

    /// As many clients as this, each with a token of its own, none of which waits for another.
    pub(crate) fn all_at_once(gateways: Vec<Endpoint>, tokens: Vec<String>, connections: usize) -> Self {
        let sources = connections.div_ceil(CONNECTIONS_PER_SOURCE);
        let in_flight = connections;
        Self { gateways, tokens, per_user: 1, connections, in_flight, connect_rate: 0.0, sources }
    }

    /// The same, a bounded number at a time: a server remembers what many handshakes at once took of its memory.
    pub(crate) fn in_turn(self) -> Self {
        Self { in_flight: HANDSHAKES_IN_TURN, ..self }
    }

    /// The gateway of a client. Not in turn: their markets go in turn, and every gateway is to have every market.
    fn gateway(&self, index: usize) -> &Endpoint {
        // 2^32 divided by the golden ratio spreads consecutive numbers, and every n-th of them, evenly.
        let spread = (index as u64).wrapping_mul(0x9E37_79B9) & 0xFFFF_FFFF;
        let gateway = (spread * self.gateways.len() as u64) >> 32;
        &self.gateways[usize::try_from(gateway).expect("below the number of gateways")]
    }

    /// Where a client connects to, from where, and its request.
    fn client(&self, index: usize) -> (&Endpoint, Option<IpAddr>, String) {
        let gateway = self.gateway(index);
        let source = u8::try_from(index % self.sources + 1).ok();
        let spread = self.sources > 1 && gateway.address.is_ipv4() && gateway.address.ip().is_loopback();
        let from = source.filter(|_| spread).map(|last| Ipv4Addr::new(127, 0, 0, last).into());
        (gateway, from, upgrade_request(&gateway.authority, &self.tokens[index / self.per_user]))
    }
}

impl Hive {
    /// A hive whose clients are not open yet.
    ///
    /// # Errors
    /// When epoll cannot be had.
    pub(crate) fn new(plan: Plan, tally: Tally) -> Result<Self> {
        Ok(Self {
            poll: Poll::new().context("epoll")?,
            events: Events::with_capacity(1024),
            connections: (0..plan.connections).map(|_| None).collect(),
            plan,
            shared: Shared { tally, out: Outbox::new(), buffer: Vec::new() },
            waiting: VecDeque::new(),
            pending: 0,
            live: 0,
            obstacle: None,
        })
    }

    /// Opens all clients, a bounded number at a time, and returns when each is live or has failed.
    ///
    /// # Errors
    /// With the reason and what to do, when more than one in a hundred fails.
    pub(crate) fn ramp(&mut self, progress: &ProgressBar) -> Result<Ramp> {
        let began_us = now_us();
        let mut opened = 0;
        while opened < self.plan.connections || self.pending > 0 {
            while opened < self.plan.connections && self.pending < self.plan.in_flight {
                let due_us = began_us + offset_us(opened, self.plan.connect_rate);
                if due_us > now_us() {
                    break;
                }
                self.open(opened, if self.plan.connect_rate > 0.0 { due_us } else { now_us() })?;
                opened += 1;
            }
            self.turn(TICK)?;
            self.give_up_waiting(now_us());
            progress.set_position(self.live as u64);
            let failed = opened - self.pending - self.live;
            if failed > self.plan.connections / 100 {
                let reason = self.obstacle.take().unwrap_or_default();
                bail!("{failed} of the first {opened} sockets failed, the first with: {reason}");
            }
        }
        Ok(Ramp { live: self.live, took_us: now_us() - began_us })
    }

    /// Receives for as long as `go_on` says so; it is asked every few milliseconds.
    ///
    /// # Errors
    /// When epoll fails.
    pub(crate) fn receive(&mut self, mut go_on: impl FnMut(&mut Self) -> bool) -> Result<()> {
        while go_on(self) {
            self.turn(TICK)?;
        }
        Ok(())
    }

    /// Lets every client send a `ping`, `rate` of them a second, and waits at most 5 s longer for the answers. Returns
    /// how many were not answered.
    ///
    /// # Errors
    /// When epoll fails.
    pub(crate) fn probe(&mut self, rate: f64) -> Result<usize> {
        let began_us = now_us();
        let total = self.connections.len();
        let deadline_us = began_us + offset_us(total, rate) + 5_000_000;
        let mut next = 0;
        loop {
            while next < total && began_us + offset_us(next, rate) <= now_us() {
                self.probe_one(next);
                next += 1;
            }
            self.turn(TICK)?;
            let unanswered = self.connections.iter().flatten().filter(|open| open.session.is_probed());
            if next == total && (now_us() > deadline_us || unanswered.clone().next().is_none()) {
                return Ok(unanswered.count());
            }
        }
    }

    /// What has been counted so far.
    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.shared.tally
    }

    /// Clients that are open.
    pub(crate) fn open_clients(&self) -> usize {
        self.connections.iter().flatten().count()
    }

    /// How many updates the open clients still miss of those up to `tops` (by market index).
    pub(crate) fn undelivered(&self, tops: &[u64]) -> u64 {
        let open =
            self.connections.iter().enumerate().filter_map(|(index, open)| open.as_ref().map(|_| index));
        self.shared.tally.undelivered(open, tops)
    }

    fn turn(&mut self, timeout: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            let Token(index) = event.token();
            let Some(connection) = &mut self.connections[index] else { continue };
            let was_live = connection.session.is_live();
            let attended = connection.attend(event, &mut self.shared);
            if !was_live && connection.session.is_live() {
                self.pending -= 1;
                self.live += 1;
            }
            if let Err(ended) = attended {
                let ready = connection.session.is_live();
                self.connections[index] = None;
                note_end(&ended, ready, &mut self.pending, &mut self.obstacle, &mut self.shared.tally);
            }
        }
        Ok(())
    }

    fn open(&mut self, index: usize, began_us: u64) -> Result<()> {
        let (gateway, from, request) = self.plan.client(index);
        let session = Session::new(index, began_us);
        let opened =
            Connection::open(gateway.address, from, request, session, self.poll.registry(), Token(index));
        self.connections[index] = Some(opened.map_err(|error| anyhow!(unreachable(gateway, &error)))?);
        self.pending += 1;
        self.waiting.push_back(index);
        Ok(())
    }

    fn give_up_waiting(&mut self, now_us: u64) {
        while let Some(&index) = self.waiting.front() {
            if let Some(waiting) = self.connections[index].as_ref().filter(|open| !open.session.is_live()) {
                if now_us.saturating_sub(waiting.session.began_us()) < HANDSHAKE_TIMEOUT_US {
                    return;
                }
                let ended = Ended::Lost("not connected, upgraded and subscribed within 10 s".into());
                self.connections[index] = None;
                note_end(&ended, false, &mut self.pending, &mut self.obstacle, &mut self.shared.tally);
            }
            self.waiting.pop_front();
        }
    }

    fn probe_one(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        connection.session.probe(now_us(), &mut self.shared.out);
        if let Err(ended) = connection.send(&mut self.shared.out) {
            self.connections[index] = None;
            note_end(&ended, true, &mut self.pending, &mut self.obstacle, &mut self.shared.tally);
        }
    }
}

fn note_end(
    ended: &Ended,
    was_live: bool,
    pending: &mut usize,
    obstacle: &mut Option<String>,
    tally: &mut Tally,
) {
    *tally.ended.entry(ended.to_string()).or_default() += 1;
    if !was_live {
        *pending -= 1;
        obstacle.get_or_insert_with(|| match ended.hint() {
            Some(hint) => format!("{ended}; {hint}"),
            None => ended.to_string(),
        });
    }
}

/// When the thing with this index is due, of a thing every 1/rate seconds; 0 is at once.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "far below 2^52"
)]
pub(crate) fn offset_us(index: usize, rate: f64) -> u64 {
    if rate > 0.0 { (index as f64 * 1e6 / rate) as u64 } else { 0 }
}

/// How long epoll waits at most: the resolution of everything else the thread looks after.
const TICK: Duration = Duration::from_millis(5);

const HANDSHAKES_IN_TURN: usize = 64;

const HANDSHAKE_TIMEOUT_US: u64 = 10_000_000;

/// Of the 28 232 ports that Linux gives to each source address by default.
const CONNECTIONS_PER_SOURCE: usize = 25_000;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;
    use crate::frame::server_frame;
    use crate::markets::Markets;

    /// A gateway for two clients on market 5: answers the upgrade, acknowledges at seq 3, then writes `pieces`.
    fn fake_gateway(pieces: Vec<Vec<u8>>) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        thread::spawn(move || {
            let serve = |mut stream: TcpStream| {
                stream.set_nodelay(true).unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                assert!(request.starts_with(b"GET /ws/odds?token=secret HTTP/1.1\r\n"));
                stream
                    .write_all(
                        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
                    )
                    .unwrap();
                let subscribe = br#"{"type":"subscribe","markets":["5"]}"#;
                stream.read_exact(&mut vec![0; 6 + subscribe.len()]).unwrap();
                let ack =
                    br#"{"type":"ack","ok":true,"subscribed":[5],"positions":{"5":{"epoch":1,"seq":3}}}"#;
                stream.write_all(&server_frame(0x81, ack)).unwrap();
                for piece in &pieces {
                    stream.write_all(piece).unwrap();
                }
                let _until_the_client_hangs_up = stream.read(&mut [0; 100]);
            };
            let streams: Vec<_> = listener.incoming().take(2).map(Result::unwrap).collect();
            thread::scope(|scope| {
                for stream in streams {
                    scope.spawn(|| serve(stream));
                }
            });
        });
        endpoint
    }

    fn hive(gateway: Endpoint) -> Hive {
        let plan = Plan::all_at_once(vec![gateway], vec!["secret".into(); 2], 2);
        Hive::new(plan, Tally::new(Markets { first: 5, count: 1, per_connection: 1 }, 2)).unwrap()
    }

    fn update(seq: u64, pad: usize) -> Vec<u8> {
        let pad = "x".repeat(pad);
        let text = format!(
            r#"{{"type":"odds_update","marketId":5,"seq":{seq},"ts":1,"payload":{{"a":{{"b":"{pad}"}}}}}}"#
        );
        server_frame(0x81, text.as_bytes())
    }

    fn receive(hive: &mut Hive, deliveries: u64) {
        let deadline_us = now_us() + 10_000_000;
        hive.receive(|hive| hive.tally().deliveries < deliveries && now_us() < deadline_us).unwrap();
    }

    #[test]
    fn frames_cut_anywhere_and_larger_than_the_buffer_are_put_together() {
        let mut bytes: Vec<u8> = (4..50).flat_map(|seq| update(seq, 100)).collect();
        bytes.extend(update(50, 1 << 20));
        bytes.extend(update(51, 10));
        let mut hive = hive(fake_gateway(bytes.chunks(1000).map(<[u8]>::to_vec).collect()));
        assert_eq!(hive.ramp(&ProgressBar::hidden()).unwrap().live, 2);
        receive(&mut hive, 2 * 48);
        assert_eq!((hive.tally().deliveries, hive.tally().checks.broken()), (96, 0));
        assert_eq!((hive.undelivered(&[51]), hive.undelivered(&[53])), (0, 4));
    }

    #[test]
    fn what_is_wrong_is_counted_and_a_close_ends_the_client() {
        let pieces = vec![update(4, 1), update(6, 1), update(6, 1), server_frame(0x88, &[0x11, 0x39])];
        let mut hive = hive(fake_gateway(pieces));
        hive.ramp(&ProgressBar::hidden()).unwrap();
        receive(&mut hive, 6);
        let deadline_us = now_us() + 10_000_000;
        hive.receive(|hive| hive.open_clients() > 0 && now_us() < deadline_us).unwrap();
        assert_eq!((hive.tally().checks.holes, hive.tally().checks.duplicates), (2, 2));
        assert_eq!(hive.tally().ended.get("closed by the server with 4409"), Some(&2));
    }

    #[test]
    fn a_server_that_hangs_up_is_a_failed_ramp() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        thread::spawn(move || listener.incoming().take(2).for_each(|stream| drop(stream.unwrap())));
        let error = hive(endpoint).ramp(&ProgressBar::hidden()).unwrap_err();
        assert!(error.to_string().contains("sockets failed"), "{error}");
    }

    #[test]
    fn gateways_get_as_many_clients_each_and_of_every_market() {
        let endpoint: Endpoint = "http://127.0.0.1:80".parse().unwrap();
        let other = Endpoint { authority: "b".into(), ..endpoint.clone() };
        let plan = Plan::all_at_once(vec![endpoint, other], Vec::new(), 0);
        let is_first = |index: &usize| plan.gateway(*index).authority != "b";
        assert!((495..=505).contains(&(0..1000).filter(is_first).count()));
        for every in [2, 8, 40, 50] {
            let of_one_market = (0..1000).step_by(every).filter(is_first).count() * every;
            assert!((400..=600).contains(&of_one_market), "{of_one_market} of every {every}th");
        }
    }

    #[test]
    fn rates_turn_into_due_times() {
        assert_eq!((offset_us(0, 10.0), offset_us(5, 10.0), offset_us(5, 0.0)), (0, 500_000, 0));
    }
}
