//! The subscriptions of a shard: its markets, a cursor per subscription, and what each connection has to send.
//!
//! ```text
//!   connection ─▶ subscription ─▶ subscription ─▶ …      (list through the slab: `next`)
//!        │             ▲                ▲
//!        └─▶ pending ──┴── subscriptions with something to send (list through the slab: `next_pending`)
//!   market ─▶ [subscription, subscription, …]            (looked at when the market has changed)
//! ```
//!
//! A connection may wait for a market before it is subscribed. The market's `waiters` are these connections.
//!
//! No method allocates on the delivery path, and none writes to a socket. `batch.rs` has the two that deliver:
//! [`Subscriptions::gather`] copies what a connection has to send, and [`Subscriptions::commit`] moves its cursors.

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

/// The end of a list.
const NONE: u32 = u32::MAX;
/// The markets that a shard serves, and every subscription to them.
pub struct Subscriptions {
    shard: usize,
    registry: Arc<Markets>,
    markets: Slab<LocalMarket>,
    by_id: HashMap<MarketId, usize>,
    entries: Slab<Entry>,
    /// By connection key.
    lists: Vec<Lists>,
}

/// A market with a subscriber or a waiter in this shard.
struct LocalMarket {
    market: Arc<Market>,
    /// The shard's own copy of pointers into the ring, as of the last look.
    view: Log,
    subscribers: Vec<u32>,
    /// Connections whose request waits for this market. After an outage, this can be every connection.
    waiters: BTreeSet<usize>,
}

/// The lists of a connection.
#[derive(Clone, Copy)]
struct Lists {
    first: u32,
    count: u32,
    pending_first: u32,
    pending_last: u32,
}

/// One subscription. It takes 40 bytes, and 4 in its market's list.
struct Entry {
    connection: u32,
    market: u32,
    cursor: Position,
    /// The snapshot to send before any update.
    snapshot: Option<SnapshotCause>,
    pending: bool,
    /// How many of the next updates are older than the subscription. Their age tells when the client came, not how fast
    /// they were delivered.
    replayed: u16,
    next: u32,
    next_pending: u32,
    /// Its index in the market's `subscribers`.
    index: u32,
}

impl Subscriptions {
    /// Creates an empty set for shard number `shard`.
    #[must_use]
    pub fn new(shard: usize, registry: Arc<Markets>) -> Self {
        Self {
            shard,
            registry,
            markets: Slab::new(),
            by_id: HashMap::new(),
            entries: Slab::new(),
            lists: Vec::new(),
        }
    }

    /// Prepares for connection `key`.
    pub fn add_connection(&mut self, key: usize) {
        if self.lists.len() <= key {
            self.lists.resize(key + 1, Lists::EMPTY);
        }
        self.lists[key] = Lists::EMPTY;
    }

    /// Frees memory that a crowd has left behind. From now on, connection keys are below `max_key`.
    pub fn shrink(&mut self, max_key: usize) {
        self.lists.truncate(max_key);
        self.lists.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.markets.shrink_to_fit();
        self.by_id.shrink_to_fit();
    }

    /// Returns the market, and follows it in this shard from now on.
    pub fn open(&mut self, id: MarketId) -> Arc<Market> {
        let index = *self.by_id.entry(id).or_insert_with(|| {
            let market = self.registry.follow(id);
            market.watches.set(self.shard, true);
            let view = market.view();
            self.markets.insert(LocalMarket {
                market,
                view,
                subscribers: Vec::new(),
                waiters: BTreeSet::new(),
            })
        });
        Arc::clone(&self.markets[index].market)
    }

