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

mod batch;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use protocol::{MarketId, Position, server_message::SnapshotCause};
use slab::Slab;

pub use self::batch::{Ages, Batch};
use crate::{
    log::{After, Log},
    market::{Begin, Market},
    markets::Markets,
    session::Subscribed,
};

/// No link.
const NONE: u32 = u32::MAX;
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

    /// Looks at what [`Subscriptions::gather`] will need of these connections, so that it comes from memory for all of
    /// them at once rather than one after the other between the writes.
    #[must_use]
    pub fn warm(&self, key: usize) -> u64 {
        let first = self.heads[key].pending_first;
        self.entries.get(first as usize).map_or(0, |entry| entry.cursor.seq.get())
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

#[cfg(test)]
mod tests;
