//! Follows the logs of the markets that are wanted.
//!
//! Three loops: the listener marks what changed, one reader reads what is marked, one loader loads what is new here.
//! At most one read of each part of the backbone is in flight; what rings meanwhile is its next batch, so that the tail
//! clocks itself. The cursor is the truth: a lost ring is repaired by the sweep.

mod changes;
mod health;
mod revoked;

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
pub use self::{health::Health, revoked::follow_revocations};
use crate::{markets::Markets, metrics as names};

/// Markets in one read.
const MAX_READ_MARKETS: usize = 256;
/// Updates of one market in one read; when there are more, the market is read again at once.
const MAX_READ_UPDATES: usize = 128;
/// Markets in one load.
const MAX_LOAD_MARKETS: usize = 64;
/// How often every followed market is read whether it rang or not.
const SWEEP_EVERY: Duration = Duration::from_secs(3);

/// After a failed read, load or look at the revocations.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// How the tail runs.
#[derive(Clone, Copy, Debug)]
pub struct TailSettings {
    /// Updates that a load brings for resumes (`RESUME_MAX`).
    pub history: usize,
    /// How long to collect what rings before reading it (`TAIL_LINGER`).
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
    let for_doorbell = Arc::clone(markets);
    let bell = backbone.change_listener(Arc::new(move || for_doorbell.cursors()));
    tasks.spawn(changes::run(Arc::clone(markets), bell, Arc::clone(health)));
    let (for_reader, for_loader, for_sweeper) =
        (Arc::clone(markets), Arc::clone(markets), Arc::clone(markets));
    tasks.spawn(read_loop(for_reader, Arc::clone(backbone), Arc::clone(health), settings.linger));
    tasks.spawn(load_loop(for_loader, Arc::clone(backbone), Arc::clone(health), settings.history));
    let sweeper_health = Arc::clone(health);
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for_sweeper.sweep(Instant::now());
            sweeper_health.forget_reads_but_of(&for_sweeper.partitions());
        }
    });
    tasks
}

/// At most one read of each part in flight; one that hangs or fails holds up nobody else.
async fn read_loop(
    markets: Arc<Markets>,
    backbone: Arc<dyn Backbone>,
    health: Arc<Health>,
    linger: Duration,
) {
    let mut reads: JoinSet<(usize, Backoff)> = JoinSet::new();
    // What is known of each part's failures; a part that is being read has none here.
    let mut idle: HashMap<usize, Backoff> = HashMap::new();
    let mut busy = HashSet::new();
    // When what rang is to be read, while that is still collected.
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
                // A read does not panic; if it did, its part would stay busy and the sweep's marks would pile up.
                let (part, backoff) = ended.expect("a read of the tail does not panic");
                busy.remove(&part);
                idle.insert(part, backoff);
            }
        }
        if due.is_some() {
            continue;
        }
        while let Some((part, batch)) = markets.begin_reads(MAX_READ_MARKETS, &busy) {
            busy.insert(part);
            let mut backoff = idle.remove(&part).unwrap_or(BACKOFF);
            let (markets, backbone, health) =
                (Arc::clone(&markets), Arc::clone(&backbone), Arc::clone(&health));
            reads.spawn(async move {
                read_part(part, &batch, &markets, &*backbone, &health, &mut backoff).await;
                (part, backoff)
            });
        }
    }
}

/// One read of one part. It stays the part's only one until a failure has been waited out.
async fn read_part(
    part: usize,
    batch: &[(MarketId, Position)],
    markets: &Markets,
    backbone: &dyn Backbone,
    health: &Health,
    backoff: &mut Backoff,
) {
    let started = Instant::now();
    health.began(Source::Read(part));
    let (unread, error) = match backbone.read_tails(batch, MAX_READ_UPDATES).await {
        Ok(Tails { updates, unread, error }) => {
            metrics::histogram!(names::TAIL_READ_SECONDS).record(started.elapsed());
            #[expect(clippy::cast_precision_loss, reason = "at most MAX_READ_MARKETS")]
            metrics::histogram!(names::TAIL_READ_MARKETS).record(batch.len() as f64);
            let read = take_news(markets, batch, updates, &unread, started);
            let doubted = markets.take_doubted(read);
            (unread, check_tops(markets, backbone, &doubted).await.err().or(error))
        }
        Err(error) => (batch.iter().map(|(id, _)| *id).collect(), Some(error)),
    };
    match error {
        None => {
            backoff.reset();
            health.succeeded(Source::Read(part));
        }
        Some(error) => {
            health.failed(Source::Read(part), &error);
            tokio::time::sleep(backoff.failed()).await;
            markets.work.mark_changed(unread);
        }
    }
}

/// Asks where doubted logs end. What could not be asked stays doubted.
async fn check_tops(
    markets: &Markets,
    backbone: &dyn Backbone,
    ids: &[MarketId],
) -> Result<(), BackboneError> {
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

/// Hands out what a read of `batch` brought; answers with the markets that were read.
fn take_news(
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

/// The read of a traced update, which began at `started`, for its delivery to go on from.
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

/// Loads these markets: together, or one by one when there is one among them that cannot be understood, which is left
/// to whoever asks for it next. An outage is an error.
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
