//! Processes that concurrent tests share.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Starts its value on first use. Dropping the last handle ends the value. A `static` that held the value itself
/// would never drop it, and the processes would outlive the test binary.
#[derive(Debug)]
pub struct SharedSet<T> {
    start: fn() -> T,
    running: Mutex<Weak<T>>,
}

impl<T> SharedSet<T> {
    /// Creates a set that has started nothing.
    #[must_use]
    pub const fn new(start: fn() -> T) -> Self {
        Self { start, running: Mutex::new(Weak::new()) }
    }

    /// Returns the running value, or starts a new one.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let set = running.upgrade().unwrap_or_else(|| Arc::new((self.start)()));
        *running = Arc::downgrade(&set);
        set
    }
}
