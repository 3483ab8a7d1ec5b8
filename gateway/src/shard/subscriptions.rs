//! Who wants which market from where: a shard's markets, subscriptions with a cursor each, and what is to be written.
//!
//! ```text
//!   connection ─▶ subscription ─▶ subscription ─▶ …      (a list through the slab: `next`)
//!        │             ▲                ▲
//!        └─▶ pending ──┴── those with something to write (a list through the slab: `next_pending`)
//!   market ─▶ [subscription, subscription, …]            (who to look at when it rings)
//! ```
//!
//! Nothing here allocates on the delivery path, and nothing here writes to a socket: [`Subscriptions::gather`] copies
//! what a connection is owed into one buffer (a large frame is taken as it is), and [`Subscriptions::commit`] moves the
//! cursors by what was written of it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use protocol::{MarketId, Position, server_message::SnapshotCause};
use service::telemetry::Counts;
use slab::Slab;

use crate::{
    frame::Encoded,
    log::{After, Log},
    market::{Begin, Market, Markets},
    session::Subscribed,
};

/// No link.
const NONE: u32 = u32::MAX;
/// A frame of this many bytes or more is written by itself, from where it is: copying it costs more than a write.
const LARGE_FRAME_BYTES: usize = 4096;

/// A shard's share of the markets and everything subscribed there.
pub struct Subscriptions {
    shard: usize,
    registry: Arc<Markets>,
    markets: Slab<Local>,
    by_id: HashMap<MarketId, usize>,
    entries: Slab<Entry>,
    /// By connection key.
    heads: Vec<Heads>,
}

/// A market with somebody in this shard.
struct Local {
    market: Arc<Market>,
    /// The log as of the last look.
    view: Log,
    subscribers: Vec<u32>,
    /// Connections whose request waits for this market. After an outage that can be all of them.
    waiters: BTreeSet<usize>,
}

/// A connection's lists.
#[derive(Clone, Copy)]
struct Heads {
    first: u32,
    count: u32,
    pending_first: u32,
    pending_last: u32,
}

/// One subscription: 40 bytes, and 4 in its market's list.
struct Entry {
    connection: u32,
    market: u32,
    cursor: Position,
    /// The snapshot that comes before anything else.
    snapshot: Option<SnapshotCause>,
    pending: bool,
    /// Updates to come that were there before it was: their age says when the client came, not how fast we are.
    replayed: u16,
    next: u32,
    next_pending: u32,
    /// Its place in the market's list.
    place: u32,
}

/// What a connection is owed and one write may take: small frames in one buffer, or one large frame as it is. And where
/// the cursors are once it is written.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Bytes that go first and belong to no subscription.
    prefix: usize,
    large: Option<Encoded>,
    parts: Vec<Part>,
    max_bytes: usize,
    full: bool,
}

/// One frame of a batch.
struct Part {
    entry: u32,
    /// Where it ends in the bytes.
    end: usize,
    /// The cursor once it is written.
    cursor: Position,
    content: Content,
}

/// What a frame carries.
#[derive(Clone, Copy)]
enum Content {
    /// An update, accepted at this Unix ms.
    Update {
        ts: u64,
    },
    Snapshot(SnapshotCause),
}

/// What was written of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Updates and snapshots that are on their way.
    pub messages: u64,
    /// Up to where in the bytes the frame reaches that was cut: its rest must be written before anything else.
    pub cut_end: Option<usize>,
}

/// How old updates were when they were written to a socket.
#[derive(Default)]
pub struct Ages {
    /// Unix microseconds, as of the last few writes.
    pub now_us: u64,
    /// What has not been handed on yet.
    pub counts: Counts,
}

impl Ages {
    fn note(&mut self, ts: u64) {
        self.counts.record(self.now_us.saturating_sub(ts * 1000));
    }
}

