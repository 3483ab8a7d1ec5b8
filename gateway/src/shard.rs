//! A thread that owns a share of the sockets. It holds no lock while it delivers, and connections have no tasks.
//!
//! A round: read from sockets, take input from other threads, look at the markets that changed, act on deadlines. Then
//! write once to each connection with something to send, however many updates wait for it. A socket that would block
//! keeps its cursors where they are, and continues from the ring once it accepts bytes again.
//!
//! The loop here calls the others in turn: `reading` acts on clients' messages, `subscribing` begins deliveries,
//! `writing` delivers, and `closing` ends connections. All of them queue writes in the `write_queue`.

mod closing;
mod connection;
mod drain_schedule;
mod handle;
mod reading;
mod subscribing;
mod subscriptions;
mod timer_wheel;
mod write_queue;
mod writing;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker};
use protocol::{server_message, time::unix_ms};
use service::token::WsClaims;
use slab::Slab;

pub use self::{connection::Timing, handle::ShardHandle};
use self::{
    connection::{Connection, Deadlines, Phase},
    handle::{Input, Traced},
    subscriptions::{Ages, Batch, Subscriptions},
    timer_wheel::TimerWheel,
    write_queue::WriteQueue,
};
use crate::{
    frame::{self, Encoded},
    limits::ConnectionPermit,
    markets::Markets,
    session::{Rules, Session},
};

/// The token of the waker. Connections use their slab keys as tokens.
const WAKER: Token = Token(usize::MAX);
/// Bytes in one read. A shard has one buffer for this.
const READ_BYTES: usize = 64 * 1024;
/// Traced updates that a shard follows until a client has them. The trace of any further one ends without a delivery.
const MAX_TRACED: usize = 16;

/// What all shards of a pod share.
#[derive(Debug)]
pub struct ShardSettings {
    pub rules: Rules,
    pub timing: Timing,
    /// `MAX_MESSAGE_BYTES`.
    pub max_message_bytes: usize,
    /// `RESUME_MAX`.
    pub resume_max: u64,
    /// How long to collect updates before a write (`FLUSH_INTERVAL`).
    pub flush_interval: Duration,
}

/// Counts of all shards, which other threads read.
#[derive(Debug, Default)]
pub struct Stats {
    pub connections: AtomicUsize,
    /// Updates and snapshots delivered since the start.
    pub messages_sent: AtomicU64,
}

/// A connection after its handshake.
pub struct Accepted {
    /// In nonblocking mode, with Nagle's algorithm off.
    pub socket: std::net::TcpStream,
    /// Bytes that the client sent right after its handshake.
    pub leftover: Vec<u8>,
    /// What its token allows.
    pub claims: WsClaims,
    pub permit: ConnectionPermit,
}

/// Starts shard number `index` on its own thread.
///
/// # Errors
/// When the kernel is out of descriptors or threads.
pub fn start(
    index: usize,
    settings: Arc<ShardSettings>,
    markets: Arc<Markets>,
    stats: Arc<Stats>,
) -> io::Result<(Arc<ShardHandle>, JoinHandle<()>)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    let (sender, inbox) = mpsc::channel();
    let handle = Arc::new(ShardHandle::new(sender, waker));
    let shard = Shard {
        index,
        poll,
        inbox,
        settings,
        stats,
        started: Instant::now(),
        now_ms: 0,
        connections: Slab::new(),
        subscriptions: Subscriptions::new(index, markets),
        wheel: TimerWheel::new(0),
        write_queue: WriteQueue::default(),
        to_read: Vec::new(),
        to_unpause: Vec::new(),
        read_buffer: vec![0; READ_BYTES],
        batch: Batch::default(),
        stale: None,
        drain_until_ms: None,
        traced: Vec::new(),
        messages: 0,
        writes: 0,
        ages: Ages::default(),
    };
    let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || shard.run())?;
    Ok((handle, thread))
}

