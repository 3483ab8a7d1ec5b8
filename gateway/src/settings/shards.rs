//! The settings of the shards.

use std::{thread::available_parallelism, time::Duration};

use service::settings::{Setting, Settings};

use crate::shard::Timing;

/// The number of shards.
pub const WORKERS: Setting<usize> =
    Setting::new("WORKERS", "(number of cores)", "threads that own connections, 1 to 256");
/// Latency traded for fewer writes.
pub const FLUSH_INTERVAL: Setting<Duration> =
    Setting::new("FLUSH_INTERVAL", "0ms", "collect updates this long before writing them to sockets");
/// The time between heartbeats.
pub const HEARTBEAT_INTERVAL: Setting<Duration> =
    Setting::new("HEARTBEAT_INTERVAL", "15s", "time between heartbeats");
/// The longest silence of a client.
pub const HEARTBEAT_TIMEOUT: Setting<Duration> =
    Setting::new("HEARTBEAT_TIMEOUT", "60s", "close a client that is silent for this long");
/// The longest time without progress of a socket.
pub const SLOW_AFTER: Setting<Duration> =
    Setting::new("SLOW_AFTER", "30s", "close a client that accepts no byte for this long");
/// The longest message of a client.
pub const MAX_MESSAGE_BYTES: Setting<usize> =
    Setting::new("MAX_MESSAGE_BYTES", "16384", "longest message of a client");

/// How the shards serve.
#[derive(Clone, Copy, Debug)]
pub struct Shards {
    /// Threads that own connections, 1 to 256.
    pub workers: usize,
    /// Latency traded for fewer writes.
    pub flush_interval: Duration,
    /// The deadlines of every connection.
    pub timing: Timing,
    /// The longest message of a client.
    pub max_message_bytes: usize,
}

impl Shards {
    /// Reads the settings.
    pub fn read(settings: &mut Settings) -> Self {
        let interval = settings.value(&HEARTBEAT_INTERVAL);
        let timeout = settings.value(&HEARTBEAT_TIMEOUT);
        if interval.is_zero() || timeout < interval {
            settings.problem(
                HEARTBEAT_TIMEOUT.name(),
                "must not be shorter than HEARTBEAT_INTERVAL, which must not be 0",
            );
        }
        let workers =
            settings.optional(&WORKERS).unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
        if !(1..=256).contains(&workers) {
            settings.problem(WORKERS.name(), "from 1 to 256");
        }
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            workers,
            flush_interval: settings.value(&FLUSH_INTERVAL),
            timing: Timing {
                heartbeat_interval_ms: ms(interval),
                heartbeat_timeout_ms: ms(timeout),
                slow_after_ms: ms(settings.value(&SLOW_AFTER)),
            },
            max_message_bytes: settings.at_least_one(&MAX_MESSAGE_BYTES),
        }
    }
}