impl Batch {
    /// Begins anew with these bytes, keeping its room. It is full at `max_bytes`, or some more.
    pub fn begin(&mut self, prefix: &[u8], max_bytes: usize) {
        self.bytes.clear();
        self.parts.clear();
        self.large = None;
        self.bytes.extend_from_slice(prefix);
        self.prefix = prefix.len();
        self.max_bytes = max_bytes;
        self.full = prefix.len() >= max_bytes;
    }

    /// Frames, ready to write.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.large.as_deref().unwrap_or(&self.bytes)
    }

    /// Adds a frame of subscription `entry`, which is at `cursor` once it is written, unless the batch is full.
    fn add(&mut self, frame: &Encoded, entry: u32, cursor: Position, content: Content) {
        if frame.len() < LARGE_FRAME_BYTES {
            self.bytes.extend_from_slice(frame);
            self.full = self.bytes.len() >= self.max_bytes;
        } else {
            self.full = true;
            if !self.bytes.is_empty() {
                return;
            }
            self.large = Some(Encoded::clone(frame));
        }
        self.parts.push(Part { entry, end: self.bytes().len(), cursor, content });
    }
}

impl Subscriptions {
    /// Nothing yet, in shard number `shard`.
    #[must_use]
    pub fn new(shard: usize, registry: Arc<Markets>) -> Self {
        Self {
            shard,
            registry,
            markets: Slab::new(),
            by_id: HashMap::new(),
            entries: Slab::new(),
            heads: Vec::new(),
        }
    }

    /// Makes room for connection `key`.
    pub fn add_connection(&mut self, key: usize) {
        if self.heads.len() <= key {
            self.heads.resize(key + 1, Heads::EMPTY);
        }
        self.heads[key] = Heads::EMPTY;
    }

    /// Gives back what a crowd that has left had needed; connection keys are below `max_key` from now on.
    pub fn shrink(&mut self, max_key: usize) {
        self.heads.truncate(max_key);
        self.heads.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.markets.shrink_to_fit();
        self.by_id.shrink_to_fit();
    }

    /// The market here, followed from now on.
    pub fn open(&mut self, id: MarketId) -> Arc<Market> {
        let index = *self.by_id.entry(id).or_insert_with(|| {
            let market = self.registry.follow(id);
            market.watch(self.shard, true);
            let view = market.view();
            self.markets.insert(Local { market, view, subscribers: Vec::new(), waiters: BTreeSet::new() })
        });
        Arc::clone(&self.markets[index].market)
    }

