//! What a gateway can be told (contract, section 7).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::http::HeaderValue;
use backbone::{RedisConfig, TailFrom};
use ipnet::IpNet;
use protocol::Secret;
use service::{
    http::ops::OPS_LISTEN as OPS,
    redis_settings::{self, REDIS_CA},
    rotation::{Live, SecretFile},
    settings::{FromSetting, Row, Setting, Settings as Source, Stop},
    telemetry::{
        LOG_FORMAT, LogFormat,
        traces::{OTLP_ENDPOINT, OTLP_SAMPLE_RATIO, TraceSettings},
    },
    token::{self, Audience, JWT_SECRET, Keyring},
};

use crate::limits::Rate;

/// Everything a gateway is told at start.
#[derive(Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators ask.
    pub ops_listen: SocketAddr,
    /// The backbone, `None` for the embedded one.
    pub redis: Option<RedisConfig>,
    /// Verifies, and at the token endpoint signs, tokens for sockets.
    pub keys: Keyring,
    /// Embedded only: verifies admin tokens.
    pub admin_keys: Keyring,
    /// Embedded only: publish invented markets.
    pub demo: bool,
    /// Serve the live board at `/`.
    pub board: bool,
    /// Who may ask for tokens; `None`: everyone.
    pub token_api_key: Option<Live<Secret>>,
    /// Where secrets come from that may change while it runs.
    pub secret_files: Vec<SecretFile>,
    /// Tokens a minute and user; 0 = no limit.
    pub token_rate_limit: u32,
    /// Whether REST reads need a token.
    pub read_auth: bool,
    /// Who may read REST answers from other pages.
    pub cors_origins: Origins,
    /// Whose pages may open sockets; a client without an Origin always may.
    pub allowed_origins: Origins,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Threads that own connections.
    pub workers: usize,
    /// Latency traded for fewer writes.
    pub flush_interval: Duration,
    /// Latency traded for fewer reads.
    pub tail_linger: Duration,
    /// Updates kept per market.
    pub history_len: usize,
    /// Updates that a resume replays at most.
    pub resume_max: usize,
    /// Between heartbeats.
    pub heartbeat_interval: Duration,
    /// Of a client's silence.
    pub heartbeat_timeout: Duration,
    /// Of a socket that takes nothing.
    pub slow_after: Duration,
    /// Over which a drain closes connections.
    pub drain: Duration,
    /// After which prices that cannot be refreshed are called stale.
    pub stale_after: Duration,
    /// Of a client's message.
    pub max_message_bytes: usize,
    /// Of one connection.
    pub max_markets: usize,
    /// Of one user on this pod.
    pub max_connections_per_user: usize,
    /// Of this pod.
    pub max_connections: usize,
    /// Of this pod, over HTTP: requests, and handshakes under way.
    pub max_http_connections: usize,
    /// Of a client's messages.
    pub message_rate: Rate,
    /// From accept to 101.
    pub handshake_timeout: Duration,
    /// Handshakes a second and client address, and, counted apart, requests for tokens that no API key vouches for; 0 =
    /// no limit.
    pub handshake_rate_limit: u32,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Where traces go.
    pub traces: Option<TraceSettings>,
}

/// A list of origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// `*`.
    Any,
    /// Exactly these.
    Only(Vec<HeaderValue>),
}

const LISTEN: Setting<SocketAddr> = Setting::new("LISTEN", "127.0.0.1:8080", "address for clients");
const OPS_LISTEN: Setting<SocketAddr> = OPS.with("127.0.0.1:9180", OPS.row().help);
const REDIS_URL: Setting<Secret> = redis_settings::REDIS_URL.with("", "redis://host:6379, rediss://…, redis-sentinel://h1:26379,h2:26379/mymaster or redis-cluster://h1:7000,h2:7001; not set = embedded: one process, in memory, admin API included");
const ADMIN_JWT_SECRET: Setting<Secret> = token::ADMIN_JWT_SECRET
    .with("", "embedded only: signs admin tokens; not set = random, and a token is printed");
const DEMO: Setting<bool> = Setting::new("DEMO", "false", "embedded only: publish a few invented markets");
const BOARD: Setting<bool> = Setting::new(
    "BOARD",
    "(true when embedded, else false)",
    "serve the live board, a page for browsers, at /",
);
const TOKEN_API_KEY: Setting<Secret> =
    Setting::new("TOKEN_API_KEY", "", "the bearer key that POST /api/ws/token asks for");
const ALLOW_OPEN_TOKENS: Setting<bool> = Setting::new(
    "ALLOW_OPEN_TOKENS",
    "false",
    "let anyone ask for tokens on a listener that is not loopback",
);
const TOKEN_RATE_LIMIT: Setting<u32> =
    Setting::new("TOKEN_RATE_LIMIT", "10", "tokens a minute and user, 0 = no limit");
