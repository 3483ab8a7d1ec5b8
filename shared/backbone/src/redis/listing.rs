//! Which markets there are: a set beside the logs, which everybody who appends keeps.
//!
//! It is not part of the append: in a cluster it is on another node, and no trader waits for a list. So it may miss a
//! market for a moment, and a failover may lose some of it; whoever remembers a market names it again.

use std::{sync::Arc, time::Duration};

use ::redis::pipe;
use protocol::ids::MarketId;
use tokio::time::sleep;

use super::{
    RedisBackbone,
    nodes::{Nodes, slot_of_key},
};
use crate::{BackboneError, keys};

/// How long what was lost unnoticed stays lost, at most.
const NAME_AGAIN_EVERY: Duration = Duration::from_mins(1);

/// The set, ascending. What is no market's id is not ours.
pub(super) async fn read(nodes: &Nodes) -> Result<Vec<MarketId>, BackboneError> {
    let mut members = pipe();
    members.cmd("SMEMBERS").arg(keys::MARKETS);
    let (members,): (Vec<String>,) = nodes.ask(slot_of_key(keys::MARKETS), &members).await?;
    let mut markets: Vec<MarketId> = members.iter().filter_map(|id| id.parse().ok()).collect();
    markets.sort_unstable();
    Ok(markets)
}

impl RedisBackbone {
    /// Has these markets added to the set, without waiting for it.
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
                tracing::warn!(%error, "the list of markets is behind: it is told again within a minute");
            }
        });
    }

    /// Adds every market that is remembered: some may have been lost.
    pub(super) fn list_all(&self) {
        let markets = self.remembered().keys().copied().collect();
        self.list(markets);
    }

    /// Does so for ever.
    pub(super) async fn keep_listed(&self) {
        loop {
            sleep(NAME_AGAIN_EVERY).await;
            self.list_all();
        }
    }
}
