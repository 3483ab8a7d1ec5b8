//! The recent past of one market, as frames that are ready to send. A pure data structure.

use std::collections::VecDeque;

use protocol::{Epoch, Position, Seq};

use crate::frame::Encoded;

/// A bounded ring of encoded updates, contiguous in seq, all of one epoch.
///
/// ```text
///          trimmed │ kept: frames                      │ not yet
///   seq  1 2 … 529 │ 530  531  532  …  1027 1028 1029  │ 1030
///              ▲   │         ▲                    ▲
///            start │       cursor of a          top: a client here
///   (529: the last │       client that lags     is caught up
///    one not kept) │
/// ```
///
/// A cursor is the position of the last update a client has. From `start` up to `latest` it can be served from here;
/// below `start` it cannot ([`After::Trimmed`]).
#[derive(Clone, Debug)]
pub struct Log {
    latest: Position,
    frames: VecDeque<Kept>,
    bytes: usize,
    bound: Bound,
    /// Which log this is: one that was loaded anew is another, even where its positions look alike. 0 = none yet.
    generation: u32,
}

/// An update, ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The message.
    pub frame: Encoded,
    /// Unix milliseconds at which the update was accepted.
    pub ts: u64,
}

/// How much a log keeps; memory for one market is bounded by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Updates.
    pub updates: usize,
    /// Bytes of encoded frames. The newest update is kept even if it alone is larger.
    pub bytes: usize,
}

/// What a log has past a position.
#[derive(Debug)]
pub enum After<'a> {
    /// Nothing: the position is the top.
    CaughtUp,
    /// The position is above the top.
    Ahead,
    /// These, oldest first; the first one's seq is the position's next.
    Updates(std::collections::vec_deque::Iter<'a, Kept>),
    /// Updates that are no longer kept here.
    Trimmed,
    /// The position belongs to another history.
    OtherEpoch,
}

/// An update that does not follow the log's top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{next} does not follow {latest}")]
pub struct Hole {
    latest: Position,
    next: Position,
}

impl Log {
    /// An empty log whose last update, not kept, is at `latest`.
    #[must_use]
    pub fn at(latest: Position, bound: Bound) -> Self {
        Self { latest, frames: VecDeque::new(), bytes: 0, bound, generation: 0 }
    }

    /// The last update's position.
    #[must_use]
    pub fn latest(&self) -> Position {
        self.latest
    }

    /// How much it keeps.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// The seq of the last update that is not kept: cursors from here on can be served.
    #[must_use]
    pub fn start(&self) -> Seq {
        Seq::new(self.latest.seq.get() - self.frames.len() as u64)
    }

    /// Adds the next update, and trims the oldest beyond the bound.
    ///
    /// # Errors
    /// [`Hole`], changing nothing, unless `position` follows the top.
    pub fn push(&mut self, position: Position, update: Kept) -> Result<(), Hole> {
        if !position.follows(self.latest) {
            return Err(Hole { latest: self.latest, next: position });
        }
        self.latest = position;
        self.bytes += update.frame.len();
        self.frames.push_back(update);
        self.trim();
        Ok(())
    }

    /// What there is past `position`.
    #[must_use]
    pub fn after(&self, position: Position) -> After<'_> {
        // "Nothing yet" is the beginning of every history that is kept from its beginning.
        let same_history = position.epoch == self.latest.epoch
            || (position == Position::ORIGIN && self.start() == Seq::ZERO);
        if !same_history {
            After::OtherEpoch
        } else if position.seq == self.latest.seq {
            After::CaughtUp
        } else if position.seq > self.latest.seq {
            After::Ahead
        } else if position.seq < self.start() {
            After::Trimmed
        } else {
            let kept_before = usize::try_from(position.seq.distance_from(self.start())).unwrap_or(usize::MAX);
            After::Updates(self.frames.range(kept_before.min(self.frames.len())..))
        }
    }

    /// Adds what `older` keeps from before this log's start, as far as it joins without a hole.
    pub fn prepend(&mut self, older: &Self) {
        if older.latest.epoch != self.latest.epoch || older.latest.seq < self.start() {
            return;
        }
        let missing = usize::try_from(self.start().distance_from(older.start())).unwrap_or(0);
        for update in older.frames.range(..missing.min(older.frames.len())).rev() {
            let bytes = self.bytes + update.frame.len();
            if self.frames.len() >= self.bound.updates || bytes > self.bound.bytes {
                break;
            }
            self.bytes = bytes;
            self.frames.push_front(update.clone());
        }
    }

    /// Which of the logs that took each other's place it is.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Becomes the log that takes the place of `former`.
    #[must_use]
    pub fn in_place_of(self, former: &Self) -> Self {
        Self { generation: former.generation.wrapping_add(1).max(1), ..self }
    }

    /// Makes this log the same as `source`; cheap when `source` is this log some updates later. Says whether it was
    /// another log, of which what this one held is not a part.
    pub fn catch_up(&mut self, source: &Self) -> bool {
        let another = self.generation != source.generation;
        // A view that was never filled has shown nothing that could be of another log.
        let had_shown = self.generation != 0;
        match source.after(self.latest) {
            After::CaughtUp | After::Updates(_) if another || source.start() < self.start() => {
                *self = source.clone();
            }
            After::CaughtUp => self.latest = source.latest,
            After::Updates(newer) => {
                for update in newer {
                    self.bytes += update.frame.len();
                    self.frames.push_back(update.clone());
                }
                self.latest = source.latest;
                self.trim();
            }
            After::Ahead | After::Trimmed | After::OtherEpoch => *self = source.clone(),
        }
        another && had_shown
    }

    fn trim(&mut self) {
        while self.frames.len() > self.bound.updates
            || (self.bytes > self.bound.bytes && self.frames.len() > 1)
        {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.frame.len();
        }
    }
}

/// What a client that comes back with an offset gets (contract, section 3, rule 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Everything after this position, which the log keeps.
    Replay(Position),
    /// Its history is gone or too old: the state instead.
    Reset,
    /// Recovered if the backbone still keeps older updates than this log does.
    NeedsHistory,
    /// It knows more than this log: the log may be behind, or history was lost.
    NeedsFresh,
}

impl Log {
    /// How to recover a client that has everything up to `seq` of `epoch` (`None`: it does not know of epochs).
    #[must_use]
    pub fn recover(&self, epoch: Option<Epoch>, seq: Seq, resume_max: u64) -> Recovery {
        let position = Position { epoch: self.latest.epoch, seq };
        if epoch.is_some_and(|epoch| epoch > self.latest.epoch) || seq > self.latest.seq {
            return Recovery::NeedsFresh;
        }
        if epoch.is_some_and(|epoch| epoch < self.latest.epoch)
            || self.latest.seq.distance_from(seq) > resume_max
        {
            return Recovery::Reset;
        }
        match self.after(position) {
            After::CaughtUp | After::Updates(_) => Recovery::Replay(position),
            After::Trimmed | After::Ahead | After::OtherEpoch => Recovery::NeedsHistory,
        }
    }
}

#[cfg(test)]
mod tests;
