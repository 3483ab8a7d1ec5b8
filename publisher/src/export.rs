//! Copies the audit from Redis to Postgres.
//!
//! Every publisher copies the entries of the markets that it hears of. Redis gives each new entry to one publisher
//! ([`RedisBackbone::read_audit_batches`]). The publisher inserts the batch into Postgres, and only then acknowledges it.
//! If a publisher dies in between, Redis gives its batch to another one after [`ABANDONED_AFTER`]. No override waits for
//! any of this.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use backbone::{AuditBatch, AuditEntry, AuditId, Backbone, BackboneError, RedisBackbone};
use protocol::{MarketId, time::unix_ms};
use service::backoff::Backoff;
use tokio::time::{Instant, sleep};

use crate::{
    archive::{Archive, ArchiveError},
    metrics,
};

/// How often the exporter looks for markets that have changed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the exporter looks at every market, changed or not.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long a batch may stay unacknowledged before Redis gives it to another publisher.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);
/// Markets of one read.
const MARKETS_AT_ONCE: usize = 256;
/// Approximate number of entries of one read.
const ENTRIES_AT_ONCE: usize = 512;
/// The wait after a failure.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// The most entries that a request for one market copies itself.
const MAX_CATCH_UP: usize = 1000;

/// The audit's copy in Postgres, and the Redis that it is copied from. Clones share both.
#[derive(Clone)]
pub struct AuditCopy {
    pub(crate) redis: Arc<RedisBackbone>,
    pub(crate) archive: Archive,
}

/// Why the copy cannot be read or brought up to date.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("the audit is not copied anywhere")]
    NoCopy,
    /// The copy lacks more than [`MAX_CATCH_UP`] entries of the market.
    #[error("the audit's copy is behind")]
    Behind,
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Backbone(#[from] BackboneError),
}

impl AuditCopy {
    #[must_use]
    pub(crate) fn new(redis: Arc<RedisBackbone>, archive: Archive) -> Self {
        metrics::begin_audit_copy();
        Self { redis, archive }
    }

    /// Copies the entries of a market that may not be in Postgres yet. The exporter finds them there later.
    ///
    /// # Errors
    /// [`CopyError`], also if there are more than [`MAX_CATCH_UP`] such entries.
    pub(crate) async fn catch_up(&self, market: MarketId) -> Result<(), CopyError> {
        let missing = self.redis.unacknowledged_audit(market, MAX_CATCH_UP + 1).await?;
        if missing.len() > MAX_CATCH_UP {
            return Err(CopyError::Behind);
        }
        let inserted = self.archive.insert(&missing).await?;
        ::metrics::counter!(metrics::AUDIT_EXPORTED).increment(inserted.new);
        Ok(())
    }

    /// Copies new entries forever.
    pub(crate) async fn export(self) {
        let mut exporter = Exporter {
            redis: self.redis,
            archive: self.archive,
            waiting: BTreeMap::new(),
            swept_ms: unix_ms(),
            sweep_at: Instant::now(),
            unreadable: BTreeMap::new(),
            backoff: BACKOFF,
        };
        loop {
            exporter.take_changed();
            if exporter.is_due() {
                exporter.round().await;
            }
            exporter.report_lag(None);
            sleep(LOOK_EVERY).await;
        }
    }
}

struct Exporter {
    redis: Arc<RedisBackbone>,
    archive: Archive,
    /// Markets that may have new entries, and since when, Unix ms.
    waiting: BTreeMap<MarketId, u64>,
    /// When the last sweep began, Unix ms; before the first sweep, when the exporter started.
    swept_ms: u64,
    sweep_at: Instant,
    /// Markets whose own audit cannot be read, and since when, Unix ms. The next sweep reads them again.
    unreadable: BTreeMap<MarketId, u64>,
    backoff: Backoff,
}

