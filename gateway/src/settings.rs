//! The gateway's settings: each module's own, in the order of `README.md#configuration`.

mod logs;
mod shards;
mod tail;

use std::time::Duration;

use backbone::RedisConfig;
use protocol::Secret;
use service::{
    redis_settings::{self, REDIS_CA},
    rotation::SecretFile,
    settings::{Row, Setting, Settings as Source, Stop},
    telemetry::{
        LOG_FORMAT, LogFormat,
        traces::{OTLP_ENDPOINT, OTLP_SAMPLE_RATIO, TraceSettings},
    },
    token::{Audience, JWT_SECRET, Keyring},
};

use self::{
    logs::{HISTORY_LEN, Logs, RESUME_MAX},
    shards::{
        FLUSH_INTERVAL, HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT, MAX_MESSAGE_BYTES, SLOW_AFTER, Shards, WORKERS,
    },
    tail::{STALE_AFTER, TAIL_FROM, TAIL_LINGER, Tail},
};
use crate::{
    access::{
        ALLOW_OPEN_TOKENS, ALLOWED_ORIGINS, AccessSettings, CORS_ORIGINS, HANDSHAKE_RATE_LIMIT, Origins,
        READ_AUTH, TOKEN_API_KEY, TOKEN_RATE_LIMIT, TRUSTED_PROXIES,
    },
    board::BOARD,
    drain::DRAIN_SECONDS,
    file_budget::{FileSettings, MAX_CONNECTIONS, MAX_HTTP_CONNECTIONS},
    limits::MAX_CONNECTIONS_PER_USER,
    listen::{HANDSHAKE_TIMEOUT, LISTEN, ListenSettings, OPS_LISTEN},
    session::{MAX_MARKETS_PER_CONNECTION, MESSAGE_BURST, MESSAGE_RATE, SessionSettings},
    standalone::{ADMIN_JWT_SECRET, DEMO, StandaloneSettings},
};

/// All settings of a gateway.
#[derive(Debug)]
pub struct Settings {
    /// The listeners.
    pub listen: ListenSettings,
    /// Where the logs are. `None`: in memory, and this process is the whole system.
    pub redis: Option<RedisConfig>,
    /// Signs and verifies clients' tokens.
    pub keys: Keyring,
    /// Only without Redis: the rest of the system.
    pub standalone: StandaloneSettings,
    /// Serve the live board at `/`.
    pub board: bool,
    /// Which requests are let in.
    pub access: AccessSettings,
    /// The origins whose pages may read REST responses.
    pub cors_origins: Origins,
    /// Threads that own connections.
    pub shards: Shards,
    /// How the logs are followed.
    pub tail: Tail,
    /// How long the logs are.
    pub logs: Logs,
    /// The time over which a drain closes connections.
    pub drain: Duration,
    /// What a client may ask for.
    pub session: SessionSettings,
    /// The most connections of one user.
    pub max_connections_per_user: usize,
    /// The most connections of this gateway.
    pub files: FileSettings,
    /// Files of secrets that may change while the gateway runs.
    pub secret_files: Vec<SecretFile>,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Where traces go.
    pub traces: Option<TraceSettings>,
}

const REDIS_URL: Setting<Secret> = redis_settings::REDIS_URL.with(
    "",
    "redis://host:6379, rediss://…, redis-sentinel://h1:26379,h2:26379/mymaster or \
     redis-cluster://h1:7000,h2:7001; not set = embedded: one process, all data in memory, admin API included",
);

const TABLE: &[Row] = &[
    LISTEN.row(),
    OPS_LISTEN.row(),
    REDIS_URL.row(),
    REDIS_CA.row(),
    JWT_SECRET.row(),
    ADMIN_JWT_SECRET.row(),
    DEMO.row(),
    BOARD.row(),
    TOKEN_API_KEY.row(),
    ALLOW_OPEN_TOKENS.row(),
    TOKEN_RATE_LIMIT.row(),
    READ_AUTH.row(),
    CORS_ORIGINS.row(),
    ALLOWED_ORIGINS.row(),
    TRUSTED_PROXIES.row(),
    WORKERS.row(),
    FLUSH_INTERVAL.row(),
    TAIL_FROM.row(),
    TAIL_LINGER.row(),
    HISTORY_LEN.row(),
    RESUME_MAX.row(),
    HEARTBEAT_INTERVAL.row(),
    HEARTBEAT_TIMEOUT.row(),
    SLOW_AFTER.row(),
    DRAIN_SECONDS.row(),
    STALE_AFTER.row(),
    MAX_MESSAGE_BYTES.row(),
    MAX_MARKETS_PER_CONNECTION.row(),
    MAX_CONNECTIONS_PER_USER.row(),
    MAX_CONNECTIONS.row(),
    MAX_HTTP_CONNECTIONS.row(),
    MESSAGE_BURST.row(),
    MESSAGE_RATE.row(),
    HANDSHAKE_TIMEOUT.row(),
    HANDSHAKE_RATE_LIMIT.row(),
    LOG_FORMAT.row(),
    OTLP_ENDPOINT.row(),
    OTLP_SAMPLE_RATIO.row(),
];

