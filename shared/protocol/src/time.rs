//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the Unix milliseconds now; 0 if the clock is before 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    unix_us() / 1000
}

/// Returns the Unix microseconds now; 0 if the clock is before 1970.
#[must_use]
pub fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
