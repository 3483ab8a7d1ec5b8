//! Remembers what other publishers append.
//!
//! After Redis lost history, the next append must continue above every acknowledged seq, whichever publisher got the
//! acknowledgement. So each publisher listens for changes and reads the latest positions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use protocol::ids::MarketId;
use tokio::time::sleep;

use super::{RedisBackbone, change_listener::RedisChangeListener};
use crate::{Backbone, BackboneError, ChangeListener, Changes};

/// The shortest time between two reads of a market's latest position, however many appends there are.
const READ_EVERY: Duration = Duration::from_millis(10);

impl RedisBackbone {
    /// Remembers what other publishers append as if it had been acknowledged here. Never returns.
    pub async fn remember_others(self: Arc<Self>) {
        tokio::join!(self.listen_to_others(), self.keep_listed());
    }

    async fn listen_to_others(self: &Arc<Self>) {
        let own = Arc::clone(self);
        let remembered = move || own.remembered.all();
        let mut listener = RedisChangeListener::new(Arc::clone(&self.nodes), Arc::new(remembered));
        let mut pending = BTreeSet::new();
        loop {
            match listener.wait().await {
                Ok(Changes::Markets(markets)) => pending.extend(markets),
                Ok(Changes::All) => {
                    pending.extend(self.remembered.markets());
                    self.list_all();
                }
                // Readiness and appends report the failure.
                Err(_) => continue,
            }
            // After a failure the same markets are read again with the next change.
            if self.remember_latest(&pending).await.is_ok() {
                pending.clear();
            }
            sleep(READ_EVERY).await;
        }
    }

    async fn remember_latest(&self, markets: &BTreeSet<MarketId>) -> Result<(), BackboneError> {
        let mut partitions: BTreeMap<usize, Vec<MarketId>> = BTreeMap::new();
        for &market in markets {
            partitions.entry(self.partition(market)).or_default().push(market);
        }
        let mut new = Vec::new();
        for markets in partitions.values() {
            for (market, latest) in markets.iter().zip(self.latest_positions(markets).await?) {
                if self.remembered.record(*market, latest) {
                    new.push(*market);
                }
            }
        }
        self.list(new);
        Ok(())
    }
}
