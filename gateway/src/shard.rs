//! One thread that owns its connections outright: no task, no lock held while delivering, no queue while idle.
//!
//! A round: take what sockets and other threads brought, look at the markets that rang, do what is due, then write
//! once to each connection that is owed something, however many updates wait for it. A socket that would block keeps
//! its cursors where they are and goes on from the log when it takes bytes again.

mod connection;
mod heartbeat;
mod spread;
mod subscriptions;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker};
use shared::{
    MarketId,
    protocol::{
        client::MessageId,
        close::CloseCode,
        error::Refusal,
        server::{self, Ack, Subscribed},
    },
    time::{unix_ms, unix_us},
    token::WsClaims,
};
use slab::Slab;

pub use self::connection::Timing;
use self::{
    connection::{Connection, Deadlines, Phase, Waiting},
    heartbeat::Wheel,
    spread::closing_times,
    subscriptions::{Ages, Batch, Subscriptions},
};
use crate::{
    frame::{self, Encoded, Message},
    limits::{Place, is_roomy},
    market::{Begin, Markets, Start, Wanted, Watcher},
    metrics as names,
    session::{Action, Rules, Session, Subscribe},
    tokens::Known,
};

/// The waker's token; connections use their slab key.
const WAKER: Token = Token(usize::MAX);
/// Bytes read at once; one buffer a shard.
const READ_BYTES: usize = 64 * 1024;
/// Reads of one socket in a round: a flood waits for its next turn.
const READS_A_ROUND: usize = 4;
/// Bytes written to one connection in a round, about: a client far behind waits for its next turn.
const WRITE_BYTES: usize = 64 * 1024;
/// Connections written to in a round: beyond it the sockets, the clock and other threads come first again.
const WRITES_A_ROUND: usize = 1024;
/// Connections whose memory is fetched together before they are written to: many enough that most of the waiting is
/// shared, few enough that the kernel's work on one does not evict the last.
const WARM_AT_ONCE: usize = 32;
/// How long a request may wait for the backbone before its client is sent elsewhere.
const REQUEST_TIMEOUT_MS: u64 = 5_000;
/// How long a closed connection may take to read its bye and close its side.
const CLOSE_LINGER_MS: u64 = 5_000;
/// The longest wait that a draining pod asks its clients to spread their reconnects over.
const MAX_DRAIN_SPREAD_MS: u64 = 3_000;

/// How a shard serves.
#[derive(Debug)]
pub struct ShardSettings {
    /// What sessions go by.
    pub rules: Rules,
    /// Deadlines.
    pub timing: Timing,
    /// `MAX_MESSAGE_BYTES`.
    pub max_message_bytes: usize,
    /// `RESUME_MAX`.
    pub resume_max: u64,
    /// Latency traded for fewer writes (`FLUSH_INTERVAL`).
    pub flush_interval: Duration,
}

/// Counts that other threads read.
#[derive(Debug, Default)]
pub struct Stats {
    /// Open connections.
    pub connections: AtomicUsize,
    /// Updates and snapshots delivered since start.
    pub messages_sent: AtomicU64,
}

/// A socket past its handshake.
pub struct Accepted {
    /// Nonblocking, Nagle off.
    pub socket: std::net::TcpStream,
    /// What the client sent right behind its handshake.
    pub leftover: Vec<u8>,
    /// Who it is.
    pub claims: WsClaims,
    /// Its place in the pod.
    pub place: Place,
}

/// What other threads bring. Bounded: connections by the pod's places, rings by one a market, the rest by hand.
enum Input {
    Connection(Box<Accepted>),
    Rung(MarketId),
    Status { stale: bool, message: Encoded },
    Revocations,
    Drain(Duration),
}

/// How other threads reach a shard.
pub struct ShardHandle {
    sender: mpsc::Sender<Input>,
    waker: Waker,
    /// Something was sent since the last wake-up.
    unflushed: AtomicBool,
}

impl ShardHandle {
    /// Hands a connection over. It is dropped if the shard has ended.
    pub fn adopt(&self, accepted: Accepted) {
        self.send(Input::Connection(Box::new(accepted)));
        self.flush();
    }

    /// Tells every client whether prices are fresh, now and when it connects later.
    pub fn announce(&self, stale: bool, message: &Encoded) {
        self.send(Input::Status { stale, message: Encoded::clone(message) });
        self.flush();
    }

    /// Closes every connection whose token is revoked by now.
    pub fn review_tokens(&self) {
        self.send(Input::Revocations);
        self.flush();
    }

