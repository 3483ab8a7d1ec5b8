//! Chooses the replica that is followed in its primary's place.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::redis::{ErrorKind, RedisError, RedisResult, Value, cmd, from_redis_value};
use rand::seq::IndexedRandom;
use tokio::time::timeout;

use super::{
    node::{Node, RESOLVE_TIMEOUT},
    url::{Address, address},
};

/// How long a replica that failed is avoided.
const AVOID_FOR: Duration = Duration::from_secs(10);

/// Returns the replica to follow in the place of `primary`, or `None` if none keeps up. Prefers the `current` one while
/// it keeps up.
pub(super) async fn choose(
    primary: &Node,
    current: Option<&str>,
    unreachable: &Unreachable,
) -> RedisResult<Option<Address>> {
    let mut usable = keeping_up(primary).await?;
    usable.retain(|address| !unreachable.contains(address));
    let stays = usable.iter().find(|address| Some(address.as_str()) == current);
    Ok(stays.or_else(|| usable.choose(&mut rand::rng())).cloned())
}

/// Remembers the replicas that failed lately. There is at most one entry per replica.
#[derive(Default)]
pub(super) struct Unreachable(Mutex<HashMap<Address, Instant>>);

impl Unreachable {
    pub(super) fn insert(&self, address: &str) {
        self.lock().insert(address.to_owned(), Instant::now());
    }

    fn contains(&self, address: &str) -> bool {
        let mut unreachable = self.lock();
        unreachable.retain(|_, since| since.elapsed() < AVOID_FOR);
        unreachable.contains_key(address)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks `primary` for the replicas that have reached its past offset.
async fn keeping_up(primary: &Node) -> RedisResult<Vec<Address>> {
    let role = cmd("ROLE");
    let mut connection = primary.tails.clone();
    let asked = timeout(RESOLVE_TIMEOUT, role.query_async::<Vec<Value>>(&mut connection)).await;
    let role = asked.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?;
    let [_, offset, replicas @ Value::Array(_)] = <[Value; 3]>::try_from(role).map_err(|_| {
        RedisError::from((ErrorKind::Client, "the node is not a primary: it has no replicas"))
    })?
    else {
        return Ok(Vec::new());
    };
    let offset = from_redis_value(offset)?;
    let required =
        primary.past_offset.lock().unwrap_or_else(PoisonError::into_inner).record(Instant::now(), offset);
    let replicas: Vec<(String, String, String)> = from_redis_value(replicas)?;
    let keeps_up = |(_, _, reached): &(String, String, String)| {
        reached.parse().is_ok_and(|reached: u64| reached >= required)
    };
    Ok(replicas.into_iter().filter(keeps_up).map(|(host, port, _)| address(&host, &port)).collect())
}
