//! Waits for events, under one deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long one event may take. It is generous, since only a failing test waits this long.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How often [`eventually`] looks again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Returns the output of `future`; panics with `what` after [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Calls `look` until it finds something, for events without a notification (a counter, a Redis key).
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    within(what, async {
        loop {
            ticks.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    })
    .await
}

/// Like [`eventually`], but blocks the thread.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, look)
}

/// Like [`until`], with a deadline of its own.
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::park_timeout(LOOK_EVERY);
    }
}