const READ_AUTH: Setting<ReadAuth> =
    Setting::new("READ_AUTH", "none", "none, or token: REST reads need a token");
const CORS_ORIGINS: Setting<Origins> =
    Setting::new("CORS_ORIGINS", "", "origins whose pages may read REST answers, comma-separated, or *");
const ALLOWED_ORIGINS: Setting<Origins> =
    Setting::new("ALLOWED_ORIGINS", "*", "origins whose pages may open sockets, comma-separated, or *");
const TRUSTED_PROXIES: Setting<Proxies> =
    Setting::new("TRUSTED_PROXIES", "", "networks whose X-Forwarded-For is believed, such as 10.0.0.0/8");
const WORKERS: Setting<usize> = Setting::new("WORKERS", "(number of cores)", "threads that own connections");
const FLUSH_INTERVAL: Setting<Duration> =
    Setting::new("FLUSH_INTERVAL", "0ms", "collect updates this long before writing them to sockets");
const TAIL_FROM: Setting<TailFrom> = Setting::new(
    "TAIL_FROM",
    "primary",
    "primary, or replica: follow logs at a replica of each primary while one keeps up",
);
const TAIL_LINGER: Setting<Duration> =
    Setting::new("TAIL_LINGER", "0ms", "collect changes this long before reading them from Redis");
const HISTORY_LEN: Setting<usize> = redis_settings::HISTORY_LEN.with("1000", "updates kept per market");
const RESUME_MAX: Setting<usize> = Setting::new("RESUME_MAX", "500", "updates that a resume replays at most");
const HEARTBEAT_INTERVAL: Setting<Duration> = Setting::new("HEARTBEAT_INTERVAL", "15s", "between heartbeats");
const HEARTBEAT_TIMEOUT: Setting<Duration> =
    Setting::new("HEARTBEAT_TIMEOUT", "60s", "silence after which a client is closed");
const SLOW_AFTER: Setting<Duration> =
    Setting::new("SLOW_AFTER", "30s", "time without taking a byte after which a client is closed");
const DRAIN_SECONDS: Setting<Duration> =
    Setting::new("DRAIN_SECONDS", "20", "time over which a drain closes connections");
const STALE_AFTER: Setting<Duration> =
    Setting::new("STALE_AFTER", "10s", "time without the backbone after which prices are called stale");
const MAX_MESSAGE_BYTES: Setting<usize> =
    Setting::new("MAX_MESSAGE_BYTES", "16384", "longest message of a client");
const MAX_MARKETS_PER_CONNECTION: Setting<usize> =
    Setting::new("MAX_MARKETS_PER_CONNECTION", "200", "markets one connection may subscribe to");
const MAX_CONNECTIONS_PER_USER: Setting<usize> =
    Setting::new("MAX_CONNECTIONS_PER_USER", "10", "open connections of one user, on this pod");
const MAX_CONNECTIONS: Setting<usize> = Setting::new(
    "MAX_CONNECTIONS",
    "100000",
    "open connections of this pod; never above what the open-file limit allows",
);
const MAX_HTTP_CONNECTIONS: Setting<usize> = Setting::new(
    "MAX_HTTP_CONNECTIONS",
    "4096",
    "open HTTP connections of this pod, handshakes under way included; a fifth of the open-file limit at most",
);
const MESSAGE_BURST: Setting<u32> = Setting::new("MESSAGE_BURST", "20", "messages a client may send at once");
const MESSAGE_RATE: Setting<u32> =
    Setting::new("MESSAGE_RATE", "5", "messages a second it may send after that");
const HANDSHAKE_TIMEOUT: Setting<Duration> =
    Setting::new("HANDSHAKE_TIMEOUT", "5s", "time from accept to the end of the handshake");
