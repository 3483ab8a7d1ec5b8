//! One clock for sender and receiver.

use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Microseconds of `CLOCK_MONOTONIC`: never steps, and is the same for every process of a machine, so that one swarm
/// may publish and others listen.
pub(crate) fn now_us() -> u64 {
    micros(clock_gettime(ClockId::Monotonic))
}

/// CPU time the calling thread has used so far, in microseconds.
pub(crate) fn thread_cpu_us() -> u64 {
    micros(clock_gettime(ClockId::ThreadCPUTime))
}

/// Sleeps until `now_us()` is at least `at_us`; returns at once when it already is.
pub(crate) fn sleep_until(at_us: u64) {
    while let Some(left @ 1..) = at_us.checked_sub(now_us()) {
        thread::sleep(Duration::from_micros(left));
    }
}

/// A duration in whole microseconds.
pub(crate) fn as_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn micros(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanos / 1_000
}
