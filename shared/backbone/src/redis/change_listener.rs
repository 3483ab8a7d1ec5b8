//! Listens for changes with client tracking: `CLIENT TRACKING ON BCAST` on the prefix of the logs' keys.
//!
//! Each node at which logs are followed has one connection. Redis pushes the key of every log that changes. When a
//! connection is lost, reports were lost as well. Where Redis refuses tracking, blocking reads replace it.

use std::{io, sync::Arc, time::Duration};

use ::redis::{
    Client, ErrorKind, FromRedisValue, ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult,
    ServerErrorKind, Value, aio::MultiplexedConnection, cmd,
};
use async_trait::async_trait;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout},
};

use super::{
    blocking_listener,
    node::{Node, connection_config},
    nodes::Nodes,
    topology::Map,
};
use crate::{BackboneError, ChangeListener, Changes, Followed, keys, pending_changes::PendingChanges};

/// How often a silent connection is checked, and the map of the nodes is refreshed.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// The pause between attempts to listen at a node.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Listens at every node at which logs are followed.
pub(super) struct RedisChangeListener {
    followed: Followed,
    nodes: Arc<Nodes>,
    map: watch::Receiver<Arc<Map>>,
    /// When to refresh the map.
    refreshes: Interval,
    pending: Arc<PendingChanges>,
    /// One task per node. Dropping the set ends them.
    tasks: JoinSet<()>,
    /// The nodes' addresses.
    addresses: Vec<String>,
}

impl RedisChangeListener {
    pub(super) fn new(nodes: Arc<Nodes>, followed: Followed) -> Self {
        let map = nodes.changes();
        // The first refresh can wait: listening begins by resolving the map.
        let mut refreshes = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        refreshes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            followed,
            nodes,
            map,
            refreshes,
            pending: Arc::default(),
            tasks: JoinSet::new(),
            addresses: Vec::new(),
        }
    }

    /// Listens at exactly the nodes at which the map says that logs are followed.
    async fn apply_map(&mut self) -> RedisResult<()> {
        self.nodes.map().await?;
        let map = Arc::clone(&self.map.borrow_and_update());
        let addresses: Vec<String> = map.tails().iter().map(|node| node.address.clone()).collect();
        if self.addresses != addresses {
            self.tasks = JoinSet::new();
            for node in map.tails() {
                let (node, nodes, pending) =
                    (Arc::clone(node), Arc::clone(&self.nodes), Arc::clone(&self.pending));
                self.tasks.spawn(listen(node, nodes, pending, Arc::clone(&self.followed)));
            }
            self.addresses = addresses;
        }
        Ok(())
    }
}

#[async_trait]
impl ChangeListener for RedisChangeListener {
    async fn wait(&mut self) -> Result<Changes, BackboneError> {
        loop {
            if (self.addresses.is_empty() || self.map.has_changed().unwrap_or(false))
                && let Err(error) = self.apply_map().await
            {
                sleep(RETRY_AFTER).await;
                return Err(error.into());
            }
            tokio::select! {
                report = self.pending.next() => return report,
                _ = self.map.changed() => self.map.mark_changed(),
                _ = self.refreshes.tick() => {
                    // A primary that was demoted but still responds reports no error, so the map is refreshed now and
                    // then. If that fails, the next call to the primary shows it.
                    let _ = self.nodes.refresh().await;
                }
            }
        }
    }
}

/// Listens at `node`. Never returns.
async fn listen(node: Arc<Node>, nodes: Arc<Nodes>, pending: Arc<PendingChanges>, followed: Followed) {
    loop {
        let begun = Listening::begin(&node.client, &pending).await;
        if matches!(begun, Ok(_) | Err(BeginError::Refused(_))) {
            pending.mark_all_changed();
        }
        let error = match begun {
            Ok(mut listening) => listening.until_lost().await,
            Err(BeginError::Refused(error)) => {
                tracing::warn!(node = node.address, %error, "CLIENT TRACKING is refused: blocking reads replace it, which cost Redis more");
                blocking_listener::listen(&node, &nodes, &pending, &followed).await
            }
            Err(BeginError::Failed(error)) => error,
        };
        nodes.note_error(&node, &error);
        pending.fail(error.into());
        sleep(RETRY_AFTER.mul_f64(rand::random_range(0.5..=1.0))).await;
        // The node may have been replaced. On a pod that reads nothing, no other call would resolve the map again. If this
        // fails, the next attempt shows it.
        let _ = nodes.map().await;
    }
}

/// Why listening did not begin.
enum BeginError {
    /// Redis does not allow tracking, or is too old for it.
    Refused(RedisError),
    /// Anything else.
    Failed(RedisError),
}

impl From<RedisError> for BeginError {
    fn from(error: RedisError) -> Self {
        Self::Failed(error)
    }
}

/// A connection on which Redis pushes changes.
struct Listening {
    connection: MultiplexedConnection,
    lost: Arc<Notify>,
}

impl Listening {
    async fn begin(client: &Client, pending: &Arc<PendingChanges>) -> Result<Self, BeginError> {
        let (for_pushes, lost) = (Arc::clone(pending), Arc::new(Notify::new()));
        let for_loss = Arc::clone(&lost);
        let config = connection_config().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                for_loss.notify_one();
            } else {
                record(&for_pushes, push);
            }
            Ok::<(), ::redis::aio::SendError>(())
        });
        // Pushes need RESP3.
        let info = client.get_connection_info().clone();
        let resp3 = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(resp3))?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut track = cmd("CLIENT");
        track.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(keys::LOG_PREFIX);
        track.query_async::<()>(&mut connection).await.map_err(|error| match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError) => {
                BeginError::Refused(error)
            }
            _ => BeginError::Failed(error),
        })?;
        Ok(Self { connection, lost })
    }

    /// Waits until the connection is lost. Checks it with a `PING` while nothing else shows a loss.
    async fn until_lost(&mut self) -> RedisError {
        loop {
            if timeout(CHECK_EVERY, self.lost.notified()).await.is_ok() {
                return io::Error::from(io::ErrorKind::ConnectionReset).into();
            }
            if let Err(error) = cmd("PING").query_async::<Value>(&mut self.connection).await {
                return error;
            }
        }
    }
}

/// Records the keys that Redis reports as changed.
fn record(pending: &PendingChanges, push: PushInfo) {
    if push.kind != PushKind::Invalidate {
        return;
    }
    let keys = push.data.into_iter().next().unwrap_or(Value::Nil);
    match Option::<Vec<String>>::from_redis_value(keys) {
        Ok(Some(keys)) => pending.mark_changed(keys.iter().filter_map(|key| keys::market_of_log(key))),
        // FLUSHALL pushes nil: everything changed.
        _ => pending.mark_all_changed(),
    }
}