    /// Closes every connection within `over`, spread evenly (`closing_times`), and ends the shard after the last.
    pub fn drain(&self, over: Duration) {
        self.send(Input::Drain(over));
        self.flush();
    }

    fn send(&self, input: Input) {
        // A shard that has ended wants nothing any more.
        let _ = self.sender.send(input);
        self.unflushed.store(true, Ordering::Release);
    }
}

impl Watcher for ShardHandle {
    fn ring(&self, market: MarketId) {
        self.send(Input::Rung(market));
    }

    fn flush(&self) {
        if self.unflushed.swap(false, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "cannot wake a shard");
        }
    }
}

/// Starts shard number `index` on a thread of its own.
///
/// # Errors
/// When the kernel has no more descriptors or threads.
pub fn start(
    index: usize,
    settings: Arc<ShardSettings>,
    markets: Arc<Markets>,
    stats: Arc<Stats>,
) -> io::Result<(Arc<ShardHandle>, JoinHandle<()>)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    let (sender, inbox) = mpsc::channel();
    let handle = Arc::new(ShardHandle { sender, waker, unflushed: AtomicBool::new(false) });
    let shard = Shard {
        poll,
        inbox,
        settings,
        stats,
        started: Instant::now(),
        now_ms: 0,
        connections: Slab::new(),
        subscriptions: Subscriptions::new(index, Arc::clone(&markets)),
        markets,
        wheel: Wheel::new(0),
        to_write: ToWrite::default(),
        to_read: Vec::new(),
        read_buffer: vec![0; READ_BYTES],
        batch: Batch::default(),
        stale: None,
        drain_until_ms: None,
        messages: 0,
        writes: 0,
        ages: Ages::default(),
    };
    let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || shard.run())?;
    Ok((handle, thread))
}

