//! What a bench starts by itself, and what Redis says about its work.

use std::{fs, panic, process};

use ::tests::binaries::{BIN_DIR_VARIABLE, path};
use ::tests::process::kill_all;
use ::tests::{Redis, Service};
use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::http::{Endpoint, Http};

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

/// Runs `start` on the first core, whose children stay there; this thread, and what it starts later, shares the others.
/// With one core there is nothing to divide.
///
/// # Errors
/// When Linux does not let us.
pub(crate) fn on_its_own_core<T>(start: impl FnOnce() -> T) -> Result<T> {
    let all = sched_getaffinity(None).context("which cores there are")?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core));
    let Some(first) = cores.next().filter(|_| all.count() > 1) else { return Ok(start()) };
    let (mut own, mut others) = (CpuSet::new(), CpuSet::new());
    own.set(first);
    cores.for_each(|core| others.set(core));
    sched_setaffinity(None, &own).context("to a core of its own")?;
    let started = start();
    sched_setaffinity(None, &others).context("to the other cores")?;
    Ok(started)
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

/// Adds up a counter without labels over these gateways' metrics.
///
/// # Errors
/// When one does not answer.
pub(crate) async fn counter(gateways: &[Service], name: &str) -> Result<u64> {
    let mut total = 0;
    for gateway in gateways {
        let answer = Http::new(&Endpoint::from(gateway.ops), None).get("/metrics").await?;
        let text = String::from_utf8_lossy(&answer.body);
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok();
        total += text.lines().find_map(value).unwrap_or_default();
    }
    Ok(total)
}
