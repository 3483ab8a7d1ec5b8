//! The output of `gateway tail`: events as lines or JSON, and a summary.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    env,
    io::{self, IsTerminal, Write},
    time::Instant,
};

use protocol::{
    client::{Cause, Changed, Event},
    time::unix_ms,
};
use serde_json::value::RawValue;

/// Latencies are counted by the millisecond up to this one.
const MAX_LATENCY_MS: usize = 60_000;
/// The difference of the clocks is estimated from this many heartbeats.
const CLOCK_SAMPLES: usize = 8;

const UP: &str = "32";
const DOWN: &str = "31";
const DIM: &str = "2";
const NOTICE: &str = "33";

/// Shows events on standard output, and counts them for the summary.
pub(super) struct Show {
    json: bool,
    coloured: bool,
    /// How many more updates to show; `None`: all.
    left: Option<u64>,
    begun: Instant,
    connections: u64,
    gaps: u64,
    resets: u64,
    markets: BTreeSet<u64>,
    /// The number of updates by their age on arrival, milliseconds.
    latencies: Vec<u64>,
    offsets: VecDeque<i64>,
    round_trips: VecDeque<u64>,
}

impl Show {
    pub(super) fn new(json: bool, left: Option<u64>) -> Self {
        let coloured =
            !json && io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Self {
            json,
            coloured,
            left,
            begun: Instant::now(),
            connections: 0,
            gaps: 0,
            resets: 0,
            markets: BTreeSet::new(),
            latencies: vec![0; MAX_LATENCY_MS + 1],
            offsets: VecDeque::new(),
            round_trips: VecDeque::new(),
        }
    }

    pub(super) fn connected(&mut self) {
        self.connections += 1;
        self.say("connected");
    }

    /// Shows a line that is not about a market's message.
    pub(super) fn say(&self, words: &str) {
        if self.json {
            eprintln!("{words}");
        } else {
            // A closed output is noticed at the next update.
            let _ = writeln!(io::stdout(), "{}", self.paint(NOTICE, &format!("-- {}", plain(words))));
        }
    }

    /// Shows an event. Returns false after the last one.
    pub(super) fn event(&mut self, event: Event) -> io::Result<bool> {
        match event {
            Event::Changed(changed) => return self.changed(&changed),
            Event::Gap { market, after, received } => {
                self.gaps += 1;
                self.say(&format!(
                    "market {market}: #{received} came after #{after}; fetching the updates between them"
                ));
            }
            Event::Rejected(market, code) => self.say(&format!("market {market} is rejected: {code}")),
            Event::Stale(Some(reason)) => self.say(&format!("prices may be old: {reason}")),
            Event::Stale(None) => self.say("prices are fresh again"),
            Event::Refused(code, message) => self.say(&format!("refused: {code}: {message}")),
            Event::Clock(server_ms) => {
                keep(&mut self.offsets, server_ms.cast_signed() - unix_ms().cast_signed());
            }
            Event::Pong(ts) => keep(&mut self.round_trips, unix_ms().saturating_sub(ts)),
        }
        Ok(true)
    }

    /// Shows the summary.
    pub(super) fn summary(&self) {
        let count: u64 = self.latencies.iter().sum();
        let latency = match (self.percentile(50), self.percentile(99)) {
            (Some(p50), Some(p99)) => format!("; latency p50 {p50} ms, p99 {p99} ms"),
            _ => String::new(),
        };
        self.say(&format!(
            "{} of {} in {:.1} s{latency}; {}, {}, {}",
            counted(count, "update"),
            counted(self.markets.len() as u64, "market"),
            self.begun.elapsed().as_secs_f64(),
            counted(self.connections.saturating_sub(1), "reconnect"),
            counted(self.gaps, "gap"),
            counted(self.resets, "reset"),
        ));
    }

