//! A child process with its output. Dropping the handle kills it.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::DEADLINE;

/// How many lines of each process a failing test prints.
const SHOWN_LINES: usize = 60;

/// The running children, for [`kill_all`].
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Kills every running child, for a program that ends without dropping anything.
pub fn kill_all() {
    for id in lock_running().iter() {
        if let Some(pid) = i32::try_from(*id).ok().and_then(Pid::from_raw) {
            // Fails only if the child has ended. Its id is not reused before it is waited for.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A running child process. Dropping it kills it (SIGKILL) and, in a failing test, prints its last lines.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    pid: Pid,
    output: Arc<Output>,
}

/// Which of a process's two outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

#[derive(Debug, Default)]
struct Output {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<(Stream, String)>,
    ended_streams: u8,
}

impl Process {
    /// Starts `command` and begins to read its output.
    #[must_use]
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start ({command:?}): {error}"));
        let output = Arc::new(Output::default());
        output.read(Stream::Out, child.stdout.take().expect("stdout is piped"));
        output.read(Stream::Err, child.stderr.take().expect("stderr is piped"));
        lock_running().insert(child.id());
        Self { name: name.to_owned(), pid: Pid::from_child(&child), child: Mutex::new(child), output }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Returns what `find` finds in the first line, past or future, in which it finds something. Returns `None` if
    /// the process ends first. Panics after [`DEADLINE`].
    ///
    /// Blocks the thread, so tasks of the calling test cannot cause the line.
    pub fn find_line<T>(&self, what: &str, find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        self.find_line_within(DEADLINE, what, find)
    }

    fn find_line_within<T>(
        &self,
        patience: Duration,
        what: &str,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + patience;
        let mut looked_at = 0;
        let mut said = self.output.lock();
        loop {
            if let Some(found) = said.lines[looked_at..].iter().find_map(|(_, line)| find(line)) {
                return Some(found);
            }
            if said.ended() {
                return None;
            }
            looked_at = said.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{}: {what}: not within {patience:?}", self.name);
            said = self.output.more.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Like [`Self::find_line`], but panics if the process ends without such a line.
    pub fn expect_line<T>(&self, what: &str, find: impl FnMut(&str) -> Option<T>) -> T {
        self.find_line(what, find)
            .unwrap_or_else(|| panic!("{} ended without: {what}\n{}", self.name, self.last_lines()))
    }

    /// Waits for the process to end by itself.
    pub fn wait(&self) -> ExitStatus {
        self.wait_for(DEADLINE)
    }

    /// Like [`Self::wait`], with a deadline of its own.
    pub fn wait_for(&self, patience: Duration) -> ExitStatus {
        let never: Option<()> = self.find_line_within(patience, "end of the process", |_| None);
        assert!(never.is_none());
        self.child.lock().expect("no test panics while it waits").wait().expect("a child can be waited for")
    }

    /// Asks the process to stop (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Interrupts the process as Ctrl-C does (SIGINT).
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Asks the process to reload its files (SIGHUP).
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Stops the process (SIGSTOP), as a machine that hangs does.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Continues the process after [`Self::pause`] (SIGCONT).
    pub fn unpause(&self) {
        self.signal(Signal::CONT);
    }

    /// Interrupts the process and waits until it has ended. Kills it after [`DEADLINE`].
    pub fn end(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Its id is not reused before it is waited for.
        if let Ok(None) = child.try_wait() {
            self.interrupt();
        }
        drop(child);
        let deadline = Instant::now() + DEADLINE;
        let mut said = self.output.lock();
        while !said.ended() && Instant::now() < deadline {
            said = self.output.more.wait_timeout(said, DEADLINE).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(said);
        self.kill();
    }

    /// Kills the process (SIGKILL) and waits until it has ended and its sockets are closed.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails only if the process has ended.
        let _ = child.kill();
        lock_running().remove(&self.id());
        let _ = child.wait();
    }

    /// How many open files, sockets included, and how many threads the process has.
    #[must_use]
    pub fn files_and_threads(&self) -> (usize, usize) {
        let count = |what: &str| {
            let entries = fs::read_dir(format!("/proc/{}/{what}", self.pid.as_raw_nonzero()));
            entries.expect("it runs").count()
        };
        (count("fd"), count("task"))
    }

    /// The process's resident memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let bytes = memory_bytes(self.id()).and_then(|bytes| usize::try_from(bytes).ok());
        bytes.expect("it runs")
    }

    /// The output on `stream` so far.
    #[must_use]
    pub fn said(&self, stream: Stream) -> String {
        let said = self.output.lock();
        let lines = said.lines.iter().filter(|(from, _)| *from == stream);
        lines.flat_map(|(_, line)| [line, "\n"]).collect()
    }

    /// The last lines of both outputs, for a failing test to print.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let said = self.output.lock();
        let from = said.lines.len().saturating_sub(SHOWN_LINES);
        let lines: String = said.lines[from..].iter().flat_map(|(_, line)| ["  ", line, "\n"]).collect();
        format!("--- last lines of {} (pid {:?})\n{lines}", self.name, self.pid)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap_or_else(|error| panic!("{}: {signal:?}: {error}", self.name));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("{}", self.last_lines());
        }
    }
}

impl Output {
    fn read(self: &Arc<Self>, stream: Stream, pipe: impl Read + Send + 'static) {
        let output = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                output.lock().lines.push((stream, line));
                output.more.notify_all();
            }
            output.lock().ended_streams += 1;
            output.more.notify_all();
        });
    }

    /// Ignores poisoning, so that a panicking test can still print the lines.
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    fn ended(&self) -> bool {
        self.ended_streams == 2
    }
}

/// The resident memory of a process, in bytes; `None` once it has ended.
#[must_use]
pub fn memory_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn lock_running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