impl Exporter {
    fn take_changed(&mut self) {
        let now_ms = unix_ms();
        for market in self.redis.take_changed() {
            self.waiting.entry(market).or_insert(now_ms);
        }
    }

    fn is_due(&self) -> bool {
        !self.waiting.is_empty() || Instant::now() >= self.sweep_at
    }

    /// Copies one read's worth of each waiting market, and sweeps all markets if it is time to.
    async fn round(&mut self) {
        // While Postgres cannot store entries, leave them in Redis: another publisher may be able to copy them.
        while let Err(error) = self.archive.prepare().await {
            self.failed(&error.into(), None).await;
        }
        let swept_ms = if Instant::now() >= self.sweep_at { self.sweep().await } else { None };
        match self.copy_waiting().await {
            Some(error) => self.failed(&error, None).await,
            None => {
                self.swept_ms = swept_ms.unwrap_or(self.swept_ms);
                self.succeeded();
            }
        }
    }

    /// Adds every market to those that wait. Returns when it began, Unix ms, if it succeeded.
    async fn sweep(&mut self) -> Option<u64> {
        let now_ms = unix_ms();
        match self.redis.markets().await {
            Ok(markets) => {
                for market in markets {
                    self.waiting.entry(market).or_insert(now_ms);
                }
                self.sweep_at = Instant::now() + SWEEP_EVERY;
                Some(now_ms)
            }
            Err(error) => {
                self.failed(&error.into(), None).await;
                None
            }
        }
    }

