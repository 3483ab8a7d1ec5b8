//! Sets up logs, metrics and traces in both services alike.

mod process;
pub mod traces;

use std::{
    fmt::Write,
    io::IsTerminal,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::settings::{FromSetting, Setting, Settings};

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, for people.
    Text,
    /// One JSON object per line, for programs.
    Json,
}

impl LogFormat {
    /// Reads [`LOG_FORMAT`]. By default it is text on a terminal, else JSON.
    pub fn read(settings: &mut Settings) -> Self {
        let default = if std::io::stderr().is_terminal() { Self::Text } else { Self::Json };
        settings.optional(&LOG_FORMAT).unwrap_or(default)
    }
}

/// The setting of the format.
pub const LOG_FORMAT: Setting<LogFormat> =
    Setting::new("LOG_FORMAT", "(text on a terminal, else json)", "text or json");

impl FromSetting for LogFormat {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not a log format: text or json")),
        }
    }
}

/// Sends the log lines that `RUST_LOG` selects (`info` by default) to standard error. Later calls change nothing.
pub fn init_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr);
    // A second call, as when both services run in one process, finds the subscriber already set.
    let _ = match format {
        LogFormat::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
}

/// Upper bounds of every histogram's buckets, microseconds: 0.5 ms to 10 s.
const BUCKETS_US: [u32; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// The ending of the names of histograms that count markets.
const MARKETS_SUFFIX: &str = "_markets";
/// The upper bounds of such a histogram's buckets.
const BUCKETS_MARKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Installs the process's metrics recorder. The handle renders its metrics.
///
/// # Errors
/// If the process already has a recorder.
pub fn init_metrics() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new()
        .set_buckets(&BUCKETS_US.map(seconds))?
        .set_buckets_for_metric(Matcher::Suffix(MARKETS_SUFFIX.to_owned()), &BUCKETS_MARKETS)?
        .install_recorder()
}

/// The commit that this is built from, if the build had `KMARKET_COMMIT`.
const COMMIT: Option<&str> = option_env!("KMARKET_COMMIT");

/// Exports the version and the commit as labels of `name`, a gauge that is always 1.
pub fn export_build_info(name: &'static str) {
    metrics::describe_gauge!(name, "Always 1; the labels say which build this is");
    let commit = COMMIT.filter(|commit| !commit.is_empty()).unwrap_or("unknown");
    metrics::gauge!(name, "version" => env!("CARGO_PKG_VERSION"), "commit" => commit).set(1.0);
}

/// Begins a counter with one label at 0 for each value of the label, so that an alert sees the first increase.
pub fn start_counters<V: ToString>(
    name: &'static str,
    label: &'static str,
    values: impl IntoIterator<Item = V>,
) {
    for value in values {
        metrics::counter!(name, label => value.to_string()).increment(0);
    }
}

/// Returns the metrics of the recorder, of `histograms` and of the process, as Prometheus text.
#[must_use]
pub(crate) fn render_metrics(recorded: &PrometheusHandle, histograms: &[&Histogram]) -> String {
    let mut text = recorded.render();
    for histogram in histograms {
        histogram.render(&mut text);
    }
    process::render(&mut text);
    text
}

fn seconds(us: u32) -> f64 {
    f64::from(us) / 1e6
}

/// A histogram for events that happen some hundred thousand times per second. It only counts, while the recorder keeps each
/// sample until it is next asked.
#[derive(Debug)]
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    /// By bucket; the last one has no upper bound.
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

/// Samples of one thread that are not in a [`Histogram`] yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By bucket; the last one has no upper bound.
    pub buckets: [u64; BUCKETS_US.len() + 1],
    /// The sum of all samples, microseconds.
    pub sum_us: u64,
}

impl Counts {
    /// Adds a sample of `us` microseconds.
    pub fn record(&mut self, us: u64) {
        self.buckets
            [BUCKETS_US.iter().position(|&bound| us <= u64::from(bound)).unwrap_or(BUCKETS_US.len())] += 1;
        self.sum_us += us;
    }
}

impl Histogram {
    /// Makes an empty histogram. `name` ends in `_seconds`.
    #[must_use]
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            buckets: [const { AtomicU64::new(0) }; BUCKETS_US.len() + 1],
            sum_us: AtomicU64::new(0),
        }
    }

    /// Adds samples.
    pub fn add(&self, counts: &Counts) {
        for (bucket, &count) in self.buckets.iter().zip(&counts.buckets).filter(|(_, count)| **count > 0) {
            bucket.fetch_add(count, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(counts.sum_us, Ordering::Relaxed);
    }

    /// Appends the histogram as Prometheus text.
    fn render(&self, text: &mut String) {
        let Self { name, help, buckets, sum_us } = self;
        let bounds = BUCKETS_US.map(|us| seconds(us).to_string()).into_iter().chain(["+Inf".to_owned()]);
        let mut count = 0;
        // Writing to a string does not fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        for (bucket, bound) in buckets.iter().zip(bounds) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = Duration::from_micros(sum_us.load(Ordering::Relaxed)).as_secs_f64();
        let _ = write!(text, "{name}_sum {sum}\n{name}_count {count}\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_renders_as_prometheus_reads_it() {
        let histogram = Histogram::new("x_seconds", "How long.");
        let mut counts = Counts::default();
        for us in [0, 500, 501, 9_999_999, 10_000_001] {
            counts.record(us);
        }
        histogram.add(&counts);
        histogram.add(&counts);
        let mut text = String::new();
        histogram.render(&mut text);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["# HELP x_seconds How long.", "# TYPE x_seconds histogram"]);
        for line in [
            r#"x_seconds_bucket{le="0.0005"} 4"#,
            r#"x_seconds_bucket{le="0.001"} 6"#,
            r#"x_seconds_bucket{le="5"} 6"#,
            r#"x_seconds_bucket{le="10"} 8"#,
            r#"x_seconds_bucket{le="+Inf"} 10"#,
            "x_seconds_sum 40.002002",
            "x_seconds_count 10",
        ] {
            assert!(lines.contains(&line), "{line} in {text}");
        }
    }
}
