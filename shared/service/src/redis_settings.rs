//! The settings of the markets' logs: their Redis, and how much of them it keeps.

use backbone::{RedisBackbone, RedisConfig, Retention, TailFrom};
use protocol::Secret;

use crate::settings::{FromSetting, Setting, Settings, Stop};

/// The Redis with the markets' logs.
pub const REDIS_URL: Setting<Secret> = Setting::new(
    "REDIS_URL",
    "",
    "required: the Redis with the markets' logs: redis://host:6379, rediss://…, redis-sentinel://h1:26379,h2:26379/mymaster or redis-cluster://h1:7000,h2:7001",
);
/// The authorities that `rediss://` trusts.
pub const REDIS_CA: Setting<Secret> =
    Setting::new("REDIS_CA", "", "PEM of the authorities to trust instead of the system's, for rediss://");
/// Updates that Redis keeps per market.
pub const HISTORY_LEN: Setting<usize> =
    Setting::new("HISTORY_LEN", "1000", "approximate number of updates that a market's log keeps in Redis");
/// Audit entries that Redis keeps per market.
pub const AUDIT_LEN: Setting<usize> =
    Setting::new("AUDIT_LEN", "100000", "approximate number of audit entries that a market keeps in Redis");

/// Reads [`REDIS_URL`] and [`REDIS_CA`]. Returns `None` if no URL is set.
pub fn redis(settings: &mut Settings, tail_from: TailFrom) -> Option<RedisConfig> {
    let ca_pem = settings.optional(&REDIS_CA);
    Some(RedisConfig { url: settings.optional(&REDIS_URL)?, ca_pem, tail_from })
}

/// Reads [`REDIS_URL`] and [`REDIS_CA`]. A missing URL is a problem.
pub fn required_redis(settings: &mut Settings) -> Option<RedisConfig> {
    let redis = redis(settings, TailFrom::Primary);
    settings.required(&REDIS_URL).and(redis)
}

/// Reads [`HISTORY_LEN`] and [`AUDIT_LEN`].
pub fn retention(settings: &mut Settings) -> Retention {
    Retention {
        history_len: settings.at_least_one(&HISTORY_LEN),
        audit_len: settings.at_least_one(&AUDIT_LEN),
        ..Retention::default()
    }
}

/// Returns the backbone on this Redis. It connects when it is first used.
///
/// # Errors
/// [`Stop`] if [`REDIS_URL`] or the certificates cannot be used.
pub fn backbone(config: &RedisConfig, retention: Retention) -> Result<RedisBackbone, Stop> {
    RedisBackbone::new(config, retention)
        .map_err(|error| Stop::Problems(vec![format!("{}: {error}", REDIS_URL.name())]))
}

impl FromSetting for TailFrom {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}