    /// Connection `key` waits for the market, which must be open.
    pub fn wait(&mut self, key: usize, id: MarketId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.markets[index].waiters.insert(key);
        }
    }

    /// Connection `key` no longer waits for the market.
    pub fn stop_waiting(&mut self, key: usize, id: MarketId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.markets[index].waiters.remove(&key);
            self.close_if_unused(index);
        }
    }

    /// Subscribes connection `key`, or moves its subscription, to where `begin` says.
    pub fn subscribe(&mut self, key: usize, id: MarketId, begin: Begin) {
        self.open(id);
        self.catch_up(self.by_id[&id]);
        let entry = match self.find(key, id) {
            Some(entry) => entry,
            None => self.insert(key, id),
        };
        let subscription = &mut self.entries[entry as usize];
        subscription.cursor = begin.cursor;
        subscription.snapshot = begin.snapshot;
        let replayed = begin.latest.seq.get().saturating_sub(begin.cursor.seq.get());
        subscription.replayed = u16::try_from(replayed).unwrap_or(u16::MAX);
        if self.markets[subscription.market as usize].view.generation() != begin.generation {
            subscription.snapshot = Some(SnapshotCause::Reset);
        }
        self.queue_if_behind(entry);
    }

    /// Makes a market's view its log. When that is another log, whoever was served from the former one gets the state
    /// of this one first.
    fn catch_up(&mut self, index: usize) {
        let Local { market, view, subscribers, .. } = &mut self.markets[index];
        if market.look(self.shard, view) {
            reset(&mut self.entries, subscribers);
        }
    }

    /// Where connection `key` is in the market, if it is subscribed.
    #[must_use]
    pub fn cursor(&self, key: usize, id: MarketId) -> Option<Position> {
        self.find(key, id).map(|entry| self.entries[entry as usize].cursor)
    }

    /// Ends one subscription. Whether there was one.
    pub fn unsubscribe(&mut self, key: usize, id: MarketId) -> bool {
        let Some(entry) = self.find(key, id) else { return false };
        self.unlink_pending(key, entry);
        let mut link = self.heads[key].first;
        let after = self.entries[entry as usize].next;
        if link == entry {
            self.heads[key].first = after;
        } else {
            while self.entries[link as usize].next != entry {
                link = self.entries[link as usize].next;
            }
            self.entries[link as usize].next = after;
        }
        self.heads[key].count -= 1;
        self.remove(entry);
        true
    }

    /// Ends all of a connection's subscriptions.
    pub fn unsubscribe_all(&mut self, key: usize) {
        let mut link = self.heads[key].first;
        self.heads[key] = Heads::EMPTY;
        while link != NONE {
            let next = self.entries[link as usize].next;
            self.remove(link);
            link = next;
        }
    }

    /// The markets connection `key` is subscribed to.
    #[must_use]
    pub fn of(&self, key: usize) -> OfConnection<'_> {
        OfConnection { subscriptions: self, key }
    }

    /// Looks at a market that rang: calls `pending` for each connection that is now owed something, starting at
    /// another one each time, and answers with the connections whose requests waited for it.
    pub fn look(&mut self, id: MarketId, mut pending: impl FnMut(usize)) -> BTreeSet<usize> {
        let Some(&index) = self.by_id.get(&id) else { return BTreeSet::new() };
        self.catch_up(index);
        let Local { subscribers, waiters, .. } = &mut self.markets[index];
        let waiters = std::mem::take(waiters);
        let subscribers = std::mem::take(subscribers);
        let turn = usize::try_from(self.markets[index].view.latest().seq.get()).unwrap_or(0);
        let (first, rest) = subscribers.split_at(turn.wrapping_mul(31) % subscribers.len().max(1));
        for &entry in rest.iter().chain(first) {
            if self.queue_if_behind(entry) {
                pending(self.entries[entry as usize].connection as usize);
            }
        }
        self.markets[index].subscribers = subscribers;
        waiters
    }

    /// How many subscribers of a market have its update at `position`, or later ones.
    #[must_use]
    pub fn reached(&self, id: MarketId, position: Position) -> usize {
        let has = |entry: &&u32| self.entries[**entry as usize].cursor >= position;
        self.by_id.get(&id).map_or(0, |&index| self.markets[index].subscribers.iter().filter(has).count())
    }

    /// Lets go of a market that turned out to be wanted by nobody here.
    pub fn close_unused(&mut self, id: MarketId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.close_if_unused(index);
        }
    }

    /// Whether connection `key` is owed anything.
    #[must_use]
    pub fn is_pending(&self, key: usize) -> bool {
        self.heads[key].pending_first != NONE
    }

    /// Adds to `batch` what connection `key` is owed, until it is full.
    pub fn gather(&mut self, key: usize, batch: &mut Batch) {
        let mut link = self.heads[key].pending_first;
        while link != NONE && !batch.full {
            let Entry { market, mut cursor, mut snapshot, next_pending, .. } = self.entries[link as usize];
            let Local { market, view, subscribers, .. } = &mut self.markets[market as usize];
            while !batch.full {
                if let Some(cause) = snapshot.take() {
                    let (frame, another) = market.snapshot(cause, view);
                    if another {
                        reset(&mut self.entries, subscribers);
                    }
                    cursor = view.latest();
                    batch.add(&frame, link, cursor, Content::Snapshot(cause));
                    continue;
                }
                match view.after(cursor) {
                    After::CaughtUp | After::Ahead => break,
                    After::Trimmed => snapshot = Some(SnapshotCause::Conflated),
                    After::OtherEpoch => snapshot = Some(SnapshotCause::Reset),
                    After::Updates(updates) => {
                        for update in updates {
                            cursor = Position { epoch: view.latest().epoch, seq: cursor.seq.next() };
                            batch.add(&update.frame, link, cursor, Content::Update { ts: update.ts });
                            if batch.full {
                                break;
                            }
                        }
                    }
                }
            }
            link = next_pending;
        }
    }

    /// Looks at what [`Subscriptions::gather`] will need of these connections, so that it comes from memory for all of
    /// them at once rather than one after the other between the writes.
    #[must_use]
    pub fn warm(&self, key: usize) -> u64 {
        let first = self.heads[key].pending_first;
        self.entries.get(first as usize).map_or(0, |entry| entry.cursor.seq.get())
    }

    /// Moves the cursors of connection `key` by what was `written` of the batch, and notes how old each update was by
    /// then that is no replay.
    pub fn commit(&mut self, key: usize, batch: &Batch, written: usize, ages: &mut Ages) -> Committed {
        let mut committed = Committed::default();
        let mut start = batch.prefix;
        for part in &batch.parts {
            // A frame is committed as soon as one byte of it is out.
            if written <= start {
                break;
            }
            start = part.end;
            let entry = &mut self.entries[part.entry as usize];
            entry.cursor = part.cursor;
            entry.snapshot = None;
            match part.content {
                Content::Update { .. } if entry.replayed > 0 => entry.replayed -= 1,
                Content::Update { ts } => ages.note(ts),
                Content::Snapshot(cause) => {
                    entry.replayed = 0;
                    count_snapshot(cause);
                }
            }
            committed.messages += 1;
            if written < part.end {
                committed.cut_end = Some(part.end);
                break;
            }
        }
        self.settle(key);
        committed
    }

    /// Takes what is caught up off the pending list, and lets the next one go first.
    fn settle(&mut self, key: usize) {
        loop {
            let first = self.heads[key].pending_first;
            if first == NONE {
                return;
            }
            self.unlink_pending(key, first);
            if self.is_behind(first) {
                self.link_pending(first);
                return;
            }
        }
    }

    fn find(&self, key: usize, id: MarketId) -> Option<u32> {
        let market = u32::try_from(*self.by_id.get(&id)?).ok()?;
        let mut link = self.heads[key].first;
        while link != NONE {
            let entry = &self.entries[link as usize];
            if entry.market == market {
                return Some(link);
            }
            link = entry.next;
        }
        None
    }

    fn insert(&mut self, key: usize, id: MarketId) -> u32 {
        self.open(id);
        let market = self.by_id[&id];
        let subscribers = &mut self.markets[market].subscribers;
        let heads = &mut self.heads[key];
        let entry = link(self.entries.insert(Entry {
            connection: link(key),
            market: link(market),
            cursor: Position::ORIGIN,
            snapshot: None,
            pending: false,
            replayed: 0,
            next: heads.first,
            next_pending: NONE,
            place: link(subscribers.len()),
        }));
        subscribers.push(entry);
        heads.first = entry;
        heads.count += 1;
        entry
    }

    /// Takes an entry out of its market and out of the slab. Its connection's lists must have let go of it.
    fn remove(&mut self, entry: u32) {
        let Entry { market, place, .. } = self.entries.remove(entry as usize);
        let subscribers = &mut self.markets[market as usize].subscribers;
        subscribers.swap_remove(place as usize);
        if let Some(&moved) = subscribers.get(place as usize) {
            self.entries[moved as usize].place = place;
        }
        self.close_if_unused(market as usize);
    }

    fn close_if_unused(&mut self, index: usize) {
        let local = &self.markets[index];
        if local.subscribers.is_empty() && local.waiters.is_empty() {
            let Local { market, .. } = self.markets.remove(index);
            market.watch(self.shard, false);
            self.by_id.remove(&market.id);
        }
    }

    fn is_behind(&self, entry: u32) -> bool {
        let Entry { market, cursor, snapshot, .. } = &self.entries[entry as usize];
        let view = &self.markets[*market as usize].view;
        snapshot.is_some() || !matches!(view.after(*cursor), After::CaughtUp | After::Ahead)
    }

    /// Puts an entry on its connection's pending list if it has something to write. Whether the connection had
    /// nothing pending before.
    fn queue_if_behind(&mut self, entry: u32) -> bool {
        if self.entries[entry as usize].pending || !self.is_behind(entry) {
            return false;
        }
        let key = self.entries[entry as usize].connection as usize;
        let was_idle = self.heads[key].pending_first == NONE;
        self.link_pending(entry);
        was_idle
    }

    fn link_pending(&mut self, entry: u32) {
        let subscription = &mut self.entries[entry as usize];
        subscription.pending = true;
        subscription.next_pending = NONE;
        let heads = &mut self.heads[subscription.connection as usize];
        let last = std::mem::replace(&mut heads.pending_last, entry);
        if last == NONE {
            heads.pending_first = entry;
        } else {
            self.entries[last as usize].next_pending = entry;
        }
    }

    fn unlink_pending(&mut self, key: usize, entry: u32) {
        if !std::mem::take(&mut self.entries[entry as usize].pending) {
            return;
        }
        let after = std::mem::replace(&mut self.entries[entry as usize].next_pending, NONE);
        let mut before = NONE;
        let mut at = self.heads[key].pending_first;
        while at != entry {
            before = at;
            at = self.entries[at as usize].next_pending;
        }
        let heads = &mut self.heads[key];
        if heads.pending_last == entry {
            heads.pending_last = before;
        }
        if before == NONE {
            heads.pending_first = after;
        } else {
            self.entries[before as usize].next_pending = after;
        }
    }
}

