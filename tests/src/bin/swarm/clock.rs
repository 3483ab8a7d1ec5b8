//! One clock for sender and receiver.

use std::{thread, time::Duration};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Microseconds of `CLOCK_MONOTONIC`. It never steps and is the same in every process of a machine, so one swarm may
/// publish while others listen.
pub(crate) fn now_us() -> u64 {
    micros(clock_gettime(ClockId::Monotonic))
}

/// CPU time that the calling thread has used so far, in microseconds.
pub(crate) fn thread_cpu_us() -> u64 {
    micros(clock_gettime(ClockId::ThreadCPUTime))
}

/// Sleeps until `now_us()` is at least `at_us`.
pub(crate) fn sleep_until(at_us: u64) {
    while let Some(left @ 1..) = at_us.checked_sub(now_us()) {
        thread::sleep(Duration::from_micros(left));
    }
}

pub(crate) fn as_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// When the event with this index is due, with `rate` events per second; a rate of 0 is at once.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "far below 2^52"
)]
pub(crate) fn offset_us(index: usize, rate: f64) -> u64 {
    if rate > 0.0 { (index as f64 * 1e6 / rate) as u64 } else { 0 }
}

fn micros(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanos / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_turn_into_due_times() {
        assert_eq!((offset_us(0, 10.0), offset_us(5, 10.0), offset_us(5, 0.0)), (0, 500_000, 0));
    }
}
