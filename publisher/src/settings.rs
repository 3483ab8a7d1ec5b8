//! What each command of the publisher can be told (contract, section 7).

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use shared::{
    MarketId,
    backbone::{RedisConfig, Retention, TailFrom},
    rotation::SecretFile,
    settings::{FromSetting, Secret, Setting, Settings, Stop},
    telemetry::{
        LogFormat,
        traces::{OTLP_ENDPOINT, OTLP_SAMPLE_RATIO, TraceSettings},
    },
    token::{Audience, Keyring, Role},
};

use crate::{
    archive::Database,
    replay::{Options, Speed},
};

/// What `publisher` needs to serve.
#[derive(Debug)]
pub struct Serve {
    /// The admin API's listener.
    pub listen: SocketAddr,
    /// The listener of `/livez`, `/readyz` and `/metrics`.
    pub ops_listen: SocketAddr,
    /// Where the logs are.
    pub redis: RedisConfig,
    /// Where the audit is copied to.
    pub database: Option<Database>,
    /// Who is let in.
    pub keys: Keyring,
    /// Where secrets come from that may change while it runs.
    pub secret_files: Vec<SecretFile>,
    /// How much is kept.
    pub retention: Retention,
    /// Replicas that must have an override before it is acknowledged.
    pub min_replicas: usize,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Where traces go.
    pub traces: Option<TraceSettings>,
}

/// What `publisher token` needs.
#[derive(Debug)]
pub struct Token {
    /// Signs it.
    pub keys: Keyring,
    /// Whose it is.
    pub sub: String,
    /// What it allows.
    pub role: Role,
    /// How long it is good for.
    pub ttl: Duration,
}

/// What `publisher replay` needs.
#[derive(Debug)]
pub struct Replay {
    /// Where the logs are.
    pub redis: RedisConfig,
    /// How much is kept.
    pub retention: Retention,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is replayed, and how.
    pub options: Options,
}

const LISTEN: Setting =
    Setting { name: "LISTEN", default: "127.0.0.1:8081", help: "address of the admin API" };
const OPS_LISTEN: Setting = Setting {
    name: "OPS_LISTEN",
    default: "127.0.0.1:9181",
    help: "address of /livez, /readyz and /metrics",
};
const REDIS_URL: Setting = Setting {
    name: "REDIS_URL",
    default: "",
    help: "required: where the markets' logs are: redis://host:6379, rediss://…, redis-sentinel://h1:26379,h2:26379/mymaster or redis-cluster://h1:7000,h2:7001",
};
const REDIS_CA: Setting = Setting {
    name: "REDIS_CA",
    default: "",
    help: "PEM of the authorities to trust instead of the system's, for rediss://",
};
const DATABASE_URL: Setting = Setting {
    name: "DATABASE_URL",
    default: "",
    help: "PostgreSQL that the audit is copied to: postgres://user:password@host:5432/database?sslmode=verify-full",
};
const ADMIN_JWT_SECRET: Setting = Setting {
    name: "ADMIN_JWT_SECRET",
    default: "",
    help: "required: signs admin tokens, 32 bytes or more; several: kid1:secret1,kid2:secret2, the first signs",
};
const HISTORY_LEN: Setting =
    Setting { name: "HISTORY_LEN", default: "1000", help: "updates that a market's log keeps, about" };
const AUDIT_LEN: Setting =
    Setting { name: "AUDIT_LEN", default: "100000", help: "audit entries that a market keeps, about" };
const PUBLISH_MIN_REPLICAS: Setting = Setting {
    name: "PUBLISH_MIN_REPLICAS",
    default: "0",
    help: "replicas that must have an override before it is acknowledged",
};
const LOG_FORMAT: Setting =
    Setting { name: "LOG_FORMAT", default: "(text on a terminal, else json)", help: "text or json" };