impl Heads {
    const EMPTY: Self = Self { first: NONE, count: 0, pending_first: NONE, pending_last: NONE };
}

/// One connection's subscriptions.
pub struct OfConnection<'a> {
    subscriptions: &'a Subscriptions,
    key: usize,
}

impl OfConnection<'_> {
    /// The markets.
    pub fn markets(&self) -> impl Iterator<Item = MarketId> {
        let mut link = self.subscriptions.heads[self.key].first;
        std::iter::from_fn(move || {
            let entry = self.subscriptions.entries.get(link as usize)?;
            link = entry.next;
            Some(self.subscriptions.markets[entry.market as usize].market.id)
        })
    }
}

impl Subscribed for OfConnection<'_> {
    fn count(&self) -> usize {
        self.subscriptions.heads[self.key].count as usize
    }

    fn contains(&self, market: MarketId) -> bool {
        self.subscriptions.find(self.key, market).is_some()
    }
}

/// Everyone here gets the state before anything else.
fn reset(entries: &mut Slab<Entry>, subscribers: &[u32]) {
    for &entry in subscribers {
        entries[entry as usize].snapshot = Some(SnapshotCause::Reset);
    }
}

/// Slab keys fit: a pod has far fewer than 2^32 sockets or subscriptions.
fn link(key: usize) -> u32 {
    u32::try_from(key).expect("fewer than 2^32 entries")
}

