//! One socket and everything that belongs to it. An idle connection holds no buffer.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use protocol::close::CloseCode;

use crate::{
    frame::{self, Reader},
    limits::ConnectionPermit,
    session::{Session, Subscribe},
};

/// Unsent bytes of messages and acks above which the client's messages are not read.
const MAX_OUTGOING_BYTES: usize = 16 * 1024;

/// A client's connection.
pub struct Connection {
    pub(super) socket: TcpStream,
    /// The user's permit, freed with the connection.
    pub(super) permit: ConnectionPermit,
    pub(super) session: Session,
    /// Bytes to send before any update: messages for this client, and the rest of a frame that was cut.
    pub(super) outgoing: Vec<u8>,
    /// Received bytes that are not processed yet: an incomplete frame, or frames of a paused connection.
    pub(super) unread: Vec<u8>,
    pub(super) reader: Reader,
    pub(super) phase: Phase,
    /// The request that waits for markets to be loaded. Meanwhile nothing else is read.
    pub(super) waiting: Option<Box<WaitingRequest>>,
    /// Whether the socket may have more to read.
    pub(super) readable: bool,
    /// Whether the peer has closed its side, so reading reaches an end.
    pub(super) read_ends: bool,
    /// Since when the socket accepts no bytes, in shard milliseconds.
    pub(super) blocked_since: Option<u64>,
    /// Whether the connection is in the shard's write queue.
    pub(super) queued: bool,
    pub(super) deadlines: Deadlines,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    /// The close frame is in `outgoing` or sent. Received bytes are discarded.
    Closing {
        /// When the socket is dropped even if the peer has not closed its side.
        until_ms: u64,
        /// Whether our side has been shut down.
        shut: bool,
    },
}

/// A subscribe or resume that waits for the tail.
pub struct WaitingRequest {
    pub(super) subscribe: Subscribe,
    /// When the request times out, in shard milliseconds.
    pub(super) until_ms: u64,
}

/// When things are due, in shard milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// When the last bytes came from the client.
    pub(super) heard_ms: u64,
    /// When to send the next heartbeat.
    pub(super) heartbeat_ms: u64,
    /// When the token expires.
    pub(super) expires_ms: u64,
    /// When the drain closes the connection.
    pub(super) drain_ms: Option<u64>,
    /// When the timer wheel wakes the shard for this connection.
    pub(super) wake_ms: u64,
}

impl Connection {
    /// Reads what a write will need, so that it is in the cache by then. The result means nothing.
    pub(super) fn warm(&self) -> u64 {
        let is_free = u64::from(self.queued) ^ u64::from(self.blocked_since.is_some());
        is_free ^ (self.outgoing.len() ^ self.unread.len()) as u64 ^ u64::from(self.is_open())
    }

    /// Returns true if the client's messages have to wait.
    pub(super) fn is_paused(&self) -> bool {
        self.waiting.is_some() || self.outgoing.len() > MAX_OUTGOING_BYTES
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Appends a text message to what is sent first.
    pub(super) fn push_text(&mut self, json: &str) {
        frame::append_text(&mut self.outgoing, json);
    }

    /// Reads into `buffer`. Returns the number of bytes, 0 at the end of the stream, or `None` if there are none now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        nonblocking(|| (&self.socket).read(buffer))
    }

    /// Makes one write of `bytes`. Returns how many the socket accepted, which may be 0.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        nonblocking(|| (&self.socket).write(bytes)).map(Option::unwrap_or_default)
    }

    /// Returns when the next thing is due, in shard milliseconds.
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

    /// Returns the code to close the connection with, if a deadline has passed.
    pub(super) fn overdue(&self, timing: &Timing, now_ms: u64) -> Option<CloseCode> {
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

/// The time limits of every connection, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// `HEARTBEAT_INTERVAL`
    pub heartbeat_interval_ms: u64,
    /// `HEARTBEAT_TIMEOUT`
    pub heartbeat_timeout_ms: u64,
    /// `SLOW_AFTER`
    pub slow_after_ms: u64,
}

/// Makes one nonblocking attempt, again if a signal interrupted it. Returns `None` if it would block.
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
