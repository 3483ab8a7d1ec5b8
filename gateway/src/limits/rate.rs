//! Rate limits as token buckets: one of 8 bytes for each connection, or one per key in a map.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::is_roomy;

/// A rate: `burst` at once, then `count` per period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// How many more in each period.
    pub count: u32,
    period_ms: u32,
}

impl Rate {
    /// Returns the rate of `count` per second, all of them at once if need be.
    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self { burst: count, count, period_ms: 1_000 }
    }

    /// Returns the rate of `count` per minute, all of them at once if need be.
    #[must_use]
    pub const fn per_minute(count: u32) -> Self {
        Self { period_ms: 60_000, ..Self::per_second(count) }
    }

    /// Returns the same rate with another burst.
    #[must_use]
    pub const fn with_burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }

    /// Returns the units in a full bucket.
    const fn full(self) -> u32 {
        self.burst.saturating_mul(self.period_ms)
    }
}

/// A token bucket of some [`Rate`], in 8 bytes.
///
/// It counts in units that make every gain a whole number: a token is as many units as its period has milliseconds, and
/// each millisecond brings [`Rate::count`] units. Times are of any clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    units: u32,
    at_ms: u32,
}

impl Bucket {
    /// Returns a full bucket.
    #[must_use]
    pub const fn full(rate: Rate, now_ms: u64) -> Self {
        Self { units: rate.full(), at_ms: wrapped(now_ms) }
    }

    /// Takes one token. Returns false if there is none.
    pub const fn take(&mut self, rate: Rate, now_ms: u64) -> bool {
        self.units = self.units_at(rate, now_ms);
        self.at_ms = wrapped(now_ms);
        match self.units.checked_sub(rate.period_ms) {
            Some(units) => {
                self.units = units;
                true
            }
            None => false,
        }
    }

    const fn is_full(self, rate: Rate, now_ms: u64) -> bool {
        self.units_at(rate, now_ms) == rate.full()
    }

    const fn units_at(self, rate: Rate, now_ms: u64) -> u32 {
        let elapsed_ms = wrapped(now_ms).wrapping_sub(self.at_ms);
        let units = self.units.saturating_add(elapsed_ms.saturating_mul(rate.count));
        if units < rate.full() { units } else { rate.full() }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "differences are taken modulo 2^32 ms, 49 days")]
const fn wrapped(now_ms: u64) -> u32 {
    now_ms as u32
}

/// The most keys that a [`KeyedRate`] tracks: those whose bucket is not full. Each takes about 40 bytes, and a user id its text.
const MAX_KEYS: usize = 100_000;

/// A rate for each key, such as a client's address or a user.
#[derive(Debug)]
pub struct KeyedRate<K> {
    rate: Rate,
    /// A key that is not in here has a full bucket.
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Hash + Eq + Clone> KeyedRate<K> {
    /// Gives each key the rate `rate`.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes one token of `key`. Returns false if there is none. While `MAX_KEYS` keys are tracked, new keys are refused.
    #[must_use]
    pub fn take(&self, key: &K, now_ms: u64) -> bool {
        let mut buckets = self.buckets();
        if let Some(bucket) = buckets.get_mut(key) {
            return bucket.take(self.rate, now_ms);
        }
        if buckets.len() >= MAX_KEYS {
            return false;
        }
        let mut bucket = Bucket::full(self.rate, now_ms);
        let taken = bucket.take(self.rate, now_ms);
        buckets.insert(key.clone(), bucket);
        taken
    }

    /// Drops the keys whose bucket is full again.
    pub fn forget(&self, now_ms: u64) {
        let mut buckets = self.buckets();
        buckets.retain(|_, bucket| !bucket.is_full(self.rate, now_ms));
        if is_roomy(buckets.len(), buckets.capacity()) {
            buckets.shrink_to_fit();
        }
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<K, Bucket>> {
        // Nothing panics under this lock.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let rate = Rate::per_second(5).with_burst(3);
        let mut bucket = Bucket::full(rate, 1000);
        assert_eq!([(); 4].map(|()| bucket.take(rate, 1000)), [true, true, true, false]);
        assert!(!bucket.take(rate, 1199));
        assert!(bucket.take(rate, 1200));
        assert!(!bucket.take(rate, 1200));
    }

    #[test]
    fn a_rate_of_6_per_minute_gains_a_token_every_10_seconds_however_often_it_is_tried() {
        let rate = KeyedRate::new(Rate::per_minute(6));
        assert_eq!((0..60_000).filter(|&now_ms| rate.take(&"1", now_ms)).count(), 6 + 5);
        assert!(rate.take(&"1", 60_000));
    }

    #[test]
    fn a_rate_of_nothing_leaves_the_burst() {
        let rate = Rate::per_second(0).with_burst(2);
        let mut bucket = Bucket::full(rate, 0);
        assert_eq!([0, 1, 1 << 40].map(|now_ms| bucket.take(rate, now_ms)), [true, true, false]);
    }

    #[test]
    fn each_key_has_the_rate_for_itself() {
        let rate = KeyedRate::new(Rate::per_second(1));
        assert_eq!(["a", "a", "b"].map(|key| rate.take(&key, 0)), [true, false, true]);
        assert_eq!(["a", "a", "b"].map(|key| rate.take(&key, 1000)), [true, false, true]);
    }

    #[test]
    fn keys_that_an_attacker_makes_up_are_bounded_and_forgotten() {
        let rate = KeyedRate::new(Rate::per_second(1000));
        let taken = (0..MAX_KEYS + 1000).filter(|key| rate.take(key, 0)).count();
        assert_eq!((taken, rate.buckets().len()), (MAX_KEYS, MAX_KEYS));
        assert!(rate.take(&0, 0), "a key that is tracked keeps its rate");
        rate.forget(1);
        assert_eq!(rate.buckets().len(), 1, "only that one's bucket is not full after a millisecond");
        rate.forget(2);
        assert!(rate.buckets().is_empty() && rate.buckets().capacity() <= 1024);
        assert!(rate.take(&MAX_KEYS, 2));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_plus_rate(burst in 1u32..50, per_second in 0u32..50, gaps in proptest::collection::vec(0u64..2000, 1..200)) {
            let rate = Rate::per_second(per_second).with_burst(burst);
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
