//! What a run prints: a table, or one JSON object.

use std::fmt::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::process::Used;
use crate::tally::Times;

/// The result of a run. Its fields are the JSON object.
pub(crate) trait Report: Serialize {
    /// Puts the result into a table.
    fn table(&self, table: &mut Table);

    /// Checks that did not hold, in words; none means success.
    fn failures(&self) -> Vec<String>;
}

/// The report as one JSON object, with `ok` and `failures` added.
pub(crate) fn json(report: &impl Report, failures: &[String]) -> String {
    #[derive(Serialize)]
    struct Whole<'a, R> {
        ok: bool,
        failures: &'a [String],
        #[serde(flatten)]
        report: &'a R,
    }
    let whole = Whole { ok: failures.is_empty(), failures, report };
    serde_json::to_string(&whole).expect("plain fields have a JSON form")
}

/// The report for people.
pub(crate) fn text(report: &impl Report, failures: &[String]) -> String {
    let mut table = Table::default();
    report.table(&mut table);
    if failures.is_empty() {
        table.section("OK: all checks hold");
    }
    for failure in failures {
        table.section(&format!("FAILED: {failure}"));
    }
    table.text.trim_start().to_owned()
}

/// Titled blocks of aligned lines.
#[derive(Default)]
pub(crate) struct Table {
    text: String,
}

impl Table {
    /// Starts a block.
    pub(crate) fn section(&mut self, title: &str) {
        self.text.push_str("\n\n");
        self.text.push_str(title);
    }

    /// Adds a line.
    pub(crate) fn row(&mut self, name: &str, value: impl AsRef<str>) {
        write!(self.text, "\n  {name:<22} {}", value.as_ref()).expect("writing to a string");
    }

    /// Adds a line, unless there is nothing to say.
    pub(crate) fn row_if(&mut self, wanted: bool, name: &str, value: impl AsRef<str>) {
        if wanted {
            self.row(name, value);
        }
    }

    /// Adds a line of percentiles.
    pub(crate) fn times(&mut self, name: &str, times: &Percentiles) {
        if times.count == 0 {
            return self.row(name, "nothing measured");
        }
        let columns = [("p50", times.p50), ("p90", times.p90), ("p99", times.p99), ("p99.9", times.p99_9)];
        let columns = columns.map(|(name, us)| format!("{name} {:<9}", time(us))).join(" ");
        self.row(name, format!("{columns} max {}", time(times.max)));
    }

    /// Adds a block with a line for each bound.
    pub(crate) fn bounds(&mut self, bounds: &[Bound]) {
        self.section("bounds");
        for bound in bounds {
            self.row(if bound.holds() { "holds" } else { "DOES NOT HOLD" }, bound.to_string());
        }
    }

    /// Adds a line for each process.
    pub(crate) fn processes(&mut self, used: &[Used]) {
        for process in used {
            self.row(
                process.role,
                format!(
                    "{} (pid {}): CPU {}, RSS {} → {}",
                    process.name,
                    process.pid,
                    time(process.cpu_us),
                    bytes(process.rss_before_bytes),
                    bytes(process.rss_after_bytes)
                ),
            );
        }
        if used.is_empty() {
            self.row("server", "no process of this machine, or gone; --gateway-pid shows CPU and memory");
        }
    }
}

/// A promise about a number.
#[derive(Debug, Serialize)]
pub(crate) struct Bound {
    what: String,
    is: f64,
    #[serde(flatten)]
    limit: Limit,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    /// `what` is this, and is to be at most that.
    pub(crate) fn new(what: String, is: f64, at_most: f64) -> Self {
        Self { what, is, limit: Limit::AtMost(at_most) }
    }

    /// `what` is this, and is to be at least that.
    pub(crate) fn at_least(what: String, is: f64, at_least: f64) -> Self {
        Self { what, is, limit: Limit::AtLeast(at_least) }
    }

    /// What to say when it does not hold.
    pub(crate) fn failure(&self) -> Option<String> {
        (!self.holds()).then(|| self.to_string())
    }

    fn holds(&self) -> bool {
        match self.limit {
            Limit::AtMost(most) => self.is <= most,
            Limit::AtLeast(least) => self.is >= least,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, limit) = match self.limit {
            Limit::AtMost(most) => ("most", most),
            Limit::AtLeast(least) => ("least", least),
        };
        write!(f, "{}: {:.2}, at {word} {limit:.2}", self.what, self.is)
    }
}

