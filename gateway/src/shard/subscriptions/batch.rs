//! The batch of one write: gathered from the rings, and committed by how much of it the socket accepted.

use protocol::{Position, server_message::SnapshotCause};
use service::telemetry::Counts;

use super::{Entry, LocalMarket, NONE, Subscriptions, reset};
use crate::{frame::Encoded, log::After};

/// A frame of this many bytes or more is written alone, from where it is. Copying it would cost more than a write.
pub(super) const LARGE_FRAME_BYTES: usize = 4096;

/// The frames of one write: small ones copied into one buffer, or a large one where it is. With each frame comes the
/// cursor of its subscription once it is written.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// The first bytes, which belong to no subscription.
    prefix: usize,
    large: Option<Encoded>,
    frames: Vec<BatchFrame>,
    max_bytes: usize,
    full: bool,
}

/// One frame of a batch.
struct BatchFrame {
    entry: u32,
    /// Its end in the bytes of the batch.
    end: usize,
    /// The subscription's cursor once the frame is written.
    cursor: Position,
    content: Content,
}

/// What a frame contains.
#[derive(Clone, Copy)]
enum Content {
    /// An update, and the Unix milliseconds at which it was accepted.
    Update {
        ts: u64,
    },
    Snapshot(SnapshotCause),
}

/// How much of a batch was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Updates and snapshots of which at least one byte was written.
    pub messages: u64,
    /// The end of the frame that was cut, in the bytes of the batch. Its rest must be written before anything else.
    pub cut_end: Option<usize>,
}

/// How old updates were when they were written to a socket.
#[derive(Default)]
pub struct Ages {
    /// The time of the last few writes, in Unix microseconds.
    pub now_us: u64,
    /// Ages that the metric does not have yet.
    pub counts: Counts,
}

impl Ages {
    fn record(&mut self, ts: u64) {
        self.counts.record(self.now_us.saturating_sub(ts * 1000));
    }
}

impl Batch {
    /// Starts over with `prefix`, and keeps the buffers. The batch is full once it has `max_bytes` or more.
    pub fn begin(&mut self, prefix: &[u8], max_bytes: usize) {
        self.bytes.clear();
        self.frames.clear();
        self.large = None;
        self.bytes.extend_from_slice(prefix);
        self.prefix = prefix.len();
        self.max_bytes = max_bytes;
        self.full = prefix.len() >= max_bytes;
    }

    /// Returns the bytes to write.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.large.as_deref().unwrap_or(&self.bytes)
    }

    /// Adds a frame of subscription `entry`, unless the batch has no room for it. `cursor` is the
    /// subscription's cursor once the frame is written.
    fn add(&mut self, frame: &Encoded, entry: u32, cursor: Position, content: Content) {
        if frame.len() < LARGE_FRAME_BYTES {
            self.bytes.extend_from_slice(frame);
            self.full = self.bytes.len() >= self.max_bytes;
        } else {
            self.full = true;
            if !self.bytes.is_empty() {
                return;
            }
            self.large = Some(Encoded::clone(frame));
        }
        self.frames.push(BatchFrame { entry, end: self.bytes().len(), cursor, content });
    }
}

impl Subscriptions {
    /// Adds to `batch` what connection `key` has to send, until the batch is full.
    pub fn gather(&mut self, key: usize, batch: &mut Batch) {
        let mut link = self.lists[key].pending_first;
        while link != NONE && !batch.full {
            let Entry { market, mut cursor, mut snapshot, next_pending, .. } = self.entries[link as usize];
            let LocalMarket { market, view, subscribers, .. } = &mut self.markets[market as usize];
            while !batch.full {
                if let Some(cause) = snapshot.take() {
                    let (frame, replaced) = market.snapshot(cause, view);
                    if replaced {
                        reset(&mut self.entries, subscribers);
                    }
                    cursor = view.latest();
                    batch.add(&frame, link, cursor, Content::Snapshot(cause));
                    continue;
                }
                match view.after(cursor) {
                    After::CaughtUp | After::Ahead => break,
                    After::Trimmed => snapshot = Some(SnapshotCause::Conflated),
                    After::OtherEpoch => snapshot = Some(SnapshotCause::Reset),
                    After::Updates(updates) => {
                        for update in updates {
                            cursor = Position { epoch: view.latest().epoch, seq: cursor.seq.next() };
                            batch.add(&update.frame, link, cursor, Content::Update { ts: update.ts });
                            if batch.full {
                                break;
                            }
                        }
                    }
                }
            }
            link = next_pending;
        }
    }

    /// Moves the cursors of connection `key` past the first `written` bytes of the batch. Records the age of each update
    /// among them that is not a replay.
    pub fn commit(&mut self, key: usize, batch: &Batch, written: usize, ages: &mut Ages) -> Committed {
        let mut committed = Committed::default();
        let mut start = batch.prefix;
        for frame in &batch.frames {
            // A frame is committed once its first byte is written.
            if written <= start {
                break;
            }
            start = frame.end;
            let entry = &mut self.entries[frame.entry as usize];
            entry.cursor = frame.cursor;
            entry.snapshot = None;
            match frame.content {
                Content::Update { .. } if entry.replayed > 0 => entry.replayed -= 1,
                Content::Update { ts } => ages.record(ts),
                Content::Snapshot(cause) => {
                    entry.replayed = 0;
                    count_snapshot(cause);
                }
            }
            committed.messages += 1;
            if written < frame.end {
                committed.cut_end = Some(frame.end);
                break;
            }
        }
        self.settle(key);
        committed
    }

    /// Removes subscriptions that are caught up from the front of the pending list. The first that is still behind goes
    /// to the end, so that another market is first in the next batch.
    fn settle(&mut self, key: usize) {
        loop {
            let first = self.lists[key].pending_first;
            if first == NONE {
                return;
            }
            self.unlink_pending(key, first);
            if self.is_behind(first) {
                self.link_pending(first);
                return;
            }
        }
    }
}

fn count_snapshot(cause: SnapshotCause) {
    let cause = match cause {
        SnapshotCause::Asked => "asked",
        SnapshotCause::Reset => "reset",
        SnapshotCause::Conflated => "conflated",
    };
    metrics::counter!(crate::metrics::SNAPSHOTS, "cause" => cause).increment(1);
}
