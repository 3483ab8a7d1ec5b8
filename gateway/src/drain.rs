//! When a gateway stops.

use std::time::Duration;

use service::signals::Signals;

/// How much longer than the drain itself its end may take.
const GRACE: Duration = Duration::from_secs(4);

/// Waits for a signal, then for `drain`, which takes `over`. A second signal ends the wait at once.
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
