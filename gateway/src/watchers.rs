//! How shards hear that a market has something new.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use protocol::{MarketId, Position, TraceContext};

/// Something that serves subscribers of markets: a shard.
pub trait Watcher: Send + Sync + 'static {
    /// Tells the watcher that the market has something new. The next call for this market comes after the watcher has
    /// looked ([`Watches::looked`]).
    fn notify(&self, market: MarketId);
    /// Tells the watcher that the market's update at `position` is traced, before it is notified of the update. `read`
    /// is the span that delivery continues from.
    fn trace(&self, market: MarketId, position: Position, read: TraceContext);
    /// Wakes the watcher: every notification of this batch has been made.
    fn flush(&self);
}

/// Every watcher of this pod, by index.
pub struct Watchers {
    count: usize,
    watchers: OnceLock<Vec<Arc<dyn Watcher>>>,
}

/// One market's watchers: which of them serve it, and which were notified and have not looked yet.
pub struct Watches(Box<[Watch]>);

#[derive(Default)]
struct Watch {
    serves: AtomicBool,
    notified: AtomicBool,
}

impl Watchers {
    /// Prepares for `count` watchers, which [`Watchers::set`] provides.
    pub fn new(count: usize) -> Self {
        Self { count, watchers: OnceLock::new() }
    }

    /// Sets the watchers. Only the first call has an effect.
    pub fn set(&self, watchers: Vec<Arc<dyn Watcher>>) {
        debug_assert_eq!(watchers.len(), self.count);
        let _ = self.watchers.set(watchers);
    }

    /// Returns the watches of a market that no watcher serves yet.
    pub fn no_watches(&self) -> Watches {
        Watches((0..self.count).map(|_| Watch::default()).collect())
    }

    /// Notifies the watchers that serve `market`, except those that were notified and have not looked yet.
    pub fn notify(&self, market: MarketId, watches: &Watches) {
        for (watch, watcher) in self.serving(watches) {
            if !watch.notified.swap(true, Ordering::SeqCst) {
                watcher.notify(market);
            }
        }
    }

    /// Hands a traced update to the watchers that serve `market`.
    pub fn trace(&self, market: MarketId, watches: &Watches, position: Position, read: &TraceContext) {
        self.serving(watches).for_each(|(_, watcher)| watcher.trace(market, position, read.clone()));
    }

    /// Tells every watcher that a batch of notifications is complete.
    pub fn flush(&self) {
        self.all().for_each(Watcher::flush);
    }

    fn serving<'a>(&'a self, watches: &'a Watches) -> impl Iterator<Item = (&'a Watch, &'a dyn Watcher)> {
        watches.0.iter().zip(self.all()).filter(|(watch, _)| watch.serves.load(Ordering::SeqCst))
    }

    fn all(&self) -> impl Iterator<Item = &dyn Watcher> {
        self.watchers.get().into_iter().flatten().map(|watcher| &**watcher)
    }
}

impl Watches {
    /// Sets whether watcher `index` serves the market.
    pub fn set(&self, index: usize, serves: bool) {
        let watch = &self.0[index];
        // A watcher that stopped serving the market never looked at its last notification.
        watch.notified.store(false, Ordering::SeqCst);
        watch.serves.store(serves, Ordering::SeqCst);
    }

    /// Notes that watcher `index` is about to look at the market: later news notify it again.
    pub fn looked(&self, index: usize) {
        self.0[index].notified.store(false, Ordering::SeqCst);
    }

    /// Returns whether any watcher serves the market.
    pub fn any(&self) -> bool {
        self.0.iter().any(|watch| watch.serves.load(Ordering::Relaxed))
    }
}
