//! Which Redis holds which market, and the connections there.
//!
//! Every topology comes down to primaries and the slots each holds: one for all slots, or a cluster's. What they are
//! is asked anew when a node says that it is not the one (`MOVED`, `READONLY`), when it cannot be reached, and every
//! few seconds. With [`TailFrom::Replica`] each primary is also asked then which replicas it has, and one that keeps
//! up is tailed in its place.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    cmd,
};
use deadpool_redis::{Manager, Pool, PoolError, Runtime};
use futures_util::future::join_all;
use protocol::ids::MarketId;
use tokio::{sync::watch, time::sleep};

use super::{
    TailFrom,
    replicas::{self, Unreachable, Written},
    url::{Address, Dialer, Topology},
};
use crate::BackboneError;

/// How long Redis may take to answer before the call fails. No command here blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a sentinel or a cluster node may take to say who holds what.
pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between attempts to find out who holds what.
const RESOLVE_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Connections a node for reads that a request waits for (REST, audit, market loads): each serves one at a time, so
/// that this also bounds the reads in flight.
const POOL_SIZE: usize = 8;
/// How long a connection of these may take to show that it is alive before it is given up. One after the other is
/// tried, and where one is half-open all are: together they take less than one answer may.
const RECYCLE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait before a command is asked again that a node refused without carrying it out: because another
/// holds the slot, the slot is on its way, or a failover is. After the last, the refusal is the answer.
pub(super) const RETRY_AFTER_MS: [u64; 7] = [0, 10, 25, 50, 100, 200, 400];
/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// The primaries, as last known.
pub(super) struct Nodes {
    topology: Topology,
    dialer: Dialer,
    tail_from: TailFrom,
    /// Changes when the primaries or their slots do.
    map: watch::Sender<Arc<Map>>,
    /// One resolution at a time; whoever waited for it uses its result.
    resolving: tokio::sync::Mutex<()>,
    /// When the map, which is in doubt, is to be resolved; `None` while it is not.
    doubted: Mutex<Option<Instant>>,
    unreachable: Unreachable,
}

/// Who holds what.
#[derive(Default)]
pub(super) struct Map {
    /// The primaries.
    nodes: Vec<Arc<Node>>,
    /// Where each of them is tailed: there, or at one of its replicas.
    tails: Vec<Arc<Node>>,
    /// Slot ranges with the index of their node; empty = one node for all.
    ranges: Vec<(u16, u16, usize)>,
    by_slot: bool,
}

/// One Redis.
pub(super) struct Node {
    pub(super) address: Address,
    /// It is read in its primary's place.
    pub(super) is_replica: bool,
    pub(super) client: Client,
    /// Appends: multiplexed, so that concurrent requests share round trips.
    pub(super) writes: ConnectionManager,
    /// Reads of the tail.
    pub(super) tails: ConnectionManager,
    /// Reads that a request waits for.
    reads: Pool,
    /// A call timed out: its connection may be half-open, which redis-rs does not take for lost.
    is_worn: AtomicBool,
    /// Of a primary that is tailed at a replica: how far it was.
    pub(super) written: Mutex<Written>,
}

impl Nodes {
    pub(super) fn new(topology: Topology, dialer: Dialer, tail_from: TailFrom) -> Self {
        Self {
            topology,
            dialer,
            tail_from,
            map: watch::Sender::new(Arc::default()),
            resolving: tokio::sync::Mutex::new(()),
            doubted: Mutex::new(Some(Instant::now())),
            unreachable: Unreachable::default(),
        }
    }

