//! Finds the node for a command, in every topology.
//!
//! Every topology comes down to primaries and the slots that each holds: one primary for all slots, or a cluster's. The
//! map of them is resolved again when a node rejects a command as not responsible (`MOVED`, `READONLY`), when a node
//! cannot be reached, and every few seconds. With [`TailFrom::Replica`], this also asks each primary for its replicas. A
//! replica that keeps up is followed in the primary's place.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::redis::{ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, cmd};
use futures_util::future::{join_all, try_join_all};
use protocol::ids::MarketId;
use tokio::{sync::watch, time::sleep};

use super::{
    TailFrom,
    discovery::{Primary, find_primaries},
    node::Node,
    replicas::{self, Unreachable},
    slots::slot_of,
    topology::Map,
    url::{Address, Dialer, InvalidRedisUrl, RedisConfig, Servers},
};
use crate::{BackboneError, error::is_misdirected};

/// Pauses before a command that a node rejected without executing is sent again. Another node holds the slot, the slot
/// migrates, or a failover is under way. After the last pause the rejection is the result.
pub(super) const RETRY_AFTER_MS: [u64; 7] = [0, 10, 25, 50, 100, 200, 400];
/// The pause between failed attempts to resolve the map.
const RESOLVE_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// The nodes of one Redis, and the map as last resolved.
pub(super) struct Nodes {
    servers: Servers,
    dialer: Dialer,
    tail_from: TailFrom,
    map: watch::Sender<Arc<Map>>,
    /// Held by the only resolution that runs. Calls that wait for it use its result.
    resolving: tokio::sync::Mutex<()>,
    /// When to resolve the map again; `None` while the map is not in doubt.
    resolve_at: Mutex<Option<Instant>>,
    unreachable: Unreachable,
}

impl Nodes {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, InvalidRedisUrl> {
        let (servers, dialer) = config.parse()?;
        Ok(Self {
            servers,
            dialer,
            tail_from: config.tail_from,
            map: watch::Sender::new(Arc::default()),
            resolving: tokio::sync::Mutex::new(()),
            resolve_at: Mutex::new(Some(Instant::now())),
            unreachable: Unreachable::default(),
        })
    }