const HANDSHAKE_RATE_LIMIT: Setting<u32> = Setting::new(
    "HANDSHAKE_RATE_LIMIT",
    "20",
    "handshakes a second and client address, and requests for tokens without TOKEN_API_KEY; 0 = no limit",
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
  gateway probe            asks the gateway that runs here with the same settings whether it is ready: exit code 0 or 1
  gateway check …          says whether these settings are good; with --connect also whether Redis is
  gateway token …          prints a client's token; see gateway token --help
  gateway inspect TOKEN    says what a token says and whether it is good; - reads it from standard input
  gateway tail URL …       follows markets in the terminal; see gateway tail --help

RUST_LOG (environment only) says what is logged, as info or gateway=debug.";

impl Settings {
    /// From the arguments after the program's name, and the environment.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with everything that is wrong.
    pub fn read(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        Self::explain(args, env).map(|(settings, _)| settings)
    }

    /// The same, and a summary for people of what is not as by default.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with everything that is wrong.
    pub fn explain(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, String), Stop> {
        let mut source = Source::read(USAGE, TABLE, args, env)?;
        let tail_from = source.value(&TAIL_FROM);
        let redis = redis_settings::redis(&mut source, tail_from);
        let embedded = redis.is_none();
        let listen: SocketAddr = source.value(&LISTEN);
        let mut secret_files = Vec::new();
        let token_api_key = token_api_key(&mut source, &mut secret_files);
        let allow_open_tokens: bool = source.value(&ALLOW_OPEN_TOKENS);
        if token_api_key.is_none() && !allow_open_tokens && !listen.ip().is_loopback() {
            source.problem(
                LISTEN.name(),
                "anyone who reaches it could mint tokens: set TOKEN_API_KEY, or ALLOW_OPEN_TOKENS=true",
            );
        }
        let demo: bool = source.value(&DEMO);
        if demo && !embedded {
            source.problem(
                DEMO.name(),
                "invented prices do not belong into a shared Redis: leave REDIS_URL out, or DEMO",
            );
        }
        let read_auth = match source.value(&READ_AUTH) {
            ReadAuth::None => false,
            ReadAuth::Token => true,
        };
        let keys = Keyring::read(&mut source, &JWT_SECRET, Audience::Ws, &mut secret_files);
        if keys.is_none() && !embedded && !source.is_set(&JWT_SECRET) {
            source.problem(JWT_SECRET.name(), "required with REDIS_URL; make one with: openssl rand -hex 32");
        }
        let admin_keys = Keyring::read(&mut source, &ADMIN_JWT_SECRET, Audience::Admin, &mut secret_files);
        let settings = Self {
            listen,
            ops_listen: source.value(&OPS_LISTEN),
            redis,
            keys: keys.unwrap_or_else(|| Keyring::random(Audience::Ws)),
            admin_keys: admin_keys.unwrap_or_else(|| Keyring::random(Audience::Admin)),
            demo,
            board: source.optional(&BOARD).unwrap_or(embedded),
            token_api_key,
            secret_files,
            token_rate_limit: source.value(&TOKEN_RATE_LIMIT),
            read_auth,
            cors_origins: source.optional(&CORS_ORIGINS).unwrap_or(Origins::Only(Vec::new())),
            allowed_origins: source.value(&ALLOWED_ORIGINS),
            trusted_proxies: source.value(&TRUSTED_PROXIES).0,
            workers: source.optional(&WORKERS).unwrap_or_else(cores),
            flush_interval: source.value(&FLUSH_INTERVAL),
            tail_linger: source.value(&TAIL_LINGER),
            history_len: source.at_least_one(&HISTORY_LEN),
            resume_max: source.value(&RESUME_MAX),
            heartbeat_interval: source.value(&HEARTBEAT_INTERVAL),
            heartbeat_timeout: source.value(&HEARTBEAT_TIMEOUT),
            slow_after: source.value(&SLOW_AFTER),
            drain: source.value(&DRAIN_SECONDS),
            stale_after: source.value(&STALE_AFTER),
            max_message_bytes: source.at_least_one(&MAX_MESSAGE_BYTES),
            max_markets: source.value(&MAX_MARKETS_PER_CONNECTION),
            max_connections_per_user: source.at_least_one(&MAX_CONNECTIONS_PER_USER),
            max_connections: source.at_least_one(&MAX_CONNECTIONS),
            max_http_connections: source.at_least_one(&MAX_HTTP_CONNECTIONS),
            message_rate: Rate::per_second(source.value(&MESSAGE_RATE))
                .with_burst(source.value(&MESSAGE_BURST)),
            handshake_timeout: source.value(&HANDSHAKE_TIMEOUT),
            handshake_rate_limit: source.value(&HANDSHAKE_RATE_LIMIT),
            log_format: LogFormat::read(&mut source),
            traces: TraceSettings::read(&mut source),
        };
        if !(1..=256).contains(&settings.workers) {
            source.problem(WORKERS.name(), "from 1 to 256");
        }
        if settings.heartbeat_interval.is_zero() || settings.heartbeat_timeout < settings.heartbeat_interval {
            source.problem(
                HEARTBEAT_TIMEOUT.name(),
                "must not be shorter than HEARTBEAT_INTERVAL, which must not be 0",
            );
        }
        if settings.message_rate.burst == 0 {
            source.problem(MESSAGE_BURST.name(), "at least 1");
        }
        let summary = source.summary();
        source.finish()?;
        Ok((settings, summary))
    }

    /// How many sockets and how many HTTP connections this process may have open: the settings, within its open-file
    /// limit, which is raised as far as it goes.
    #[must_use]
    pub fn file_budget(&self) -> FileBudget {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        let files = match rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        };
        let budget = FileBudget::of(files, self.max_connections, self.max_http_connections);
        if budget.sockets < self.max_connections {
            let (allowed, wanted) = (budget.sockets, self.max_connections);
            tracing::warn!(
                allowed,
                wanted,
                "MAX_CONNECTIONS is lowered: raise the open-file limit (ulimit -n)"
            );
        }
        budget
    }
}

