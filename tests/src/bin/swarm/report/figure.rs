//! The values of a report, and how the table shows them.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use serde::Serialize;

/// A value with its label.
pub(crate) type Labelled = (&'static str, Figure);

/// A value of a row. JSON has the bare number.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Figure {
    Count(u64),
    Time(u64),
    Bytes(u64),
    /// Of 1; the table shows percent.
    Share(f64),
    Number(f64),
    Numbers(Vec<f64>),
    Counts(BTreeMap<String, u64>),
    Text(String),
}

impl Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Time(us) => f.write_str(&time(*us)),
            Self::Bytes(size) => f.write_str(&bytes(*size)),
            Self::Share(share) => write!(f, "{:.0} %", share * 100.0),
            Self::Number(number) => f.write_str(&digits(*number)),
            Self::Numbers(numbers) => {
                f.write_str(&numbers.iter().copied().map(digits).collect::<Vec<_>>().join(" "))
            }
            Self::Counts(counts) => write!(f, "{counts:?}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<u64> for Figure {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Figure {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Figure {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Figure {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// `a / b`; 0 when `b` is 0.
pub(crate) fn ratio(a: u64, b: u64) -> f64 {
    if b > 0 { as_f64(a) / as_f64(b) } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts and times here are far below 2^52")]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

/// The middle figure, or halfway between the two in the middle.
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

pub(crate) fn per_second(count: u64, us: u64) -> f64 {
    ratio(count, us) * 1e6
}

/// A time, in the unit that suits it.
pub(crate) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", ratio(us, 1_000)),
        _ => format!("{:.2} s", ratio(us, 1_000_000)),
    }
}

/// A size, in the unit that suits it.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{:.1} KiB", ratio(bytes, 1 << 10)),
        _ => format!("{:.1} MiB", ratio(bytes, 1 << 20)),
    }
}

/// A number with three digits, or all before the point.
fn digits(number: f64) -> String {
    match number.abs() {
        ..10.0 => format!("{number:.2}"),
        ..100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sizes_and_numbers_have_a_fitting_unit() {
        assert_eq!([time(999), time(1_500), time(2_000_000)], ["999 µs", "1.50 ms", "2.00 s"]);
        assert_eq!([bytes(1300), bytes(20_480), bytes(20 << 20)], ["1300 B", "20.0 KiB", "20.0 MiB"]);
        assert_eq!([digits(-0.126), digits(12.34), digits(123_456.7)], ["-0.13", "12.3", "123457"]);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median([3.0, 100.0, 1.0].into_iter()) - 3.0).abs() < f64::EPSILON);
        let even = median([0.92, 1.16, 0.83, 1.12].into_iter());
        assert!((even - 1.02).abs() < 1e-9, "neither favours the higher");
        assert!(median(std::iter::empty()).is_nan());
    }
}
