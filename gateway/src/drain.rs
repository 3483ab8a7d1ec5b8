//! When to stop.

use std::time::Duration;

use shared::signals::Signals;

use crate::server::Running;

/// How much longer than the drain itself its end may take.
const GRACE: Duration = Duration::from_secs(4);

/// Runs until a signal, then drains over `over`; a second signal ends it at once.
pub async fn run(running: Running, mut signals: Signals, over: Duration) {
    signals.next().await;
    tracing::info!(
        over_s = over.as_secs_f64(),
        "draining: clients are asked to reconnect elsewhere; a second signal ends at once"
    );
    tokio::select! {
        () = running.drain(over) => tracing::info!("drained"),
        () = tokio::time::sleep(over + GRACE) => tracing::warn!("the drain took too long: ending with what is left"),
        () = signals.next() => tracing::warn!("second signal: ending at once"),
    }
}
