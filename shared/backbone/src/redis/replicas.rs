//! Which replica is tailed in its primary's place.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::redis::{ErrorKind, RedisError, RedisResult, Value, cmd};
use rand::seq::IndexedRandom;
use tokio::time::timeout;

use super::{
    nodes::{Node, RESOLVE_TIMEOUT, joined},
    url::Address,
};

/// A replica that lacks what its primary had this long ago is not tailed. Replicas tell what they have once a second.
const MAX_LAG: Duration = Duration::from_secs(4);
/// How long a replica that could not be read is left alone.
const SHUN_FOR: Duration = Duration::from_secs(10);
/// Replicas that could not be read, and when. No more than there are.
#[derive(Default)]
pub(super) struct Unreachable(Mutex<HashMap<Address, Instant>>);

/// How far a primary's replication stream was.
#[derive(Default)]
pub(super) struct Written {
    /// At some time that is [`MAX_LAG`] or more ago.
    then: u64,
    /// At this later time.
    later: Option<(Instant, u64)>,
}

/// The replica to tail in the place of `primary`: the one that is tailed now while it keeps up, else any that does, else
/// none.
pub(super) async fn choose(
    primary: &Node,
    current: Option<&str>,
    unreachable: &Unreachable,
) -> RedisResult<Option<Address>> {
    let mut usable = keeping_up(primary).await?;
    usable.retain(|address| !unreachable.has(address));
    let stays = usable.iter().find(|address| Some(address.as_str()) == current);
    Ok(stays.or_else(|| usable.choose(&mut rand::rng())).cloned())
}

/// The replicas that have what `primary` had written [`MAX_LAG`] ago.
async fn keeping_up(primary: &Node) -> RedisResult<Vec<Address>> {
    let role = cmd("ROLE");
    let mut connection = primary.tails.clone();
    let asked = timeout(RESOLVE_TIMEOUT, role.query_async::<Vec<Value>>(&mut connection)).await;
    let role = asked.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))?;
    let [_, offset, replicas @ Value::Array(_)] = <[Value; 3]>::try_from(role)
        .map_err(|_| RedisError::from((ErrorKind::Client, "this is not a primary: it has no replicas")))?
    else {
        return Ok(Vec::new());
    };
    let offset = ::redis::from_redis_value(offset)?;
    let must_have =
        primary.written.lock().unwrap_or_else(PoisonError::into_inner).look(Instant::now(), offset);
    let replicas: Vec<(String, String, String)> = ::redis::from_redis_value(replicas)?;
    let keeps_up =
        |(_, _, has): &(String, String, String)| has.parse().is_ok_and(|has: u64| has >= must_have);
    Ok(replicas.into_iter().filter(keeps_up).map(|(host, port, _)| joined(&host, &port)).collect())
}

impl Unreachable {
    pub(super) fn insert(&self, address: &str) {
        self.lock().insert(address.to_owned(), Instant::now());
    }

    fn has(&self, address: &str) -> bool {
        let mut unreachable = self.lock();
        unreachable.retain(|_, since| since.elapsed() < SHUN_FOR);
        unreachable.contains_key(address)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Address, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    /// What a replica that keeps up has at least, the primary being at `offset` now.
    fn look(&mut self, now: Instant, offset: u64) -> u64 {
        match self.later {
            Some((at, _)) if now.duration_since(at) < MAX_LAG => {}
            later => {
                self.then = later.map_or(0, |(_, offset)| offset);
                self.later = Some((now, offset));
            }
        }
        self.then
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_has_to_have_what_its_primary_had_a_while_ago() {
        let (start, mut written) = (Instant::now(), Written::default());
        assert_eq!(written.look(start, 100), 0);
        assert_eq!(written.look(start + MAX_LAG / 2, 200), 0);
        assert_eq!(written.look(start + MAX_LAG, 300), 100);
        assert_eq!(written.look(start + MAX_LAG * 3 / 2, 400), 100);
        assert_eq!(written.look(start + MAX_LAG * 2, 500), 300);
    }
}