fn count_snapshot(cause: SnapshotCause) {
    let cause = match cause {
        SnapshotCause::Asked => "asked",
        SnapshotCause::Reset => "reset",
        SnapshotCause::Conflated => "conflated",
    };
    metrics::counter!(crate::metrics::SNAPSHOTS, "cause" => cause).increment(1);
}

#[cfg(test)]
mod tests {
    use backbone::Loaded;
    use proptest::prelude::*;
    use protocol::{MarketState, Payload, Update, client_message::Offset};

    use super::*;
    use crate::{
        frame,
        log::Bound,
        market::{Start, Wanted},
    };

    const BOUND: Bound = Bound { updates: 6, bytes: 100_000 };
    const CLIENTS: usize = 3;
    const MARKETS: u64 = 3;

    /// What the world does.
    #[derive(Clone, Debug)]
    enum Step {
        Publish {
            market: u64,
            count: u64,
        },
        NewEpoch {
            market: u64,
        },
        /// History is lost, and its numbers are used again.
        GoBack {
            market: u64,
            count: u64,
        },
        Look {
            market: u64,
        },
        Subscribe {
            client: usize,
            market: u64,
            snapshot: bool,
        },
        /// Resume from where the client is.
        Resume {
            client: usize,
            market: u64,
        },
        Unsubscribe {
            client: usize,
            market: u64,
        },
        /// The socket takes this many bytes.
        Write {
            client: usize,
            room: usize,
        },
        Leave {
            client: usize,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (client, market) = (0..CLIENTS, 1..=MARKETS);
        let step = prop_oneof![
            4 => (market.clone(), 1u64..5).prop_map(|(market, count)| Step::Publish { market, count }),
            1 => market.clone().prop_map(|market| Step::NewEpoch { market }),
            1 => (market.clone(), 1u64..9).prop_map(|(market, count)| Step::GoBack { market, count }),
            4 => market.clone().prop_map(|market| Step::Look { market }),
            2 => (client.clone(), market.clone(), any::<bool>()).prop_map(|(client, market, snapshot)| Step::Subscribe { client, market, snapshot }),
            1 => (client.clone(), market.clone()).prop_map(|(client, market)| Step::Resume { client, market }),
            1 => (client.clone(), market).prop_map(|(client, market)| Step::Unsubscribe { client, market }),
            5 => (client.clone(), 0usize..600).prop_map(|(client, room)| Step::Write { client, room }),
            1 => client.prop_map(|client| Step::Leave { client }),
        ];
        proptest::collection::vec(step, 1..80)
    }

