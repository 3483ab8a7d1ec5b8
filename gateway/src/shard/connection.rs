//! One socket and everything that belongs to it. While it is idle it holds no buffer.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use protocol::close::CloseCode;

use crate::{
    frame::{self, Reader},
    limits::ConnectionPermit,
    session::{Session, Subscribe},
};

/// Above this many unsent bytes of answers, the client's messages wait until it reads.
const MAX_UNSENT_ANSWERS: usize = 16 * 1024;

/// A client's connection.
pub struct Connection {
    pub(super) socket: TcpStream,
    /// Whose it is. Freed with the connection.
    pub(super) permit: ConnectionPermit,
    pub(super) session: Session,
    /// Bytes of frames that go out before anything else: answers, and the rest of a frame that was cut.
    pub(super) out: Vec<u8>,
    /// Bytes of a frame that has not come whole, or that waits its turn.
    pub(super) unread: Vec<u8>,
    pub(super) reader: Reader,
    pub(super) phase: Phase,
    /// The request whose markets are not all there yet; nothing else is read meanwhile.
    pub(super) waiting: Option<Box<Waiting>>,
    /// The socket may have more to read.
    pub(super) readable: bool,
    /// The peer has ended its side: reading comes to an end.
    pub(super) read_ends: bool,
    /// Since when the socket takes nothing, shard milliseconds.
    pub(super) blocked_since: Option<u64>,
    /// In the shard's queue of connections to write to.
    pub(super) queued: bool,
    pub(super) deadlines: Deadlines,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Open,
    /// The close frame is in `out`, or out; what comes in is thrown away.
    Closing {
        /// When the socket is dropped even if the peer has not closed.
        until_ms: u64,
        /// Our side has been shut down.
        shut: bool,
    },
}

/// A request that waits for the tail.
pub struct Waiting {
    pub(super) subscribe: Subscribe,
    /// When it has waited too long, shard milliseconds.
    pub(super) until_ms: u64,
}

/// All times in shard milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// When the client was last heard of.
    pub(super) heard_ms: u64,
    /// When the next heartbeat goes out.
    pub(super) heartbeat_ms: u64,
    /// When the token ends.
    pub(super) expires_ms: u64,
    /// When the drain closes it.
    pub(super) drain_ms: Option<u64>,
    /// The wheel's next wake-up for it.
    pub(super) wake_ms: u64,
}

impl Connection {
    /// Looks at what a write needs, so that it is in the cache by then.
    pub(super) fn warm(&self) -> u64 {
        let is_free = u64::from(self.queued) ^ u64::from(self.blocked_since.is_some());
        is_free ^ (self.out.len() ^ self.unread.len()) as u64 ^ u64::from(self.is_open())
    }

    /// Whether the client's messages have to wait.
    pub(super) fn is_paused(&self) -> bool {
        self.waiting.is_some() || self.out.len() > MAX_UNSENT_ANSWERS
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Puts a text message among what goes out first.
    pub(super) fn push_text(&mut self, json: &str) {
        frame::append_text(&mut self.out, json);
    }

    /// Reads what is there into `buffer`: the count, 0 at the end; `None` when there is nothing now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        nonblocking(|| (&self.socket).read(buffer))
    }

    /// Writes `bytes` once: the count, 0 when the socket takes nothing now.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        nonblocking(|| (&self.socket).write(bytes)).map(Option::unwrap_or_default)
    }

    /// When the next thing is due, shard milliseconds.
    pub(super) fn next_due_ms(&self, timing: &Timing) -> u64 {
        if let Phase::Closing { until_ms, .. } = self.phase {
            return until_ms;
        }
        let deadlines = &self.deadlines;
        [
            Some(deadlines.heard_ms + timing.heartbeat_timeout_ms),
            Some(deadlines.heartbeat_ms),
            Some(deadlines.expires_ms),
            deadlines.drain_ms,
            self.blocked_since.map(|since| since + timing.slow_after_ms),
            self.waiting.as_ref().map(|waiting| waiting.until_ms),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX)
    }

    /// Why the connection has to end now, if it has to.
    pub(super) fn verdict(&self, timing: &Timing, now_ms: u64) -> Option<CloseCode> {
        let deadlines = &self.deadlines;
        let passed = |at_ms: u64| now_ms >= at_ms;
        if deadlines.drain_ms.is_some_and(passed) {
            Some(CloseCode::Draining)
        } else if passed(deadlines.expires_ms) {
            Some(CloseCode::TokenExpired)
        } else if self.blocked_since.is_some_and(|since| passed(since + timing.slow_after_ms)) {
            Some(CloseCode::TooSlow)
        } else if passed(deadlines.heard_ms + timing.heartbeat_timeout_ms) {
            Some(CloseCode::Silent)
        } else if self.waiting.as_ref().is_some_and(|waiting| passed(waiting.until_ms)) {
            Some(CloseCode::Unavailable)
        } else {
            None
        }
    }
}

/// The times that hold for every connection, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between heartbeats (`HEARTBEAT_INTERVAL`).
    pub heartbeat_interval_ms: u64,
    /// Of silence (`HEARTBEAT_TIMEOUT`).
    pub heartbeat_timeout_ms: u64,
    /// Of a socket that takes nothing (`SLOW_AFTER`).
    pub slow_after_ms: u64,
}

/// Retries what a signal interrupted; nothing to do now is `None`.
fn nonblocking(mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match attempt() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