    /// Whether a market's keys each need a command of their own unless they share a slot.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Cluster { .. })
    }

    /// Tells when the primaries or their slots change.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    /// The map, resolved anew if it is in doubt. While that fails, the last one is better than none: the primary may
    /// be well and the sentinels not.
    pub(super) async fn map(&self) -> RedisResult<Arc<Map>> {
        if self.is_due() {
            let _one_at_a_time = self.resolving.lock().await;
            if self.is_due()
                && let Err(error) = self.resolve().await
                && self.map.borrow().nodes.is_empty()
            {
                return Err(error);
            }
        }
        Ok(Arc::clone(&self.map.borrow()))
    }

    /// Asks anew who holds what.
    pub(super) async fn refresh(&self) -> RedisResult<()> {
        self.doubt();
        self.map().await.map(|_| ())
    }

    /// The primary that holds `market`.
    pub(super) async fn of(&self, market: MarketId) -> RedisResult<Arc<Node>> {
        self.at(slot(market)).await
    }

    /// The primary that holds this slot.
    pub(super) async fn at(&self, slot: u16) -> RedisResult<Arc<Node>> {
        let map = self.map().await?;
        self.found(map.of(&map.nodes, slot))
    }

    /// Where `market` is tailed.
    pub(super) async fn tail_of(&self, market: MarketId) -> RedisResult<Arc<Node>> {
        let map = self.map().await?;
        self.found(map.of(&map.tails, slot(market)))
    }

    /// Asks the primary of a slot in one round trip, and again while a node says that it is not the one to ask.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        slot: u16,
        commands: &Pipeline,
    ) -> Result<T, BackboneError> {
        let mut pauses = RETRY_AFTER_MS.into_iter();
        loop {
            let node = self.at(slot).await?;
            let result = node.ask(commands).await;
            match (self.note(&node, result), pauses.next()) {
                (Err(error), Some(pause_ms)) if is_misdirected(&error) => {
                    sleep(Duration::from_millis(pause_ms)).await;
                }
                (result, _) => return Ok(result?),
            }
        }
    }

    fn found(&self, node: Option<Arc<Node>>) -> RedisResult<Arc<Node>> {
        node.ok_or_else(|| {
            self.doubt();
            RedisError::from((ErrorKind::Client, "no node of the cluster holds this slot"))
        })
    }

    /// Whether `market` is tailed at `node`, as far as is known.
    pub(super) fn is_tailed_at(&self, node: &Node, market: MarketId) -> bool {
        let map = self.map.borrow();
        map.of(&map.tails, slot(market)).is_some_and(|holder| holder.address == node.address)
    }

    /// Which primary holds `market` as far as is known, as a small number; parts fail on their own.
    pub(super) fn partition_of(&self, market: MarketId) -> usize {
        let map = self.map.borrow();
        if map.by_slot { map.index_of(slot(market)).unwrap_or_default() } else { 0 }
    }

    /// Takes note of what a call to `node` came to.
    pub(super) fn note<T>(&self, node: &Node, result: RedisResult<T>) -> RedisResult<T> {
        result.inspect_err(|error| self.learn(node, error))
    }

    /// The same of a call whose commands may each fail on their own.
    pub(super) fn note_each<T>(
        &self,
        node: &Node,
        results: RedisResult<Vec<RedisResult<T>>>,
    ) -> RedisResult<Vec<RedisResult<T>>> {
        let results = self.note(node, results)?;
        results.iter().filter_map(|result| result.as_ref().err()).for_each(|error| self.learn(node, error));
        Ok(results)
    }

    /// Takes note of an error of a call to `node`. After a time-out the next map has new connections there.
    pub(super) fn learn(&self, node: &Node, error: &RedisError) {
        if error.is_timeout() {
            node.is_worn.store(true, Ordering::Relaxed);
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

    fn doubt(&self) {
        self.doubted().get_or_insert_with(Instant::now);
    }

    fn is_due(&self) -> bool {
        self.doubted().is_some_and(|at| Instant::now() >= at) || self.map.borrow().nodes.is_empty()
    }

    fn doubted(&self) -> MutexGuard<'_, Option<Instant>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve(&self) -> RedisResult<()> {
        // What is learnt meanwhile is a doubt of its own.
        *self.doubted() = None;
        let taken = match self.find_primaries().await {
            Ok(primaries) => self.take(&primaries).await,
            Err(error) => Err(error),
        };
        if taken.is_err() {
            *self.doubted() = Some(Instant::now() + RESOLVE_AGAIN_AFTER);
        }
        taken
    }

    /// Each primary with its slot ranges.
    async fn find_primaries(&self) -> RedisResult<Vec<(Address, Vec<(u16, u16)>)>> {
        match &self.topology {
            Topology::Single(address) => Ok(vec![(address.clone(), Vec::new())]),
            Topology::Sentinel { sentinels, name } => {
                let mut last = None;
                for sentinel in sentinels {
                    match self.ask_sentinel(sentinel, name).await {
                        Ok(primary) => return Ok(vec![(primary, Vec::new())]),
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.unwrap_or_else(|| (ErrorKind::Client, "no sentinels").into()))
            }
            Topology::Cluster { seeds } => {
                let known: Vec<Address> =
                    self.map.borrow().nodes.iter().map(|node| node.address.clone()).collect();
                let mut last = None;
                for address in known.iter().chain(seeds) {
                    match self.ask_cluster(address).await {
                        Ok(primaries) => return Ok(primaries),
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.unwrap_or_else(|| (ErrorKind::Client, "no cluster nodes").into()))
            }
        }
    }

    /// The primary that a sentinel names, if that one agrees.
    async fn ask_sentinel(&self, sentinel: &str, name: &str) -> RedisResult<Address> {
        let mut connection = connect(&self.dialer.sentinel(sentinel)?).await?;
        let primary: Option<(String, u16)> =
            cmd("SENTINEL").arg("get-master-addr-by-name").arg(name).query_async(&mut connection).await?;
        let (host, port) =
            primary.ok_or((ErrorKind::Client, "the sentinel knows no primary of this name"))?;
        let address = joined(&host, port);
        let mut connection = connect(&self.dialer.node(&address)?).await?;
        let role: Vec<Value> = cmd("ROLE").query_async(&mut connection).await?;
        match role.first() {
            Some(Value::BulkString(role)) if role == b"master" => Ok(address),
            _ => {
                Err((ErrorKind::Client, "the sentinel's primary is a replica: a failover is under way")
                    .into())
            }
        }
    }

    /// The primaries that a cluster node knows.
    async fn ask_cluster(&self, address: &str) -> RedisResult<Vec<(Address, Vec<(u16, u16)>)>> {
        let mut connection = connect(&self.dialer.node(address)?).await?;
        let rows: Vec<Vec<Value>> = cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let asked_host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let mut primaries: Vec<(Address, Vec<(u16, u16)>)> = Vec::new();
        for row in rows {
            let mut row = row.into_iter();
            let (Some(first), Some(last), Some(primary)) = (row.next(), row.next(), row.next()) else {
                continue;
            };
            let (first, last): (u16, u16) =
                (::redis::from_redis_value(first)?, ::redis::from_redis_value(last)?);
            let Value::Array(primary) = primary else { continue };
            let mut primary = primary.into_iter();
            let host: Option<String> = ::redis::from_redis_value(primary.next().unwrap_or(Value::Nil))?;
            let port: u16 = ::redis::from_redis_value(primary.next().unwrap_or(Value::Nil))?;
            // A node that does not know its own address means the one it was asked at.
            let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| asked_host.to_owned());
            let address = joined(&host, port);
            match primaries.iter_mut().find(|(known, _)| *known == address) {
                Some((_, ranges)) => ranges.push((first, last)),
                None => primaries.push((address, vec![(first, last)])),
            }
        }
        if primaries.is_empty() {
            return Err((ErrorKind::Client, "the cluster has no slots yet").into());
        }
        primaries.sort();
        Ok(primaries)
    }

    /// Makes the map of these, keeping the connections to nodes that stay.
    async fn take(&self, primaries: &[(Address, Vec<(u16, u16)>)]) -> RedisResult<()> {
        let old = Arc::clone(&self.map.borrow());
        let mut nodes = Vec::with_capacity(primaries.len());
        let mut ranges = Vec::new();
        for (index, (address, slots)) in primaries.iter().enumerate() {
            nodes.push(self.keep_or_make(&old.nodes, address, false)?);
            ranges.extend(slots.iter().map(|&(first, last)| (first, last, index)));
        }
        let tails = match self.tail_from {
            TailFrom::Primary => nodes.clone(),
            TailFrom::Replica => join_all(nodes.iter().map(|node| self.tail_for(&old, node))).await,
        };
        let same = |old: &[Arc<Node>], new: &[Arc<Node>]| {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| Arc::ptr_eq(old, new))
        };
        if old.ranges == ranges && same(&old.nodes, &nodes) && same(&old.tails, &tails) {
            return Ok(());
        }
        let new = Map { nodes, tails, ranges, by_slot: self.is_cluster() };
        if !old.nodes.is_empty() {
            new.tell_apart(&old);
        }
        self.map.send_replace(Arc::new(new));
        Ok(())
    }

    /// Where to tail what `primary` holds: at a replica that keeps up, or else there: fresh prices come before its rest.
    async fn tail_for(&self, old: &Map, primary: &Arc<Node>) -> Arc<Node> {
        let index = old.nodes.iter().position(|node| node.address == primary.address);
        let current = index.and_then(|index| old.tails.get(index));
        let Ok(chosen) =
            replicas::choose(primary, current.map(|node| &*node.address), &self.unreachable).await
        else {
            return Arc::clone(current.unwrap_or(primary));
        };
        let node = chosen.and_then(|address| self.keep_or_make(&old.tails, &address, true).ok());
        node.unwrap_or_else(|| Arc::clone(primary))
    }

    fn keep_or_make(&self, old: &[Arc<Node>], address: &str, is_replica: bool) -> RedisResult<Arc<Node>> {
        let is_kept = |node: &&Arc<Node>| {
            node.address == address && node.is_replica == is_replica && !node.is_worn.load(Ordering::Relaxed)
        };
        match old.iter().find(is_kept) {
            Some(node) => Ok(Arc::clone(node)),
            None => Ok(Arc::new(Node::new(address, self.dialer.node(address)?, is_replica)?)),
        }
    }
}

