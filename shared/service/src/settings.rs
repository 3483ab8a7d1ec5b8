//! Settings from flags, environment variables and files (`README.md#configuration`). All problems are reported at once.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use protocol::{MarketId, Secret, ids::InvalidMarketId};

use crate::rotation::{SecretFile, without_line_end};

/// A setting: an environment variable, and a flag with the same name in lower case with dashes.
///
/// The module that a setting is for owns its constant. A service collects the [`Row`]s of its settings into its table.
#[derive(Debug)]
pub struct Setting<T> {
    row: Row,
    parse: fn(&str) -> Result<T, String>,
}

/// A setting's row in `--help`.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The environment variable.
    pub name: &'static str,
    /// The default. It is a description in parentheses if the service computes it, and empty if there is none.
    pub default: &'static str,
    /// The help text, one line.
    pub help: &'static str,
}

impl<T: FromSetting> Setting<T> {
    /// Defines a setting. An empty `default` means that the setting has none.
    #[must_use]
    pub const fn new(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { row: Row { name, default, help }, parse: T::parse }
    }

    /// Returns the same setting with another default and help text, for a service in which it differs.
    #[must_use]
    pub const fn with(self, default: &'static str, help: &'static str) -> Self {
        Self::new(self.row.name, default, help)
    }
}

impl<T> Setting<T> {
    /// Returns the setting's row for a table.
    #[must_use]
    pub const fn row(&self) -> Row {
        self.row
    }

    /// Returns the environment variable's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.row.name
    }
}

/// Returns an environment variable's value. A value that is not UTF-8 counts as not set.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Why a service does not start.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// `--help` was given. This is the text to print.
    #[error("{0}")]
    Help(String),
    /// Every problem, one line each.
    #[error("cannot start:\n  {}", .0.join("\n  "))]
    Problems(Vec<String>),
}

