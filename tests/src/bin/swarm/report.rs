//! What a run finds: counts, checks, figures and verdicts, and how they are printed.

mod counts;
mod delivery_check;
mod figure;
mod table;
mod times;
mod usage;

use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::counts::Counts;
pub(crate) use self::figure::{Figure, Labelled, as_f64, median, per_second, ratio, time};
pub(crate) use self::table::{Bound, Report};
pub(crate) use self::times::Times;
pub(crate) use self::usage::{
    Kernel, LISTEN, Usage, Used, allow_open_files, cpu_ns, listening_on, main_thread_cpu_ns, rss_bytes,
};

/// A bar on stderr, if that is a terminal.
pub(crate) fn progress(total: usize, what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:>12} {wide_bar} {pos}/{len} {elapsed}").expect("a valid template");
    ProgressBar::new(total as u64).with_style(style).with_message(what)
}
