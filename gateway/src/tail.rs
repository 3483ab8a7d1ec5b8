//! Follows the logs of the followed markets, and the revocations of tokens.
//!
//! Three loops share the work queue. The listener queues markets that have changed, and a sweep queues all markets. The
//! reader reads queued markets. The loader loads markets that are new here. At most one read per partition is in flight,
//! and the markets that change meanwhile are its next batch. So the tail reads as fast as Redis answers, and no faster.
//! A lost notification does no harm: each read starts at the market's cursor, and the sweep reads every market.

mod changes;
mod health;
mod revocations;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use backbone::{Backbone, BackboneError, Tails};
use protocol::{MarketId, Position, TraceContext, Update, time::unix_ms};
use service::{
    backoff::Backoff,
    telemetry::traces::{self, SpanKind},
};
use tokio::task::JoinSet;

use self::health::Source;
pub use self::{health::Health, revocations::follow_revocations};
use crate::{markets::Markets, metrics as names};

/// Markets in one read.
const MAX_READ_MARKETS: usize = 256;
/// Updates of one market in one read. A market with more is read again at once.
const MAX_READ_UPDATES: usize = 128;
/// Markets in one load.
const MAX_LOAD_MARKETS: usize = 64;
/// Time between sweeps, which read every followed market.
const SWEEP_EVERY: Duration = Duration::from_secs(3);

/// The delay after a failed read, load or poll of the revocations.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// How the tail runs.
#[derive(Clone, Copy, Debug)]
pub struct TailSettings {
    /// Older updates that a load brings for resumes (`RESUME_MAX`).
    pub history: usize,
    /// How long to collect changed markets before reading them (`TAIL_LINGER`).
    pub linger: Duration,
}

/// Runs the tail until the returned set is dropped.
#[must_use]
pub fn start(
    markets: &Arc<Markets>,
    backbone: &Arc<dyn Backbone>,
    health: &Arc<Health>,
    settings: TailSettings,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let followed = Arc::clone(markets);
    let listener = backbone.change_listener(Arc::new(move || followed.cursors()));
    tasks.spawn(changes::listen(Arc::clone(markets), listener, Arc::clone(health)));
    let clones = || (Arc::clone(markets), Arc::clone(backbone), Arc::clone(health));
    let (read_markets, read_backbone, read_health) = clones();
    tasks.spawn(read_loop(read_markets, read_backbone, read_health, settings.linger));
    let (load_markets, load_backbone, load_health) = clones();
    tasks.spawn(load_loop(load_markets, load_backbone, load_health, settings.history));
    tasks.spawn(sweep_loop(Arc::clone(markets), Arc::clone(health)));
    tasks
}

/// Reads queued markets, with at most one read per partition in flight. A read that hangs or fails delays no other
/// partition.
async fn read_loop(
    markets: Arc<Markets>,
    backbone: Arc<dyn Backbone>,
    health: Arc<Health>,
    linger: Duration,
) {
    let mut reads: JoinSet<(usize, Backoff)> = JoinSet::new();
    // The backoff of each partition that is not being read. A read takes its partition's backoff along.
    let mut idle: HashMap<usize, Backoff> = HashMap::new();
    let mut busy = HashSet::new();
    // When to read the changed markets, while more are collected.
    let mut due = None;
    loop {
        tokio::select! {
            () = markets.work.changed.notified(), if due.is_none() => {
                due = (!linger.is_zero()).then(|| tokio::time::Instant::now() + linger);
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                due = None;
            }
            Some(ended) = reads.join_next() => {
                // If a read panicked, its partition would stay busy, and its markets would never be read again.
                let (partition, backoff) = ended.expect("a read of the tail does not panic");
                busy.remove(&partition);
                idle.insert(partition, backoff);
            }
        }
        if due.is_some() {
            continue;
        }
        while let Some((partition, batch)) = markets.begin_reads(MAX_READ_MARKETS, &busy) {
            busy.insert(partition);
            let mut backoff = idle.remove(&partition).unwrap_or(BACKOFF);
            let (markets, backbone, health) =
                (Arc::clone(&markets), Arc::clone(&backbone), Arc::clone(&health));
            reads.spawn(async move {
                read(partition, &batch, &markets, &*backbone, &health, &mut backoff).await;
                (partition, backoff)
            });
        }
    }
}

/// Reads a batch of one partition. After a failure this waits, so that no other read of the partition begins meanwhile.
async fn read(
    partition: usize,
    batch: &[(MarketId, Position)],
    markets: &Markets,
    backbone: &dyn Backbone,
    health: &Health,
    backoff: &mut Backoff,
) {
    let started = Instant::now();
    health.began(Source::Read(partition));
    let (unread, error) = match backbone.read_tails(batch, MAX_READ_UPDATES).await {
        Ok(Tails { updates, unread, error }) => {
            metrics::histogram!(names::TAIL_READ_SECONDS).record(started.elapsed());
            #[expect(clippy::cast_precision_loss, reason = "at most MAX_READ_MARKETS")]
            metrics::histogram!(names::TAIL_READ_MARKETS).record(batch.len() as f64);
            let read = apply(markets, batch, updates, &unread, started);
            let doubted = markets.take_doubted(read);
            (unread, check(markets, backbone, &doubted).await.err().or(error))
        }
        Err(error) => (batch.iter().map(|(id, _)| *id).collect(), Some(error)),
    };
    match error {
        None => {
            backoff.reset();
            health.succeeded(Source::Read(partition));
        }
        Some(error) => {
            health.failed(Source::Read(partition), &error);
            tokio::time::sleep(backoff.failed()).await;
            markets.work.mark_changed(unread);
        }
    }
}