/// Times in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Percentiles {
    /// How many.
    pub(crate) count: u64,
    /// Half are at most this.
    pub(crate) p50: u64,
    /// 9 of 10.
    pub(crate) p90: u64,
    /// 99 of 100.
    pub(crate) p99: u64,
    /// 999 of 1000.
    #[serde(rename = "p99.9")]
    pub(crate) p99_9: u64,
    /// The longest.
    pub(crate) max: u64,
}

impl From<&Times> for Percentiles {
    fn from(times: &Times) -> Self {
        let times = times.histogram();
        Self {
            count: times.len(),
            p50: times.value_at_quantile(0.5),
            p90: times.value_at_quantile(0.9),
            p99: times.value_at_quantile(0.99),
            p99_9: times.value_at_quantile(0.999),
            max: times.max(),
        }
    }
}

/// `a / b`; nothing when `b` is 0.
#[expect(clippy::cast_precision_loss, reason = "counts and times here are far below 2^52")]
pub(crate) fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}

/// The middle one, or halfway between the two in the middle.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.get(middle) {
        None => f64::NAN,
        Some(upper) if figures.len().is_multiple_of(2) => f64::midpoint(figures[middle - 1], *upper),
        Some(middle) => *middle,
    }
}

/// A time in milliseconds.
pub(crate) fn millis(us: u64) -> f64 {
    ratio(us, 1_000).unwrap_or_default()
}

/// How many a second.
pub(crate) fn per_second(count: u64, us: u64) -> f64 {
    ratio(count, us).unwrap_or_default() * 1e6
}

/// A time, in the unit that suits it.
pub(crate) fn time(us: u64) -> String {
    let of = |unit| ratio(us, unit).unwrap_or_default();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", of(1_000)),
        _ => format!("{:.2} s", of(1_000_000)),
    }
}

/// A size, in the unit that suits it.
pub(crate) fn bytes(bytes: u64) -> String {
    let of = |unit| ratio(bytes, unit).unwrap_or_default();
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{:.1} KiB", of(1 << 10)),
        _ => format!("{:.1} MiB", of(1 << 20)),
    }
}

/// A bar on stderr, if that is a terminal.
pub(crate) fn progress(total: usize, what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:>12} {wide_bar} {pos}/{len} {elapsed}").expect("a valid template");
    ProgressBar::new(total as u64).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_a_fitting_unit() {
        assert_eq!([time(999), time(1_500), time(2_000_000)], ["999 µs", "1.50 ms", "2.00 s"]);
        assert_eq!([bytes(1300), bytes(20_480), bytes(20 << 20)], ["1300 B", "20.0 KiB", "20.0 MiB"]);
    }

    #[test]
    fn a_bound_that_does_not_hold_says_so() {
        assert!(Bound::new("x".into(), 2.5, 2.5).failure().is_none());
        assert_eq!(Bound::new("x".into(), 2.51, 2.5).failure().as_deref(), Some("x: 2.51, at most 2.50"));
        assert!(Bound::new("not measured".into(), f64::NAN, 1.0).failure().is_some());
        assert!(Bound::at_least("x".into(), 0.95, 0.95).failure().is_none());
        assert_eq!(
            Bound::at_least("x".into(), 0.9, 0.95).failure().as_deref(),
            Some("x: 0.90, at least 0.95")
        );
        assert!(Bound::at_least("not measured".into(), f64::NAN, 1.0).failure().is_some());
    }

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert!((median([3.0, 100.0, 1.0].into_iter()) - 3.0).abs() < f64::EPSILON);
        assert!(
            (median([0.92, 1.16, 0.83, 1.12].into_iter()) - 1.02).abs() < 1e-9,
            "neither favours the higher"
        );
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn percentiles_come_from_the_histogram() {
        let mut times = Times::default();
        (1..=1000).for_each(|us| times.record(us));
        let percentiles = Percentiles::from(&times);
        assert_eq!(
            (percentiles.count, percentiles.p50, percentiles.p99_9, percentiles.max),
            (1000, 500, 999, 1000)
        );
    }

    #[test]
    fn json_says_whether_it_is_ok() {
        #[derive(Serialize)]
        struct One {
            a: u8,
        }
        impl Report for One {
            fn table(&self, table: &mut Table) {
                table.section("one");
                table.row("a", "1");
            }
            fn failures(&self) -> Vec<String> {
                Vec::new()
            }
        }
        assert_eq!(json(&One { a: 1 }, &["x".into()]), r#"{"ok":false,"failures":["x"],"a":1}"#);
        assert_eq!(text(&One { a: 1 }, &[]), format!("one\n  a{}1\n\nOK: all checks hold", " ".repeat(22)));
    }
}
