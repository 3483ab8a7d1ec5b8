//! Processes that all tests running at one moment share.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Starts what it is for when it is asked first; the last test that holds it ends it. A `static` that held it itself
/// would never be dropped, and its processes would outlive the test binary.
#[derive(Debug)]
pub struct SharedSet<T> {
    start: fn() -> T,
    running: Mutex<Weak<T>>,
}

impl<T> SharedSet<T> {
    /// Nothing yet.
    #[must_use]
    pub const fn new(start: fn() -> T) -> Self {
        Self { start, running: Mutex::new(Weak::new()) }
    }

    /// The running one, or a new one.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let set = running.upgrade().unwrap_or_else(|| Arc::new((self.start)()));
        *running = Arc::downgrade(&set);
        set
    }
}