const SERVE: &[Setting] = &[
    LISTEN,
    OPS_LISTEN,
    REDIS_URL,
    REDIS_CA,
    DATABASE_URL,
    ADMIN_JWT_SECRET,
    HISTORY_LEN,
    AUDIT_LEN,
    PUBLISH_MIN_REPLICAS,
    LOG_FORMAT,
    OTLP_ENDPOINT,
    OTLP_SAMPLE_RATIO,
];
const SERVE_USAGE: &str = "\
publisher: the admin API over the markets' logs in Redis.

  publisher                serves
  publisher check …        says whether these settings are good; with --connect also whether Redis is
  publisher token …        prints an admin token; see publisher token --help
  publisher inspect TOKEN  says what a token says and whether it is good; - reads it from standard input
  publisher override URL … sends an override; see publisher override --help
  publisher replay FILE …  replays a recorded feed; see publisher replay --help
  publisher probe          asks the publisher that runs here with the same settings whether it is ready: exit code 0 or 1

RUST_LOG (environment only) says what is logged, as info or publisher=debug.";

const TOKEN: &[Setting] = &[
    Setting { name: "SUB", default: "", help: "required: whose token it is; the actor in the audit" },
    Setting { name: "ROLE", default: "", help: "required: viewer, trader or admin" },
    Setting { name: "TTL", default: "8h", help: "how long it is good for: 15m, 8h" },
    ADMIN_JWT_SECRET,
];
const TOKEN_USAGE: &str = "\
publisher token --sub desk-1 --role trader --ttl 8h: prints an admin token, signed with ADMIN_JWT_SECRET.

SUB, ROLE and TTL are flags only, whatever the environment says.";

const REPLAY: &[Setting] = &[
    Setting {
        name: "FORMAT",
        default: "betfair",
        help: "how the file is written: betfair (one stream message a line)",
    },
    Setting {
        name: "SPEED",
        default: "1",
        help: "times as fast as recorded, such as 60 or 0.5; max = without waiting",
    },
    Setting {
        name: "MARKET",
        default: "(1.201000001 in the file is 201000001)",
        help: "replay the file's one market as this one",
    },
    Setting { name: "FROM", default: "1", help: "append from this line on; earlier ones are only read" },
    REDIS_URL,
    REDIS_CA,
    HISTORY_LEN,
    AUDIT_LEN,
    LOG_FORMAT,
];
const REPLAY_USAGE: &str = "\
publisher replay FILE --format betfair --speed N|max [--market ID] [--from LINE]

Replays a recorded exchange stream into Redis. Each runner's last traded price becomes a selection of the line `win`,
the market's status the line `status`. Ctrl-C stops cleanly and says which --from goes on.

FORMAT, SPEED, MARKET and FROM are flags only, whatever the environment says. HISTORY_LEN and AUDIT_LEN must be those of
the publishers on the same Redis.";

impl Serve {
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
        let mut settings = Settings::read(SERVE_USAGE, SERVE, args, env)?;
        let listen = settings.value("LISTEN");
        let ops_listen = settings.value("OPS_LISTEN");
        let redis = redis(&mut settings);
        let keys = keyring(&mut settings);
        let database = database(&mut settings);
        let (retention, log_format) = (retention(&mut settings), log_format(&mut settings));
        let min_replicas = settings.value("PUBLISH_MIN_REPLICAS");
        let traces = TraceSettings::read(&mut settings);
        let keys_file = keys.as_ref().and_then(|keys| settings.keys_file("ADMIN_JWT_SECRET", keys));
        let database_file = database
            .clone()
            .and_then(|database| settings.secret_file("DATABASE_URL", move |url| database.replace(url)));
        let summary = settings.summary();
        settings.finish()?;
        let (redis, keys) = (reported(redis), reported(keys));
        let secret_files = keys_file.into_iter().chain(database_file).collect();
        let serve = Self {
            listen,
            ops_listen,
            redis,
            database,
            keys,
            secret_files,
            retention,
            min_replicas,
            log_format,
            traces,
        };
        Ok((serve, summary))
    }
}

