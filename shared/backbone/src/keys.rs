//! Spells the keys in Redis (`docs/protocol.md#redis-keys`).
//!
//! A market's keys share the hash tag `{id}`, so a cluster keeps them in one slot.

use protocol::ids::MarketId;

/// The prefix of every log's key. The change listener tracks it.
pub(crate) const LOG_PREFIX: &str = "odds:log:";

/// Returns the key of a market's log, a stream.
#[must_use]
pub fn log(market: MarketId) -> String {
    format!("{LOG_PREFIX}{{{market}}}")
}

/// Returns the market whose log has this key, or `None` if it is no log's key.
#[must_use]
pub fn market_of_log(key: &str) -> Option<MarketId> {
    key.strip_prefix(LOG_PREFIX)?.strip_prefix('{')?.strip_suffix('}')?.parse().ok()
}

/// Returns the key of a market's state, a hash.
#[must_use]
pub fn state(market: MarketId) -> String {
    format!("odds:state:{{{market}}}")
}

/// The prefix of every line's field in a state hash.
pub(crate) const LINE_PREFIX: &str = "l:";

/// Returns the key of a market's audit, a stream.
#[must_use]
pub fn audit(market: MarketId) -> String {
    format!("odds:audit:{{{market}}}")
}

/// Returns the key of the first result for an idempotency key, a string.
pub(crate) fn idempotency(market: MarketId, key: &str) -> String {
    format!("odds:idem:{{{market}}}:{key}")
}

/// The key of the set of all markets' ids. It belongs to no market, so in a cluster it is on one node.
pub(crate) const MARKETS: &str = "odds:markets";

/// The key of the stream of revocations. It belongs to no market either.
pub(crate) const REVOKED: &str = "odds:revoked";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_log_key_names_its_market(id in 1..=protocol::ids::MAX_SAFE_INTEGER) {
            let market = MarketId::new(id).unwrap();
            prop_assert_eq!(market_of_log(&log(market)), Some(market));
            for key in [state(market), audit(market), idempotency(market, "k")] {
                prop_assert_eq!(market_of_log(&key), None);
                let tag = format!("{{{id}}}");
                prop_assert!(key.contains(&tag));
            }
        }

        #[test]
        fn any_text_is_parsed_without_a_panic(key in ".*") {
            let _ = market_of_log(&key);
        }
    }
}
