//! The arguments and settings of `publisher replay`.

use std::path::PathBuf;

use backbone::{RedisConfig, Retention};
use protocol::MarketId;
use service::{
    redis_settings::{self, AUDIT_LEN, HISTORY_LEN, REDIS_CA, REDIS_URL},
    settings::{FromSetting, Row, Setting, Settings, Stop},
    telemetry::{LOG_FORMAT, LogFormat},
};

/// Everything that `publisher replay` reads from its arguments and the environment.
#[derive(Debug)]
pub(super) struct ReplaySettings {
    /// The Redis with the markets' logs.
    pub(super) redis: RedisConfig,
    /// How much of the logs Redis keeps.
    pub(super) retention: Retention,
    /// The format of log lines.
    pub(super) log_format: LogFormat,
    /// The recording, and how to replay it.
    pub(super) options: Options,
}

/// A recording, and how to replay it.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The recording.
    pub(super) file: PathBuf,
    /// The speed.
    pub(super) speed: Speed,
    /// The id under which the recording's only market is replayed.
    pub(super) market: Option<MarketId>,
    /// The first line that is appended, counted from 1. Earlier lines are only read.
    pub(super) from: u64,
}

/// The speed of a replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Speed {
    /// Without waiting.
    Max,
    /// A multiple of the recorded speed.
    Times(f64),
}

const FORMAT: Setting<Format> =
    Setting::new("FORMAT", "betfair", "betfair: one exchange stream message per line");
const SPEED: Setting<Speed> =
    Setting::new("SPEED", "1", "multiple of the recorded speed, such as 60 or 0.5; max = without waiting");
const MARKET: Setting<MarketId> = Setting::new(
    "MARKET",
    "(1.201000001 in the file is 201000001)",
    "replay the file's only market under this id",
);
const FROM: Setting<u64> = Setting::new(
    "FROM",
    "1",
    "append from this line on; at Ctrl-C the command prints the line to continue from",
);

/// The settings that also come from the environment.
const SHARED: [Row; 5] =
    [REDIS_URL.row(), REDIS_CA.row(), HISTORY_LEN.row(), AUDIT_LEN.row(), LOG_FORMAT.row()];
const TABLE: &[Row] = &[
    FORMAT.row(),
    SPEED.row(),
    MARKET.row(),
    FROM.row(),
    SHARED[0],
    SHARED[1],
    SHARED[2],
    SHARED[3],
    SHARED[4],
];
const USAGE: &str = "\
publisher replay FILE --format betfair --speed N|max [--market ID] [--from LINE]

Replays a recorded exchange stream into Redis. Each runner's last traded price becomes a selection of the line `win`;
the market's status becomes the line `status`.

FORMAT, SPEED, MARKET and FROM are flags only: the environment does not set them. HISTORY_LEN and AUDIT_LEN must be those of
the publishers on the same Redis.";

impl ReplaySettings {
    /// Reads the arguments and the environment.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with every problem.
    pub(super) fn read(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        let mut args = args.into_iter().peekable();
        let file = args.next_if(|arg| !arg.starts_with('-')).map(PathBuf::from);
        let env =
            |name: &str| if SHARED.iter().any(|row| name.starts_with(row.name)) { env(name) } else { None };
        let mut settings = Settings::read(USAGE, TABLE, args, env)?;
        if file.is_none() {
            settings.problem("FILE", "comes first: publisher replay FILE --speed max");
        }
        let Format = settings.value(&FORMAT);
        let speed = settings.value(&SPEED);
        let market = settings.optional(&MARKET);
        let from = settings.value(&FROM);
        let redis = redis_settings::required_redis(&mut settings);
        let retention = redis_settings::retention(&mut settings);
        let log_format = LogFormat::read(&mut settings);
        let (Some(file), Some(redis)) = (file, redis) else { return Err(settings.stop()) };
        settings.finish()?;
        Ok(Self { redis, retention, log_format, options: Options { file, speed, market, from } })
    }
}

/// The only format.
struct Format;

impl FromSetting for Format {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "betfair" { Ok(Self) } else { Err(format!("{text:?} is not a format: betfair")) }
    }
}

/// Reads `max`, or a multiple of the recorded speed.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &str, env: &[(&str, &str)]) -> Result<ReplaySettings, Stop> {
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        ReplaySettings::read(args.split_whitespace().map(str::to_owned), env)
    }

    #[test]
    fn a_replay_names_its_file_first() {
        let good = [("REDIS_URL", "redis://127.0.0.1")];
        let replay = read("feed.ndjson --speed max --market 7 --from 12", &good).unwrap();
        assert_eq!(replay.options.file, PathBuf::from("feed.ndjson"));
        assert_eq!(replay.options.speed, Speed::Max);
        assert_eq!((replay.options.market.map(MarketId::get), replay.options.from), (Some(7), 12));
        let Err(Stop::Problems(wrong)) = read("--speed 0 --format csv --market -1 --from x", &[]) else {
            panic!("must not start")
        };
        for name in ["FILE", "SPEED", "FORMAT", "MARKET", "FROM", "REDIS_URL"] {
            assert!(wrong.iter().any(|problem| problem.starts_with(name)), "{name}: {wrong:?}");
        }
        for help in ["--help", "file -h"] {
            assert!(matches!(read(help, &[]), Err(Stop::Help(text)) if text.contains("--speed")));
        }
    }
}
