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
    market::{Begin, Market},
    markets::Markets,
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
            market.watches.set(self.shard, true);
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
            market.watches.set(self.shard, false);
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
mod tests;