    /// A client: what it was told, byte by byte, and what it makes of it by the contract's rule 1.
    #[derive(Default)]
    struct Client {
        cut: Vec<u8>,
        received: Vec<u8>,
        at: HashMap<u64, At>,
    }

    /// Where a client is, and in which history: an epoch may be used twice.
    #[derive(Clone, Copy, Debug)]
    struct At {
        position: Position,
        history: u64,
    }

    impl Client {
        /// Takes whole frames off what was received.
        fn digest(&mut self) {
            while self.received.len() >= 4 {
                let (header, length) = match self.received[1] {
                    126 => (4, usize::from(u16::from_be_bytes([self.received[2], self.received[3]]))),
                    short => (2, usize::from(short)),
                };
                if self.received.len() < header + length {
                    return;
                }
                let frame: Vec<u8> = self.received.drain(..header + length).collect();
                let message: serde_json::Value =
                    serde_json::from_slice(&frame[header..]).expect("whole frames");
                let number = |name: &str| message[name].as_u64();
                let (market, seq) = (number("marketId").unwrap(), number("seq").unwrap());
                let at =
                    self.at.get_mut(&market).expect("nothing comes from a market that is not subscribed");
                let history = message["payload"]["l"]["history"].as_u64();
                match message["type"].as_str() {
                    Some("snapshot") => {
                        at.position = Position::new(number("epoch").unwrap(), seq);
                        at.history = history.unwrap_or(at.history);
                    }
                    _ => {
                        assert_eq!(seq, at.position.seq.get() + 1, "a hole or a duplicate in {market}");
                        assert_eq!(Some(at.history), history, "another history without a reset");
                        at.position.seq = at.position.seq.next();
                    }
                }
            }
        }
    }

    struct World {
        registry: Arc<Markets>,
        subscriptions: Subscriptions,
        latest_positions: HashMap<u64, At>,
        clients: Vec<Client>,
        ages: Ages,
    }

    fn id(market: u64) -> MarketId {
        MarketId::new(market).unwrap()
    }

