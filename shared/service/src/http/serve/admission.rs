//! Which connections are served, which are refused with 503, and which wait in the kernel's queue.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long the next connection waits in the kernel's queue for one to end, before connections are refused. In a storm of
/// handshakes hundreds end within this time, and no client has to come again.
const PATIENCE: Duration = Duration::from_secs(1);

/// The permits of a listener's connections.
pub(super) struct Admissions {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

/// A connection's permit, returned when it is dropped.
pub(super) struct Admission {
    is_refused: bool,
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// Returns true if every request of the connection is refused.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    const fn served(permit: OwnedSemaphorePermit) -> Self {
        Self { is_refused: false, _permit: permit }
    }

    const fn refused(permit: OwnedSemaphorePermit) -> Self {
        Self { is_refused: true, _permit: permit }
    }
}

impl Admissions {
    /// Admits at most `served` connections that are served, and `refused` that are refused.
    pub(super) fn new(served: usize, refused: usize) -> Self {
        Self { served: Arc::new(Semaphore::new(served)), refused: Arc::new(Semaphore::new(refused)) }
    }

    /// Waits until a connection can be served, or at least refused. With `is_full`, the last one was refused: then the next
    /// is refused without patience.
    pub(super) async fn next(&self, is_full: bool) -> Admission {
        let acquire = |permits: &Arc<Semaphore>| Arc::clone(permits).acquire_owned();
        if !is_full && let Ok(Ok(permit)) = timeout(PATIENCE, acquire(&self.served)).await {
            return Admission::served(permit);
        }
        tokio::select! {
            biased;
            Ok(permit) = acquire(&self.served) => Admission::served(permit),
            Ok(permit) = acquire(&self.refused) => Admission::refused(permit),
            // Neither semaphore is ever closed.
            else => pending().await,
        }
    }

    /// Admits a connection that is served, if that is possible at once.
    pub(super) fn try_serve(&self) -> Option<Admission> {
        Arc::clone(&self.served).try_acquire_owned().ok().map(Admission::served)
    }
}
