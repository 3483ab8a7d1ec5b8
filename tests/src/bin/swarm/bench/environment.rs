//! The environment of a bench: the binaries, the division of the cores, the services' metrics.

use std::{panic, process, time::Duration};

use ::tests::binaries::{BIN_DIR_VARIABLE, path};
use ::tests::{Redis, Service, process::kill_all, wait::until_within};
use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::client::{Endpoint, Http, connections, runtime};

/// Builds the services, with the profile of this binary. From then on a panic kills the children and ends the run with
/// exit code 2: the harness panics if it cannot start a service, and a release build drops nothing then.
pub(crate) fn prepare() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        kill_all();
        process::exit(2);
    }));
    eprintln!(
        "swarm: building the services, unless they are up to date or {BIN_DIR_VARIABLE} names a directory"
    );
    for name in ["gateway", "publisher"] {
        let _ = path(name);
    }
}

/// The first core is for the measured service, the others are for its load. A single core is shared.
pub(crate) struct Cores {
    measured: CpuSet,
    loading: CpuSet,
    all: CpuSet,
}

impl Cores {
    /// Divides the cores. This thread, and what it starts from then on, stays on those for the load.
    pub(crate) fn divide() -> Result<Self> {
        let all = sched_getaffinity(None).context("which cores there are")?;
        let (mut measured, mut loading) = (CpuSet::new(), CpuSet::new());
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core));
        cores.by_ref().take(1).for_each(|first| measured.set(first));
        cores.for_each(|core| loading.set(core));
        let cores = match all.count() {
            1 => Self { measured: all, loading: all, all },
            _ => Self { measured, loading, all },
        };
        sched_setaffinity(None, &cores.loading).context("to the cores that load")?;
        Ok(cores)
    }

    /// Runs `start`. The processes that it starts stay on the measured core.
    pub(crate) fn measured<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        self.on(&self.measured, start)
    }

    /// Runs `start`. The processes that it starts may use every core.
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

/// Starts a gateway with one worker on the measured core.
pub(crate) fn gateway_on_core(cores: &Cores, redis: &Redis) -> Result<Service> {
    cores.measured(|| ::tests::Launch::gateway(redis).env("WORKERS", "1").start())
}

/// How long a gateway may take to notice that connections have ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the gateways have this many connections.
pub(crate) fn await_connections(gateways: &[Endpoint], wanted: u64) -> Result<()> {
    let count = || gateways.iter().map(connections).sum::<Result<u64>>();
    until_within(PATIENCE, &format!("{wanted} connections"), || match count() {
        Ok(found) => (found == wanted).then_some(Ok(())),
        Err(error) => Some(Err(error)),
    })
}

/// The value of a service's metric, named as Prometheus writes it, with its labels; 0 while it does not exist.
pub(crate) fn metric(service: &Service, name: &str) -> Result<u64> {
    let response = runtime()?.block_on(Http::new(&Endpoint::from(service.ops), None).get("/metrics"))?;
    let text = String::from_utf8_lossy(&response.body);
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok();
    Ok(text.lines().find_map(value).unwrap_or_default())
}
