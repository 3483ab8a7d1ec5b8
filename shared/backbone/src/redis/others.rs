//! What other publishers append. Whoever publishes next after a loss must know what was there before, whoever had
//! published it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use protocol::ids::MarketId;
use tokio::time::sleep;

use super::{RedisBackbone, RedisChangeListener};
use crate::{Backbone, BackboneError, ChangeListener, Changes};

/// Between two looks at what rang: however many appends there are, a market's top is asked for no more often.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl RedisBackbone {
    /// Listens for what others append as well, and remembers it as if it had been acknowledged here, for ever.
    pub async fn remember_others(self: Arc<Self>) {
        tokio::join!(self.listen_to_others(), self.keep_listed());
    }

    async fn listen_to_others(self: &Arc<Self>) {
        let own = Arc::clone(self);
        let remembered = move || own.remembered().iter().map(|(market, latest)| (*market, *latest)).collect();
        let mut listener = RedisChangeListener::new(Arc::clone(&self.nodes), Arc::new(remembered));
        let mut pending = BTreeSet::new();
        loop {
            match listener.wait().await {
                Ok(Changes::Markets(markets)) => pending.extend(markets),
                Ok(Changes::All) => {
                    pending.extend(self.remembered().keys().copied());
                    self.list_all();
                }
                // Readiness and every append say so.
                Err(_) => continue,
            }
            // What could not be asked for is asked for with the next ring.
            if self.remember_tops(&pending).await.is_ok() {
                pending.clear();
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn remember_tops(&self, markets: &BTreeSet<MarketId>) -> Result<(), BackboneError> {
        let mut parts: BTreeMap<usize, Vec<MarketId>> = BTreeMap::new();
        for &market in markets {
            parts.entry(self.partition(market)).or_default().push(market);
        }
        let mut new = Vec::new();
        for markets in parts.values() {
            for (market, latest) in markets.iter().zip(self.latest_positions(markets).await?) {
                if self.remember(*market, latest) {
                    new.push(*market);
                }
            }
        }
        self.list(new);
        Ok(())
    }
}