/// The values that are set, and the problems found so far.
pub struct Settings {
    table: &'static [Row],
    /// By setting. Some are secrets.
    values: BTreeMap<&'static str, String>,
    /// The files of those values that were read from one.
    files: BTreeMap<&'static str, PathBuf>,
    /// The origin of each value: `a flag`, `the environment`.
    origins: BTreeMap<&'static str, &'static str>,
    problems: Vec<String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.values.keys().collect();
        f.debug_struct("Settings").field("set", &names).finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads flags (`--name value`, `--name=value`, `--switch`) and, below them, environment variables; a name with
    /// `_FILE` (`-file`) added names a file that holds the value.
    ///
    /// # Errors
    /// [`Stop::Help`] if `--help` is among the flags. Problems are kept for [`Settings::finish`].
    pub fn read(
        usage: &str,
        table: &'static [Row],
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Stop> {
        let mut settings = Self {
            table,
            values: BTreeMap::new(),
            files: BTreeMap::new(),
            origins: BTreeMap::new(),
            problems: Vec::new(),
        };
        for setting in table {
            let variable = |name: &str| env(name).filter(|value| !value.is_empty());
            settings.take(setting.name, "the environment", &variable, &str::to_owned);
        }
        let mut flags = BTreeMap::new();
        let mut args = args.into_iter().peekable();
        while let Some(arg) = args.next() {
            if arg == "--help" || arg == "-h" {
                return Err(Stop::Help(settings.help(usage)));
            }
            let Some(flag) = arg.strip_prefix("--") else {
                settings.problems.push(format!("{arg:?} is not a flag; --help lists them"));
                continue;
            };
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag, value.to_owned()),
                None => (flag, args.next_if(|next| !next.starts_with("--")).unwrap_or_else(|| "true".into())),
            };
            let name = flag.to_uppercase().replace('-', "_");
            let known =
                table.iter().any(|setting| name.strip_suffix("_FILE").unwrap_or(&name) == setting.name);
            if !known || flag.contains(char::is_uppercase) {
                settings.problems.push(format!("unknown flag --{flag}; --help lists them"));
            } else {
                flags.insert(name, value);
            }
        }
        for setting in table {
            settings.take(setting.name, "a flag", &|name| flags.get(name).cloned(), &flag_of);
        }
        Ok(settings)
    }

    /// Reads one setting, plain or from its file, from one source.
    fn take(
        &mut self,
        name: &'static str,
        origin: &'static str,
        source: &dyn Fn(&str) -> Option<String>,
        spell: &dyn Fn(&str) -> String,
    ) {
        let file_name = format!("{name}_FILE");
        match (source(name), source(&file_name)) {
            (Some(_), Some(_)) => {
                self.problems.push(format!(
                    "{} and {} are both set: set one",
                    spell(name),
                    spell(&file_name)
                ));
            }
            (Some(value), None) => {
                self.values.insert(name, value);
                self.origins.insert(name, origin);
                self.files.remove(name);
            }
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(text) => {
                    self.values.insert(name, without_line_end(&text).to_owned());
                    self.origins.insert(name, origin);
                    self.files.insert(name, PathBuf::from(path));
                }
                Err(error) => {
                    self.problems.push(format!("{}: cannot read {path}: {error}", spell(&file_name)));
                }
            },
            (None, None) => {}
        }
    }

    /// Returns the setting's value, or its default. A value that does not parse is a problem, and gives the default.
    pub fn value<T>(&mut self, setting: &Setting<T>) -> T {
        self.optional(setting).unwrap_or_else(|| {
            let Row { name, default, .. } = setting.row;
            (setting.parse)(default).unwrap_or_else(|error| panic!("{name}'s own default: {error}"))
        })
    }

    /// Returns the setting's value if it is set. A value that does not parse is a problem.
    pub fn optional<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        let name = setting.name();
        debug_assert!(self.table.iter().any(|row| row.name == name), "{name} is not in the table");
        match (setting.parse)(self.values.get(name)?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(name, &error);
                None
            }
        }
    }

    /// Returns true if the setting is set, to a valid value or not.
    #[must_use]
    pub fn is_set<T>(&self, setting: &Setting<T>) -> bool {
        self.values.contains_key(setting.name())
    }

    /// Returns the setting's value. A missing one is a problem.
    pub fn required<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        if !self.is_set(setting) {
            self.problem(setting.name(), "required");
        }
        self.optional(setting)
    }

    /// Returns the setting's value; 0 is a problem.
    pub fn at_least_one(&mut self, setting: &Setting<usize>) -> usize {
        let value = self.value(setting);
        if value == 0 {
            self.problem(setting.name(), "must be at least 1");
        }
        value.max(1)
    }

    /// Returns the file that the setting was read from, if any. `take` is called when the file has another secret.
    /// A pipe, such as a shell makes, never has another.
    #[must_use]
    pub fn secret_file<T>(
        &self,
        setting: &Setting<T>,
        take: impl Fn(&Secret) -> Result<(), String> + Send + Sync + 'static,
    ) -> Option<SecretFile> {
        let name = setting.name();
        let (path, value) = (self.files.get(name).filter(|path| path.is_file())?, self.values.get(name)?);
        Some(SecretFile::new(name, path.clone(), Secret::new(value), take))
    }

    /// Returns one line per setting that differs from its default: its value, unless that is secret, and its origin.
    #[must_use]
    pub fn summary(&self) -> String {
        let differs =
            |setting: &&Row| self.values.get(setting.name).is_some_and(|value| value != setting.default);
        let line = |setting: &Row| {
            let origin = self.origins.get(setting.name).unwrap_or(&"");
            let from = match self.files.get(setting.name) {
                Some(path) => format!("{}, which {origin} names", path.display()),
                None => (*origin).to_owned(),
            };
            format!(
                "  {} = {}   (from {from})",
                setting.name,
                shown(setting.name, &self.values[setting.name])
            )
        };
        let lines: Vec<String> = self.table.iter().filter(differs).map(line).collect();
        if lines.is_empty() { "  none".to_owned() } else { lines.join("\n") }
    }

    /// Adds a problem with a setting.
    pub fn problem(&mut self, name: &str, message: &str) {
        self.problems.push(format!("{name}: {message}"));
    }

    /// Ends the reading because something required is missing. Returns every problem.
    #[must_use]
    pub fn stop(self) -> Stop {
        Stop::Problems(self.problems)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Stop::Problems`] if there are any.
    pub fn finish(self) -> Result<(), Stop> {
        if self.problems.is_empty() { Ok(()) } else { Err(Stop::Problems(self.problems)) }
    }

    fn help(&self, usage: &str) -> String {
        let intro = "Each setting is an environment variable, and a flag; NAME_FILE reads it from a file.";
        let rows = self.table.iter().map(|setting| {
            let default = if setting.default.is_empty() { "not set" } else { setting.default };
            format!("  {} ({})\n      {} [{default}]", flag_of(setting.name), setting.name, setting.help)
        });
        [usage, "", intro, ""].into_iter().map(str::to_owned).chain(rows).collect::<Vec<_>>().join("\n")
    }
}

/// Returns a value without the secrets in it.
fn shown(name: &str, value: &str) -> String {
    if ["SECRET", "KEY", "PASSWORD"].iter().any(|word| name.contains(word)) || name == "TOKEN" {
        return "[redacted]".to_owned();
    }
    if name == "REDIS_CA" {
        return "[PEM]".to_owned();
    }
    match (value.split_once("://"), value.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://[redacted]@{host}"),
        _ => value.to_owned(),
    }
}

fn flag_of(name: &str) -> String {
    format!("--{}", name.to_lowercase().replace('_', "-"))
}

/// A type that a setting's text can be parsed as.
pub trait FromSetting: Sized {
    /// Parses the text.
    ///
    /// # Errors
    /// A sentence with what is expected.
    fn parse(text: &str) -> Result<Self, String>;
}

/// Reads `15s`, `500ms`, `10m`, `8h`; a bare number is seconds.
impl FromSetting for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: Option<u64> = text[..digits].parse().ok();
        let in_ms = match &text[digits..] {
            "ms" => Some(1),
            "" | "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        number
            .zip(in_ms)
            .and_then(|(number, in_ms)| number.checked_mul(in_ms))
            .map(Self::from_millis)
            .ok_or_else(|| {
                format!("{text:?} is not a duration: write 15s, 500ms, 10m or 8h; a bare number is seconds")
            })
    }
}

impl FromSetting for bool {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }
}

impl FromSetting for Secret {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::new(text))
    }
}

impl FromSetting for MarketId {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|problem: InvalidMarketId| problem.to_string())
    }
}

impl FromSetting for SocketAddr {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{text:?} is not an address: write 127.0.0.1:8080 or [::]:8080"))
    }
}

macro_rules! from_str_setting {
    ($($kind:ty => $expected:literal),*) => {$(
        impl FromSetting for $kind {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!(concat!("{:?} is not ", $expected), text))
            }
        }
    )*};
}

from_str_setting!(
    u32 => "a whole number",
    u64 => "a whole number",
    usize => "a whole number",
    String => "text"
);

/// Reads a comma-separated list.
impl<T: FromStr> FromSetting for Vec<T>
where
    T::Err: fmt::Display,
{
    fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| item.parse().map_err(|error| format!("{item:?}: {error}")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTEN: Setting<SocketAddr> = Setting::new("LISTEN", "127.0.0.1:8080", "address");
    const JWT_SECRET: Setting<Secret> = Setting::new("JWT_SECRET", "", "secret");
    const HEARTBEAT_INTERVAL: Setting<Duration> = Setting::new("HEARTBEAT_INTERVAL", "15s", "how often");
    const DEMO: Setting<bool> = Setting::new("DEMO", "false", "switch");
    const TABLE: &[Row] = &[LISTEN.row(), JWT_SECRET.row(), HEARTBEAT_INTERVAL.row(), DEMO.row()];

    fn read(args: &[&str], env: &[(&str, &str)]) -> Settings {
        let args = args.iter().map(|&arg| arg.to_owned());
        let lookup =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::read("usage", TABLE, args, lookup).unwrap()
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        let mut settings = read(&["--heartbeat-interval=2", "--demo"], &[("HEARTBEAT_INTERVAL", "9s")]);
        assert_eq!(settings.value(&HEARTBEAT_INTERVAL), Duration::from_secs(2));
        assert!(settings.value(&DEMO));
        assert_eq!(settings.value(&LISTEN).port(), 8080);
        let mut settings = read(&[], &[("HEARTBEAT_INTERVAL", "250ms"), ("LISTEN", "")]);
        assert_eq!(settings.value(&HEARTBEAT_INTERVAL), Duration::from_millis(250));
        assert_eq!(settings.value(&LISTEN).port(), 8080);
        assert!(settings.finish().is_ok());
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let mut settings = read(&["--listen", "nowhere", "--colour", "x"], &[("HEARTBEAT_INTERVAL", "soon")]);
        let _ = (settings.value(&LISTEN), settings.value(&HEARTBEAT_INTERVAL));
        let Err(Stop::Problems(problems)) = settings.finish() else { panic!("must not start") };
        assert_eq!(problems.len(), 3, "{problems:?}");
        for (problem, name) in problems.iter().zip(["--colour", "LISTEN", "HEARTBEAT_INTERVAL"]) {
            assert!(problem.contains(name), "{problem}");
        }
    }

    #[test]
    fn a_summary_shows_what_differs_and_its_origin_and_no_secret() {
        let env = [("LISTEN", "127.0.0.1:8080"), ("JWT_SECRET", "hush"), ("HEARTBEAT_INTERVAL", "2s")];
        let summary = read(&["--demo"], &env).summary();
        let lines = [
            "  JWT_SECRET = [redacted]   (from the environment)",
            "  HEARTBEAT_INTERVAL = 2s   (from the environment)",
            "  DEMO = true   (from a flag)",
        ];
        assert_eq!(summary, lines.join("\n"));
        let url = "redis-sentinel://user:p@ss@a,b/mymaster";
        assert_eq!(shown("REDIS_URL", url), "redis-sentinel://[redacted]@a,b/mymaster");
        assert_eq!(read(&[], &[]).summary(), "  none");
    }

    #[test]
    fn a_secret_comes_from_a_file_and_never_shows() {
        let path = std::env::temp_dir().join(format!("kmarket-secret-{}", std::process::id()));
        std::fs::write(&path, "hush\n").unwrap();
        let mut settings = read(&[], &[("JWT_SECRET_FILE", path.to_str().unwrap())]);
        let secret = settings.optional(&JWT_SECRET).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(secret.expose(), "hush");
        assert!(!format!("{secret:?} {settings:?} {}", settings.summary()).contains("hush"));
        let both = read(&[], &[("JWT_SECRET_FILE", "/nonexistent"), ("JWT_SECRET", "x")]);
        assert!(both.finish().is_err());
    }
}