    /// Adds connection `key` to the waiters of the market, which must be open.
    pub fn wait(&mut self, key: usize, id: MarketId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.markets[index].waiters.insert(key);
        }
    }

    /// Removes connection `key` from the waiters of the market.
    pub fn stop_waiting(&mut self, key: usize, id: MarketId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.markets[index].waiters.remove(&key);
            self.close_if_unused(index);
        }
    }

    /// Subscribes connection `key` from `begin` on, or moves its subscription there.
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

    /// Brings a market's view up to its log. If the log was replaced, every subscriber gets a reset snapshot.
    fn catch_up(&mut self, index: usize) {
        let LocalMarket { market, view, subscribers, .. } = &mut self.markets[index];
        if market.look(self.shard, view) {
            reset(&mut self.entries, subscribers);
        }
    }

    /// Returns the cursor of connection `key` in the market, if it is subscribed.
    #[must_use]
    pub fn cursor(&self, key: usize, id: MarketId) -> Option<Position> {
        self.find(key, id).map(|entry| self.entries[entry as usize].cursor)
    }

    /// Ends one subscription, if there is one. Returns whether there was.
    pub fn unsubscribe(&mut self, key: usize, id: MarketId) -> bool {
        let Some(entry) = self.find(key, id) else { return false };
        self.unlink_pending(key, entry);
        let mut link = self.lists[key].first;
        let after = self.entries[entry as usize].next;
        if link == entry {
            self.lists[key].first = after;
        } else {
            while self.entries[link as usize].next != entry {
                link = self.entries[link as usize].next;
            }
            self.entries[link as usize].next = after;
        }
        self.lists[key].count -= 1;
        self.remove(entry);
        true
    }

    /// Ends all subscriptions of connection `key`.
    pub fn unsubscribe_all(&mut self, key: usize) {
        let mut link = self.lists[key].first;
        self.lists[key] = Lists::EMPTY;
        while link != NONE {
            let next = self.entries[link as usize].next;
            self.remove(link);
            link = next;
        }
    }

    /// Returns the markets to which connection `key` is subscribed.
    #[must_use]
    pub fn of(&self, key: usize) -> OfConnection<'_> {
        OfConnection { subscriptions: self, key }
    }

    /// Looks at a market that has changed. Calls `pending` for each connection that has something to send now and had
    /// nothing before, beginning with another one each time. Returns the connections that waited for the market.
    pub fn look(&mut self, id: MarketId, mut pending: impl FnMut(usize)) -> BTreeSet<usize> {
        let Some(&index) = self.by_id.get(&id) else { return BTreeSet::new() };
        self.catch_up(index);
        let LocalMarket { subscribers, waiters, .. } = &mut self.markets[index];
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

    /// Returns how many subscribers of a market have its update at `position` or a later one.
    #[must_use]
    pub fn count_reached(&self, id: MarketId, position: Position) -> usize {
        let has = |entry: &&u32| self.entries[**entry as usize].cursor >= position;
        self.by_id.get(&id).map_or(0, |&index| self.markets[index].subscribers.iter().filter(has).count())
    }

    /// Stops following a market that has neither subscriber nor waiter in this shard.
    pub fn close_unused(&mut self, id: MarketId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.close_if_unused(index);
        }
    }

    /// Returns whether connection `key` has anything to send.
    #[must_use]
    pub fn is_pending(&self, key: usize) -> bool {
        self.lists[key].pending_first != NONE
    }

    /// Reads what [`Subscriptions::gather`] will need of connection `key`, so that it is in the cache by then. The result
    /// means nothing.
    #[must_use]
    pub fn warm(&self, key: usize) -> u64 {
        let first = self.lists[key].pending_first;
        self.entries.get(first as usize).map_or(0, |entry| entry.cursor.seq.get())
    }

    fn find(&self, key: usize, id: MarketId) -> Option<u32> {
        let market = u32::try_from(*self.by_id.get(&id)?).ok()?;
        let mut link = self.lists[key].first;
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
        let lists = &mut self.lists[key];
        let entry = short(self.entries.insert(Entry {
            connection: short(key),
            market: short(market),
            cursor: Position::ORIGIN,
            snapshot: None,
            pending: false,
            replayed: 0,
            next: lists.first,
            next_pending: NONE,
            index: short(subscribers.len()),
        }));
        subscribers.push(entry);
        lists.first = entry;
        lists.count += 1;
        entry
    }

    /// Removes an entry from its market and from the slab. It must not be in its connection's lists any more.
    fn remove(&mut self, entry: u32) {
        let Entry { market, index, .. } = self.entries.remove(entry as usize);
        let subscribers = &mut self.markets[market as usize].subscribers;
        subscribers.swap_remove(index as usize);
        if let Some(&moved) = subscribers.get(index as usize) {
            self.entries[moved as usize].index = index;
        }
        self.close_if_unused(market as usize);
    }

    fn close_if_unused(&mut self, index: usize) {
        let local = &self.markets[index];
        if local.subscribers.is_empty() && local.waiters.is_empty() {
            let LocalMarket { market, .. } = self.markets.remove(index);
            market.watches.set(self.shard, false);
            self.by_id.remove(&market.id);
        }
    }

    fn is_behind(&self, entry: u32) -> bool {
        let Entry { market, cursor, snapshot, .. } = &self.entries[entry as usize];
        let view = &self.markets[*market as usize].view;
        snapshot.is_some() || !matches!(view.after(*cursor), After::CaughtUp | After::Ahead)
    }

    /// Appends an entry to its connection's pending list, if it has something to send. Returns whether it is the first
    /// in that list.
    fn queue_if_behind(&mut self, entry: u32) -> bool {
        if self.entries[entry as usize].pending || !self.is_behind(entry) {
            return false;
        }
        let key = self.entries[entry as usize].connection as usize;
        let was_idle = self.lists[key].pending_first == NONE;
        self.link_pending(entry);
        was_idle
    }

    fn link_pending(&mut self, entry: u32) {
        let subscription = &mut self.entries[entry as usize];
        subscription.pending = true;
        subscription.next_pending = NONE;
        let lists = &mut self.lists[subscription.connection as usize];
        let last = std::mem::replace(&mut lists.pending_last, entry);
        if last == NONE {
            lists.pending_first = entry;
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
        let mut at = self.lists[key].pending_first;
        while at != entry {
            before = at;
            at = self.entries[at as usize].next_pending;
        }
        let lists = &mut self.lists[key];
        if lists.pending_last == entry {
            lists.pending_last = before;
        }
        if before == NONE {
            lists.pending_first = after;
        } else {
            self.entries[before as usize].next_pending = after;
        }
    }
}

