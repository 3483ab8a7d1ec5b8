//! Metrics of this process that the kernel knows, under the names that Prometheus' own clients use.

use std::{fmt::Write, fs, sync::LazyLock};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

/// The type, name and help of each metric, in the order of [`values`].
const TABLE: [(&str, &str, &str); 7] = [
    ("counter", "process_cpu_seconds_total", "CPU time, user and system"),
    ("gauge", "process_resident_memory_bytes", "Resident memory"),
    ("gauge", "process_virtual_memory_bytes", "Mapped memory"),
    ("gauge", "process_threads", "Threads"),
    ("gauge", "process_open_fds", "Open file descriptors"),
    ("gauge", "process_max_fds", "Limit of open file descriptors"),
    ("gauge", "process_start_time_seconds", "When the process started, Unix time"),
];

/// Appends the metrics as Prometheus text. Values that cannot be read are left out.
pub(super) fn render(text: &mut String) {
    for ((kind, name, help), value) in TABLE.into_iter().zip(values()) {
        if let Some(value) = value {
            // Writing to a string does not fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
        }
    }
}

fn values() -> [Option<f64>; 7] {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // proc_pid_stat(5) counts from 1. The third field is the first after the name, which may have spaces and parentheses.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats; bytes and ticks stay below 2^52")]
    let float = |value: u64| value as f64;
    let seconds = |ticks: u64| float(ticks) / float(clock_ticks_per_second());
    let limit = getrlimit(Resource::Nofile).current;
    [
        field(14).zip(field(15)).map(|(user, kernel)| seconds(user + kernel)),
        field(24).map(|pages| float(pages * page_size() as u64)),
        field(23).map(float),
        field(20).map(float),
        open_files().map(float),
        Some(limit.map_or(f64::INFINITY, float)),
        BOOTED.zip(field(22)).map(|(booted, since)| float(booted) + seconds(since)),
    ]
}

/// The time at which the machine started, Unix seconds.
static BOOTED: LazyLock<Option<u64>> = LazyLock::new(|| {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()
});

fn open_files() -> Option<u64> {
    // Since Linux 6.2 the directory's size is the number. Counting 100 000 entries would take tens of milliseconds.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some(fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn each_value_is_in_its_range() {
        let [cpu, resident, mapped, threads, files, most_files, started] = values().map(Option::unwrap);
        assert!((0.0..86400.0).contains(&cpu));
        assert!(resident > 100_000.0 && resident <= mapped, "{resident} of {mapped}");
        assert!((1.0..1000.0).contains(&threads));
        assert!(files >= 3.0 && files <= most_files, "{files} of {most_files}");
        let ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - started;
        assert!((-2.0..3600.0).contains(&ago), "{ago}");
    }
}