struct Shard {
    poll: Poll,
    inbox: mpsc::Receiver<Input>,
    settings: Arc<ShardSettings>,
    stats: Arc<Stats>,
    started: Instant,
    /// Milliseconds since the start, as of this round.
    now_ms: u64,
    connections: Slab<Connection>,
    subscriptions: Subscriptions,
    markets: Arc<Markets>,
    wheel: Wheel,
    to_write: ToWrite,
    /// Connections with more to read than one round's share.
    to_read: Vec<usize>,
    read_buffer: Vec<u8>,
    batch: Batch,
    /// The status message that a new client gets while prices are stale.
    stale: Option<Encoded>,
    /// While it drains: when every connection is to be closed, shard milliseconds.
    drain_until_ms: Option<u64>,
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
            self.to_write.now = now;
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
            self.do_what_is_due();
            self.write_round();
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
        if let Some(&(_, since)) = self.to_write.keys.front() {
            return Some((since + self.settings.flush_interval).saturating_sub(now));
        }
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.wheel.timeout_ms(now_ms).map(Duration::from_millis)
    }

    fn take_inbox(&mut self) {
        while let Ok(input) = self.inbox.try_recv() {
            match input {
                Input::Rung(market) => self.rung(market),
                Input::Connection(accepted) => {
                    if let Err(error) = self.adopt(*accepted) {
                        tracing::warn!(%error, "a connection could not be taken over");
                    }
                }
                Input::Status { stale, message } => {
                    for key in self.keys() {
                        if self.connections[key].is_open() {
                            self.connections[key].out.extend_from_slice(&message);
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
        let Accepted { socket, leftover, claims, place } = accepted;
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
            place,
            session,
            out: self.stale.as_deref().map(<[u8]>::to_vec).unwrap_or_default(),
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
                // Spread, so that those who came together do not beat together.
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
            // Its handshake was under way when the drain began.
            let at_ms = rand::random_range(now_ms..=until_ms.max(now_ms));
            self.close_at(key, at_ms);
        }
        // It may have been revoked on its way here, before this shard was told.
        let known = self.settings.rules.tokens.known();
        self.close_if_revoked(key, &known);
        self.work_off_unread(key);
        Ok(())
    }

    fn close_if_revoked(&mut self, key: usize, known: &Known) {
        let connection = &self.connections[key];
        if known.has(connection.place.user(), connection.session.mark()) {
            self.close(key, CloseCode::NotAllowed);
        }
    }

    fn drain(&mut self, over: Duration) {
        let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        self.drain_until_ms = Some(self.now_ms + over_ms);
        let keys = self.keys();
        let times = closing_times(keys.len(), over_ms, &mut rand::rng()).collect::<Vec<_>>();
        for (key, after_ms) in keys.into_iter().zip(times) {
            self.close_at(key, self.now_ms + after_ms);
        }
    }

    fn close_at(&mut self, key: usize, at_ms: u64) {
        self.connections[key].deadlines.drain_ms = Some(at_ms);
        self.schedule(key);
    }

    // Reading.

    fn readable(&mut self, key: usize, ends: bool) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.readable = true;
            connection.read_ends |= ends;
            self.read(key);
        }
    }

    fn read(&mut self, key: usize) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        self.read_into(key, &mut buffer);
        self.read_buffer = buffer;
    }

    fn read_into(&mut self, key: usize, buffer: &mut [u8]) {
        for _ in 0..READS_A_ROUND {
            let Some(connection) = self.connections.get_mut(key) else { return };
            if !connection.readable || connection.is_paused() {
                return;
            }
            match connection.read(buffer) {
                Ok(Some(0)) | Err(_) => return self.remove(key, "gone"),
                Ok(None) => {
                    connection.readable = false;
                    return;
                }
                Ok(Some(count)) => {
                    connection.deadlines.heard_ms = self.now_ms;
                    // A short read has emptied the socket: what comes later, its end included, is another event.
                    connection.readable = count == buffer.len() || connection.read_ends;
                    if !connection.is_open() {
                        continue;
                    }
                    let bytes = &mut buffer[..count];
                    if connection.unread.is_empty() {
                        let taken = self.work_off(key, bytes);
                        if let Some(connection) = self.connections.get_mut(key) {
                            connection.unread = bytes[taken..].to_vec();
                        }
                    } else {
                        connection.unread.extend_from_slice(bytes);
                        self.work_off_unread(key);
                    }
                }
            }
        }
        self.to_read.push(key);
    }

    fn work_off_unread(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut bytes = std::mem::take(&mut connection.unread);
        let taken = self.work_off(key, &mut bytes);
        if let Some(connection) = self.connections.get_mut(key) {
            // A frame that comes in very many pieces is not copied at each.
            connection.unread = if taken == 0 { bytes } else { bytes[taken..].to_vec() };
        }
    }

    /// Takes whole frames off `bytes` while the connection may be served, and all of them once it may not any more: how
    /// many bytes that were.
    fn work_off(&mut self, key: usize, bytes: &mut [u8]) -> usize {
        let max_bytes = self.settings.max_message_bytes;
        let mut taken = 0;
        while let Some(connection) = self.connections.get_mut(key)
            && connection.is_open()
        {
            if connection.is_paused() {
                return taken;
            }
            let mut joined = Vec::new();
            match connection.reader.read(&mut bytes[taken..], max_bytes, &mut joined) {
                Ok(Some((count, message))) => {
                    taken += count;
                    if let Some(message) = message {
                        self.message(key, &message);
                    }
                }
                Ok(None) => return taken,
                Err(code) => self.close(key, code),
            }
        }
        bytes.len()
    }

    fn message(&mut self, key: usize, message: &Message<'_>) {
        let connection = &mut self.connections[key];
        let rules = &self.settings.rules;
        match *message {
            Message::Text(text) => {
                let subscribed = self.subscriptions.of(key);
                let Connection { session, place, .. } = connection;
                let action = session.text(text, place.user(), &subscribed, rules, self.now_ms);
                self.act(key, action);
            }
            Message::Ping(payload) => match connection.session.control(rules, self.now_ms) {
                Ok(true) => {
                    frame::append_pong(&mut connection.out, payload);
                    self.queue_write(key);
                }
                Ok(false) => {}
                Err(code) => self.close(key, code),
            },
            Message::Pong | Message::EmptyFragment => {
                if let Err(code) = connection.session.control(rules, self.now_ms) {
                    self.close(key, code);
                }
            }
            Message::Close(code) => {
                frame::append_close_answer(&mut connection.out, code);
                self.begin_close(key, CloseCode::Normal);
            }
        }
    }

    fn act(&mut self, key: usize, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Send(json) => self.say(key, &json),
            Action::Close(code) => self.close(key, code),
            Action::Subscribe(subscribe) => {
                let until_ms = self.now_ms + REQUEST_TIMEOUT_MS;
                self.connections[key].waiting = Some(Box::new(Waiting { subscribe, until_ms }));
                self.try_subscribe(key);
            }
            Action::Unsubscribe { id, markets } => {
                for &market in &markets {
                    self.subscriptions.unsubscribe(key, market);
                }
                self.ack(key, &Ack { id, unsubscribed: Some(markets), ..Ack::default() });
            }
            Action::Refreshed { id } => self.refreshed(key, id),
        }
    }

    fn refreshed(&mut self, key: usize, id: Option<MessageId>) {
        let session = &self.connections[key].session;
        let expires_ms = self.now_ms + session.expires_at_ms().saturating_sub(unix_ms());
        let lost: Vec<MarketId> =
            self.subscriptions.of(key).markets().filter(|&id| !session.allows(id)).collect();
        for &market in &lost {
            self.subscriptions.unsubscribe(key, market);
        }
        self.connections[key].deadlines.expires_ms = expires_ms;
        self.schedule(key);
        let rejected = lost.into_iter().map(|market| (market, Refusal::Forbidden)).collect();
        self.ack(key, &Ack { id, rejected, ..Ack::default() });
    }

    // Subscribing: one path for subscribe and resume, live and replay, keyed by position.

    /// Begins delivery of what connection `key` waits for once all of it is there; whether it did.
    fn try_subscribe(&mut self, key: usize) -> bool {
        let Some(mut waiting) =
            self.connections.get_mut(key).and_then(|connection| connection.waiting.take())
        else {
            return false;
        };
        let mut begins = Vec::with_capacity(waiting.subscribe.wanted.len());
        let mut missing = Vec::new();
        for wanted in &mut waiting.subscribe.wanted {
            match self.begin(key, wanted) {
                Some(begin) => begins.push(begin),
                None => missing.push(wanted.market),
            }
        }
        if missing.is_empty() {
            self.subscribe(key, waiting.subscribe, begins);
            return true;
        }
        for market in missing {
            self.subscriptions.wait(key, market);
        }
        self.connections[key].waiting = Some(waiting);
        self.schedule(key);
        false
    }

    fn begin(&mut self, key: usize, wanted: &mut Wanted) -> Option<Begin> {
        let market = self.subscriptions.open(wanted.market);
        match self.subscriptions.cursor(key, wanted.market) {
            Some(cursor) if wanted.start == Start::Live => {
                Some(Begin { cursor, top: cursor, snapshot: None, incarnation: 0 })
            }
            _ => self.markets.begin(&market, wanted, self.settings.resume_max),
        }
    }

    fn subscribe(&mut self, key: usize, subscribe: Subscribe, begins: Vec<Begin>) {
        let Subscribe { id, resume, wanted, rejected } = subscribe;
        let mut subscribed = Vec::with_capacity(wanted.len());
        for (wanted, begin) in wanted.into_iter().zip(begins) {
            let market = wanted.market;
            if wanted.start != Start::Live || self.subscriptions.cursor(key, market).is_none() {
                self.subscriptions.subscribe(key, market, begin);
            }
            self.subscriptions.stop_waiting(key, market);
            let recovered = resume.then_some(begin.snapshot.is_none());
            if let Some(recovered) = recovered {
                let outcome = if recovered { "recovered" } else { "reset" };
                metrics::counter!(names::RESUMES, "outcome" => outcome).increment(1);
            }
            subscribed.push(Subscribed { market, position: begin.top, recovered });
        }
        self.ack(key, &Ack { id, subscribed, rejected, with_positions: true, unsubscribed: None });
    }

    fn rung(&mut self, market: MarketId) {
        let Self { subscriptions, connections, to_write, .. } = self;
        let waiters = subscriptions.look(market, |key| queue(connections, to_write, key));
        for key in waiters {
            if self.try_subscribe(key) {
                self.unpause(key);
            }
        }
        self.subscriptions.close_unused(market);
    }

    // Writing.

    fn say(&mut self, key: usize, json: &str) {
        self.connections[key].say(json);
        self.queue_write(key);
    }

    fn ack(&mut self, key: usize, ack: &Ack) {
        self.say(key, &ack.json());
    }

    fn queue_write(&mut self, key: usize) {
        queue(&mut self.connections, &mut self.to_write, key);
    }

    fn writable(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key)
            && connection.blocked_since.take().is_some()
        {
            self.queue_write(key);
        }
    }

    fn write_round(&mut self) {
        let count = self.to_write.due(self.settings.flush_interval).min(WRITES_A_ROUND);
        for index in 0..count {
            if index % WARM_AT_ONCE == 0 {
                self.warm((count - index).min(WARM_AT_ONCE));
                self.ages.now_us = unix_us();
            }
            let Some((key, _)) = self.to_write.keys.pop_front() else { break };
            self.write(key);
        }
        if self.writes > 0 {
            self.stats.messages_sent.fetch_add(self.messages, Ordering::Relaxed);
            metrics::counter!(names::MESSAGES_SENT).increment(std::mem::take(&mut self.messages));
            metrics::counter!(names::WRITES).increment(std::mem::take(&mut self.writes));
            names::UPDATE_AGE.add(&std::mem::take(&mut self.ages.counts));
        }
    }

    /// Has the next `count` connections' memory fetched. Between two writes the kernel has used the caches for itself, and
    /// waiting for memory would cost one connection as much as everything else here.
    fn warm(&self, count: usize) {
        let mut seen = 0;
        for &(key, _) in self.to_write.keys.iter().take(count) {
            seen ^= self.subscriptions.warm(key);
            seen ^= self.connections.get(key).map_or(0, Connection::warm);
        }
        std::hint::black_box(seen);
    }

    /// One write of what the connection is owed.
    fn write(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.queued = false;
        if connection.blocked_since.is_some() {
            return;
        }
        self.batch.begin(&connection.out, WRITE_BYTES);
        self.subscriptions.gather(key, &mut self.batch);
        let bytes = self.batch.bytes();
        if bytes.is_empty() {
            return self.written(key);
        }
        self.writes += 1;
        let Ok(count) = connection.write(bytes) else { return self.remove(key, "gone") };
        let committed = self.subscriptions.commit(key, &self.batch, count, &mut self.ages);
        self.messages += committed.messages;
        let sent_answers = count.min(connection.out.len());
        let cut = committed.cut_end.map_or(&[][..], |end| &bytes[count..end]);
        if sent_answers == connection.out.len() && cut.is_empty() {
            connection.out = Vec::new();
        } else {
            connection.out.drain(..sent_answers);
            connection.out.extend_from_slice(cut);
        }
        if count < bytes.len() {
            connection.blocked_since = Some(self.now_ms);
            self.schedule(key);
        } else if self.subscriptions.is_pending(key) {
            self.queue_write(key);
        }
        self.written(key);
    }

    /// What follows a write: a closing connection whose bye is out shuts its side; a paused one may read again.
    fn written(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        match &mut connection.phase {
            Phase::Closing { shut, .. } => {
                if connection.out.is_empty() && !std::mem::replace(shut, true) {
                    // When it is gone already, the next read says so.
                    let _ = connection.socket.shutdown(std::net::Shutdown::Write);
                }
            }
            Phase::Open => {
                if !connection.unread.is_empty() || connection.readable {
                    self.unpause(key);
                }
            }
        }
    }

    /// Goes on with what the client said while it was not listened to.
    fn unpause(&mut self, key: usize) {
        if self.connections.get(key).is_some_and(|connection| !connection.is_paused()) {
            self.work_off_unread(key);
            if self.connections.get(key).is_some_and(|connection| connection.readable) {
                self.to_read.push(key);
            }
        }
    }

    // Time.

    fn schedule(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let due_ms = connection.next_due_ms(&self.settings.timing);
        if due_ms < connection.deadlines.wake_ms {
            connection.deadlines.wake_ms = due_ms;
            self.wheel.schedule(u32::try_from(key).unwrap_or(u32::MAX), due_ms);
        }
    }

    fn do_what_is_due(&mut self) {
        let mut due = Vec::new();
        self.wheel.advance(self.now_ms, |key, due_ms| due.push((key as usize, due_ms)));
        for (key, due_ms) in due {
            // A key may have been given to another connection since, or been woken for something earlier.
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if connection.deadlines.wake_ms != due_ms {
                continue;
            }
            connection.deadlines.wake_ms = u64::MAX;
            self.check(key);
            if self.connections.contains(key) {
                self.schedule(key);
            }
        }
    }

    fn check(&mut self, key: usize) {
        let now_ms = self.now_ms;
        let timing = self.settings.timing;
        let connection = &mut self.connections[key];
        if let Phase::Closing { until_ms, .. } = connection.phase {
            if now_ms >= until_ms {
                self.remove(key, "lingered");
            }
            return;
        }
        if let Some(code) = connection.verdict(&timing, now_ms) {
            return self.close(key, code);
        }
        if now_ms >= connection.deadlines.heartbeat_ms {
            connection.deadlines.heartbeat_ms = now_ms + timing.heartbeat_interval_ms;
            // A client that does not even take what it is owed needs no ping.
            if connection.blocked_since.is_none() {
                connection.say(&server::ping(unix_ms()));
                connection.out.extend_from_slice(&frame::PING);
                self.queue_write(key);
            }
        }
    }

    // Ending.

    /// Says bye and closes.
    fn close(&mut self, key: usize, code: CloseCode) {
        if self.connections[key].is_open() {
            let spread_ms =
                if code == CloseCode::Draining { rand::random_range(0..=MAX_DRAIN_SPREAD_MS) } else { 0 };
            let connection = &mut self.connections[key];
            connection.say(&server::bye(code, code.after_ms() + spread_ms));
            frame::append_close(&mut connection.out, code);
            self.begin_close(key, code);
        }
    }

    /// What follows once the close frame is among what goes out.
    fn begin_close(&mut self, key: usize, code: CloseCode) {
        self.stop_waiting(key);
        self.subscriptions.unsubscribe_all(key);
        let connection = &mut self.connections[key];
        connection.phase = Phase::Closing { until_ms: self.now_ms + CLOSE_LINGER_MS, shut: false };
        connection.unread = Vec::new();
        connection.deadlines.wake_ms = u64::MAX;
        let drain_ms = connection.deadlines.drain_ms.map(tracing::field::display);
        tracing::debug!(code = code.number(), drain_ms, "a connection is closed");
        self.stats.connections.fetch_sub(1, Ordering::Relaxed);
        metrics::counter!(names::CLOSES, "code" => code.number().to_string()).increment(1);
        self.schedule(key);
        self.queue_write(key);
    }

    /// Drops the socket.
    fn remove(&mut self, key: usize, why: &'static str) {
        self.stop_waiting(key);
        self.subscriptions.unsubscribe_all(key);
        let mut connection = self.connections.remove(key);
        if connection.is_open() {
            self.stats.connections.fetch_sub(1, Ordering::Relaxed);
            metrics::counter!(names::CLOSES, "code" => why).increment(1);
        }
        // Dropping the socket takes it out of the poll as well; this only says so at once.
        let _ = self.poll.registry().deregister(&mut connection.socket);
        if is_roomy(self.connections.len(), self.connections.capacity()) {
            self.connections.shrink_to_fit();
            self.to_write.keys.shrink_to_fit();
            self.subscriptions.shrink(self.connections.capacity());
        }
    }

    fn stop_waiting(&mut self, key: usize) {
        if let Some(waiting) = self.connections[key].waiting.take() {
            for wanted in &waiting.subscribe.wanted {
                self.subscriptions.stop_waiting(key, wanted.market);
            }
        }
    }
}

