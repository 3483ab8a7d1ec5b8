//! The settings that say where the markets' logs are, and how much of them is kept.

use backbone::{RedisConfig, Retention, TailFrom};
use protocol::Secret;

use crate::settings::{FromSetting, Setting, Settings};

/// Where the markets' logs are.
pub const REDIS_URL: Setting<Secret> = Setting::new(
    "REDIS_URL",
    "",
    "required: where the markets' logs are: redis://host:6379, rediss://…, redis-sentinel://h1:26379,h2:26379/mymaster or redis-cluster://h1:7000,h2:7001",
);
/// Whom `rediss://` trusts.
pub const REDIS_CA: Setting<Secret> =
    Setting::new("REDIS_CA", "", "PEM of the authorities to trust instead of the system's, for rediss://");
/// Updates kept per market.
pub const HISTORY_LEN: Setting<usize> =
    Setting::new("HISTORY_LEN", "1000", "updates that a market's log keeps, about");
/// Audit entries kept per market.
pub const AUDIT_LEN: Setting<usize> =
    Setting::new("AUDIT_LEN", "100000", "audit entries that a market keeps, about");

/// Reads [`REDIS_URL`] and [`REDIS_CA`]. Returns `None` where no URL is set.
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

impl FromSetting for TailFrom {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}