    /// Returns true if all keys of a command must share a slot.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster { .. })
    }

    /// Returns a receiver that is notified when the map changes.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    /// Returns the map, resolved again if it is in doubt. If that fails, returns the last map: the primary may be
    /// healthy while the sentinels are not.
    pub(super) async fn map(&self) -> RedisResult<Arc<Map>> {
        if self.is_due() {
            let _one_at_a_time = self.resolving.lock().await;
            if self.is_due()
                && let Err(error) = self.resolve().await
                && self.map.borrow().is_empty()
            {
                return Err(error);
            }
        }
        Ok(Arc::clone(&self.map.borrow()))
    }

    /// Resolves the map again.
    pub(super) async fn refresh(&self) -> RedisResult<()> {
        self.doubt();
        self.map().await.map(|_| ())
    }

    /// Returns the primary that holds `market`.
    pub(super) async fn primary_of(&self, market: MarketId) -> RedisResult<Arc<Node>> {
        self.primary_at(slot_of(market)).await
    }

    async fn primary_at(&self, slot: u16) -> RedisResult<Arc<Node>> {
        let primary = self.map().await?.primary_at(slot);
        self.assigned(primary)
    }

    /// Returns the node at which the log of `market` is followed.
    pub(super) async fn tail_of(&self, market: MarketId) -> RedisResult<Arc<Node>> {
        let tail = self.map().await?.tail_at(slot_of(market));
        self.assigned(tail)
    }

    /// Sends commands to the primary of a slot in one round trip. Sends them again while a node rejects them as not
    /// responsible.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        slot: u16,
        commands: &Pipeline,
    ) -> Result<T, BackboneError> {
        let mut pauses = RETRY_AFTER_MS.into_iter();
        loop {
            let node = self.primary_at(slot).await?;
            let result = node.ask(commands).await;
            match (self.note(&node, result), pauses.next()) {
                (Err(error), Some(pause_ms)) if is_misdirected(&error) => {
                    sleep(Duration::from_millis(pause_ms)).await;
                }
                (result, _) => return Ok(result?),
            }
        }
    }

    /// Fails unless every primary responds.
    pub(super) async fn ping(&self) -> Result<(), BackboneError> {
        let map = self.map().await?;
        try_join_all(map.primaries().iter().map(|node| self.ping_node(node))).await?;
        Ok(())
    }

    /// Returns true if the log of `market` is followed at `node`, as far as is known.
    pub(super) fn is_tailed_at(&self, node: &Node, market: MarketId) -> bool {
        self.map.borrow().tail_at(slot_of(market)).is_some_and(|tail| tail.address == node.address)
    }

    /// Returns the partition that holds `market`, as far as is known.
    pub(super) fn partition_of(&self, market: MarketId) -> usize {
        self.map.borrow().index_of(slot_of(market)).unwrap_or_default()
    }

    /// Notes the error of a call to `node`, if it failed.
    pub(super) fn note<T>(&self, node: &Node, result: RedisResult<T>) -> RedisResult<T> {
        result.inspect_err(|error| self.note_error(node, error))
    }

    /// Notes the errors of a call to `node` whose commands may fail independently.
    pub(super) fn note_each<T>(
        &self,
        node: &Node,
        results: RedisResult<Vec<RedisResult<T>>>,
    ) -> RedisResult<Vec<RedisResult<T>>> {
        let results = self.note(node, results)?;
        results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .for_each(|error| self.note_error(node, error));
        Ok(results)
    }

    /// Notes an error of a call to `node`. If the call timed out, the next map has new connections to that node.
    pub(super) fn note_error(&self, node: &Node, error: &RedisError) {
        if error.is_timeout() {
            node.note_timeout();
        }
        let is_down = error.is_io_error()
            || error.is_connection_dropped()
            || error.is_timeout()
            || matches!(
                error.kind(),
                ErrorKind::Server(ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading)
            );
        if is_down && node.is_replica {
            self.unreachable.insert(&node.address);
        }
        if is_down || is_misdirected(error) {
            self.doubt();
        }
    }

    async fn ping_node(&self, node: &Node) -> RedisResult<()> {
        let ping = cmd("PING").query_async::<Value>(&mut node.tails.clone()).await;
        self.note(node, ping).map(|_| ())
    }

    fn assigned(&self, node: Option<Arc<Node>>) -> RedisResult<Arc<Node>> {
        node.ok_or_else(|| {
            self.doubt();
            RedisError::from((ErrorKind::Client, "no node of the cluster holds this slot"))
        })
    }

    /// Puts the map in doubt: the next call resolves it.
    fn doubt(&self) {
        self.resolve_at().get_or_insert_with(Instant::now);
    }

    fn is_due(&self) -> bool {
        self.resolve_at().is_some_and(|at| Instant::now() >= at) || self.map.borrow().is_empty()
    }

    fn resolve_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.resolve_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(&self) -> RedisResult<()> {
        // Before the questions, so that an error noted meanwhile puts the new map in doubt as well.
        *self.resolve_at() = None;
        let old = Arc::clone(&self.map.borrow());
        let known: Vec<Address> = old.primaries().iter().map(|node| node.address.clone()).collect();
        let resolved = match find_primaries(&self.servers, &self.dialer, &known).await {
            Ok(primaries) => self.install(&old, &primaries).await,
            Err(error) => Err(error),
        };
        if resolved.is_err() {
            *self.resolve_at() = Some(Instant::now() + RESOLVE_AGAIN_AFTER);
        }
        resolved
    }

    /// Replaces the map. Connections to nodes that stay are kept.
    async fn install(&self, old: &Map, found: &[Primary]) -> RedisResult<()> {
        let mut primaries = Vec::with_capacity(found.len());
        let mut ranges = Vec::new();
        for (index, Primary { address, slots }) in found.iter().enumerate() {
            primaries.push(self.keep_or_create(old.primaries(), address, false)?);
            ranges.extend(slots.iter().map(|&(first, last)| (first, last, index)));
        }
        let tails = match self.tail_from {
            TailFrom::Primary => primaries.clone(),
            TailFrom::Replica => join_all(primaries.iter().map(|primary| self.tail_for(old, primary))).await,
        };
        let new = Map::new(primaries, tails, self.is_cluster().then_some(ranges));
        if new.is_same(old) {
            return Ok(());
        }
        if !old.is_empty() {
            new.log_difference(old);
        }
        self.map.send_replace(Arc::new(new));
        Ok(())
    }

    /// Returns the node at which to follow the logs of `primary`: a replica that keeps up, or else the primary. Fresh
    /// prices matter more than the primary's load.
    async fn tail_for(&self, old: &Map, primary: &Arc<Node>) -> Arc<Node> {
        let current = old.tail_of(primary);
        let Ok(chosen) =
            replicas::choose(primary, current.map(|node| &*node.address), &self.unreachable).await
        else {
            return Arc::clone(current.unwrap_or(primary));
        };
        let node = chosen.and_then(|address| self.keep_or_create(old.tails(), &address, true).ok());
        node.unwrap_or_else(|| Arc::clone(primary))
    }

    fn keep_or_create(&self, old: &[Arc<Node>], address: &str, is_replica: bool) -> RedisResult<Arc<Node>> {
        let is_kept = |node: &&Arc<Node>| {
            node.address == address && node.is_replica == is_replica && !node.has_timed_out()
        };
        match old.iter().find(is_kept) {
            Some(node) => Ok(Arc::clone(node)),
            None => Ok(Arc::new(Node::new(address, self.dialer.node(address)?, is_replica)?)),
        }
    }
}