impl Token {
    /// From the arguments after `token`, and the environment.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with everything that is wrong.
    pub fn read(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        let env = |name: &str| if name.starts_with("ADMIN_JWT_SECRET") { env(name) } else { None };
        let mut settings = Settings::read(TOKEN_USAGE, TOKEN, args, env)?;
        let keys = keyring(&mut settings);
        let sub = required::<String>(&mut settings, "SUB");
        if sub.as_deref() == Some("") {
            settings.problem("SUB", "must not be empty");
        }
        let role = required::<String>(&mut settings, "ROLE").and_then(|role| match role.parse::<Role>() {
            Ok(role) => Some(role),
            Err(problem) => {
                settings.problem("ROLE", &problem);
                None
            }
        });
        let ttl: Duration = settings.value("TTL");
        if ttl.as_secs() == 0 {
            settings.problem("TTL", "must be at least 1s");
        }
        settings.finish()?;
        Ok(Self { keys: reported(keys), sub: reported(sub), role: reported(role), ttl })
    }
}

impl Replay {
    /// From the arguments after `replay`, and the environment.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with everything that is wrong.
    pub fn read(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        let mut args = args.into_iter().peekable();
        let file = args.next_if(|arg| !arg.starts_with('-')).map(PathBuf::from);
        let shared = |name: &str| {
            [REDIS_URL, REDIS_CA, HISTORY_LEN, AUDIT_LEN, LOG_FORMAT].iter().any(|s| name.starts_with(s.name))
        };
        let env = |name: &str| if shared(name) { env(name) } else { None };
        let mut settings = Settings::read(REPLAY_USAGE, REPLAY, args, env)?;
        if file.is_none() {
            settings.problem("FILE", "comes first: publisher replay FILE --speed max");
        }
        let format: String = settings.value("FORMAT");
        if format != "betfair" {
            settings.problem("FORMAT", &format!("{format:?} is not a format: betfair"));
        }
        let speed = settings.value("SPEED");
        let market = settings.optional::<String>("MARKET").and_then(|id| match id.parse::<MarketId>() {
            Ok(id) => Some(id),
            Err(problem) => {
                settings.problem("MARKET", &problem.to_string());
                None
            }
        });
        let from = settings.value("FROM");
        let redis = redis(&mut settings);
        let (retention, log_format) = (retention(&mut settings), log_format(&mut settings));
        settings.finish()?;
        let options = Options { file: reported(file), speed, market, from };
        Ok(Self { redis: reported(redis), retention, log_format, options })
    }
}

/// `max`, or how many times as fast as recorded.
impl FromSetting for Speed {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.parse::<f64>() {
            Ok(times) if times.is_finite() && times > 0.0 => Ok(Self::Times(times)),
            _ => Err(format!("{text:?} is not a speed: a number above 0, or max")),
        }
    }
}

fn required<T: FromSetting>(settings: &mut Settings, name: &'static str) -> Option<T> {
    let value = settings.optional(name);
    if value.is_none() {
        settings.problem(name, "required");
    }
    value
}

/// What [`Settings::finish`] has just let pass.
fn reported<T>(value: Option<T>) -> T {
    value.expect("a missing value is a problem, and problems end the reading")
}

fn redis(settings: &mut Settings) -> Option<RedisConfig> {
    let ca_pem = settings.optional("REDIS_CA");
    Some(RedisConfig { url: required(settings, "REDIS_URL")?, ca_pem, tail_from: TailFrom::Primary })
}

fn database(settings: &mut Settings) -> Option<Database> {
    let url: Secret = settings.optional("DATABASE_URL")?;
    Database::parse(&url).inspect_err(|problem| settings.problem("DATABASE_URL", problem)).ok()
}

fn keyring(settings: &mut Settings) -> Option<Keyring> {
    let secrets: Secret = required(settings, "ADMIN_JWT_SECRET")?;
    Keyring::parse(&secrets, Audience::Admin)
        .inspect_err(|problem| settings.problem("ADMIN_JWT_SECRET", &problem.to_string()))
        .ok()
}

fn retention(settings: &mut Settings) -> Retention {
    let mut positive = |name| match settings.value(name) {
        0 => {
            settings.problem(name, "must be at least 1");
            1
        }
        len => len,
    };
    let (history_len, audit_len) = (positive("HISTORY_LEN"), positive("AUDIT_LEN"));
    Retention { history_len, audit_len, ..Retention::default() }
}

