//! What one write takes of what a connection is owed: copied together, and committed by what the socket took.

use protocol::{Position, server_message::SnapshotCause};
use service::telemetry::Counts;

use super::{Entry, Local, NONE, Subscriptions, reset};
use crate::{frame::Encoded, log::After};

/// A frame of this many bytes or more is written by itself, from where it is: copying it costs more than a write.
pub(super) const LARGE_FRAME_BYTES: usize = 4096;

/// What a connection is owed and one write may take: small frames in one buffer, or one large frame as it is. And where
/// the cursors are once it is written.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Bytes that go first and belong to no subscription.
    prefix: usize,
    large: Option<Encoded>,
    parts: Vec<Part>,
    max_bytes: usize,
    full: bool,
}

/// One frame of a batch.
struct Part {
    entry: u32,
    /// Where it ends in the bytes.
    end: usize,
    /// The cursor once it is written.
    cursor: Position,
    content: Content,
}

/// What a frame carries.
#[derive(Clone, Copy)]
enum Content {
    /// An update, accepted at this Unix ms.
    Update {
        ts: u64,
    },
    Snapshot(SnapshotCause),
}

/// What was written of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Updates and snapshots that are on their way.
    pub messages: u64,
    /// Up to where in the bytes the frame reaches that was cut: its rest must be written before anything else.
    pub cut_end: Option<usize>,
}

/// How old updates were when they were written to a socket.
#[derive(Default)]
pub struct Ages {
    /// Unix microseconds, as of the last few writes.
    pub now_us: u64,
    /// What has not been handed on yet.
    pub counts: Counts,
}

impl Ages {
    fn note(&mut self, ts: u64) {
        self.counts.record(self.now_us.saturating_sub(ts * 1000));
    }
}

impl Batch {
    /// Begins anew with these bytes, keeping its room. It is full at `max_bytes`, or some more.
    pub fn begin(&mut self, prefix: &[u8], max_bytes: usize) {
        self.bytes.clear();
        self.parts.clear();
        self.large = None;
        self.bytes.extend_from_slice(prefix);
        self.prefix = prefix.len();
        self.max_bytes = max_bytes;
        self.full = prefix.len() >= max_bytes;
    }

    /// Frames, ready to write.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.large.as_deref().unwrap_or(&self.bytes)
    }

    /// Adds a frame of subscription `entry`, which is at `cursor` once it is written, unless the batch is full.
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
        self.parts.push(Part { entry, end: self.bytes().len(), cursor, content });
    }
}

impl Subscriptions {
    /// Adds to `batch` what connection `key` is owed, until it is full.
    pub fn gather(&mut self, key: usize, batch: &mut Batch) {
        let mut link = self.heads[key].pending_first;
        while link != NONE && !batch.full {
            let Entry { market, mut cursor, mut snapshot, next_pending, .. } = self.entries[link as usize];
            let Local { market, view, subscribers, .. } = &mut self.markets[market as usize];
            while !batch.full {
                if let Some(cause) = snapshot.take() {
                    let (frame, another) = market.snapshot(cause, view);
                    if another {
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

    /// Moves the cursors of connection `key` by what was `written` of the batch, and notes how old each update was by
    /// then that is no replay.
    pub fn commit(&mut self, key: usize, batch: &Batch, written: usize, ages: &mut Ages) -> Committed {
        let mut committed = Committed::default();
        let mut start = batch.prefix;
        for part in &batch.parts {
            // A frame is committed as soon as one byte of it is out.
            if written <= start {
                break;
            }
            start = part.end;
            let entry = &mut self.entries[part.entry as usize];
            entry.cursor = part.cursor;
            entry.snapshot = None;
            match part.content {
                Content::Update { .. } if entry.replayed > 0 => entry.replayed -= 1,
                Content::Update { ts } => ages.note(ts),
                Content::Snapshot(cause) => {
                    entry.replayed = 0;
                    count_snapshot(cause);
                }
            }
            committed.messages += 1;
            if written < part.end {
                committed.cut_end = Some(part.end);
                break;
            }
        }
        self.settle(key);
        committed
    }

    /// Takes what is caught up off the pending list, and lets the next one go first.
    fn settle(&mut self, key: usize) {
        loop {
            let first = self.heads[key].pending_first;
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