const USAGE: &str = "\
gateway: live odds over WebSocket and REST, from Redis Streams or, without REDIS_URL, from memory.

  gateway                  serves
  gateway probe            exits with 0 if the gateway on this machine with the same settings is ready, else with 1
  gateway check …          checks these settings; with --connect also Redis
  gateway token …          prints a client's token; see gateway token --help
  gateway inspect TOKEN    prints a token's claims and whether it is valid; - reads it from standard input
  gateway tail URL …       follows markets in the terminal; see gateway tail --help

RUST_LOG (environment only) selects what is logged, such as info or gateway=debug.";

impl Settings {
    /// Reads the arguments after the program's name, and the environment.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with everything that is wrong.
    pub fn read(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        Self::explain(args, env).map(|(settings, _)| settings)
    }

    /// Reads the settings, and returns a summary for people of those that differ from their defaults.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with everything that is wrong.
    pub fn explain(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, String), Stop> {
        let mut source = Source::read(USAGE, TABLE, args, env)?;
        let mut secret_files = Vec::new();
        let tail = Tail::read(&mut source);
        let redis = redis_settings::redis(&mut source, tail.from);
        let is_embedded = redis.is_none();
        let keys = Keyring::read(&mut source, &JWT_SECRET, Audience::Ws, &mut secret_files);
        if keys.is_none() && !is_embedded && !source.is_set(&JWT_SECRET) {
            source.problem(JWT_SECRET.name(), "required with REDIS_URL; make one with: openssl rand -hex 32");
        }
        let settings = Self {
            listen: ListenSettings::read(&mut source),
            redis,
            keys: keys.unwrap_or_else(|| Keyring::random(Audience::Ws)),
            standalone: StandaloneSettings::read(&mut source, &mut secret_files),
            board: source.optional(&BOARD).unwrap_or(is_embedded),
            access: AccessSettings::read(&mut source, &mut secret_files),
            cors_origins: source.value(&CORS_ORIGINS),
            shards: Shards::read(&mut source),
            tail,
            logs: Logs::read(&mut source),
            drain: source.value(&DRAIN_SECONDS),
            session: SessionSettings::read(&mut source),
            max_connections_per_user: source.at_least_one(&MAX_CONNECTIONS_PER_USER),
            files: FileSettings::read(&mut source),
            secret_files,
            log_format: LogFormat::read(&mut source),
            traces: TraceSettings::read(&mut source),
        };
        settings.check(&mut source);
        let summary = source.summary();
        source.finish()?;
        Ok((settings, summary))
    }

    /// Reports settings that do not go together.
    fn check(&self, source: &mut Source) {
        let Self { access, listen, standalone, .. } = self;
        if access.token_api_key.is_none() && !access.allow_open_tokens && !listen.api.ip().is_loopback() {
            source.problem(
                LISTEN.name(),
                "anyone who reaches this address could get tokens: set TOKEN_API_KEY, or ALLOW_OPEN_TOKENS=true",
            );
        }
        if standalone.demo && self.redis.is_some() {
            source.problem(
                DEMO.name(),
                "invented prices do not belong in a shared Redis: leave out REDIS_URL or DEMO",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Settings, Stop> {
        Settings::read(args.iter().map(|&arg| arg.to_owned()), |_| None)
    }

    #[test]
    fn without_settings_the_gateway_is_the_whole_system_on_loopback() {
        let settings = read(&[]).unwrap();
        assert!(settings.redis.is_none() && settings.listen.api.ip().is_loopback() && settings.board);
        assert_eq!((settings.logs.history_len, settings.logs.resume_max), (1000, 500));
        assert_eq!(settings.shards.max_message_bytes, 16_384);
        assert_eq!(settings.shards.timing.heartbeat_interval_ms, 15_000);
        assert_eq!(settings.access.allowed_origins, Origins::Any);
        assert_eq!(settings.cors_origins, Origins::Only(Vec::new()));
    }

    #[test]
    fn settings_that_are_unsafe_or_do_not_go_together_are_refused() {
        for (args, setting) in [
            (&["--listen", "0.0.0.0:8080"][..], "LISTEN"),
            (&["--redis-url", "redis://127.0.0.1"], "JWT_SECRET"),
            (&["--jwt-secret", "short"], "JWT_SECRET"),
            (
                &[
                    "--redis-url",
                    "redis://127.0.0.1",
                    "--demo",
                    "--jwt-secret",
                    "0123456789abcdef0123456789abcdef",
                ],
                "DEMO",
            ),
            (&["--allowed-origins", "example.com"], "ALLOWED_ORIGINS"),
            (&["--trusted-proxies", "proxy"], "TRUSTED_PROXIES"),
            (&["--workers", "0"], "WORKERS"),
        ] {
            let Err(Stop::Problems(problems)) = read(args) else { panic!("{args:?} must not start") };
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(setting), "{problems:?}");
        }
        assert!(read(&["--listen", "0.0.0.0:8080", "--token-api-key", "k"]).is_ok());
        assert!(read(&["--listen", "0.0.0.0:8080", "--allow-open-tokens"]).is_ok());
    }
}
