//! The recent past of one market, as frames that are ready to send. A pure data structure.

use std::collections::{VecDeque, vec_deque};

use protocol::{Epoch, Position, Seq};

use crate::frame::Encoded;

/// The newest updates of a market, encoded, in a bounded ring. All are of one epoch, and their seqs have no gap.
///
/// ```text
///                             the ring: `frames`
///              trimmed │◀────────────────────────────▶│ not published yet
///   seq  1  2  3 … 529 │ 530  531  532  …  1028  1029 │ 1030
///                   ▲          ▲                  ▲
///                 start     cursor             latest
///             (trim point)
/// ```
///
/// A cursor is the position of the last update that a reader has. A cursor from `start` up to `latest` is served from
/// the ring: here with 532 and what follows. At `latest` it is caught up. Below `start` it is not served
/// ([`After::Trimmed`]). Each [`Log::push`] moves `latest`; once the ring is full, it moves `start` too.
#[derive(Clone, Debug)]
pub struct Log {
    latest: Position,
    frames: VecDeque<EncodedUpdate>,
    bytes: usize,
    bound: Bound,
    /// Counts how often this pod replaced its log of the market. Logs of two generations may have equal positions and
    /// different updates. 0 means that nothing was loaded yet.
    generation: u32,
}

/// An update, ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedUpdate {
    pub frame: Encoded,
    /// Unix milliseconds at which the update was accepted.
    pub ts: u64,
}

/// How much a ring keeps. Both limits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub updates: usize,
    /// Bytes of encoded frames. The newest update is kept even if it alone is larger.
    pub bytes: usize,
}

/// What a log has after a position.
#[derive(Debug)]
pub enum After<'a> {
    /// Nothing: the position is the latest one.
    CaughtUp,
    /// Nothing: the position is above the latest one.
    Ahead,
    /// These updates, oldest first, without a gap after the position.
    Updates(vec_deque::Iter<'a, EncodedUpdate>),
    /// Updates that the ring no longer keeps.
    Trimmed,
    /// Updates of another history than the position's.
    OtherEpoch,
}

/// An update that does not follow the latest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{next} does not follow {latest}")]
pub struct Hole {
    latest: Position,
    next: Position,
}

/// How a client that comes back with an offset continues (`docs/protocol.md#rules`, rule 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// With every update after this position. The ring has them.
    Replay(Position),
    /// With the state: its history is gone, or it missed too many updates.
    Reset,
    /// With a replay, if the backbone still keeps updates that the ring has trimmed; else with the state.
    NeedsHistory,
    /// Unknown: the client is ahead of this log. Either the log is behind, or history was lost.
    NeedsFresh,
}

impl Log {
    /// Creates an empty log whose latest update, which it does not keep, is at `latest`.
    pub fn at(latest: Position, bound: Bound) -> Self {
        Self { latest, frames: VecDeque::new(), bytes: 0, bound, generation: 0 }
    }

    pub fn latest(&self) -> Position {
        self.latest
    }

    pub fn bound(&self) -> Bound {
        self.bound
    }

    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the trim point: the seq of the last update that is no longer kept.
    pub fn start(&self) -> Seq {
        Seq::new(self.latest.seq.get() - self.frames.len() as u64)
    }

    /// Adds the next update, and trims the oldest beyond the bound.
    ///
    /// # Errors
    /// [`Hole`], without a change, unless `position` follows the latest one.
    pub fn push(&mut self, position: Position, update: EncodedUpdate) -> Result<(), Hole> {
        if !position.follows(self.latest) {
            return Err(Hole { latest: self.latest, next: position });
        }
        self.latest = position;
        self.bytes += update.frame.len();
        self.frames.push_back(update);
        self.trim();
        Ok(())
    }

    /// Returns what the log has after `position`.
    pub fn after(&self, position: Position) -> After<'_> {
        // The origin begins every history whose first update is still kept.
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

    /// Returns how to recover a client that has every update up to `seq` of `epoch`. Clients that know no epochs give
    /// `None`. A replay has at most `resume_max` updates.
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

    /// Adds the updates of `older` from before this log's start, if they join without a hole, as far as the bound
    /// allows.
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

    /// Makes this log the next generation after `former`, which it replaces.
    pub fn replacing(self, former: &Self) -> Self {
        Self { generation: former.generation.wrapping_add(1).max(1), ..self }
    }

    /// Makes this log, a view, equal to `source`. This is cheap when `source` is the same log some updates later.
    /// Returns true if `source` replaced this log, so anything served from it is void.
    pub fn catch_up(&mut self, source: &Self) -> bool {
        let replaced = self.generation != source.generation;
        // A view that was never filled has served nothing.
        let has_served = self.generation != 0;
        match source.after(self.latest) {
            After::CaughtUp | After::Updates(_) if replaced || source.start() < self.start() => {
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
        replaced && has_served
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

#[cfg(test)]
mod tests;
