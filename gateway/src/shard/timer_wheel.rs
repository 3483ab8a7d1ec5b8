//! The timer wheel for the deadlines of a shard's connections. Pure: the time comes in.

/// Milliseconds per slot. A deadline is noticed at most this late.
const TICK_MS: u64 = 50;
/// Slots per turn. A deadline more than a turn (25.6 s) away stays in its slot for several turns.
const SLOTS: u64 = 512;

/// A hashed timer wheel. An entry is a key and the time it is due. Entries are never removed early, so the caller checks
/// whether an entry still matters.
///
/// ```text
///   now ──▶ slot ──▶ slot ──▶ … ──▶ slot ─┐     each slot: (key, due) …
///    ▲                                    │
///    └────────────────────────────────────┘     a turn: SLOTS × TICK_MS
/// ```
#[derive(Debug)]
pub struct TimerWheel {
    slots: Vec<Vec<(u32, u64)>>,
    /// Every entry that was due before this tick has been handed out.
    next_tick: u64,
    len: usize,
}

impl TimerWheel {
    /// Creates an empty wheel at `now_ms`.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        Self {
            slots: vec![Vec::new(); usize::try_from(SLOTS).unwrap_or(0)],
            next_tick: now_ms / TICK_MS,
            len: 0,
        }
    }

    /// Adds an entry that is handed out at `due_ms`, or up to a tick later.
    pub fn schedule(&mut self, key: u32, due_ms: u64) {
        let tick = due_ms.div_ceil(TICK_MS).max(self.next_tick);
        self.slot(tick).push((key, due_ms));
        self.len += 1;
    }

    /// Calls `due` for each entry that is due at `now_ms`, with its key and the time it was due.
    pub fn advance(&mut self, now_ms: u64, mut due: impl FnMut(u32, u64)) {
        let now_tick = now_ms / TICK_MS;
        // After a long pause, one turn visits every slot.
        self.next_tick = self.next_tick.max(now_tick.saturating_sub(SLOTS));
        while self.next_tick <= now_tick {
            let tick = self.next_tick;
            self.next_tick += 1;
            let slot = self.slot(tick);
            let mut ready = Vec::new();
            slot.retain(|&(key, due_ms)| {
                let later = due_ms > now_ms;
                if !later {
                    ready.push((key, due_ms));
                }
                later
            });
            if slot.is_empty() {
                *slot = Vec::new();
            }
            self.len -= ready.len();
            for (key, due_ms) in ready {
                due(key, due_ms);
            }
        }
    }

    /// Returns the milliseconds until the next tick, unless the wheel is empty.
    #[must_use]
    pub fn timeout_ms(&self, now_ms: u64) -> Option<u64> {
        (self.len > 0).then(|| (self.next_tick * TICK_MS).saturating_sub(now_ms))
    }

    fn slot(&mut self, tick: u64) -> &mut Vec<(u32, u64)> {
        let index = usize::try_from(tick % SLOTS).unwrap_or(0);
        &mut self.slots[index]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every entry is handed out once, never early, and at the first `advance` that is a tick after its time.
        #[test]
        fn every_entry_is_due_once_and_never_early(
            start in 0u64..100_000,
            delays in proptest::collection::vec(0u64..60_000, 0..40),
            steps in proptest::collection::vec(0u64..40_000, 0..12),
        ) {
            let mut wheel = TimerWheel::new(start);
            for (key, delay) in delays.iter().enumerate() {
                wheel.schedule(u32::try_from(key).unwrap(), start + delay);
            }
            let mut seen = vec![0; delays.len()];
            let mut now = start;
            for step in steps.into_iter().chain([70_000]) {
                now += step;
                let mut early = false;
                wheel.advance(now, |key, due| {
                    seen[key as usize] += 1;
                    early |= due > now || due != start + delays[key as usize];
                });
                prop_assert!(!early);
                for (key, delay) in delays.iter().enumerate() {
                    prop_assert!(start + delay + TICK_MS > now || seen[key] == 1, "late: {delay} at {}", now - start);
                }
            }
            prop_assert!(seen.iter().all(|&count| count == 1));
            prop_assert_eq!(wheel.timeout_ms(now), None);
        }
    }
}
