//! What other publishers append. Whoever publishes next after a loss must know what was there before, whoever had
//! published it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use protocol::ids::MarketId;
use tokio::time::sleep;

use super::{NodesDoorbell, RedisBackbone};
use crate::{Backbone, BackboneError, Doorbell, Ring};

/// Between two looks at what rang: however many appends there are, a market's top is asked for no more often.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl RedisBackbone {
    /// Listens for what others append as well, and remembers it as if it had been acknowledged here, for ever.
    pub async fn remember_others(self: Arc<Self>) {
        tokio::join!(self.listen_to_others(), self.keep_listed());
    }

    async fn listen_to_others(self: &Arc<Self>) {
        let own = Arc::clone(self);
        let remembered = move || own.remembered().iter().map(|(market, top)| (*market, *top)).collect();
        let mut doorbell = NodesDoorbell::new(Arc::clone(&self.nodes), Arc::new(remembered));
        let mut rung = BTreeSet::new();
        loop {
            match doorbell.wait().await {
                Ok(Ring::Markets(markets)) => rung.extend(markets),
                Ok(Ring::All) => {
                    rung.extend(self.remembered().keys().copied());
                    self.list_all();
                }
                // Readiness and every append say so.
                Err(_) => continue,
            }
            // What could not be asked for is asked for with the next ring.
            if self.remember_tops(&rung).await.is_ok() {
                rung.clear();
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn remember_tops(&self, markets: &BTreeSet<MarketId>) -> Result<(), BackboneError> {
        let mut parts: BTreeMap<usize, Vec<MarketId>> = BTreeMap::new();
        for &market in markets {
            parts.entry(self.part(market)).or_default().push(market);
        }
        let mut new = Vec::new();
        for markets in parts.values() {
            for (market, top) in markets.iter().zip(self.tops(markets).await?) {
                if self.remember(*market, top) {
                    new.push(*market);
                }
            }
        }
        self.list(new);
        Ok(())
    }
}