    fn update(at: At) -> Update {
        let pad = if at.position.seq.get().is_multiple_of(5) { LARGE_FRAME_BYTES } else { 0 };
        let payload = format!(r#"{{"l":{{"history":{},"p":1.50,"pad":"{:pad$}"}}}}"#, at.history, "");
        Update { position: at.position, ts: 1, payload: payload.into(), trace: None }
    }

    impl World {
        fn new() -> Self {
            let registry = Markets::new(BOUND, 1, Box::new(|_| 0));
            let mut subscriptions = Subscriptions::new(0, Arc::clone(&registry));
            for client in 0..CLIENTS {
                subscriptions.add_connection(client);
            }
            for market in 1..=MARKETS {
                let _ = registry.follow(id(market));
                registry.loaded(id(market), Loaded::default(), true);
            }
            let clients = (0..CLIENTS).map(|_| Client::default()).collect();
            Self { registry, subscriptions, latest_positions: HashMap::new(), clients, ages: Ages::default() }
        }

        fn latest(&mut self, market: u64) -> &mut At {
            self.latest_positions.entry(market).or_insert(At { position: Position::new(100, 0), history: 0 })
        }

        fn publish(&mut self, market: u64) {
            let latest = self.latest(market);
            latest.position.seq = latest.position.seq.next();
            let next = update(*latest);
            assert_eq!(self.registry.read(id(market), &[next]), 1);
        }

        fn new_epoch(&mut self, market: u64) {
            let latest = self.latest(market);
            latest.history += 1;
            latest.position = Position::new(latest.position.epoch.get() + 1, latest.position.seq.get() + 3);
            let first = update(*latest);
            self.registry.read(id(market), std::slice::from_ref(&first));
            self.load(market, first);
        }

        fn go_back(&mut self, market: u64, count: u64) {
            let latest = self.latest(market);
            if latest.position.seq.get() <= count {
                return;
            }
            latest.history += 1;
            latest.position = Position::new(latest.position.epoch.get(), latest.position.seq.get() - count);
            let (last, position) = (update(*latest), latest.position);
            self.registry.check_top(id(market), position);
            self.load(market, last);
        }

        /// The market as it is when the log has nothing but `last`.
        fn load(&mut self, market: u64, last: Update) {
            let mut state = MarketState::default();
            state.apply(last.position, 1, &Payload::parse(&last.payload).unwrap());
            self.registry.loaded(id(market), Loaded { state, updates: vec![last] }, true);
        }

        fn begin(&mut self, client: usize, market: u64, start: Start) {
            let held = self.subscriptions.open(id(market));
            let Some(begin) = self.registry.begin(&held, &mut Wanted::new(id(market), start), 4) else {
                return self.subscriptions.close_unused(id(market));
            };
            self.flush(client);
            self.subscriptions.subscribe(client, id(market), begin);
            let history = self.latest(market).history;
            self.clients[client].at.insert(market, At { position: begin.cursor, history });
        }

        /// The rest of a cut frame goes out before an ack does.
        fn flush(&mut self, client: usize) {
            let client = &mut self.clients[client];
            let cut = std::mem::take(&mut client.cut);
            client.received.extend(cut);
            client.digest();
        }

        fn write(&mut self, client: usize, room: usize) {
            let mut batch = Batch::default();
            batch.begin(&self.clients[client].cut, 500);
            self.subscriptions.gather(client, &mut batch);
            let written = room.min(batch.bytes().len());
            let committed = self.subscriptions.commit(client, &batch, written, &mut self.ages);
            let to = &mut self.clients[client];
            to.received.extend_from_slice(&batch.bytes()[..written]);
            let rest_of_cut = to.cut.split_off(written.min(to.cut.len()));
            to.cut = rest_of_cut;
            if let Some(end) = committed.cut_end {
                to.cut.extend_from_slice(&batch.bytes()[written..end]);
            }
            to.digest();
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Publish { market, count } => (0..count).for_each(|_| self.publish(market)),
                Step::NewEpoch { market } => self.new_epoch(market),
                Step::GoBack { market, count } => self.go_back(market, count),
                Step::Look { market } => {
                    self.subscriptions.look(id(market), |_| {});
                }
                Step::Subscribe { client, market, snapshot } => {
                    self.begin(client, market, if snapshot { Start::Snapshot } else { Start::Live });
                }
                Step::Resume { client, market } => {
                    if let Some(at) = self.clients[client].at.get(&market).copied() {
                        // A client whose history's epoch is used again could not be told from another.
                        let position = at.position;
                        let epoch = (position != Position::ORIGIN).then_some(position.epoch);
                        if at.history == self.latest(market).history {
                            self.begin(client, market, Start::After(Offset { epoch, seq: position.seq }));
                        }
                    }
                }
                Step::Unsubscribe { client, market } => {
                    self.flush(client);
                    self.subscriptions.unsubscribe(client, id(market));
                    self.clients[client].at.remove(&market);
                }
                Step::Write { client, room } => self.write(client, room),
                Step::Leave { client } => {
                    self.subscriptions.unsubscribe_all(client);
                    self.clients[client] = Client::default();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever happens in whatever order, each client sees each market without hole or duplicate, and in the
        /// end has everything; and when all have left, nothing is held.
        #[test]
        fn every_client_sees_every_market_whole(steps in steps()) {
            let mut world = World::new();
            for step in &steps {
                world.step(step);
            }
            for market in 1..=MARKETS {
                world.subscriptions.look(id(market), |_| {});
            }
            for client in 0..CLIENTS {
                while world.subscriptions.is_pending(client) || !world.clients[client].cut.is_empty() {
                    world.write(client, 10_000);
                }
                for (market, at) in &world.clients[client].at {
                    let latest = world.latest_positions.get(market).map_or(Position::ORIGIN, |latest| latest.position);
                    prop_assert_eq!(at.position.seq, latest.seq, "client {} in {}", client, market);
                }
                world.subscriptions.unsubscribe_all(client);
            }
            prop_assert!(world.subscriptions.markets.is_empty() && world.subscriptions.entries.is_empty());
            prop_assert_eq!(world.registry.watched(), 0);
        }
    }

    #[test]
    fn a_subscription_costs_what_its_picture_says() {
        assert_eq!(std::mem::size_of::<Entry>(), 40);
    }

    #[test]
    fn the_age_of_what_came_live_is_noted_and_of_no_replay() {
        let mut world = World::new();
        world.begin(0, 1, Start::Live);
        world.publish(1);
        world.publish(1);
        world.subscriptions.look(id(1), |_| {});
        let ages = |world: &mut World| {
            world.ages.now_us = 1_700;
            world.write(0, 10_000);
            let Counts { buckets, sum_us } = std::mem::take(&mut world.ages.counts);
            (buckets.iter().sum::<u64>(), sum_us)
        };
        // Each was accepted at 1 ms.
        assert_eq!(ages(&mut world), (2, 1_400));
        let first = Offset { epoch: Some(protocol::Epoch::new(100)), seq: protocol::Seq::new(1) };
        world.begin(0, 1, Start::After(first));
        world.publish(1);
        world.subscriptions.look(id(1), |_| {});
        assert_eq!(ages(&mut world), (1, 700));
        world.begin(0, 1, Start::Snapshot);
        assert_eq!(ages(&mut world), (0, 0));
    }

    #[test]
    fn a_frame_is_written_as_it_was_encoded() {
        let mut world = World::new();
        world.begin(0, 1, Start::Live);
        world.publish(1);
        world.subscriptions.look(id(1), |_| {});
        let mut batch = Batch::default();
        batch.begin(&[], 500);
        world.subscriptions.gather(0, &mut batch);
        let expected = frame::text(&protocol::server_message::odds_update(
            id(1),
            &update(At { position: Position::new(100, 1), history: 0 }),
        ));
        assert_eq!(batch.bytes(), &*expected);
    }
}
