//! How the keys in Redis are spelled (contract, section 6). A market's keys share the hash tag `{id}`, and so one
//! cluster slot.

use protocol::ids::MarketId;

/// What every log's key begins with; the listener listens for it.
pub const LOG_PREFIX: &str = "odds:log:";

/// The stream that is a market's log.
#[must_use]
pub fn log(market: MarketId) -> String {
    format!("{LOG_PREFIX}{{{market}}}")
}

/// The market whose log this key is.
#[must_use]
pub fn market_of_log(key: &str) -> Option<MarketId> {
    key.strip_prefix(LOG_PREFIX)?.strip_prefix('{')?.strip_suffix('}')?.parse().ok()
}

/// The hash with a market's state.
#[must_use]
pub fn state(market: MarketId) -> String {
    format!("odds:state:{{{market}}}")
}

/// The field of a state hash that holds a line.
#[must_use]
pub fn line_field(line: &str) -> String {
    format!("{LINE_PREFIX}{line}")
}

/// What every line's field in a state hash begins with.
pub const LINE_PREFIX: &str = "l:";

/// The stream with a market's audit.
#[must_use]
pub fn audit(market: MarketId) -> String {
    format!("odds:audit:{{{market}}}")
}

/// The first answer to an idempotency key.
#[must_use]
pub fn idempotency(market: MarketId, key: &str) -> String {
    format!("odds:idem:{{{market}}}:{key}")
}

/// The set of all markets' ids. Of no market, so in a cluster on one node.
pub const MARKETS: &str = "odds:markets";

/// The stream of revocations. Of no market either.
pub const REVOKED: &str = "odds:revoked";

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
        fn any_key_is_looked_at_without_a_panic(key in ".*") {
            let _ = market_of_log(&key);
        }
    }
}
