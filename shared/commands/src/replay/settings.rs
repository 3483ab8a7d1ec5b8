//! What `publisher replay` can be told.

use std::path::PathBuf;

use backbone::{RedisConfig, Retention};
use protocol::MarketId;
use service::{
    redis_settings::{self, AUDIT_LEN, HISTORY_LEN, REDIS_CA, REDIS_URL},
    settings::{FromSetting, Row, Setting, Settings, Stop},
    telemetry::{LOG_FORMAT, LogFormat},
};

/// What to replay, how, and where to.
#[derive(Debug)]
pub struct ReplaySettings {
    /// Where the logs are.
    pub redis: RedisConfig,
    /// How much of them is kept.
    pub retention: Retention,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is replayed, and how.
    pub options: Options,
}

/// What to replay, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The recording.
    pub file: PathBuf,
    /// How fast.
    pub speed: Speed,
    /// Replay the recording's one market as this one.
    pub market: Option<MarketId>,
    /// Append from this line on, the first being 1; earlier ones are only read.
    pub from: u64,
}

/// How fast a recording is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// Without waiting.
    Max,
    /// So many times as fast as it was recorded.
    Times(f64),
}

const FORMAT: Setting<Format> =
    Setting::new("FORMAT", "betfair", "how the file is written: betfair (one stream message a line)");
const SPEED: Setting<Speed> =
    Setting::new("SPEED", "1", "times as fast as recorded, such as 60 or 0.5; max = without waiting");
const MARKET: Setting<MarketId> = Setting::new(
    "MARKET",
    "(1.201000001 in the file is 201000001)",
    "replay the file's one market as this one",
);
const FROM: Setting<u64> = Setting::new("FROM", "1", "append from this line on; earlier ones are only read");

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

Replays a recorded exchange stream into Redis. Each runner's last traded price becomes a selection of the line `win`,
the market's status the line `status`. Ctrl-C stops cleanly and says which --from goes on.

FORMAT, SPEED, MARKET and FROM are flags only, whatever the environment says. HISTORY_LEN and AUDIT_LEN must be those of
the publishers on the same Redis.";

impl ReplaySettings {
    /// Reads the arguments after `replay`, and the environment.
    ///
    /// # Errors
    /// [`Stop`] with the help, or with everything that is wrong.
    pub fn read(
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

/// The one format that there is.
struct Format;

impl FromSetting for Format {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "betfair" { Ok(Self) } else { Err(format!("{text:?} is not a format: betfair")) }
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
