//! Tells whether this pod can vouch for fresh prices.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backbone::BackboneError;
use protocol::time::unix_ms;
use tokio::sync::watch;

/// The tail's health. It is logged when it changes, not at every retry.
#[derive(Debug)]
pub struct Health {
    stale_after: Duration,
    inner: Mutex<Inner>,
    started: watch::Sender<Started>,
}

/// The operations of the tail that succeed or fail independently of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Listening for changed markets.
    ChangeListener,
    /// Reading changed markets of this partition of the backbone.
    Read(usize),
    /// Loading markets that are new here.
    Load,
    /// Polling the revocations.
    Revocations,
}

/// What must have succeeded once before the pod accepts connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Started {
    has_listened: bool,
    knows_revocations: bool,
}

#[derive(Debug, Default)]
struct Inner {
    /// When each attempt that is under way began, Unix milliseconds.
    under_way: HashMap<Source, u64>,
    /// Since when each source fails, Unix milliseconds.
    failing: HashMap<Source, u64>,
    /// Since when the prices are stale, if they are.
    stale_since: Option<u64>,
}

impl Started {
    const fn is_complete(self) -> bool {
        self.has_listened && self.knows_revocations
    }
}

impl Health {
    /// Creates a healthy state. Prices become stale once a source has failed or been without a result for `stale_after`.
    #[must_use]
    pub fn new(stale_after: Duration) -> Self {
        Self { stale_after, inner: Mutex::default(), started: watch::Sender::default() }
    }

    /// Notes that an attempt of `source` begins.
    pub(super) fn began(&self, source: Source) {
        self.lock().under_way.insert(source, unix_ms());
    }

    /// Notes that the attempt of `source` has failed.
    pub(super) fn failed(&self, source: Source, error: &BackboneError) {
        let mut inner = self.lock();
        let started_ms = inner.under_way.remove(&source).unwrap_or_else(unix_ms);
        if let Entry::Vacant(since) = inner.failing.entry(source) {
            since.insert(started_ms);
            drop(inner);
            tracing::warn!(part = ?source, %error, "the backbone does not answer: retrying, clients stay connected");
        }
    }

    /// Notes that the attempt of `source` has succeeded.
    pub(super) fn succeeded(&self, source: Source) {
        let set = |flag: &mut bool| !std::mem::replace(flag, true);
        self.started.send_if_modified(|started| match source {
            Source::ChangeListener => set(&mut started.has_listened),
            Source::Revocations => set(&mut started.knows_revocations),
            Source::Read(_) | Source::Load => false,
        });
        let mut inner = self.lock();
        inner.under_way.remove(&source);
        let since = inner.failing.remove(&source);
        drop(inner);
        if let Some(since) = since {
            tracing::info!(part = ?source, after_ms = unix_ms().saturating_sub(since), "the backbone answers again");
        }
    }

    /// Forgets failed reads of partitions other than these, which hold all followed markets. No read of another
    /// partition will ever succeed: a failover or the last unsubscribe has emptied it.
    pub(super) fn retain_reads(&self, partitions: &HashSet<usize>) {
        let keep =
            |source: &Source| !matches!(source, Source::Read(partition) if !partitions.contains(partition));
        self.lock().failing.retain(|source, _| keep(source));
    }

    /// Returns whether the listener has connected, the revocations are known, and prices are not stale. Otherwise the pod
    /// accepts no connection, so that a load balancer or a retry finds another pod.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.started.borrow().is_complete() && self.stale_since().is_none()
    }

    /// Returns whether the revocations have been read. Before that, no token can be trusted.
    #[must_use]
    pub fn knows_revocations(&self) -> bool {
        self.started.borrow().knows_revocations
    }

    /// Waits until the listener has connected and the revocations have been read.
    pub async fn started(&self) {
        // The sender lives as long as this does.
        let _ = self.started.subscribe().wait_for(|started| started.is_complete()).await;
    }

    /// Returns since when prices are stale, in Unix milliseconds.
    #[must_use]
    pub fn stale_since(&self) -> Option<u64> {
        self.lock().stale_since
    }

    /// Determines again whether prices are stale. If that changed, returns the new value and since when it holds, in Unix
    /// milliseconds.
    #[must_use]
    pub fn review(&self) -> Option<(bool, u64)> {
        let mut inner = self.lock();
        let now = unix_ms();
        let is_long = |since: &u64| u128::from(now.saturating_sub(*since)) >= self.stale_after.as_millis();
        let pending = inner.under_way.values().filter(|since| is_long(since));
        let failing_since = inner.failing.values().chain(pending).min().copied();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_not_ready_before_it_listens_and_has_read_the_revocations() {
        for (first, second) in
            [(Source::ChangeListener, Source::Revocations), (Source::Revocations, Source::ChangeListener)]
        {
            let health = Health::new(Duration::from_secs(10));
            for source in [Source::Read(0), Source::Load, first] {
                health.succeeded(source);
                assert!(!health.is_ready(), "{source:?}");
            }
            health.succeeded(second);
            assert!(health.is_ready() && health.knows_revocations());
        }
    }
}