/// Applies the updates that a read of `batch` brought, and returns the markets that were read.
fn apply(
    markets: &Markets,
    batch: &[(MarketId, Position)],
    news: Vec<(MarketId, Vec<Update>)>,
    unread: &[MarketId],
    started: Instant,
) -> Vec<MarketId> {
    let mut news: HashMap<MarketId, Vec<Update>> = news.into_iter().collect();
    let mut new = 0;
    let read: Vec<MarketId> = batch.iter().map(|(id, _)| *id).filter(|id| !unread.contains(id)).collect();
    for &id in &read {
        let mut updates = news.remove(&id).unwrap_or_default();
        for update in updates.iter_mut().filter(|update| update.trace.is_some()) {
            update.trace = trace_read(id, update, started);
        }
        let added = markets.finish_read(id, &updates);
        if let Some(newest) = updates.last().filter(|_| added > 0) {
            metrics::histogram!(names::TAIL_LAG_SECONDS)
                .record(Duration::from_millis(unix_ms().saturating_sub(newest.ts)));
        }
        new += added;
        if updates.len() >= MAX_READ_UPDATES {
            markets.work.mark_changed([id]);
        }
    }
    markets.flush();
    metrics::counter!(names::TAIL_UPDATES).increment(new as u64);
    read
}

/// Records the span of a traced update's read, which began at `started`. Returns the context that delivery continues
/// from.
fn trace_read(market: MarketId, update: &Update, started: Instant) -> Option<TraceContext> {
    let mut span = traces::child(
        update.trace.as_ref()?,
        "read",
        SpanKind::Consumer,
        SystemTime::now() - started.elapsed(),
    )?;
    span.set("kmarket.market", market.to_string());
    span.set("kmarket.seq", update.position.seq.to_string());
    Some(span.context())
}

/// Checks doubted logs against their latest positions in the backbone. If that fails, they stay doubted.
async fn check(markets: &Markets, backbone: &dyn Backbone, ids: &[MarketId]) -> Result<(), BackboneError> {
    match backbone.latest_positions(ids).await {
        Ok(latest_positions) => {
            for (&id, latest) in ids.iter().zip(latest_positions) {
                markets.check(id, latest);
            }
            markets.flush();
            Ok(())
        }
        Err(error) => {
            markets.doubt(ids.iter().copied());
            Err(error)
        }
    }
}

async fn load_loop(markets: Arc<Markets>, backbone: Arc<dyn Backbone>, health: Arc<Health>, history: usize) {
    let mut backoff = BACKOFF;
    loop {
        markets.work.load_wanted.notified().await;
        loop {
            let (batch, with_history) = markets.take_loads(MAX_LOAD_MARKETS);
            if batch.is_empty() {
                break;
            }
            health.began(Source::Load);
            match load(&markets, &*backbone, &batch, history, with_history).await {
                Ok(()) => {
                    backoff.reset();
                    health.succeeded(Source::Load);
                }
                Err(error) => {
                    health.failed(Source::Load, &error);
                    markets.work.want_loads(batch);
                    tokio::time::sleep(backoff.failed()).await;
                }
            }
        }
    }
}

/// Loads a batch of markets in one call. If the backbone cannot parse one of them, loads them one by one and gives up
/// those that fail.
///
/// # Errors
/// When the backbone is unreachable.
async fn load(
    markets: &Markets,
    backbone: &dyn Backbone,
    batch: &[MarketId],
    history: usize,
    with_history: bool,
) -> Result<(), BackboneError> {
    let depth = if with_history { history } else { 0 };
    let one_by_one = match backbone.load(batch, depth).await {
        Ok(loads) => {
            for (&id, loaded) in batch.iter().zip(loads) {
                markets.finish_load(id, loaded, with_history);
            }
            &[][..]
        }
        Err(error) if error.is_outage() => return Err(error),
        Err(_) => batch,
    };
    for &id in one_by_one {
        match backbone.load(&[id], depth).await {
            Ok(loads) => loads.into_iter().for_each(|loaded| markets.finish_load(id, loaded, with_history)),
            Err(error) if error.is_outage() => return Err(error),
            Err(error) => {
                tracing::error!(market = %id, %error, "a market cannot be loaded: its clients are sent away");
                markets.give_up_load(id);
            }
        }
    }
    metrics::counter!(names::MARKET_LOADS).increment(batch.len() as u64);
    Ok(())
}

/// Queues a read of every followed market from time to time, and forgets partitions that no longer hold any.
async fn sweep_loop(markets: Arc<Markets>, health: Arc<Health>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        markets.sweep(Instant::now());
        health.retain_reads(&markets.partitions());
    }
}
