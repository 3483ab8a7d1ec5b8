//! When to stop.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::server::Running;

/// How much longer than the drain itself its end may take.
const GRACE: Duration = Duration::from_secs(4);

/// Signals that end the process: SIGTERM and Ctrl-C.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the process cannot have signal handlers.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

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
