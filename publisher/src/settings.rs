//! The publisher's settings. README has the same table (`README.md#configuration`).

use std::net::SocketAddr;

use backbone::{RedisConfig, Retention};
use service::{
    redis_settings::{self, AUDIT_LEN, HISTORY_LEN, REDIS_CA, REDIS_URL},
    rotation::SecretFile,
    settings::{Row, Settings as Source, Stop},
    telemetry::{
        LOG_FORMAT, LogFormat,
        traces::{OTLP_ENDPOINT, OTLP_SAMPLE_RATIO, TraceSettings},
    },
    token::{ADMIN_JWT_SECRET, Audience, Keyring},
};

use crate::{
    append::PUBLISH_MIN_REPLICAS,
    archive::{DATABASE_URL, Database},
    http::LISTEN,
    ops::OPS_LISTEN,
};

/// The settings of a publisher that serves.
#[derive(Debug)]
pub struct Settings {
    /// The admin API's listener.
    pub(crate) listen: SocketAddr,
    /// The listener of `/livez`, `/readyz` and `/metrics`.
    pub ops_listen: SocketAddr,
    /// The Redis with the markets' logs.
    pub redis: RedisConfig,
    /// The PostgreSQL that the audit is copied to.
    pub(crate) database: Option<Database>,
    /// Verifies admin tokens.
    pub(crate) keys: Keyring,
    /// Files with secrets that may change while the publisher runs.
    pub(crate) secret_files: Vec<SecretFile>,
    /// How much Redis keeps.
    pub(crate) retention: Retention,
    /// Replicas that must have an override before it is acknowledged.
    pub(crate) min_replicas: usize,
    pub(crate) log_format: LogFormat,
    /// Where traces go; `None` without traces.
    pub(crate) traces: Option<TraceSettings>,
}

const TABLE: &[Row] = &[
    LISTEN.row(),
    OPS_LISTEN.row(),
    REDIS_URL.row(),
    REDIS_CA.row(),
    DATABASE_URL.row(),
    ADMIN_JWT_SECRET.row(),
    HISTORY_LEN.row(),
    AUDIT_LEN.row(),
    PUBLISH_MIN_REPLICAS.row(),
    LOG_FORMAT.row(),
    OTLP_ENDPOINT.row(),
    OTLP_SAMPLE_RATIO.row(),
];

const USAGE: &str = "\
publisher: the admin API over the markets' logs in Redis.

  publisher                serves
  publisher check …        checks these settings; with --connect also Redis
  publisher token …        prints an admin token; see publisher token --help
  publisher inspect TOKEN  prints a token's claims and whether it is valid; - reads it from standard input
  publisher override URL … sends an override; see publisher override --help
  publisher replay FILE …  replays a recorded feed; see publisher replay --help
  publisher probe          exits with 0 if the publisher on this machine with the same settings is ready, else with 1

RUST_LOG (environment only) selects what is logged, such as info or publisher=debug.";

impl Settings {
    /// Reads the arguments after the program's name, and the environment.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with every problem.
    pub fn read(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        Self::explain(args, env).map(|(settings, _)| settings)
    }

    /// Reads the same, and also returns a summary of the settings that are not at their default.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with every problem.
    pub fn explain(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, String), Stop> {
        let mut source = Source::read(USAGE, TABLE, args, env)?;
        let mut secret_files = Vec::new();
        let listen = source.value(&LISTEN);
        let ops_listen = source.value(&OPS_LISTEN);
        let redis = redis_settings::required_redis(&mut source);
        let keys = Keyring::required(&mut source, &ADMIN_JWT_SECRET, Audience::Admin, &mut secret_files);
        let database = Database::read(&mut source, &mut secret_files);
        let retention = redis_settings::retention(&mut source);
        let log_format = LogFormat::read(&mut source);
        let min_replicas = source.value(&PUBLISH_MIN_REPLICAS);
        let traces = TraceSettings::read(&mut source);
        let summary = source.summary();
        let (Some(redis), Some(keys)) = (redis, keys) else { return Err(source.stop()) };
        source.finish()?;
        let settings = Self {
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
        Ok((settings, summary))
    }
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
    fn the_defaults_are_those_of_the_readme() {
        let serve = Settings::read(args(""), env(&GOOD)).unwrap();
        assert_eq!(serve.listen.to_string(), "127.0.0.1:8081");
        assert_eq!(serve.ops_listen.to_string(), "127.0.0.1:9181");
        assert_eq!(serve.retention, Retention::default());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let environment = [("HISTORY_LEN", "long"), ("AUDIT_LEN", "0"), ("ADMIN_JWT_SECRET", "short")];
        let problems = problems(Settings::read(args("--nonsense 1"), env(&environment)));
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
    fn a_database_url_is_checked_and_never_shown() {
        let with = |url: &'static str| {
            let environment = [GOOD[0], GOOD[1], ("DATABASE_URL", url)];
            Settings::read(args(""), env(&environment))
        };
        assert!(Settings::read(args(""), env(&GOOD)).unwrap().database.is_none());
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
    fn there_is_help() {
        let help = |read: Result<(), Stop>| matches!(read, Err(Stop::Help(text)) if text.contains("--"));
        assert!(help(Settings::read(args("--help"), env(&[])).map(drop)));
    }
}
