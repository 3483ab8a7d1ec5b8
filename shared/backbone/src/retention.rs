//! How much a backbone keeps, and for how long.

use std::time::Duration;

/// How long a revocation is kept: the life of the longest token, its leeway, and a minute for clocks that disagree.
pub const REVOCATION_TTL: Duration = Duration::from_secs(3600 + 5 + 60);

/// How much is kept (`docs/protocol.md#redis-keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Approximate number of updates in a market's log.
    pub history_len: usize,
    /// Approximate number of audit entries of a market.
    pub audit_len: usize,
    /// How long an idempotency key is remembered.
    pub idempotency_ttl: Duration,
    /// How long a revocation is kept. By then every token that it revokes has expired.
    pub revocation_ttl: Duration,
    /// The most revocations that are kept.
    pub revocations: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            history_len: 1000,
            audit_len: 100_000,
            idempotency_ttl: Duration::from_hours(24),
            revocation_ttl: REVOCATION_TTL,
            revocations: 10_000,
        }
    }
}
