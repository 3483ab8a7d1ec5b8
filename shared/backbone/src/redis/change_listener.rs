//! Hearing of changes: `CLIENT TRACKING ON BCAST` on the logs' prefix, one connection for each node that is tailed. It
//! pushes the key of every log that changes; the loss of a connection means that rings were lost. A Redis that refuses
//! tracking is asked with blocking reads instead.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::redis::{
    Client, ErrorKind, FromRedisValue, ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult,
    ServerErrorKind, Value, aio::MultiplexedConnection, cmd,
};
use async_trait::async_trait;
use protocol::ids::MarketId;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout},
};

use super::{
    blocking_listener,
    nodes::{Map, Node, Nodes, connection_config},
};
use crate::{BackboneError, ChangeListener, Changes, Followed, keys};

/// How often a silent connection is asked whether it still lives, and who the primaries are.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// Between attempts to listen at a node that refuses.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Listens at every node that is tailed.
pub(super) struct RedisChangeListener {
    followed: Followed,
    nodes: Arc<Nodes>,
    changes: watch::Receiver<Arc<Map>>,
    /// When to ask who the primaries are.
    checks: Interval,
    pending: Arc<PendingChanges>,
    /// One task for each node, ended with this.
    listeners: JoinSet<()>,
    listened_to: Vec<String>,
}

/// What rang and was not heard yet: at most one mark a market, and one error.
#[derive(Default)]
pub(super) struct PendingChanges {
    changes: Mutex<Pending>,
    notify: Notify,
}

#[derive(Default)]
struct Pending {
    markets: BTreeSet<MarketId>,
    all: bool,
    failed: Option<RedisError>,
}

impl RedisChangeListener {
    pub(super) fn new(nodes: Arc<Nodes>, followed: Followed) -> Self {
        let changes = nodes.changes();
        // Not at once: who they are is asked when listening begins.
        let mut checks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            followed,
            nodes,
            changes,
            checks,
            pending: Arc::default(),
            listeners: JoinSet::new(),
            listened_to: Vec::new(),
        }
    }

    /// Listens at exactly the nodes that the map says are tailed.
    async fn follow(&mut self) -> RedisResult<()> {
        self.nodes.map().await?;
        let map = Arc::clone(&self.changes.borrow_and_update());
        let tailed: Vec<String> = map.tails().iter().map(|node| node.address.clone()).collect();
        if self.listened_to != tailed {
            self.listeners = JoinSet::new();
            for node in map.tails() {
                let (node, nodes, pending) =
                    (Arc::clone(node), Arc::clone(&self.nodes), Arc::clone(&self.pending));
                self.listeners.spawn(listen(node, nodes, pending, Arc::clone(&self.followed)));
            }
            self.listened_to = tailed;
        }
        Ok(())
    }
}

#[async_trait]
impl ChangeListener for RedisChangeListener {
    async fn wait(&mut self) -> Result<Changes, BackboneError> {
        loop {
            if (self.listened_to.is_empty() || self.changes.has_changed().unwrap_or(false))
                && let Err(error) = self.follow().await
            {
                sleep(RETRY_AFTER).await;
                return Err(error.into());
            }
            let changes = std::mem::take(&mut *self.pending.changes());
            if changes.all {
                return Ok(Changes::All);
            }
            if !changes.markets.is_empty() {
                // An error beside them is not lost: it comes again with the next attempt.
                return Ok(Changes::Markets(changes.markets.into_iter().collect()));
            }
            if let Some(error) = changes.failed {
                return Err(error.into());
            }
            tokio::select! {
                () = self.pending.notify.notified() => {}
                _ = self.changes.changed() => self.changes.mark_changed(),
                _ = self.checks.tick() => {
                    // A primary that was demoted but lives says nothing by itself. One question at a time, no more
                    // often than this; its failure shows where the primary is needed.
                    let _ = self.nodes.refresh().await;
                }
            }
        }
    }
}

/// Listens at `node` for ever.
async fn listen(node: Arc<Node>, nodes: Arc<Nodes>, pending: Arc<PendingChanges>, followed: Followed) {
    loop {
        let begun = Listening::begin(&node.client, &pending).await;
        if matches!(begun, Ok(_) | Err(Begin::Refused(_))) {
            pending.record(|changes| changes.all = true);
        }
        let error = match begun {
            Ok(mut listening) => listening.until_lost().await,
            Err(Begin::Refused(error)) => {
                tracing::warn!(node = node.address, %error, "CLIENT TRACKING is refused: asking with blocking reads, which cost Redis more");
                blocking_listener::listen(&node, &nodes, &pending, &followed).await
            }
            Err(Begin::Failed(error)) => error,
        };
        nodes.learn(&node, &error);
        pending.record(|changes| changes.failed = Some(error));
        sleep(RETRY_AFTER.mul_f64(rand::random_range(0.5..=1.0))).await;
        // It may have been replaced, and on a pod that reads nothing nobody else would ask. Its failure shows next time.
        let _ = nodes.map().await;
    }
}

/// Why listening did not begin.
enum Begin {
    /// Redis does not allow tracking, or does not know of it.
    Refused(RedisError),
    /// Anything else.
    Failed(RedisError),
}

impl From<RedisError> for Begin {
    fn from(error: RedisError) -> Self {
        Self::Failed(error)
    }
}

struct Listening {
    connection: MultiplexedConnection,
    lost: Arc<Notify>,
}

impl Listening {
    async fn begin(client: &Client, pending: &Arc<PendingChanges>) -> Result<Self, Begin> {
        let (for_pushes, lost) = (Arc::clone(pending), Arc::new(Notify::new()));
        let for_loss = Arc::clone(&lost);
        let config = connection_config().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                for_loss.notify_one();
            } else {
                for_pushes.push(push);
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
                Begin::Refused(error)
            }
            _ => Begin::Failed(error),
        })?;
        Ok(Self { connection, lost })
    }

    /// Waits until the connection is lost, asking now and then whether it still lives.
    async fn until_lost(&mut self) -> RedisError {
        loop {
            if timeout(CHECK_EVERY, self.lost.notified()).await.is_ok() {
                return std::io::Error::from(std::io::ErrorKind::ConnectionReset).into();
            }
            if let Err(error) = cmd("PING").query_async::<Value>(&mut self.connection).await {
                return error;
            }
        }
    }
}

impl PendingChanges {
    fn changes(&self) -> MutexGuard<'_, Pending> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings for these.
    pub(super) fn notify(&self, markets: impl IntoIterator<Item = MarketId>) {
        self.record(|changes| changes.markets.extend(markets));
    }

    fn record(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.changes());
        self.notify.notify_one();
    }

    fn push(&self, push: PushInfo) {
        if push.kind != PushKind::Invalidate {
            return;
        }
        let keys = push.data.into_iter().next().unwrap_or(Value::Nil);
        self.record(|changes| match Option::<Vec<String>>::from_redis_value(keys) {
            Ok(Some(keys)) => changes.markets.extend(keys.iter().filter_map(|key| keys::market_of_log(key))),
            // FLUSHALL pushes nil: everything changed.
            _ => changes.all = true,
        });
    }
}
