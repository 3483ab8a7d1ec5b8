//! One Redis node and the connections to it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};
use deadpool_redis::{Manager, Pool, PoolError, Runtime};

use super::{past_offset::PastOffset, url::Address};

/// How long a node may take to reply before the call fails. No command on these connections blocks for longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a question about the topology may take.
pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections per node for reads that a request waits for (REST, audit, market loads). Each serves one read at a time,
/// so this also bounds the reads in flight.
const POOL_SIZE: usize = 8;
/// How long a pooled connection may take to prove that it is alive. A half-open node makes all of them fail, one after
/// the other; together they take less than [`RESPONSE_TIMEOUT`].
const RECYCLE_TIMEOUT: Duration = Duration::from_millis(500);

/// A Redis node.
pub(super) struct Node {
    pub(super) address: Address,
    /// True if the node is followed in its primary's place.
    pub(super) is_replica: bool,
    pub(super) client: Client,
    /// For appends. Multiplexed, so that concurrent requests share round trips.
    pub(super) writes: ConnectionManager,
    /// For reads of the tail. Multiplexed as well.
    pub(super) tails: ConnectionManager,
    /// For reads that a request waits for.
    reads: Pool,
    /// True after a call timed out. Its connection may be half-open, which redis-rs does not notice.
    timed_out: AtomicBool,
    /// For a primary that is followed at a replica.
    pub(super) past_offset: Mutex<PastOffset>,
}

impl Node {
    pub(super) fn new(address: &str, client: Client, is_replica: bool) -> RedisResult<Self> {
        let managed = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // The caller decides about further attempts.
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
            timed_out: AtomicBool::new(false),
            past_offset: Mutex::default(),
        })
    }

    /// Sends commands in one round trip, on a connection that serves no other call meanwhile.
    pub(super) async fn ask<T: FromRedisValue>(&self, commands: &Pipeline) -> RedisResult<T> {
        let mut connection = match self.reads.get().await {
            Ok(connection) => connection,
            Err(PoolError::Backend(error)) => return Err(error),
            Err(error) => return Err((ErrorKind::Client, "no free connection", error.to_string()).into()),
        };
        commands.query_async(&mut connection).await
    }

    /// Notes that a call timed out, so the connections must not be used by the next map.
    pub(super) fn note_timeout(&self) {
        self.timed_out.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }
}

/// Returns the time limits of a connection.
pub(super) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
}

/// Connects for questions about the topology.
pub(super) async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESOLVE_TIMEOUT))
        .set_connection_timeout(Some(RESOLVE_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await
}
