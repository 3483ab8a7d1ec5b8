//! The markets this pod follows, for how long, and what the tail brings for them.
//!
//! A market is followed while a shard or a request holds it, and for [`GRACE`] after that.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use backbone::Loaded;
use protocol::{MarketId, Position, Update};

use crate::{
    log::Bound,
    market::Market,
    metrics as names,
    watchers::{Watcher, Watchers},
    work_queue::{PartitionOf, WorkQueue},
};

/// How long a market without holders is still followed, so that a client that comes right back finds it loaded.
pub const GRACE: Duration = Duration::from_secs(30);

/// Every market this pod follows.
pub struct Markets {
    bound: Bound,
    watchers: Watchers,
    followed: Mutex<HashMap<MarketId, Followed>>,
    /// The markets that the tail is to read or load.
    pub work: Arc<WorkQueue>,
}

struct Followed {
    market: Arc<Market>,
    /// When the sweep first found that only the registry holds the market.
    unheld_since: Option<Instant>,
}

impl Markets {
    /// Creates an empty registry for `watcher_count` watchers.
    #[must_use]
    pub fn new(bound: Bound, watcher_count: usize, partition_of: PartitionOf) -> Arc<Self> {
        Arc::new(Self {
            bound,
            watchers: Watchers::new(watcher_count),
            followed: Mutex::default(),
            work: Arc::new(WorkQueue::new(partition_of)),
        })
    }

    /// Sets the watchers that are notified. Called once, at start.
    pub fn set_watchers(&self, watchers: Vec<Arc<dyn Watcher>>) {
        self.watchers.set(watchers);
    }

    /// Returns the market, and follows it from now on.
    #[must_use]
    pub fn follow(&self, id: MarketId) -> Arc<Market> {
        let mut followed = self.lock();
        let new = || Market::new(id, self.bound, self.watchers.no_watches(), Arc::clone(&self.work));
        let Followed { market, .. } =
            followed.entry(id).or_insert_with(|| Followed { market: Arc::new(new()), unheld_since: None });
        Arc::clone(market)
    }

    /// Returns the market, if it is followed.
    #[must_use]
    pub fn get(&self, id: MarketId) -> Option<Arc<Market>> {
        self.lock().get(&id).map(|followed| Arc::clone(&followed.market))
    }

    /// Returns every loaded market with the position up to which it has been read, ordered by id.
    #[must_use]
    pub fn cursors(&self) -> Vec<(MarketId, Position)> {
        let mut markets: Vec<Arc<Market>> =
            self.lock().values().map(|followed| Arc::clone(&followed.market)).collect();
        markets.sort_by_key(|market| market.id);
        markets.iter().filter_map(|market| Some((market.id, market.cursor()?))).collect()
    }

    /// Returns how many markets are followed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns how many markets have a subscriber.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.lock().values().filter(|followed| followed.market.watches.any()).count()
    }

    /// Returns the partitions of the backbone that hold the followed markets now.
    #[must_use]
    pub fn partitions(&self) -> HashSet<usize> {
        self.lock().keys().map(|id| self.work.partition(*id)).collect()
    }

    /// Queues a read of every followed market, and stops following those that had no holder for [`GRACE`].
    pub fn sweep(&self, now: Instant) {
        let mut followed = self.lock();
        followed.retain(|_, Followed { market, unheld_since }| {
            // Only this registry makes new holders, under the lock that is held here.
            if Arc::strong_count(market) > 1 {
                *unheld_since = None;
                return true;
            }
            now.duration_since(*unheld_since.get_or_insert(now)) < GRACE
        });
        let all: Vec<MarketId> = followed.keys().copied().collect();
        drop(followed);
        metrics::counter!(names::TAIL_SWEPT).increment(all.len() as u64);
        self.work.mark_swept(all);
    }

    /// Takes up to `max` markets to read, all of one partition that is not `busy`, and begins a read of each. Returns
    /// the partition, and the position to read each market after.
    #[must_use]
    pub fn begin_reads(
        &self,
        max: usize,
        busy: &HashSet<usize>,
    ) -> Option<(usize, Vec<(MarketId, Position)>)> {
        loop {
            let (partition, ids) = self.work.take_reads(max, busy)?;
            let begin = |id: MarketId| Some((id, self.get(id)?.begin_read()?));
            let batch: Vec<_> = ids.into_iter().filter_map(begin).collect();
            if !batch.is_empty() {
                return Some((partition, batch));
            }
        }
    }

    /// Applies the updates that a read of `id` brought, if any, and notifies the watchers. Returns how many updates
    /// were new.
    pub fn finish_read(&self, id: MarketId, updates: &[Update]) -> usize {
        let Some(market) = self.get(id) else { return 0 };
        let news = market.finish_read(updates);
        for (position, read) in &news.traced {
            self.watchers.trace(id, &market.watches, *position, read);
        }
        if news.count > 0 {
            self.watchers.notify(id, &market.watches);
        }
        news.count
    }

    /// Takes up to `max` markets to load. Returns them, and whether their history is wanted.
    #[must_use]
    pub fn take_loads(&self, max: usize) -> (Vec<MarketId>, bool) {
        let mut batch = Vec::new();
        let mut history = false;
        while batch.len() < max {
            let Some(id) = self.work.take_load() else { break };
            if let Some(market) = self.get(id) {
                history |= market.wants_history();
                batch.push(id);
            }
        }
        (batch, history)
    }

    /// Applies what a load of `id` brought, and notifies the watchers. `with_history` tells whether older updates were
    /// asked for.
    pub fn finish_load(&self, id: MarketId, loaded: Loaded, with_history: bool) {
        let Some(market) = self.get(id) else { return };
        market.finish_load(loaded, with_history);
        // The log may have grown during the load.
        self.work.mark_changed([id]);
        self.watchers.notify(id, &market.watches);
        self.flush();
    }

    /// Drops the wish for a load that cannot succeed. The next client that needs it asks again.
    pub fn give_up_load(&self, id: MarketId) {
        if let Some(market) = self.get(id) {
            market.give_up_load();
        }
    }

    /// Doubts every log: the backbone was away, or is another one.
    pub fn doubt_all(&self) {
        let all: Vec<MarketId> = self.lock().keys().copied().collect();
        self.doubt(all);
    }

    /// Doubts these logs until their latest positions have been checked. Queues the reads that come before that.
    pub fn doubt(&self, ids: impl IntoIterator<Item = MarketId>) {
        let followed: Vec<Arc<Market>> = ids.into_iter().filter_map(|id| self.get(id)).collect();
        for market in &followed {
            market.doubt();
        }
        self.work.mark_changed(followed.iter().map(|market| market.id));
    }

    /// Returns which of these markets are doubted, and no longer doubts them. They must have been read just now.
    #[must_use]
    pub fn take_doubted(&self, ids: impl IntoIterator<Item = MarketId>) -> Vec<MarketId> {
        ids.into_iter().filter(|id| self.get(*id).is_some_and(|market| market.take_doubt())).collect()
    }

    /// Compares the log of a doubted market with its `latest` position in the backbone. See [`Market::check`].
    pub fn check(&self, id: MarketId, latest: Position) {
        if let Some(market) = self.get(id)
            && market.check(latest)
        {
            self.watchers.notify(id, &market.watches);
        }
    }

    /// Wakes the watchers: a batch of notifications is complete.
    pub fn flush(&self) {
        self.watchers.flush();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MarketId, Followed>> {
        // Nothing panics while this lock is held, so a poisoned one still guards whole data.
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
