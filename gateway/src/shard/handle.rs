//! How other threads reach a shard.

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

/// What other threads bring. Bounded: connections by the pod's places, rings by one a market, the rest by hand.
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
    /// How it came into memory.
    pub(super) read: TraceContext,
    pub(super) since: SystemTime,
    /// The same in the shard's time; 0 until it is there.
    pub(super) since_ms: u64,
}

/// How other threads reach a shard.
pub struct ShardHandle {
    sender: mpsc::Sender<Input>,
    waker: Waker,
    /// Something was sent since the last wake-up.
    unflushed: AtomicBool,
}

impl ShardHandle {
    pub(super) fn new(sender: mpsc::Sender<Input>, waker: Waker) -> Self {
        Self { sender, waker, unflushed: AtomicBool::new(false) }
    }

    /// Hands a connection over. It is dropped if the shard has ended.
    pub fn adopt(&self, accepted: Accepted) {
        self.send(Input::Connection(Box::new(accepted)));
        self.flush();
    }

    /// Tells every client whether prices are fresh, now and when it connects later.
    pub fn announce(&self, stale: bool, message: &Encoded) {
        self.send(Input::Status { stale, message: Encoded::clone(message) });
        self.flush();
    }

    /// Closes every connection whose token is revoked by now.
    pub fn review_tokens(&self) {
        self.send(Input::Revocations);
        self.flush();
    }

    /// Closes every connection within `over`, spread evenly (`closing_times`), and ends the shard after the last.
    pub fn drain(&self, over: Duration) {
        self.send(Input::Drain(over));
        self.flush();
    }

    fn send(&self, input: Input) {
        // A shard that has ended wants nothing any more.
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
