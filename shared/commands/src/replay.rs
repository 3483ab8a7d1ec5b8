//! `publisher replay`: appends a recorded feed to the markets' logs, at the recorded speed or faster.
//!
//! Updates are appended in the recording's order, one batch in flight at a time. The command never retries an append: one
//! without a result may or may not be in the log, so the replay stops and names the line to continue from. Appending a line
//! twice does no harm to prices, since every update carries whole lines.

pub mod betfair;
mod settings;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    pin::Pin,
    process::ExitCode,
    time::Duration,
};

use backbone::{Append, AppendError, Backbone};
use indicatif::{ProgressBar, ProgressStyle};
use service::{redis_settings, settings::Stop, signals::Signals, telemetry};
use tokio::{
    sync::mpsc::{self, error::TryRecvError},
    time::{Instant, sleep_until, timeout},
};

use self::{
    betfair::{Betfair, Change},
    settings::{Options, ReplaySettings, Speed},
};
use crate::block_on;

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Summary {
    /// Lines read.
    lines: u64,
    /// Updates appended.
    updates: u64,
    /// Lines that were invalid: reported and skipped.
    skipped: u64,
    /// The line to continue from, if the replay was stopped.
    stopped_before: Option<u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines, updates, skipped, stopped_before } = self;
        write!(f, "{lines} lines read, {updates} updates appended, {skipped} lines skipped")?;
        stopped_before.map_or(Ok(()), |line| write!(f, "; stopped: continue with --from {line}"))
    }
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    /// The recording cannot be read.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// An update is not, or may not be, in the log.
    #[error("line {line}: {cause}; {summary}; continue with --from {line}")]
    Append {
        /// The update's line.
        line: u64,
        /// Why it is not there.
        cause: NotAppended,
        /// The result up to there.
        summary: Summary,
    },
}

/// Why one update is not, or may not be, in the log.
#[derive(Debug, thiserror::Error)]
enum NotAppended {
    /// Redis did not execute the append.
    #[error("the log cannot be reached; nothing was appended: retry")]
    Unreachable,
    /// Redis did not reply.
    #[error("outcome unknown: this update and the rest of its batch may have been appended")]
    Unknown,
    /// Redis refused the append.
    #[error(transparent)]
    Refused(AppendError),
}

impl From<AppendError> for NotAppended {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Backbone(error) => {
                tracing::error!(%error, "append failed");
                if error.certainly_did_nothing() { Self::Unreachable } else { Self::Unknown }
            }
            refused => Self::Refused(refused),
        }
    }
}

/// The most updates in one append.
const BATCH: usize = 100;
/// How long an append may take before its outcome counts as unknown.
const APPEND_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest line that is read, bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Lines that are read before they are needed.
const READ_AHEAD: usize = 256;

/// Runs the command: prints the summary, or where and why the replay ended.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn run(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let ReplaySettings { redis, retention, log_format, options } = ReplaySettings::read(args, env)?;
    telemetry::init_logs(log_format);
    let backbone = redis_settings::backbone(&redis, retention)?;
    Ok(block_on(async {
        let file = options.file.display();
        let replayed = match Signals::listen() {
            Ok(mut signals) => replay(&backbone, &options, signals.next()).await,
            Err(error) => Err(error.into()),
        };
        match replayed {
            Ok(summary) => {
                println!("{summary}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("publisher: {file}: {error}");
                ExitCode::FAILURE
            }
        }
    }))
}

/// Replays until the recording ends or `stop` completes. The batch in flight is finished first.
///
/// # Errors
/// [`ReplayError`] if the recording cannot be read, or at the first update that was not appended.
async fn replay(
    backbone: &dyn Backbone,
    options: &Options,
    stop: impl Future<Output = ()>,
) -> Result<Summary, ReplayError> {
    let file = File::open(&options.file)?;
    let bar = progress(file.metadata().map_or(0, |metadata| metadata.len()));
    let replay = Replay {
        backbone,
        feed: Betfair::new(options.market),
        clock: Clock { speed: options.speed, start: None },
        from: options.from,
        reason: file_name(&options.file),
        batch: Vec::with_capacity(BATCH),
        summary: Summary::default(),
        bar: bar.clone(),
    };
    let ended = replay.run(read_ahead(file), Box::pin(stop)).await;
    bar.finish_and_clear();
    ended
}

struct Replay<'a> {
    backbone: &'a dyn Backbone,
    feed: Betfair,
    clock: Clock,
    from: u64,
    reason: String,
    /// Updates that are due and not yet appended, each with its line's number.
    batch: Vec<(u64, Append)>,
    summary: Summary,
    bar: ProgressBar,
}

