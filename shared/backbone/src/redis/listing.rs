//! The set of all markets, which publishers keep beside the logs.
//!
//! Adding to it is not part of the append: in a cluster the set is on another node, and no trader should wait for it. So
//! the set may lack a new market for a moment, and a failover may lose some of it. Publishers add the markets that they
//! remember again every minute.

use std::{sync::Arc, time::Duration};

use ::redis::pipe;
use protocol::ids::MarketId;
use tokio::time::sleep;

use super::{RedisBackbone, nodes::Nodes, slots::slot_of_key};
use crate::{BackboneError, keys};

/// How often all remembered markets are added again.
const LIST_AGAIN_EVERY: Duration = Duration::from_mins(1);

/// Returns the set, ascending. Members that are not market ids are ignored.
pub(super) async fn read(nodes: &Nodes) -> Result<Vec<MarketId>, BackboneError> {
    let mut members = pipe();
    members.cmd("SMEMBERS").arg(keys::MARKETS);
    let (members,): (Vec<String>,) = nodes.ask(slot_of_key(keys::MARKETS), &members).await?;
    let mut markets: Vec<MarketId> = members.iter().filter_map(|id| id.parse().ok()).collect();
    markets.sort_unstable();
    Ok(markets)
}

impl RedisBackbone {
    /// Adds markets to the set in the background.
    pub(super) fn list(&self, markets: Vec<MarketId>) {
        if markets.is_empty() {
            return;
        }
        let nodes = Arc::clone(&self.nodes);
        tokio::spawn(async move {
            let mut add = pipe();
            add.cmd("SADD").arg(keys::MARKETS);
            for market in markets {
                add.arg(market.to_string());
            }
            let added: Result<(u64,), BackboneError> = nodes.ask(slot_of_key(keys::MARKETS), &add).await;
            if let Err(error) = added {
                tracing::warn!(%error, "new markets are not in the list yet: they are added again within a minute");
            }
        });
    }

    /// Adds every remembered market in the background.
    pub(super) fn list_all(&self) {
        self.list(self.remembered.markets());
    }

    /// Adds every remembered market again and again. Never returns.
    pub(super) async fn keep_listed(&self) {
        loop {
            sleep(LIST_AGAIN_EVERY).await;
            self.list_all();
        }
    }
}
