//! The list of all markets, read from the backbone at most once per second.

use std::{sync::Arc, time::Duration};

use backbone::Backbone;
use protocol::MarketId;
use tokio::{sync::Mutex, time::Instant};

/// How long a list is kept.
const KEPT: Duration = Duration::from_secs(1);

/// All markets, in ascending order, as the backbone last listed them.
#[derive(Debug, Default)]
pub struct Listing(Mutex<Option<Read>>);

#[derive(Debug)]
struct Read {
    ended: Instant,
    /// `None`: the read failed.
    markets: Option<Arc<[MarketId]>>,
}

impl Listing {
    /// Returns the markets, at most [`KEPT`] old, or `None` if they cannot be read.
    ///
    /// Requests that come during a read share its outcome. A failure is kept as well: a Redis that is slow to fail is
    /// not asked by one request after the other.
    pub async fn get(&self, backbone: &dyn Backbone) -> Option<Arc<[MarketId]>> {
        let mut last = self.0.lock().await;
        if let Some(read) = &*last
            && read.ended.elapsed() < KEPT
        {
            return read.markets.clone();
        }
        let read = backbone.markets().await.inspect_err(|error| {
            tracing::warn!(%error, "the list of markets cannot be read");
        });
        let markets: Option<Arc<[MarketId]>> = read.ok().map(Into::into);
        *last = Some(Read { ended: Instant::now(), markets: markets.clone() });
        markets
    }
}