/// How open files are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileBudget {
    /// Clients' sockets.
    pub sockets: usize,
    /// HTTP connections, handshakes in flight included.
    pub http: usize,
    /// HTTP connections beyond those, which are told so.
    pub refusals: usize,
}

impl FileBudget {
    /// Files that are neither: listeners, Redis, polls, logs.
    const OTHERS: usize = 64;
    const MAX_REFUSALS: usize = 256;

    fn of(files: Option<u64>, max_connections: usize, max_http: usize) -> Self {
        let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
        let for_http = (files / 5).saturating_sub(Self::OTHERS).max(2);
        let refusals = (for_http / 16).clamp(1, Self::MAX_REFUSALS);
        let http = (for_http - refusals).min(max_http);
        let others = http + refusals + Self::OTHERS;
        Self { sockets: files.saturating_sub(others).clamp(1, max_connections), http, refusals }
    }
}

fn token_api_key(source: &mut Source, files: &mut Vec<SecretFile>) -> Option<Live<Secret>> {
    // An empty key would let everyone in who sends an empty one.
    let check = |key: &Secret| match key.expose().trim() {
        "" => Err("must not be empty".to_owned()),
        _ => Ok(()),
    };
    let key: Secret = source.optional(&TOKEN_API_KEY)?;
    if let Err(problem) = check(&key) {
        source.problem(TOKEN_API_KEY.name(), &problem);
    }
    let key = Live::new(key);
    let in_use = key.clone();
    files.extend(source.secret_file(&TOKEN_API_KEY, move |key| {
        check(key)?;
        in_use.set(key.clone());
        Ok(())
    }));
    Some(key)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

enum ReadAuth {
    None,
    Token,
}

impl FromSetting for ReadAuth {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "token" => Ok(Self::Token),
            _ => Err(format!("{text:?} is neither none nor token")),
        }
    }
}

impl FromSetting for Origins {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let parse = |origin: &str| {
            let good = origin.contains("://")
                && !origin.ends_with('/')
                && origin.bytes().all(|b| b.is_ascii_graphic());
            let value = if good { HeaderValue::from_str(origin).ok() } else { None };
            value.ok_or_else(|| {
                format!(
                    "{origin:?} is not an origin: write https://example.com, without a slash at the end, or *"
                )
            })
        };
        text.split(',')
            .map(str::trim)
            .filter(|origin| !origin.is_empty())
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self::Only)
    }
}

struct Proxies(Vec<IpNet>);

impl FromSetting for Proxies {
    fn parse(text: &str) -> Result<Self, String> {
        let parse = |part: &str| {
            part.parse::<IpNet>()
                .or_else(|_| part.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| format!("{part:?} is not a network such as 10.0.0.0/8"))
        };
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Settings, Stop> {
        Settings::read(args.iter().map(|&arg| arg.to_owned()), |_| None)
    }

    #[test]
    fn with_nothing_set_it_is_the_whole_system_on_loopback() {
        let settings = read(&[]).unwrap();
        assert!(settings.redis.is_none() && settings.listen.ip().is_loopback() && settings.board);
        assert_eq!(
            (settings.history_len, settings.resume_max, settings.max_message_bytes),
            (1000, 500, 16_384)
        );
        assert_eq!(settings.heartbeat_interval, Duration::from_secs(15));
        assert_eq!(settings.allowed_origins, Origins::Any);
        assert_eq!(settings.cors_origins, Origins::Only(Vec::new()));
    }

    #[test]
    fn the_open_file_limit_is_shared_out() {
        let budget = |files, max| {
            let FileBudget { sockets, http, refusals } = FileBudget::of(files, max, 4096);
            (sockets, http, refusals)
        };
        assert_eq!(budget(None, 100_000), (100_000, 4096, 256));
        assert_eq!(budget(Some(104_416), 100_000), (100_000, 4096, 256));
        assert_eq!(budget(Some(20_000), 100_000), (16_000, 3690, 246));
        assert_eq!(budget(Some(1024), 100_000), (820, 132, 8));
        assert_eq!(budget(Some(1024), 10), (10, 132, 8));
        assert_eq!(budget(Some(0), 10), (1, 1, 1));
        assert_eq!(FileBudget::of(None, 10, 5).http, 5);
    }

    #[test]
    fn doors_that_would_stand_open_are_refused() {
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
