//! The tail's work: which markets have changed and are to be read, and which are to be loaded.
//!
//! A market waits at most once for each kind of work, so the followed markets bound the queue.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use protocol::MarketId;
use tokio::sync::Notify;

/// Returns the partition of the backbone that holds a market. Each partition is read on its own.
pub type PartitionOf = Box<dyn Fn(MarketId) -> usize + Send + Sync>;

/// The markets that the tail is to read or load.
pub struct WorkQueue {
    partition_of: PartitionOf,
    waiting: Mutex<Waiting>,
    /// Notified when there is a market to read.
    pub changed: Notify,
    /// Notified when there is a market to load.
    pub load_wanted: Notify,
}

#[derive(Default)]
struct Waiting {
    /// By partition. A partition without a market to read has no entry.
    reads: BTreeMap<usize, Reads>,
    loads: BTreeSet<MarketId>,
}

/// The markets to read in one partition.
#[derive(Default)]
struct Reads {
    changed: BTreeSet<MarketId>,
    /// The sweep adds every followed market, and few of them have changed. So these wait behind `changed`.
    swept: BTreeSet<MarketId>,
}

impl WorkQueue {
    /// Creates an empty queue.
    pub fn new(partition_of: PartitionOf) -> Self {
        Self { partition_of, waiting: Mutex::default(), changed: Notify::new(), load_wanted: Notify::new() }
    }

    /// Returns the partition of the backbone that holds `market` now.
    pub fn partition(&self, market: MarketId) -> usize {
        (self.partition_of)(market)
    }

    /// Queues reads of markets that have changed. They need not be followed: the reader skips those that are not.
    pub fn mark_changed(&self, ids: impl IntoIterator<Item = MarketId>) {
        self.queue_reads(|reads| &mut reads.changed, ids);
    }

    /// Queues reads of markets whether they have changed or not, behind those that have.
    pub fn mark_swept(&self, ids: impl IntoIterator<Item = MarketId>) {
        self.queue_reads(|reads| &mut reads.swept, ids);
    }

    fn queue_reads(
        &self,
        kind: fn(&mut Reads) -> &mut BTreeSet<MarketId>,
        ids: impl IntoIterator<Item = MarketId>,
    ) {
        let mut waiting = self.lock();
        for id in ids {
            kind(waiting.reads.entry(self.partition(id)).or_default()).insert(id);
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Takes up to `max` markets to read, all of one partition that is not `busy`, and returns that partition too.
    pub fn take_reads(&self, max: usize, busy: &HashSet<usize>) -> Option<(usize, Vec<MarketId>)> {
        let mut waiting = self.lock();
        let (&partition, reads) =
            waiting.reads.iter_mut().find(|(partition, _)| !busy.contains(partition))?;
        let ids = std::iter::from_fn(|| reads.pop()).take(max).collect();
        if reads.is_empty() {
            waiting.reads.remove(&partition);
        }
        Some((partition, ids))
    }

    /// Queues loads of markets.
    pub fn want_loads(&self, ids: impl IntoIterator<Item = MarketId>) {
        self.lock().loads.extend(ids);
        self.load_wanted.notify_one();
    }

    /// Takes the next market to load.
    pub fn take_load(&self) -> Option<MarketId> {
        self.lock().loads.pop_first()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while this lock is held, so a poisoned one still guards whole data.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reads {
    /// Takes the next market: first those that have changed.
    fn pop(&mut self) -> Option<MarketId> {
        let Some(id) = self.changed.pop_first() else { return self.swept.pop_first() };
        self.swept.remove(&id);
        Some(id)
    }

    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.swept.is_empty()
    }
}
