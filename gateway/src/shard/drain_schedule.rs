//! Decides when a drain closes each connection. Pure.

use rand::RngExt;

/// Returns when to close each of `count` connections, in milliseconds after the drain began, earliest first.
///
/// ```text
///   0 ├──x───┼─x────┼────x─┼…┼──x───┤ over_ms     `count` equal slots, one connection at a random moment of each
/// ```
///
/// So no interval has more than two connections above its share. If the average is at least two per second, no second
/// has more than twice the average.
pub(super) fn closing_times(
    count: usize,
    over_ms: u64,
    random: &mut impl RngExt,
) -> impl Iterator<Item = u64> {
    let slots = (count as u64).max(1);
    (0..slots).take(count).map(move |slot| (slot * over_ms + random.random_range(0..over_ms.max(1))) / slots)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn times(count: usize, over_ms: u64, seed: u64) -> Vec<u64> {
        closing_times(count, over_ms, &mut SmallRng::seed_from_u64(seed)).collect()
    }

    #[test]
    fn every_connection_has_its_time_and_none_is_after_the_end() {
        assert_eq!(times(0, 20_000, 1), [0; 0]);
        assert_eq!(times(3, 0, 1), [0; 3]);
        assert!(times(1, 20_000, 1)[0] < 20_000);
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_twice_the_average(
            count in 1usize..20_000,
            over_ms in 1_000u64..60_000,
            seed: u64,
        ) {
            let times = times(count, over_ms, seed);
            prop_assert_eq!(times.len(), count);
            prop_assert!(times.is_sorted() && times[count - 1] < over_ms);
            let average = (count as u64 * 1000).div_ceil(over_ms);
            let mut first = 0;
            for (last, time_ms) in times.iter().enumerate() {
                while times[first] + 1000 <= *time_ms {
                    first += 1;
                }
                let in_a_second = (last - first + 1) as u64;
                prop_assert!(in_a_second <= (2 * average).max(average + 2), "{} of {}", in_a_second, average);
                prop_assert!(in_a_second <= average + 2);
            }
        }
    }
}