    fn changed(&mut self, changed: &Changed) -> io::Result<bool> {
        self.markets.insert(changed.market.get());
        let is_update = changed.cause == Cause::Update;
        let age_ms = self.age_ms(changed.ts);
        if is_update {
            self.latencies[usize::try_from(age_ms).unwrap_or(MAX_LATENCY_MS).min(MAX_LATENCY_MS)] += 1;
        }
        if let Cause::Snapshot { reset: true, .. } = changed.cause {
            self.resets += 1;
        }
        let line = if self.json {
            // A payload may have line ends between its members, but none within strings.
            changed.text.replace(['\n', '\r'], " ")
        } else {
            self.line(changed, age_ms)
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()?;
        if is_update && let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        Ok(self.left != Some(0))
    }

    fn line(&self, changed: &Changed, age_ms: u64) -> String {
        let Changed { market, seq, ts, cause, lines, .. } = changed;
        let what = match cause {
            Cause::Update => String::new(),
            Cause::Snapshot { reset: true, .. } => {
                "reset: history was lost, or too much was missed  ".to_owned()
            }
            Cause::Snapshot { conflated: true, .. } => "conflated: this client was too slow  ".to_owned(),
            Cause::Snapshot { .. } => "snapshot  ".to_owned(),
        };
        let lines = lines.iter().map(|(name, (before, after))| {
            let name = plain(name);
            match after {
                Some(after) => format!("{name}  {}", self.line_change(before.as_deref(), after)),
                None => format!("{name}  {}", self.paint(DOWN, "removed")),
            }
        });
        let lines: Vec<String> = lines.collect();
        let age = if *cause == Cause::Update {
            format!("  {}", self.paint(DIM, &format!("{age_ms} ms")))
        } else {
            String::new()
        };
        let head = self.paint(DIM, &time_of_day(*ts));
        format!("{head}  {market}  #{seq}  {}{}{age}", self.paint(NOTICE, &what), lines.join("  "))
    }

    /// Writes each selection, and its value before.
    fn line_change(&self, before: Option<&str>, after: &str) -> String {
        let (before, selected) = (before.map(selections).unwrap_or_default(), selections(after));
        if selected.is_empty() {
            return plain(after);
        }
        let selection = |(name, value): (&String, &String)| {
            let name = plain(name);
            match before.get(name.as_str()) {
                Some(old) if old != value => match direction(old, value) {
                    Some(true) => format!("{name} {old} → {}", self.paint(UP, &format!("{value} ▲"))),
                    Some(false) => format!("{name} {old} → {}", self.paint(DOWN, &format!("{value} ▼"))),
                    None => format!("{name} {} → {}", plain(old), plain(value)),
                },
                _ => format!("{name} {}", plain(value)),
            }
        };
        selected.iter().map(selection).collect::<Vec<_>>().join("  ")
    }

    /// Returns the age of an update now, as the SDK estimates it. Every heartbeat is late by its transfer time; the least
    /// late one tells most about the clocks.
    fn age_ms(&self, ts: u64) -> u64 {
        let way = self.round_trips.iter().min().map_or(0, |rtt| rtt.cast_signed() / 2);
        let offset = self.offsets.iter().max().map_or(0, |offset| offset + way);
        let now = unix_ms().cast_signed() + offset;
        u64::try_from(now - ts.cast_signed()).unwrap_or(0)
    }

    fn percentile(&self, percent: u64) -> Option<usize> {
        let count: u64 = self.latencies.iter().sum();
        let rank = (count * percent).div_ceil(100).max(1);
        let mut seen = 0;
        self.latencies.iter().position(|of| {
            seen += of;
            seen >= rank
        })
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.coloured && !text.is_empty() {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Returns the selections of a line, each with its JSON text.
fn selections(line: &str) -> BTreeMap<String, String> {
    let selections: BTreeMap<String, &RawValue> = serde_json::from_str(line).unwrap_or_default();
    selections.into_iter().map(|(name, value)| (name, value.get().to_owned())).collect()
}

/// Returns true if a number went up, false if it went down. It is for the arrow only: prices stay text.
fn direction(before: &str, after: &str) -> Option<bool> {
    let (before, after): (f64, f64) = (before.parse().ok()?, after.parse().ok()?);
    before.partial_cmp(&after).filter(|order| order.is_ne()).map(std::cmp::Ordering::is_lt)
}

/// Replaces control characters, so that no text moves the terminal's cursor.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn time_of_day(unix_ms: u64) -> String {
    let (s, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn keep<T>(samples: &mut VecDeque<T>, sample: T) {
    if samples.len() == CLOCK_SAMPLES {
        samples.pop_front();
    }
    samples.push_back(sample);
}

#[cfg(test)]
mod tests {
    use protocol::MarketId;

    use super::*;

    fn show() -> Show {
        Show { coloured: false, ..Show::new(false, None) }
    }

    #[test]
    fn a_line_shows_each_selection_s_value_before() {
        let lines = BTreeMap::from([
            (
                "moneyline".to_owned(),
                (
                    Some(r#"{"home":1.85,"away":2.10,"x":1.0}"#.to_owned()),
                    Some(r#"{"home":1.90,"away":2.05,"x":1.0}"#.to_owned()),
                ),
            ),
            ("total".to_owned(), (Some("{}".to_owned()), None)),
        ]);
        let changed = Changed {
            market: MarketId::new(1001).unwrap(),
            seq: 7,
            ts: 1_700_000_000_123,
            cause: Cause::Update,
            lines,
            text: String::new(),
        };
        assert_eq!(
            show().line(&changed, 12),
            "22:13:20.123  1001  #7  moneyline  away 2.10 → 2.05 ▼  home 1.85 → 1.90 ▲  x 1.0  total  removed  12 ms"
        );
    }

    #[test]
    fn percentiles_are_of_the_updates_received() {
        let mut show = show();
        assert_eq!(show.percentile(50), None);
        (show.latencies[2], show.latencies[40]) = (98, 2);
        assert_eq!(
            (show.percentile(50), show.percentile(98), show.percentile(99)),
            (Some(2), Some(2), Some(40))
        );
    }

    #[test]
    fn no_text_moves_the_cursor() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a [2Jb c");
    }
}
