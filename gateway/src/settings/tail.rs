//! The settings of the tail.

use std::time::Duration;

use backbone::TailFrom;
use service::settings::{Setting, Settings};

/// The nodes that the tail reads.
pub const TAIL_FROM: Setting<TailFrom> = Setting::new(
    "TAIL_FROM",
    "primary",
    "primary, or replica: follow the logs at a replica of each primary while one keeps up",
);
/// Latency traded for fewer reads.
pub const TAIL_LINGER: Setting<Duration> =
    Setting::new("TAIL_LINGER", "0ms", "collect changes this long before reading them from Redis");
/// The longest time without Redis before prices are stale.
pub const STALE_AFTER: Setting<Duration> =
    Setting::new("STALE_AFTER", "10s", "prices are stale after this time without Redis");

/// How the logs are followed.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// The nodes that are read.
    pub from: TailFrom,
    /// Latency traded for fewer reads.
    pub linger: Duration,
    /// The longest time without Redis before prices are stale.
    pub stale_after: Duration,
}

impl Tail {
    /// Reads the settings.
    pub fn read(settings: &mut Settings) -> Self {
        Self {
            from: settings.value(&TAIL_FROM),
            linger: settings.value(&TAIL_LINGER),
            stale_after: settings.value(&STALE_AFTER),
        }
    }
}