/// `host:port`, with an IPv6 host in brackets.
pub(super) fn joined(host: &str, port: impl std::fmt::Display) -> Address {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl Map {
    /// Every primary.
    pub(super) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Every node that is tailed.
    pub(super) fn tails(&self) -> &[Arc<Node>] {
        &self.tails
    }

    /// Which of `nodes`, one for each primary, is about this slot.
    fn of(&self, nodes: &[Arc<Node>], slot: u16) -> Option<Arc<Node>> {
        nodes.get(self.index_of(slot)?).map(Arc::clone)
    }

    /// Logs what is different from `old`.
    fn tell_apart(&self, old: &Self) {
        let addresses =
            |nodes: &[Arc<Node>]| -> Vec<Address> { nodes.iter().map(|node| node.address.clone()).collect() };
        let (primaries, tails) = (addresses(&self.nodes), addresses(&self.tails));
        let moved = old.ranges != self.ranges || addresses(&old.nodes) != primaries;
        let tailed_elsewhere = addresses(&old.tails) != tails;
        if moved {
            tracing::warn!(?primaries, "the primaries or their slots have changed");
        }
        if tailed_elsewhere && tails != primaries {
            tracing::info!(?tails, "these are tailed from now on");
        } else if tailed_elsewhere && !moved {
            tracing::warn!(?tails, "no replica keeps up: the primaries are tailed");
        }
        if !moved && !tailed_elsewhere {
            tracing::info!("a call timed out: new connections take the place of those it may have hung on");
        }
    }

    fn index_of(&self, slot: u16) -> Option<usize> {
        if !self.by_slot {
            return Some(0);
        }
        self.ranges
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&slot))
            .map(|&(_, _, index)| index)
    }
}

