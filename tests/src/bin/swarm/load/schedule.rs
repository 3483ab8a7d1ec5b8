//! When to send what, and measuring meanwhile.

use std::{sync::OnceLock, thread, time::Duration};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::clock::{as_us, now_us, offset_us, sleep_until};
use crate::{client::End, report::Times};

/// When to send what. The load is an open loop: every update is sent when it is due, however slow the responses are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    /// When the first update is due.
    pub(crate) start_us: u64,
    /// Updates per second.
    pub(crate) rate: f64,
    pub(crate) updates: usize,
    /// Of each update, at least.
    pub(crate) payload_bytes: usize,
}

impl Schedule {
    /// When the update with this index is due.
    pub(crate) fn due_us(&self, index: usize) -> u64 {
        self.start_us + offset_us(index, self.rate)
    }

    /// Sleeps until an update is due, and records how late it is now. Returns when it was due.
    pub(crate) fn wait_for(&self, index: usize, late: &mut Times) -> u64 {
        let due_us = self.due_us(index);
        sleep_until(due_us);
        late.record(now_us() - due_us);
        due_us
    }
}

/// A schedule with a warm-up, and the time that is measured: it begins and ends halfway between two updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub(crate) schedule: Schedule,
    pub(crate) from_us: u64,
    pub(crate) until_us: u64,
}

impl Window {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 100 000/s for 50 min"
    )]
    pub(crate) fn new(
        start_us: u64,
        rate: f64,
        warmup: Duration,
        duration: Duration,
        payload_bytes: usize,
    ) -> Self {
        let updates = |time: Duration| (rate * time.as_secs_f64()).ceil() as usize;
        let (before, all) = (updates(warmup), updates(warmup) + updates(duration));
        let schedule = Schedule { start_us, rate, updates: all, payload_bytes };
        let edge_us = |updates, time| {
            if rate > 0.0 {
                schedule.due_us(updates) - offset_us(1, rate) / 2
            } else {
                start_us + as_us(time)
            }
        };
        Self { schedule, from_us: edge_us(before, warmup), until_us: edge_us(all, warmup + duration) }
    }
}

/// Runs `send`, which returns the latest seq of each market as well, while the followers receive. Takes a reading when
/// the measured time begins and when it ends. Followers wait at most `drain` for what is still missing at the end.
pub(crate) fn measure<T: Send, F, S: Send, R>(
    window: Window,
    drain: Duration,
    send: impl FnOnce() -> Result<(T, Vec<u64>)> + Send,
    followers: impl IntoIterator<Item = F>,
    read: impl Fn() -> Result<R>,
) -> Result<(T, Vec<S>, [R; 2])>
where
    F: FnOnce(&OnceLock<End>) -> Result<S> + Send,
{
    let end = &OnceLock::new();
    thread::scope(|scope| {
        let sending = scope.spawn(send);
        let following: Vec<_> =
            followers.into_iter().map(|follow| scope.spawn(move || follow(end))).collect();
        sleep_until(window.from_us);
        let before = read();
        sleep_until(window.until_us);
        let after = read();
        let sent = sending.join().expect("the sending thread does not panic");
        // Before any error is returned, since the followers wait for this.
        let latest = sent.as_ref().map_or(Vec::new(), |(_, latest)| latest.clone());
        end.get_or_init(|| End { latest, give_up_us: now_us() + as_us(drain) });
        let seen = following.into_iter().map(|thread| thread.join().expect("a follower does not panic"));
        let seen = seen.collect::<Result<_>>();
        Ok((sent?.0, seen?, [before?, after?]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_time_has_a_whole_number_of_updates() {
        let window = Window::new(1_000_000, 20.0, Duration::from_millis(490), Duration::from_secs(2), 0);
        assert_eq!((window.from_us, window.until_us), (1_475_000, 3_475_000));
        assert_eq!(window.schedule.updates, 50);
        let within = |update| (window.from_us..window.until_us).contains(&window.schedule.due_us(update));
        assert_eq!((0..50).filter(|&update| within(update)).count(), 40);
    }
}
