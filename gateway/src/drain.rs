//! The end of a gateway: waits for a signal, then for the drain.

use std::time::Duration;

use service::{settings::Setting, signals::Signals};

/// The time over which a drain closes connections.
pub const DRAIN_SECONDS: Setting<Duration> =
    Setting::new("DRAIN_SECONDS", "20", "time over which a drain closes connections");

/// How much longer than [`DRAIN_SECONDS`] a drain may take.
const GRACE: Duration = Duration::from_secs(4);

/// Waits for a signal, then for `drain`, which closes connections over `over`. A second signal ends the wait at once.
pub async fn run(mut signals: Signals, over: Duration, drain: impl Future<Output = ()>) {
    signals.next().await;
    tracing::info!(
        over_s = over.as_secs_f64(),
        "draining: clients are asked to reconnect elsewhere; a second signal ends at once"
    );
    tokio::select! {
        () = drain => tracing::info!("drained"),
        () = tokio::time::sleep(over + GRACE) => tracing::warn!("the drain took too long: ending with what is left"),
        () = signals.next() => tracing::warn!("second signal: ending at once"),
    }
}