struct Shard {
    index: usize,
    poll: Poll,
    inbox: mpsc::Receiver<Input>,
    settings: Arc<ShardSettings>,
    stats: Arc<Stats>,
    started: Instant,
    /// Milliseconds since the start of the shard, as of this round. "Shard milliseconds" elsewhere.
    now_ms: u64,
    connections: Slab<Connection>,
    subscriptions: Subscriptions,
    wheel: TimerWheel,
    write_queue: WriteQueue,
    /// Connections that have more to read than they may in one round.
    to_read: Vec<usize>,
    /// Connections that were written to in this round, and whose received messages waited for that.
    to_unpause: Vec<usize>,
    read_buffer: Vec<u8>,
    batch: Batch,
    /// The status message for new clients, while prices are stale.
    stale: Option<Encoded>,
    /// When the drain ends, in shard milliseconds. `None` unless the shard is draining.
    drain_until_ms: Option<u64>,
    traced: Vec<Traced>,
    messages: u64,
    writes: u64,
    ages: Ages,
}

impl Shard {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(error) = self.poll.poll(&mut events, self.poll_timeout())
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a shard cannot poll its sockets");
                return;
            }
            let now = self.started.elapsed();
            self.now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            self.write_queue.begin_round(now);
            for key in std::mem::take(&mut self.to_read) {
                self.read(key);
            }
            for event in &events {
                if event.token() == WAKER {
                    continue;
                }
                let key = event.token().0;
                if event.is_writable() {
                    self.writable(key);
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    self.readable(key, event.is_read_closed() || event.is_error());
                }
            }
            self.take_inbox();
            self.act_on_deadlines();
            self.write_round();
            for key in std::mem::take(&mut self.to_unpause) {
                self.unpause(key);
            }
            if self.drain_until_ms.is_some() && self.connections.is_empty() {
                return;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        if !self.to_read.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = self.started.elapsed();
        if let Some(since) = self.write_queue.first_since() {
            return Some((since + self.settings.flush_interval).saturating_sub(now));
        }
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.wheel.timeout_ms(now_ms).map(Duration::from_millis)
    }

    fn take_inbox(&mut self) {
        while let Ok(input) = self.inbox.try_recv() {
            match input {
                Input::Changed(market) => {
                    for key in self.changed(market) {
                        self.unpause(key);
                    }
                }
                Input::Traced(traced) if self.traced.len() < MAX_TRACED => {
                    self.traced.push(Traced { since_ms: self.now_ms, ..*traced });
                }
                Input::Traced(_) => {}
                Input::Connection(accepted) => {
                    if let Err(error) = self.adopt(*accepted) {
                        tracing::warn!(%error, "a connection could not be taken over");
                    }
                }
                Input::Status { stale, message } => {
                    for key in self.keys() {
                        if self.connections[key].is_open() {
                            self.connections[key].outgoing.extend_from_slice(&message);
                            self.queue_write(key);
                        }
                    }
                    self.stale = stale.then_some(message);
                }
                Input::Revocations => {
                    let known = self.settings.rules.tokens.known();
                    for key in self.keys() {
                        self.close_if_revoked(key, &known);
                    }
                }
                Input::Drain(over) => self.drain(over),
            }
        }
    }

    fn keys(&self) -> Vec<usize> {
        self.connections.iter().map(|(key, _)| key).collect()
    }

    fn adopt(&mut self, accepted: Accepted) -> io::Result<()> {
        let Accepted { socket, leftover, claims, permit } = accepted;
        let now_ms = self.now_ms;
        let slot = self.connections.vacant_entry();
        let key = slot.key();
        let mut socket = mio::net::TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(key), Interest::READABLE | Interest::WRITABLE)?;
        let session = Session::new(&claims, &self.settings.rules, now_ms);
        let expires_ms = now_ms + session.expires_at_ms().saturating_sub(unix_ms());
        let interval_ms = self.settings.timing.heartbeat_interval_ms;
        slot.insert(Connection {
            socket,
            permit,
            session,
            outgoing: self.stale.as_deref().map(<[u8]>::to_vec).unwrap_or_default(),
            unread: leftover,
            reader: frame::Reader::default(),
            phase: Phase::Open,
            waiting: None,
            readable: false,
            read_ends: false,
            blocked_since: None,
            queued: false,
            deadlines: Deadlines {
                heard_ms: now_ms,
                // Random, so that clients that connected together do not get heartbeats together.
                heartbeat_ms: now_ms + interval_ms - rand::random_range(0..=interval_ms / 4),
                expires_ms,
                drain_ms: None,
                wake_ms: u64::MAX,
            },
        });
        self.subscriptions.add_connection(key);
        self.stats.connections.fetch_add(1, Ordering::Relaxed);
        self.schedule(key);
        self.queue_write(key);
        if let Some(until_ms) = self.drain_until_ms {
            // The handshake was under way when the drain began.
            let at_ms = rand::random_range(now_ms..=until_ms.max(now_ms));
            self.close_at(key, at_ms);
        }
        // The token may have been revoked on the way here, before this shard was told.
        let known = self.settings.rules.tokens.known();
        self.close_if_revoked(key, &known);
        self.process_unread(key);
        Ok(())
    }

    // Deadlines.

    fn schedule(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let due_ms = connection.next_due_ms(&self.settings.timing);
        if due_ms < connection.deadlines.wake_ms {
            connection.deadlines.wake_ms = due_ms;
            self.wheel.schedule(u32::try_from(key).unwrap_or(u32::MAX), due_ms);
        }
    }

    fn act_on_deadlines(&mut self) {
        let mut due = Vec::new();
        self.wheel.advance(self.now_ms, |key, due_ms| due.push((key as usize, due_ms)));
        for (key, due_ms) in due {
            // The key may belong to another connection by now, or an earlier wake-up may have replaced this one.
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if connection.deadlines.wake_ms != due_ms {
                continue;
            }
            connection.deadlines.wake_ms = u64::MAX;
            self.check_deadlines(key);
            if self.connections.contains(key) {
                self.schedule(key);
            }
        }
    }

    fn check_deadlines(&mut self, key: usize) {
        let now_ms = self.now_ms;
        let timing = self.settings.timing;
        let connection = &mut self.connections[key];
        if let Phase::Closing { until_ms, .. } = connection.phase {
            if now_ms >= until_ms {
                self.remove(key, "lingered");
            }
            return;
        }
        if let Some(code) = connection.overdue(&timing, now_ms) {
            return self.close(key, code);
        }
        if now_ms >= connection.deadlines.heartbeat_ms {
            connection.deadlines.heartbeat_ms = now_ms + timing.heartbeat_interval_ms;
            // A socket that accepts no bytes would only queue the ping.
            if connection.blocked_since.is_none() {
                connection.push_text(&server_message::ping(unix_ms()));
                connection.outgoing.extend_from_slice(&frame::PING);
                self.queue_write(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    use backbone::{Revocation, Revoked};
    use service::token::{Audience, Keyring};

    use super::*;
    use crate::{
        limits::{ConnectionPermits, Rate},
        log::Bound,
        tokens::Tokens,
    };

    /// The token is revoked after the handshake's check and before the shard knows the connection.
    #[test]
    fn a_connection_whose_token_was_revoked_on_its_way_here_is_closed() {
        let tokens = Arc::new(Tokens::new(Keyring::random(Audience::Ws)));
        let rate = Rate::per_second(5).with_burst(20);
        let minute_ms = 60_000;
        let settings = ShardSettings {
            rules: Rules { tokens: Arc::clone(&tokens), max_markets: 1, rate },
            timing: Timing {
                heartbeat_interval_ms: minute_ms,
                heartbeat_timeout_ms: minute_ms,
                slow_after_ms: minute_ms,
            },
            max_message_bytes: 1024,
            resume_max: 1,
            flush_interval: Duration::ZERO,
        };
        let markets = Markets::new(Bound { updates: 1, bytes: 1 }, 1, Box::new(|_| 0));
        let (shard, thread) = start(0, Arc::new(settings), markets, Arc::default()).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let now_ms = unix_ms();
        let claims = WsClaims {
            sub: "1".into(),
            markets: None,
            iat: now_ms / 1000,
            exp: now_ms,
            jti: Some("a".into()),
        };
        tokens.learn(&[Revocation { revoked: Revoked::Token("a".into()), ts: now_ms }], now_ms);
        let permit = ConnectionPermits::new(1, 1).take("1").unwrap();
        shard.adopt(Accepted { socket, leftover: Vec::new(), claims, permit });

        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(String::from_utf8_lossy(&received).contains("NOT_ALLOWED"));
        drop(client);
        shard.drain(Duration::ZERO);
        thread.join().unwrap();
    }
}
