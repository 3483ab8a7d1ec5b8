//! How other threads reach a shard: they send input and wake it.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, SystemTime},
};

use mio::Waker;
use protocol::{MarketId, Position, TraceContext};

use super::Accepted;
use crate::{frame::Encoded, watchers::Watcher};

/// Input from other threads. Its volume is bounded: a connection holds a permit, at most one `Changed` per market is
/// outstanding, and the rest is rare.
pub(super) enum Input {
    Connection(Box<Accepted>),
    Changed(MarketId),
    Traced(Box<Traced>),
    Status { stale: bool, message: Encoded },
    Revocations,
    Drain(Duration),
}

/// A traced update on its way to clients.
pub(super) struct Traced {
    pub(super) market: MarketId,
    pub(super) position: Position,
    /// The span of the read that brought the update into memory.
    pub(super) read: TraceContext,
    pub(super) since: SystemTime,
    /// The same in shard milliseconds; 0 until the shard takes it.
    pub(super) since_ms: u64,
}

/// The side of a shard that other threads hold.
pub struct ShardHandle {
    sender: mpsc::Sender<Input>,
    waker: Waker,
    /// Whether something was sent since the last wake-up.
    unflushed: AtomicBool,
}

impl ShardHandle {
    pub(super) fn new(sender: mpsc::Sender<Input>, waker: Waker) -> Self {
        Self { sender, waker, unflushed: AtomicBool::new(false) }
    }

    /// Hands a connection to the shard. A shard that has ended drops it.
    pub fn adopt(&self, accepted: Accepted) {
        self.send(Input::Connection(Box::new(accepted)));
        self.flush();
    }

    /// Sends a status message to every client. While prices are stale, clients that connect later get it too.
    pub fn announce(&self, stale: bool, message: &Encoded) {
        self.send(Input::Status { stale, message: Encoded::clone(message) });
        self.flush();
    }

    /// Closes every connection whose token has been revoked.
    pub fn review_tokens(&self) {
        self.send(Input::Revocations);
        self.flush();
    }

    /// Closes every connection within `over`, spread evenly (`closing_times`). The shard ends after the last one.
    pub fn drain(&self, over: Duration) {
        self.send(Input::Drain(over));
        self.flush();
    }

    fn send(&self, input: Input) {
        // This fails only after the shard has ended, and then no input matters.
        let _ = self.sender.send(input);
        self.unflushed.store(true, Ordering::Release);
    }
}

impl Watcher for ShardHandle {
    fn notify(&self, market: MarketId) {
        self.send(Input::Changed(market));
    }

    fn trace(&self, market: MarketId, position: Position, read: TraceContext) {
        let since = SystemTime::now();
        self.send(Input::Traced(Box::new(Traced { market, position, read, since, since_ms: 0 })));
    }

    fn flush(&self) {
        if self.unflushed.swap(false, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "cannot wake a shard");
        }
    }
}