impl Lists {
    const EMPTY: Self = Self { first: NONE, count: 0, pending_first: NONE, pending_last: NONE };
}

/// The subscriptions of one connection.
pub struct OfConnection<'a> {
    subscriptions: &'a Subscriptions,
    key: usize,
}

impl OfConnection<'_> {
    pub fn markets(&self) -> impl Iterator<Item = MarketId> {
        let mut link = self.subscriptions.lists[self.key].first;
        std::iter::from_fn(move || {
            let entry = self.subscriptions.entries.get(link as usize)?;
            link = entry.next;
            Some(self.subscriptions.markets[entry.market as usize].market.id)
        })
    }
}

impl Subscribed for OfConnection<'_> {
    fn count(&self) -> usize {
        self.subscriptions.lists[self.key].count as usize
    }

    fn contains(&self, market: MarketId) -> bool {
        self.subscriptions.find(self.key, market).is_some()
    }
}

/// Makes every subscriber get a snapshot before any update.
fn reset(entries: &mut Slab<Entry>, subscribers: &[u32]) {
    for &entry in subscribers {
        entries[entry as usize].snapshot = Some(SnapshotCause::Reset);
    }
}

/// Converts a slab key. A pod has far fewer than 2^32 sockets or subscriptions.
fn short(key: usize) -> u32 {
    u32::try_from(key).expect("fewer than 2^32 entries")
}

#[cfg(test)]
mod tests;