fn log_format(settings: &mut Settings) -> LogFormat {
    settings.optional("LOG_FORMAT").unwrap_or_else(LogFormat::for_stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "an example secret of forty bytes exactly";
    const GOOD: [(&str, &str); 2] = [("REDIS_URL", "redis://127.0.0.1"), ("ADMIN_JWT_SECRET", SECRET)];

    fn args(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn env(pairs: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    fn problems<T: std::fmt::Debug>(read: Result<T, Stop>) -> Vec<String> {
        match read {
            Err(Stop::Problems(problems)) => problems,
            other => panic!("must not start: {other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_the_contracts() {
        let serve = Serve::read(args(""), env(&GOOD)).unwrap();
        assert_eq!(serve.listen.to_string(), "127.0.0.1:8081");
        assert_eq!(serve.ops_listen.to_string(), "127.0.0.1:9181");
        assert_eq!(serve.retention, Retention::default());
    }

    #[test]
    fn serving_says_everything_that_is_wrong_at_once() {
        let environment = [("HISTORY_LEN", "long"), ("AUDIT_LEN", "0"), ("ADMIN_JWT_SECRET", "short")];
        let problems = problems(Serve::read(args("--nonsense 1"), env(&environment)));
        for name in ["--nonsense", "REDIS_URL", "HISTORY_LEN", "AUDIT_LEN", "ADMIN_JWT_SECRET"] {
            assert_eq!(
                problems.iter().filter(|problem| problem.contains(name)).count(),
                1,
                "{name}: {problems:?}"
            );
        }
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn a_database_s_url_is_checked_and_never_shown() {
        let with = |url: &'static str| {
            let environment = [GOOD[0], GOOD[1], ("DATABASE_URL", url)];
            Serve::read(args(""), env(&environment))
        };
        assert!(Serve::read(args(""), env(&GOOD)).unwrap().database.is_none());
        let good = with("postgres://audit:hidden@db/audit?sslmode=require").unwrap();
        assert!(good.database.is_some());
        assert!(!format!("{good:?}").contains("hidden"));
        for wrong in [
            "hidden",
            "mysql://audit:hidden@db/audit",
            "postgres://audit:hidden@db:x/audit",
            "postgres://db?sslmode=hidden",
        ] {
            let wrong = problems(with(wrong));
            assert!(
                wrong.len() == 1 && wrong[0].starts_with("DATABASE_URL: ") && !wrong[0].contains("hidden"),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn a_token_s_subject_and_role_come_from_flags_alone() {
        let token = Token::read(args("--sub desk-1 --role trader --ttl 90m"), env(&GOOD)).unwrap();
        assert_eq!(
            (token.sub.as_str(), token.role, token.ttl),
            ("desk-1", Role::Trader, Duration::from_mins(90))
        );
        let environment = [("ADMIN_JWT_SECRET", SECRET), ("SUB", "root"), ("ROLE", "admin")];
        assert_eq!(problems(Token::read(args(""), env(&environment))).len(), 2);
        let wrong = problems(Token::read(args("--sub x --role king --ttl 0"), env(&[])));
        assert_eq!(wrong.len(), 3, "{wrong:?}");
    }

    #[test]
    fn a_replay_names_its_file_first() {
        let replay = Replay::read(args("feed.ndjson --speed max --market 7 --from 12"), env(&GOOD)).unwrap();
        assert_eq!(replay.options.file, PathBuf::from("feed.ndjson"));
        assert_eq!(replay.options.speed, Speed::Max);
        assert_eq!((replay.options.market.map(MarketId::get), replay.options.from), (Some(7), 12));
        let wrong = problems(Replay::read(args("--speed 0 --format csv --market -1 --from x"), env(&[])));
        for name in ["FILE", "SPEED", "FORMAT", "MARKET", "FROM", "REDIS_URL"] {
            assert!(wrong.iter().any(|problem| problem.starts_with(name)), "{name}: {wrong:?}");
        }
    }

    #[test]
    fn every_command_has_help() {
        let help = |read: Result<(), Stop>| matches!(read, Err(Stop::Help(text)) if text.contains("--"));
        assert!(help(Serve::read(args("--help"), env(&[])).map(drop)));
        assert!(help(Token::read(args("--help"), env(&[])).map(drop)));
        assert!(help(Replay::read(args("--help"), env(&[])).map(drop)));
        assert!(help(Replay::read(args("file -h"), env(&[])).map(drop)));
    }
}
