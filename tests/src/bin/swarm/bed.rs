//! What a bench starts by itself, and what Redis says about its work.

use std::time::Duration;
use std::{fs, panic, process, slice, thread};

use ::tests::binaries::{BIN_DIR_VARIABLE, path};
use ::tests::process::kill_all;
use ::tests::{Redis, Service};
use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::clock::now_us;
use crate::http::{Endpoint, Http, runtime};

/// Lowest market id.
pub(crate) const FIRST_MARKET: u64 = 900_000_001;

/// Tokens outlive every run.
pub(crate) const TOKEN_LIFE_S: u64 = 3600;

/// Builds the services, with the profile that this was built with. From then on a panic ends the run as one that could
/// not be done, and the children with it: that is how the harness reports what it cannot start, and a release build
/// drops nothing then.
pub(crate) fn prepare() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        kill_all();
        process::exit(2);
    }));
    eprintln!("swarm: building the services, unless that is done or {BIN_DIR_VARIABLE} says where they are");
    for name in ["gateway", "publisher"] {
        let _ = path(name);
    }
}

/// The first core for what is measured, the others for whoever loads it. With one core there is nothing to divide.
pub(crate) struct Cores {
    measured: CpuSet,
    loading: CpuSet,
    all: CpuSet,
}

impl Cores {
    /// Divides them. This thread, and what it starts from then on, is on those that load.
    ///
    /// # Errors
    /// When Linux does not let us.
    pub(crate) fn divide() -> Result<Self> {
        let all = sched_getaffinity(None).context("which cores there are")?;
        let (mut measured, mut loading) = (CpuSet::new(), CpuSet::new());
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core));
        cores.by_ref().take(1).for_each(|first| measured.set(first));
        cores.for_each(|core| loading.set(core));
        let cores = if all.count() > 1 {
            Self { measured, loading, all }
        } else {
            Self { measured: all, loading: all, all }
        };
        sched_setaffinity(None, &cores.loading).context("to the cores that load")?;
        Ok(cores)
    }

    /// Runs `start`, whose children stay on the core for what is measured.
    ///
    /// # Errors
    /// When Linux does not let us.
    pub(crate) fn measured<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        self.on(&self.measured, start)
    }

    /// Runs `start`, whose children may use every core.
    ///
    /// # Errors
    /// When Linux does not let us.
    pub(crate) fn all<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        self.on(&self.all, start)
    }

    fn on<T>(&self, cores: &CpuSet, start: impl FnOnce() -> T) -> Result<T> {
        sched_setaffinity(None, cores).context("to other cores")?;
        let started = start();
        sched_setaffinity(None, &self.loading).context("back to the cores that load")?;
        Ok(started)
    }
}

/// CPU time of a process so far, nanoseconds: of all its threads, as the scheduler counts it.
///
/// # Errors
/// When it has ended.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut total = 0;
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        let path = task?.path().join("schedstat");
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let ns = text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
        total += ns.with_context(|| format!("{}: {text}", path.display()))?;
    }
    Ok(total)
}

/// CPU time of Redis so far, nanoseconds: of the one thread that does all its work, as the scheduler counts it.
///
/// # Errors
/// When it has ended.
pub(crate) fn redis_cpu_ns(redis: &Redis) -> Result<u64> {
    let path = format!("/proc/{}/schedstat", redis.process().id());
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.split(' ').next().and_then(|ns| ns.parse().ok()).with_context(|| format!("{path}: {text}"))
}

/// What the kernel holds for sockets and everything else, of the whole machine: both ends of every socket here.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Kernel {
    /// Buffers of TCP sockets, in use or kept for them.
    pub(crate) tcp_bytes: u64,
    /// All slabs, of which sockets, files and epoll items are some.
    pub(crate) slab_bytes: u64,
}

impl Kernel {
    /// Now.
    ///
    /// # Errors
    /// When Linux does not say.
    pub(crate) fn read() -> Result<Self> {
        let sockstat = fs::read_to_string("/proc/net/sockstat")?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let page_bytes = rustix::param::page_size() as u64;
        Ok(Self {
            tcp_bytes: number_after(&sockstat, "TCP:", "mem").context("/proc/net/sockstat")? * page_bytes,
            slab_bytes: number_after(&meminfo, "Slab:", "Slab:").context("/proc/meminfo")? << 10,
        })
    }
}

/// The number after a word, in the line that begins with `line`.
fn number_after(text: &str, line: &str, word: &str) -> Option<u64> {
    let mut words = text.lines().find(|text| text.starts_with(line))?.split_ascii_whitespace();
    words.find(|&found| found == word)?;
    words.next()?.parse().ok()
}

/// Waits until a gateway has this many connections.
///
/// # Errors
/// When it has not within 30 s.
pub(crate) fn await_connections(gateway: &Service, wanted: u64) -> Result<()> {
    await_metric(gateway, "gateway_connections", wanted)
}

/// Waits until a service's metric has this value.
///
/// # Errors
/// When it has not within 30 s.
pub(crate) fn await_metric(service: &Service, name: &str, wanted: u64) -> Result<()> {
    let runtime = runtime()?;
    let give_up_us = now_us() + 30_000_000;
    loop {
        let found = runtime.block_on(counter(slice::from_ref(service), name))?;
        if found == wanted {
            return Ok(());
        }
        ensure!(now_us() < give_up_us, "{name} is {found} instead of {wanted}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Adds up a metric over these services. `name` is as Prometheus writes it, with its labels.
///
/// # Errors
/// When one does not answer.
pub(crate) async fn counter(services: &[Service], name: &str) -> Result<u64> {
    let mut total = 0;
    for service in services {
        let answer = Http::new(&Endpoint::from(service.ops), None).get("/metrics").await?;
        let text = String::from_utf8_lossy(&answer.body);
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok();
        total += text.lines().find_map(value).unwrap_or_default();
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_kernel_are_found_by_their_words() {
        let sockstat =
            "sockets: used 143\nTCP: inuse 126 orphan 0 tw 710 alloc 126 mem 85\nUDP: inuse 0 mem 7\n";
        assert_eq!(number_after(sockstat, "TCP:", "mem"), Some(85));
        assert_eq!(number_after("MemFree: 1 kB\nSlab:  123 kB\n", "Slab:", "Slab:"), Some(123));
        assert_eq!(number_after(sockstat, "RAW:", "mem"), None);
    }

    #[test]
    fn this_process_uses_cpu() {
        assert!(cpu_ns(process::id()).unwrap() > 0 && Kernel::read().unwrap().slab_bytes > 0);
    }
}