impl Node {
    fn new(address: &str, client: Client, is_replica: bool) -> RedisResult<Self> {
        let managed = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // Who asks decides whether to ask again.
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_secs(1));
        let pooled = Manager::new_with_config(client.get_connection_info().clone(), connection_config())?;
        let reads = Pool::builder(pooled)
            .max_size(POOL_SIZE)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(RESPONSE_TIMEOUT))
            .recycle_timeout(Some(RECYCLE_TIMEOUT))
            .build()
            .map_err(|error| RedisError::from(std::io::Error::other(error)))?;
        Ok(Self {
            address: address.to_owned(),
            is_replica,
            writes: ConnectionManager::new_lazy_with_config(client.clone(), managed.clone())?,
            tails: ConnectionManager::new_lazy_with_config(client.clone(), managed)?,
            client,
            reads,
            is_worn: AtomicBool::new(false),
            written: Mutex::default(),
        })
    }

    /// Asks it all of this in one round trip, on a connection that nobody else uses meanwhile.
    pub(super) async fn ask<T: FromRedisValue>(&self, commands: &Pipeline) -> RedisResult<T> {
        let mut connection = match self.reads.get().await {
            Ok(connection) => connection,
            Err(PoolError::Backend(error)) => return Err(error),
            Err(error) => return Err((ErrorKind::Client, "no connection for it", error.to_string()).into()),
        };
        commands.query_async(&mut connection).await
    }
}

/// Whether a node refused a command without carrying it out because it is not the one to ask, now or for good: it may
/// be asked again.
pub(super) fn is_misdirected(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::ClusterDown
        )
    )
}

pub(super) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
}

/// A connection for one question about the topology.
pub(super) async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESOLVE_TIMEOUT))
        .set_connection_timeout(Some(RESOLVE_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// The cluster slot of a market's keys, all of which have the hash tag `{id}`.
pub(super) fn slot(market: MarketId) -> u16 {
    slot_of_key(&market.to_string())
}

/// The cluster slot of a key without a hash tag, or of what is in one.
pub(super) fn slot_of_key(key: &str) -> u16 {
    crc16(key.as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as the cluster specification says.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot(MarketId::new(1001).unwrap()), crc16(b"1001") % 16_384);
    }
}