/// Connections that are owed something and whose sockets take it, each once, in the order they came to be so.
#[derive(Default)]
struct ToWrite {
    /// With the time since the shard's start at which they were queued.
    keys: VecDeque<(usize, Duration)>,
    /// As of this round.
    now: Duration,
}

impl ToWrite {
    /// How many have waited for `interval`. Each waits for itself: updates that come meanwhile go with the first, and
    /// writes are spread over time.
    fn due(&self, interval: Duration) -> usize {
        if interval.is_zero() {
            return self.keys.len();
        }
        self.keys.partition_point(|(_, since)| *since + interval <= self.now)
    }
}

fn queue(connections: &mut Slab<Connection>, to_write: &mut ToWrite, key: usize) {
    if let Some(connection) = connections.get_mut(key)
        && !connection.queued
        && connection.blocked_since.is_none()
    {
        connection.queued = true;
        to_write.keys.push_back((key, to_write.now));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    use shared::{
        backbone::{Revocation, Revoked},
        token::{Audience, Keyring},
    };

    use super::*;
    use crate::{
        limits::{Places, Rate},
        log::Bound,
        tokens::Tokens,
    };

    /// Between a handshake's check and the shard nobody can be told: the shard looks again.
    #[test]
    fn a_connection_whose_token_was_revoked_on_its_way_here_is_closed() {
        let tokens = Arc::new(Tokens::new(Keyring::random(Audience::Ws)));
        let rate = Rate { burst: 20, per_second: 5 };
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
        tokens.learn(&[Revocation { whom: Revoked::Token("a".into()), ts: now_ms }], now_ms);
        let place = Places::new(1, 1).take("1").unwrap();
        shard.adopt(Accepted { socket, leftover: Vec::new(), claims, place });

        let mut said = Vec::new();
        client.read_to_end(&mut said).unwrap();
        assert!(String::from_utf8_lossy(&said).contains("NOT_ALLOWED"));
        drop(client);
        shard.drain(Duration::ZERO);
        thread.join().unwrap();
    }
}
