//! What the handlers of a gateway share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use backbone::Backbone;

use crate::{
    access::Access,
    limits::ConnectionPermits,
    listing::Listing,
    markets::Markets,
    shard::{ShardHandle, Stats},
    tail::Health,
    tokens::Tokens,
};

/// The state of one gateway.
pub struct Gateway {
    /// Everything that is not in memory.
    pub backbone: Arc<dyn Backbone>,
    /// The markets in memory.
    pub markets: Arc<Markets>,
    /// The threads that own the sockets.
    pub shards: Vec<Arc<ShardHandle>>,
    /// The shards' counts.
    pub stats: Arc<Stats>,
    /// The permits for connections.
    pub permits: Arc<ConnectionPermits>,
    /// Whether prices are fresh.
    pub health: Arc<Health>,
    /// True once new sockets are refused.
    pub draining: AtomicBool,
    /// Verifies clients' tokens.
    pub tokens: Arc<Tokens>,
    /// Decides which requests are let in.
    pub access: Access,
    /// The list of all markets.
    pub listing: Listing,
    /// Counts connections that were given to shards.
    pub next_shard: AtomicUsize,
}

impl Gateway {
    /// Returns the shard for the next connection. Shards take turns.
    pub fn pick_shard(&self) -> &ShardHandle {
        &self.shards[self.next_shard.fetch_add(1, Ordering::Relaxed) % self.shards.len()]
    }
}
