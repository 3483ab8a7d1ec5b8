//! Whether this pod can vouch for fresh prices.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backbone::BackboneError;
use protocol::time::unix_ms;
use tokio::sync::watch;

/// What of the tail succeeds or fails on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Listening for changes.
    ChangeListener,
    /// Reading what changed in this part of the backbone.
    Read(usize),
    /// Loading markets that are new here.
    Load,
    /// Hearing of revocations.
    Revocations,
}

/// The tail's state of health. One log line per change, not per retry.
#[derive(Debug)]
pub struct Health {
    stale_after: Duration,
    inner: Mutex<Inner>,
    started: watch::Sender<Started>,
}

/// What has succeeded once, without which nobody is let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Started {
    /// The listener has been connected.
    has_listened: bool,
    /// The revocations have been read.
    knows_revocations: bool,
}

#[derive(Debug, Default)]
struct Inner {
    /// When the attempt of each part that is under way began, Unix milliseconds.
    under_way: HashMap<Source, u64>,
    /// Since when each part fails, Unix milliseconds.
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
    /// Healthy, until something has failed or not been answered for `stale_after`.
    #[must_use]
    pub fn new(stale_after: Duration) -> Self {
        Self { stale_after, inner: Mutex::default(), started: watch::Sender::default() }
    }

    /// An attempt of `part` begins.
    pub(super) fn began(&self, part: Source) {
        self.lock().under_way.insert(part, unix_ms());
    }

    /// The attempt of `part` has failed.
    pub(super) fn failed(&self, part: Source, error: &BackboneError) {
        let mut inner = self.lock();
        let started_ms = inner.under_way.remove(&part).unwrap_or_else(unix_ms);
        if let Entry::Vacant(since) = inner.failing.entry(part) {
            since.insert(started_ms);
            drop(inner);
            tracing::warn!(?part, %error, "the backbone does not answer: retrying, clients stay connected");
        }
    }

    pub(super) fn succeeded(&self, part: Source) {
        let note = |flag: &mut bool| !std::mem::replace(flag, true);
        self.started.send_if_modified(|started| match part {
            Source::ChangeListener => note(&mut started.has_listened),
            Source::Revocations => note(&mut started.knows_revocations),
            Source::Read(_) | Source::Load => false,
        });
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
        let is_read = |part: &Source| !matches!(part, Source::Read(part) if !parts.contains(part));
        self.lock().failing.retain(|part, _| is_read(part));
    }

    /// Whether the tail has been connected, the revocations have been read, and prices are not stale: without that
    /// nobody new is let in, since a balancer or a retry finds a pod that can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.started.borrow().is_complete() && self.stale_since().is_none()
    }

    /// Whether the revocations have been read: before that no token can be believed.
    #[must_use]
    pub fn knows_revocations(&self) -> bool {
        self.started.borrow().knows_revocations
    }

    /// Waits until the tail has been connected and the revocations have been read.
    pub async fn started(&self) {
        // The sender lives as long as this does.
        let _ = self.started.subscribe().wait_for(|started| started.is_complete()).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_in_before_the_doorbell_listens_and_the_revocations_have_been_read() {
        for (first, second) in
            [(Source::ChangeListener, Source::Revocations), (Source::Revocations, Source::ChangeListener)]
        {
            let health = Health::new(Duration::from_secs(10));
            for part in [Source::Read(0), Source::Load, first] {
                health.succeeded(part);
                assert!(!health.is_ready(), "{part:?}");
            }
            health.succeeded(second);
            assert!(health.is_ready() && health.knows_revocations());
        }
    }
}