impl Replay<'_> {
    async fn run<S: Future<Output = ()>>(
        mut self,
        mut lines: mpsc::Receiver<io::Result<Line>>,
        mut stop: Pin<Box<S>>,
    ) -> Result<Summary, ReplayError> {
        loop {
            // Updates do not wait in the batch for a line that is not written yet.
            let line = match lines.try_recv() {
                Ok(line) => Some(line?),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    self.append().await?;
                    tokio::select! {
                        biased;
                        () = &mut stop => return Ok(self.stopped()),
                        line = lines.recv() => line.transpose()?,
                    }
                }
            };
            let Some(line) = line else { break };
            let number = line.number;
            for change in self.read(line) {
                let due = self.clock.due(change.published_ms);
                if due > Instant::now() {
                    self.append().await?;
                    tokio::select! {
                        biased;
                        () = &mut stop => return Ok(self.stopped_before(number)),
                        () = sleep_until(due) => {}
                    }
                }
                self.batch.push((number, self.append_of(number, change)));
                if self.batch.len() >= BATCH {
                    self.append().await?;
                }
            }
            // At full speed, this is where a stop is noticed: between two batches.
            if self.batch.is_empty() && is_complete(&mut stop).await {
                return Ok(self.stopped());
            }
        }
        self.append().await?;
        Ok(self.summary)
    }

    /// Returns the changes of a line that are to be appended.
    fn read(&mut self, Line { number, text, end }: Line) -> Vec<Change> {
        self.summary.lines = number;
        self.bar.set_position(end);
        let read = text.map_err(|problem| problem.to_string());
        match read.and_then(|text| self.feed.read(&text).map_err(|problem| problem.to_string())) {
            Ok(_) if number < self.from => Vec::new(),
            Ok(changes) => changes,
            Err(problem) => {
                self.summary.skipped += 1;
                self.bar.suspend(|| tracing::warn!(line = number, problem, "skipped"));
                Vec::new()
            }
        }
    }

    fn append_of(&self, line: u64, change: Change) -> Append {
        Append {
            market: change.market,
            payload: change.payload,
            expected_seq: None,
            idempotency: None,
            actor: "replay".to_owned(),
            reason: self.reason.clone(),
            request_id: format!("replay-line-{line}"),
            trace: None,
        }
    }

    /// Appends the batch, and waits for the results.
    async fn append(&mut self) -> Result<(), ReplayError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let (lines, appends): (Vec<u64>, Vec<Append>) = self.batch.drain(..).unzip();
        let mut failed = None;
        let Ok(results) = timeout(APPEND_TIMEOUT, self.backbone.append(appends)).await else {
            let line = lines.first().copied().unwrap_or(self.from);
            return Err(self.failed(line, NotAppended::Unknown));
        };
        for (line, result) in lines.into_iter().zip(results) {
            match result {
                Ok(_) => self.summary.updates += 1,
                Err(error) => failed = failed.or(Some((line, error))),
            }
        }
        match failed {
            None => Ok(()),
            Some((line, error)) => Err(self.failed(line, error.into())),
        }
    }

    fn failed(&self, line: u64, cause: NotAppended) -> ReplayError {
        ReplayError::Append { line, cause, summary: self.summary.clone() }
    }

    fn stopped(self) -> Summary {
        let next = (self.summary.lines + 1).max(self.from);
        self.stopped_before(next)
    }

    fn stopped_before(self, line: u64) -> Summary {
        Summary { stopped_before: Some(line), ..self.summary }
    }
}

/// Polls a future once. Returns true if it is complete.
async fn is_complete<S: Future<Output = ()>>(future: &mut Pin<Box<S>>) -> bool {
    tokio::select! {
        biased;
        () = future => true,
        () = std::future::ready(()) => false,
    }
}

/// Turns times of the recording into times at which its updates are due.
struct Clock {
    speed: Speed,
    /// When the first update was due, and its time in the recording.
    start: Option<(Instant, u64)>,
}

impl Clock {
    fn due(&mut self, published_ms: u64) -> Instant {
        let now = Instant::now();
        let (start, first_ms) = *self.start.get_or_insert((now, published_ms));
        match self.speed {
            Speed::Max => now,
            Speed::Times(times) => {
                let recorded = Duration::from_millis(published_ms.saturating_sub(first_ms));
                let wait =
                    Duration::try_from_secs_f64(recorded.as_secs_f64() / times).unwrap_or(Duration::MAX);
                // A wait beyond the clock's range is a century here.
                start.checked_add(wait).unwrap_or_else(|| now + Duration::from_hours(24 * 365 * 100))
            }
        }
    }
}

/// A line of the recording.
struct Line {
    /// The first is 1.
    number: u64,
    text: Result<String, Unreadable>,
    /// The position in the file at which it ends, bytes.
    end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unreadable {
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("not UTF-8 text")]
    NotUtf8,
}

/// Reads on a thread of its own. A recording that is still being written, such as a pipe, then delays no stop.
fn read_ahead(file: File) -> mpsc::Receiver<io::Result<Line>> {
    let (sender, lines) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut reader = LineReader { reader: BufReader::new(file), number: 0, position: 0 };
        while let Some(line) = reader.next_line().transpose() {
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                break;
            }
        }
    });
    lines
}

struct LineReader<R> {
    reader: R,
    number: u64,
    position: u64,
}

impl<R: BufRead> LineReader<R> {
    fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.position += read as u64;
        let whole = bytes.pop_if(|byte| *byte == b'\n').is_some();
        let text = if whole || bytes.len() as u64 <= MAX_LINE_BYTES {
            String::from_utf8(bytes).map_err(|_| Unreadable::NotUtf8)
        } else {
            self.position += self.reader.skip_until(b'\n')? as u64;
            Err(Unreadable::TooLong)
        };
        Ok(Some(Line { number: self.number, text, end: self.position }))
    }
}

/// Makes a progress bar, shown on standard error if that is a terminal.
fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {elapsed} (ETA {eta})");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
