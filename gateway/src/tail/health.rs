//! Whether this pod can vouch for fresh prices.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{backbone::BackboneError, time::unix_ms};
use tokio::sync::watch;

/// What of the tail succeeds or fails on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// Listening for changes.
    Doorbell,
    /// Reading what changed in this part of the backbone.
    Read(usize),
    /// Loading markets that are new here.
    Load,
}

/// The tail's state of health. One log line per change, not per retry.
#[derive(Debug)]
pub struct Health {
    stale_after: Duration,
    inner: Mutex<Inner>,
    /// The doorbell has been connected.
    has_listened: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    /// When the attempt of each part that is under way began, Unix milliseconds.
    under_way: HashMap<Part, u64>,
    /// Since when each part fails, Unix milliseconds.
    failing: HashMap<Part, u64>,
    /// Since when the prices are stale, if they are.
    stale_since: Option<u64>,
}

impl Health {
    /// Healthy, until something has failed or not been answered for `stale_after`.
    #[must_use]
    pub fn new(stale_after: Duration) -> Self {
        Self { stale_after, inner: Mutex::default(), has_listened: watch::Sender::new(false) }
    }

    /// An attempt of `part` begins.
    pub(super) fn began(&self, part: Part) {
        self.lock().under_way.insert(part, unix_ms());
    }

    /// The attempt of `part` has failed.
    pub(super) fn failed(&self, part: Part, error: &BackboneError) {
        let mut inner = self.lock();
        let started_ms = inner.under_way.remove(&part).unwrap_or_else(unix_ms);
        if let Entry::Vacant(since) = inner.failing.entry(part) {
            since.insert(started_ms);
            drop(inner);
            tracing::warn!(?part, %error, "the backbone does not answer: retrying, clients stay connected");
        }
    }

    pub(super) fn succeeded(&self, part: Part) {
        if part == Part::Doorbell {
            self.has_listened.send_if_modified(|has_listened| !std::mem::replace(has_listened, true));
        }
        let mut inner = self.lock();
        inner.under_way.remove(&part);
        let since = inner.failing.remove(&part);
        drop(inner);
        if let Some(since) = since {
            tracing::info!(?part, after_ms = unix_ms().saturating_sub(since), "the backbone answers again");
        }
    }

    /// Only these parts hold markets that are followed now: of any other, which a failover or the last unsubscribe
    /// emptied, no read will ever succeed.
    pub(super) fn forget_reads_but_of(&self, parts: &HashSet<usize>) {
        let is_read = |part: &Part| !matches!(part, Part::Read(part) if !parts.contains(part));
        self.lock().failing.retain(|part, _| is_read(part));
    }

    /// Whether the tail has been connected, and prices are not stale: without that nobody new is let in, since a
    /// balancer or a retry finds a pod that can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.has_listened.borrow() && self.stale_since().is_none()
    }

    /// Waits until the tail has been connected.
    pub async fn listened(&self) {
        // The sender lives as long as this does.
        let _ = self.has_listened.subscribe().wait_for(|has_listened| *has_listened).await;
    }

    /// Since when prices are stale, Unix milliseconds.
    #[must_use]
    pub fn stale_since(&self) -> Option<u64> {
        self.lock().stale_since
    }

    /// Works out anew whether prices are stale; answers what to tell clients when that changed.
    #[must_use]
    pub fn review(&self) -> Option<(bool, u64)> {
        let mut inner = self.lock();
        let now = unix_ms();
        let is_long = |since: &u64| u128::from(now.saturating_sub(*since)) >= self.stale_after.as_millis();
        let unanswered = inner.under_way.values().filter(|since| is_long(since));
        let failing_since = inner.failing.values().chain(unanswered).min().copied();
        let stale = failing_since.is_some_and(|since| is_long(&since));
        match (stale, inner.stale_since) {
            (true, None) => {
                inner.stale_since = failing_since;
                Some((true, failing_since.unwrap_or(now)))
            }
            (false, Some(_)) if failing_since.is_none() => {
                inner.stale_since = None;
                Some((false, now))
            }
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
