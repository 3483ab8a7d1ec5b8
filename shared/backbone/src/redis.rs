//! The backbone on Redis Streams (`docs/protocol.md#redis-keys`).
//!
//! This file has the type and its calls; the files below it carry the calls out. `nodes.rs` finds the node for a command
//! and `node.rs` has the connections to it.

mod append;
mod audit_batches;
mod blocking_listener;
mod change_listener;
pub mod check;
mod decode;
mod discovery;
mod listing;
mod node;
mod nodes;
mod other_publishers;
mod past_offset;
mod reads;
mod remembered;
mod replicas;
mod revocations;
mod slots;
mod tails;
mod topology;
mod url;

use std::{collections::BTreeSet, sync::Arc};

use ::redis::Script;
use async_trait::async_trait;
use protocol::{
    ids::MarketId,
    position::{Position, Seq},
};

pub use self::{
    audit_batches::AuditBatch,
    url::{InvalidRedisUrl, RedisConfig, TailFrom},
};
use self::{change_listener::RedisChangeListener, nodes::Nodes, remembered::Remembered};
use crate::{
    Append, AppendError, Appended, AuditEntry, AuditId, Backbone, BackboneError, ChangeListener, Followed,
    Loaded, LogPage, Retention, Revocation, Revocations, RevokeError, Revoked, StreamId, Tails,
};

/// Keeps logs, states and audits in one Redis, behind sentinels, or in a cluster.
pub struct RedisBackbone {
    nodes: Arc<Nodes>,
    append_script: Script,
    retention: Retention,
    /// Replicas that must have an append before it is acknowledged.
    min_replicas: usize,
    remembered: Remembered,
}

impl RedisBackbone {
    /// Creates a backbone on the Redis that `config` names. It connects when it is first used.
    ///
    /// # Errors
    /// When the URL or the certificates are invalid.
    pub fn new(config: &RedisConfig, retention: Retention) -> Result<Self, InvalidRedisUrl> {
        Ok(Self {
            nodes: Arc::new(Nodes::new(config)?),
            append_script: Script::new(append::SCRIPT),
            retention,
            min_replicas: 0,
            remembered: Remembered::default(),
        })
    }

    /// Acknowledges an append only when `min_replicas` replicas have it (`PUBLISH_MIN_REPLICAS`).
    #[must_use]
    pub fn with_min_replicas(self, min_replicas: usize) -> Self {
        Self { min_replicas, ..self }
    }

    /// Returns the markets that have new updates since the last call, as far as this publisher knows.
    #[must_use]
    pub fn take_changed(&self) -> BTreeSet<MarketId> {
        self.remembered.take_changed()
    }
}

#[async_trait]
impl Backbone for RedisBackbone {
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
        self.append_all(&appends).await
    }

    async fn read_after(&self, market: MarketId, after: Seq, limit: usize) -> Result<LogPage, BackboneError> {
        reads::read_after(&self.nodes, market, after, limit).await
    }

    async fn load(&self, markets: &[MarketId], history: usize) -> Result<Vec<Loaded>, BackboneError> {
        reads::load(&self.nodes, markets, history).await
    }

    fn partition(&self, market: MarketId) -> usize {
        self.nodes.partition_of(market)
    }

    async fn read_tails(
        &self,
        cursors: &[(MarketId, Position)],
        limit: usize,
    ) -> Result<Tails, BackboneError> {
        tails::read(&self.nodes, cursors, limit).await
    }

    async fn latest_positions(&self, markets: &[MarketId]) -> Result<Vec<Position>, BackboneError> {
        reads::latest_positions(&self.nodes, markets).await
    }

    async fn markets(&self) -> Result<Vec<MarketId>, BackboneError> {
        listing::read(&self.nodes).await
    }

    async fn audit(
        &self,
        market: MarketId,
        before: Option<AuditId>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError> {
        reads::audit(&self.nodes, market, before, limit).await
    }

    async fn revoke(&self, revoked: Revoked, actor: &str) -> Result<Revocation, RevokeError> {
        revocations::revoke(&self.nodes, &self.retention, revoked, actor).await
    }

    async fn revocations(&self, known: StreamId) -> Result<Option<Revocations>, BackboneError> {
        revocations::read(&self.nodes, known).await
    }

    fn change_listener(&self, followed: Followed) -> Box<dyn ChangeListener> {
        Box::new(RedisChangeListener::new(Arc::clone(&self.nodes), followed))
    }

    async fn ping(&self) -> Result<(), BackboneError> {
        self.nodes.ping().await
    }
}
