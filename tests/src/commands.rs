//! The commands that Redis has executed, by its own count.

use std::collections::BTreeMap;

use ::redis::RedisResult;
use serde::Serialize;

use crate::redis::Redis;

/// The calls of each command.
#[derive(Debug, Default, Clone, Serialize)]
#[serde(transparent)]
pub struct Commands(BTreeMap<String, Calls>);

/// Calls of one command.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// The number of calls.
    pub calls: u64,
    /// How long Redis took to execute them, in microseconds; reading commands and writing replies are not included.
    pub usec: u64,
}

impl Commands {
    /// All commands since Redis started. Blocks the thread.
    ///
    /// # Errors
    /// When Redis does not reply.
    pub fn so_far(redis: &Redis) -> RedisResult<Self> {
        Ok(Self::parse(&redis.ask::<String>("INFO commandstats")?))
    }

    /// The commands since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |(name, now): (&String, &Calls)| {
            let then = earlier.of(name);
            (name.clone(), Calls { calls: now.calls - then.calls, usec: now.usec - then.usec })
        };
        Self(self.0.iter().map(since).filter(|(_, calls)| calls.calls > 0).collect())
    }

    /// Calls of one command, by its name in lower case.
    #[must_use]
    pub fn of(&self, name: &str) -> Calls {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn parse(info: &str) -> Self {
        let command = |line: &str| {
            let (name, fields) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let field = |name: &str| {
                let value = |field: &str| field.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
                fields.split(',').find_map(value)
            };
            Some((name.to_owned(), Calls { calls: field("calls")?, usec: field("usec")? }))
        };
        Self(info.lines().filter_map(command).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_was_asked_between_two_looks() {
        let before =
            "# Commandstats\r\ncmdstat_xread:calls=2,usec=10,usec_per_call=5.00,rejected_calls=0\r\n";
        let after =
            "cmdstat_xread:calls=5,usec=40,usec_per_call=8.00\r\ncmdstat_client|tracking:calls=1,usec=3\r\n";
        let since = Commands::parse(after).since(&Commands::parse(before));
        assert_eq!(since.of("xread"), Calls { calls: 3, usec: 30 });
        assert_eq!(since.of("client|tracking"), Calls { calls: 1, usec: 3 });
        assert_eq!(since.of("hgetall"), Calls::default());
    }
}
