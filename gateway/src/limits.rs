//! Who may have how much: pure rates, and counted places that free themselves when dropped.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// A rate: `burst` at once, then `per_second` (contract, section 3, `MESSAGE_BURST` and `MESSAGE_RATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// How many more each second.
    pub per_second: u32,
}

/// One holder's use of a [`Rate`], in 8 bytes: thousandths of a message, and when they were counted.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    left_milli: u32,
    at_ms: u32,
}

impl Bucket {
    /// A full bucket at `now_ms`.
    #[must_use]
    pub fn full(rate: Rate, now_ms: u64) -> Self {
        Self { left_milli: rate.burst.saturating_mul(1000), at_ms: wrapped(now_ms) }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, rate: Rate, now_ms: u64) -> bool {
        let elapsed_ms = wrapped(now_ms).wrapping_sub(self.at_ms);
        self.at_ms = wrapped(now_ms);
        let gained = elapsed_ms.saturating_mul(rate.per_second);
        self.left_milli = self.left_milli.saturating_add(gained).min(rate.burst.saturating_mul(1000));
        match self.left_milli.checked_sub(1000) {
            Some(left) => {
                self.left_milli = left;
                true
            }
            None => false,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "differences are taken modulo 2^32 ms, 49 days")]
const fn wrapped(now_ms: u64) -> u32 {
    now_ms as u32
}

/// Whether something that grows by itself has room for several times what it holds, and enough to give it back.
#[must_use]
pub const fn is_roomy(len: usize, capacity: usize) -> bool {
    capacity > 1024 && len < capacity / 4
}

/// A rate for each key: a client's address, or a user.
pub struct KeyedRate<K: Hash + Eq + Clone>(DefaultKeyedRateLimiter<K>);

/// Keys that have used up some of their rate, of one [`KeyedRate`], at most. 100 bytes each, and the key's own.
const MAX_KEYS: usize = 100_000;

impl<K: Hash + Eq + Clone> KeyedRate<K> {
    /// `quota` for each key.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self(RateLimiter::keyed(quota))
    }

    /// Takes one of `key`'s, if there is one. None of a further key's while there are `MAX_KEYS`: whoever makes up
    /// that many at once is refused, and others with it until [`Self::forget`] is called.
    #[must_use]
    pub fn take(&self, key: &K) -> bool {
        self.0.len() < MAX_KEYS && self.0.check_key(key).is_ok()
    }

    /// Forgets the keys whose rate is whole again.
    pub fn forget(&self) {
        self.0.retain_recent();
        if is_roomy(self.0.len(), MAX_KEYS) {
            self.0.shrink_to_fit();
        }
    }
}

/// The pod's open connections, in all and by user.
#[derive(Debug)]
pub struct ConnectionPermits {
    max: usize,
    max_per_user: usize,
    taken: AtomicUsize,
    users: Mutex<HashMap<Arc<str>, usize>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The pod has `MAX_CONNECTIONS`.
    #[error("this pod has as many connections as it takes: try again, another pod may have room")]
    Pod,
    /// The user has `MAX_CONNECTIONS_PER_USER`.
    #[error("this user has too many open connections: close one first")]
    User,
}

/// One connection's place, given back on drop.
#[derive(Debug)]
pub struct ConnectionPermit {
    permits: Arc<ConnectionPermits>,
    user: Arc<str>,
}

impl ConnectionPermits {
    /// Places for `max` connections, `max_per_user` for each user.
    #[must_use]
    pub fn new(max: usize, max_per_user: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_user, taken: AtomicUsize::new(0), users: Mutex::default() })
    }

    /// Takes a place for `user`.
    ///
    /// # Errors
    /// [`Full`] when there is none.
    pub fn take(self: &Arc<Self>, user: &str) -> Result<ConnectionPermit, Full> {
        let mut users = self.users();
        if self.taken.load(Ordering::Relaxed) >= self.max {
            return Err(Full::Pod);
        }
        let user = users.get_key_value(user).map_or_else(|| Arc::from(user), |(user, _)| Arc::clone(user));
        let count = users.entry(Arc::clone(&user)).or_insert(0);
        if *count >= self.max_per_user {
            return Err(Full::User);
        }
        *count += 1;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(ConnectionPermit { permits: Arc::clone(self), user })
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionPermit {
    /// Whose it is.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut users = self.permits.users();
        if let Some(count) = users.get_mut(&*self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&*self.user);
                if is_roomy(users.len(), users.capacity()) {
                    users.shrink_to_fit();
                }
            }
        }
        self.permits.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate { burst: 3, per_second: 5 };
        let mut bucket = Bucket::full(rate, 1000);
        assert_eq!([(); 4].map(|()| bucket.take(rate, 1000)), [true, true, true, false]);
        assert!(!bucket.take(rate, 1199));
        assert!(bucket.take(rate, 1200));
        assert!(!bucket.take(rate, 1200));
    }

    #[test]
    fn places_are_given_back() {
        let permits = ConnectionPermits::new(3, 2);
        let first = permits.take("a").unwrap();
        let second = permits.take("a").unwrap();
        assert_eq!(permits.take("a").unwrap_err(), Full::User);
        let third = permits.take("b").unwrap();
        assert_eq!(permits.take("c").unwrap_err(), Full::Pod);
        drop((first, second, third));
        assert_eq!(permits.taken(), 0);
        assert!(permits.users().is_empty());
    }

    #[test]
    fn keys_that_an_attacker_makes_up_are_bounded_and_forgotten() {
        let quota = Quota::per_second(std::num::NonZeroU32::new(1000).unwrap());
        let rate = KeyedRate::new(quota);
        let taken = (0..MAX_KEYS + 1000).filter(|key| rate.take(key)).count();
        // Those that became whole meanwhile are still there.
        assert_eq!((taken, rate.0.len()), (MAX_KEYS, MAX_KEYS));
        let forgotten = || {
            rate.forget();
            rate.0.is_empty()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !forgotten() {
            assert!(Instant::now() < deadline, "their rate has long been whole");
        }
        assert!(rate.take(&0));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_plus_rate(burst in 1u32..50, per_second in 0u32..50, gaps in proptest::collection::vec(0u64..2000, 1..200)) {
            let rate = Rate { burst, per_second };
            let mut now = 0;
            let mut bucket = Bucket::full(rate, now);
            let mut taken = 0;
            for gap in gaps {
                now += gap;
                taken += u64::from(bucket.take(rate, now));
                prop_assert!(taken <= u64::from(burst) + now * u64::from(per_second) / 1000);
            }
        }
    }
}