    /// Reads and copies each waiting market once. Returns the last error. A partition that fails delays no other one.
    async fn copy_waiting(&mut self) -> Option<CopyError> {
        let mut partitions: BTreeMap<usize, Vec<MarketId>> = BTreeMap::new();
        for market in self.waiting.keys() {
            partitions.entry(self.redis.partition(*market)).or_default().push(*market);
        }
        let mut failed = None;
        for markets in partitions.values() {
            for markets in markets.chunks(MARKETS_AT_ONCE) {
                let limit = (ENTRIES_AT_ONCE / markets.len()).max(1);
                let copied = match self.redis.read_audit_batches(markets, limit, ABANDONED_AFTER).await {
                    Ok(batches) => self.copy(batches).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = copied {
                    failed = Some(error.into());
                    break;
                }
            }
        }
        failed
    }

    /// Inserts the batches, however long it takes, and acknowledges them.
    async fn copy(
        &mut self,
        read: Vec<(MarketId, Result<AuditBatch, BackboneError>)>,
    ) -> Result<(), BackboneError> {
        let mut batches = Vec::new();
        for (market, batch) in read {
            // Before the insert: a change in the meantime lets the market wait again.
            self.waiting.remove(&market);
            match batch {
                Ok(batch) => {
                    if let Some(last) = batch.entries.last().filter(|_| batch.more) {
                        self.waiting.insert(market, last.ts);
                    }
                    self.unreadable.remove(&market);
                    batches.push(batch);
                }
                Err(error) => self.note_unreadable(market, &error),
            }
        }
        let oldest_ms = batches.iter().flat_map(|batch| &batch.entries).map(|entry| entry.ts).min();
        self.report_lag(oldest_ms);
        while let Err(error) = self.save(&batches).await {
            self.failed(&error.into(), oldest_ms).await;
        }
        // If this fails, Redis gives the entries to a publisher again, which finds them in Postgres.
        let ids: Vec<AuditId> = batches.iter().flat_map(ids).collect();
        self.redis.acknowledge_audit(&ids).await
    }

    fn note_unreadable(&mut self, market: MarketId, error: &BackboneError) {
        count_failure("redis");
        self.unreadable.entry(market).or_insert_with(|| {
            tracing::error!(%market, %error, "a market's audit cannot be read: it is not copied to Postgres");
            unix_ms()
        });
    }

    /// Stores all of these batches in Postgres. Counts and logs the entries that are lost.
    async fn save(&self, batches: &[AuditBatch]) -> Result<(), ArchiveError> {
        let mut trimmed = 0;
        for batch in batches {
            trimmed += self.archive.count_missing(&batch.trimmed).await?;
            if let Some(first) = batch.entries.first().filter(|_| batch.from_the_oldest) {
                trimmed += self.count_between(first).await?;
            }
        }
        let entries: Vec<AuditEntry> =
            batches.iter().flat_map(|batch| batch.entries.iter().cloned()).collect();
        let inserted = self.archive.insert(&entries).await?;
        ::metrics::counter!(metrics::AUDIT_EXPORTED).increment(inserted.new);
        if trimmed > 0 {
            tracing::error!(
                entries = trimmed,
                "audit entries were trimmed from Redis before they were copied to Postgres: they are lost"
            );
            metrics::count_lost_audit("trimmed", trimmed);
        }
        for id in inserted.displaced {
            let entry = entries.iter().find(|entry| entry.id == id);
            tracing::error!(%id, ?entry, "Postgres has another audit entry with this id: this one is not copied");
            metrics::count_lost_audit("displaced", 1);
        }
        for (id, error) in batches.iter().flat_map(|batch| &batch.malformed) {
            tracing::error!(%id, %error, "an audit entry is malformed: it is not copied to Postgres");
            metrics::count_lost_audit("malformed", 1);
        }
        Ok(())
    }

    /// Returns how many entries the market's audit had between the newest one in Postgres and this one. Returns 0 if the
    /// two are of different epochs, since the number is then unknown.
    async fn count_between(&self, entry: &AuditEntry) -> Result<u64, ArchiveError> {
        let newest = self.archive.newest_before(&entry.id).await?;
        let newest = newest.filter(|newest| newest.epoch == entry.position.epoch);
        Ok(newest.map_or(0, |newest| entry.position.seq.distance_from(newest.seq).saturating_sub(1)))
    }

    /// Logs the end of a series of failures. [`Self::failed`] logs its begin.
    fn succeeded(&mut self) {
        let failures = self.backoff.failures();
        if failures > 0 {
            tracing::info!(failures, "the audit is copied to Postgres again");
        }
        self.backoff.reset();
    }

    /// Counts a failure, and waits. `oldest_ms` is when the oldest entry of the current batches was accepted.
    async fn failed(&mut self, error: &CopyError, oldest_ms: Option<u64>) {
        count_failure(if matches!(error, CopyError::Backbone(_)) { "redis" } else { "postgres" });
        self.take_changed();
        self.report_lag(oldest_ms);
        if self.backoff.failures() == 0 {
            tracing::error!(%error, "the audit cannot be copied to Postgres: retrying, overrides go on");
        }
        sleep(self.backoff.failed()).await;
    }

    fn report_lag(&self, oldest_ms: Option<u64>) {
        let now_ms = unix_ms();
        // Changes without a report may be as old as the last sweep. They count once sweeps are late.
        let unreported_ms =
            Some(self.swept_ms).filter(|swept| now_ms.saturating_sub(*swept) > 2 * as_ms(SWEEP_EVERY));
        let known_ms = self.waiting.values().chain(self.unreadable.values()).copied();
        let oldest = known_ms.chain(oldest_ms).chain(unreported_ms).min();
        let lag = Duration::from_millis(oldest.map_or(0, |oldest| now_ms.saturating_sub(oldest)));
        ::metrics::gauge!(metrics::AUDIT_EXPORT_LAG_SECONDS).set(lag.as_secs_f64());
    }
}

fn count_failure(cause: &'static str) {
    ::metrics::counter!(metrics::AUDIT_EXPORT_FAILURES, "cause" => cause).increment(1);
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the ids of all entries of a batch.
fn ids(batch: &AuditBatch) -> impl Iterator<Item = AuditId> {
    let entries = batch.entries.iter().map(|entry| entry.id);
    entries.chain(batch.malformed.iter().map(|(id, _)| *id))
}
