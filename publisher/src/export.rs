//! Brings the audit from Redis to Postgres.
//!
//! Every publisher does, of whatever it hears of: Redis gives an entry to one of them at a time
//! ([`RedisBackbone::read_audit_batches`]), Postgres takes it once, and only then it is acknowledged. A publisher that dies in
//! between leaves entries that another one is given a while later. No override waits for any of this.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use backbone::{AuditBatch, AuditEntry, AuditId, Backbone, BackboneError, RedisBackbone};
use protocol::{MarketId, time::unix_ms};
use service::backoff::Backoff;
use tokio::time::{Instant, sleep};

use crate::{
    archive::{Archive, ArchiveError},
    audit::{AuditRequest, Page},
    metrics,
};

/// How long news may gather before it is brought.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often every market is looked at, heard of or not.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long an entry may be with a publisher before it is given to another one.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);
/// Markets in one question to Redis.
const MARKETS: usize = 256;
/// Entries in one answer, about.
const ENTRIES: usize = 512;
/// After a failure.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// Entries that a request brings itself, when the exporter has not yet.
const CAUGHT_UP: usize = 1000;

/// The audit in Postgres, and where it comes from. Clones share it.
#[derive(Clone)]
pub struct AuditCopy {
    redis: Arc<RedisBackbone>,
    archive: Archive,
}

/// Why the copy does not answer.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// There is none.
    #[error("the audit is not copied anywhere")]
    None,
    /// It lacks so much of this market that a request does not wait for it.
    #[error("the audit's copy is behind")]
    Behind,
    /// Postgres does not say.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// What it lacks cannot be asked for.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
}

impl AuditCopy {
    /// The copy of this audit there.
    #[must_use]
    pub fn new(redis: Arc<RedisBackbone>, archive: Archive) -> Self {
        metrics::begin_audit_copy();
        Self { redis, archive }
    }

    /// A page of it. Of a single market, it has everything that was acknowledged before this was asked.
    ///
    /// # Errors
    /// When that cannot be had.
    pub async fn page(&self, request: &AuditRequest) -> Result<Page, CopyError> {
        if self.archive.is_away() {
            return Err(ArchiveError::Away.into());
        }
        if let Some(market) = request.market {
            let missing = self.redis.unacknowledged_audit(market, CAUGHT_UP + 1).await?;
            if missing.len() > CAUGHT_UP {
                return Err(CopyError::Behind);
            }
            // The exporter will find them there.
            let inserted = self.archive.insert(&missing).await?;
            ::metrics::counter!(metrics::AUDIT_EXPORTED).increment(inserted.new);
        }
        Ok(self.archive.page(request).await?)
    }

    /// Brings entries for as long as it is polled.
    pub async fn keep(self) {
        let mut exporter = Exporter {
            redis: self.redis,
            archive: self.archive,
            waiting: BTreeMap::new(),
            swept_ms: unix_ms(),
            sweep_at: Instant::now(),
            refused: BTreeMap::new(),
            backoff: BACKOFF,
        };
        loop {
            exporter.hear();
            if exporter.is_due() {
                exporter.round().await;
            }
            exporter.tell_lag(None);
            sleep(LOOK_EVERY).await;
        }
    }
}

struct Exporter {
    redis: Arc<RedisBackbone>,
    archive: Archive,
    /// Markets that may have something, and since when, Unix ms.
    waiting: BTreeMap<MarketId, u64>,
    /// When the last look at every market began, Unix ms; at first, when this began.
    swept_ms: u64,
    sweep_at: Instant,
    /// Markets that cannot be asked for, while others can, and since when, Unix ms. Looked at with all of them.
    refused: BTreeMap<MarketId, u64>,
    backoff: Backoff,
}

impl Exporter {
    fn hear(&mut self) {
        let now_ms = unix_ms();
        for market in self.redis.take_changed() {
            self.waiting.entry(market).or_insert(now_ms);
        }
    }

    fn is_due(&self) -> bool {
        !self.waiting.is_empty() || Instant::now() >= self.sweep_at
    }

    /// Brings what those that wait have now; of all markets, when it is time to.
    async fn round(&mut self) {
        // Nothing is taken that could not be brought: another publisher may be able to.
        while let Err(error) = self.archive.prepare().await {
            self.failed(&error.into(), None).await;
        }
        let swept_ms = if Instant::now() >= self.sweep_at { self.hear_all().await } else { None };
        match self.bring_waiting().await {
            Some(error) => self.failed(&error, None).await,
            None => {
                self.swept_ms = swept_ms.unwrap_or(self.swept_ms);
                self.succeeded();
            }
        }
    }

    /// Lets every market wait; since when that is the truth, Unix ms.
    async fn hear_all(&mut self) -> Option<u64> {
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

    /// Each that waits gets one turn. A part that cannot be asked holds up no other.
    async fn bring_waiting(&mut self) -> Option<CopyError> {
        let mut parts: BTreeMap<usize, Vec<MarketId>> = BTreeMap::new();
        for market in self.waiting.keys() {
            parts.entry(self.redis.partition(*market)).or_default().push(*market);
        }
        let mut failed = None;
        for markets in parts.values() {
            for markets in markets.chunks(MARKETS) {
                let limit = (ENTRIES / markets.len()).max(1);
                let brought = match self.redis.read_audit_batches(markets, limit, ABANDONED_AFTER).await {
                    Ok(handed) => self.bring(handed).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = brought {
                    failed = Some(error.into());
                    break;
                }
            }
        }
        failed
    }

    /// Brings what was given, however long it takes, and acknowledges it.
    async fn bring(
        &mut self,
        handed: Vec<(MarketId, Result<AuditBatch, BackboneError>)>,
    ) -> Result<(), BackboneError> {
        let mut given = Vec::new();
        for (market, handed) in handed {
            // Before it is brought: what comes meanwhile is news.
            self.waiting.remove(&market);
            match handed {
                Ok(handed) => {
                    if let Some(last) = handed.entries.last().filter(|_| handed.more) {
                        self.waiting.insert(market, last.ts);
                    }
                    self.refused.remove(&market);
                    given.push(handed);
                }
                Err(error) => self.note_refused(market, &error),
            }
        }
        let oldest_ms = given.iter().flat_map(|handed| &handed.entries).map(|entry| entry.ts).min();
        self.tell_lag(oldest_ms);
        while let Err(error) = self.save(&given).await {
            self.failed(&error.into(), oldest_ms).await;
        }
        // Should this fail, they are given again in a while, and found to be there.
        let ids: Vec<AuditId> = given.iter().flat_map(ids).collect();
        self.redis.acknowledge_audit(&ids).await
    }

    fn note_refused(&mut self, market: MarketId, error: &BackboneError) {
        count_failure("redis");
        self.refused.entry(market).or_insert_with(|| {
            tracing::error!(%market, %error, "a market's audit cannot be asked for: it does not get to postgres");
            unix_ms()
        });
    }

    /// Has all of it in Postgres when it returns.
    async fn save(&self, given: &[AuditBatch]) -> Result<(), ArchiveError> {
        let mut trimmed = 0;
        for handed in given {
            trimmed += self.archive.count_missing(&handed.trimmed).await?;
            if let Some(first) = handed.entries.first().filter(|_| handed.from_the_oldest) {
                trimmed += self.count_between(first).await?;
            }
        }
        let entries: Vec<AuditEntry> =
            given.iter().flat_map(|handed| handed.entries.iter().cloned()).collect();
        let inserted = self.archive.insert(&entries).await?;
        ::metrics::counter!(metrics::AUDIT_EXPORTED).increment(inserted.new);
        if trimmed > 0 {
            tracing::error!(
                entries = trimmed,
                "audit entries were trimmed from Redis before they were in postgres: they are lost"
            );
            metrics::count_lost_audit("trimmed", trimmed);
        }
        for id in inserted.displaced {
            let entry = entries.iter().find(|entry| entry.id == id);
            tracing::error!(%id, ?entry, "postgres has another audit entry of this id: this one is not brought");
            metrics::count_lost_audit("displaced", 1);
        }
        for (id, error) in given.iter().flat_map(|handed| &handed.malformed) {
            tracing::error!(%id, %error, "an audit entry cannot be understood: it is not brought to postgres");
            metrics::count_lost_audit("malformed", 1);
        }
        Ok(())
    }

    /// How many entries of a market were there between the newest one in Postgres and this one. Of two epochs nobody
    /// can say.
    async fn count_between(&self, entry: &AuditEntry) -> Result<u64, ArchiveError> {
        let newest = self.archive.newest_before(&entry.id).await?;
        let newest = newest.filter(|newest| newest.epoch == entry.position.epoch);
        Ok(newest.map_or(0, |newest| entry.position.seq.distance_from(newest.seq).saturating_sub(1)))
    }

    /// Trouble is logged when it begins and when it ends.
    fn succeeded(&mut self) {
        let failures = self.backoff.failures();
        if failures > 0 {
            tracing::info!(failures, "the audit gets to postgres again");
        }
        self.backoff.reset();
    }

    /// Notes a failure, and waits. `oldest_ms` is when the oldest entry in hand was accepted.
    async fn failed(&mut self, error: &CopyError, oldest_ms: Option<u64>) {
        count_failure(if matches!(error, CopyError::Backbone(_)) { "redis" } else { "postgres" });
        self.hear();
        self.tell_lag(oldest_ms);
        if self.backoff.failures() == 0 {
            tracing::error!(%error, "the audit does not get to postgres: overrides go on, and it is tried again");
        }
        sleep(self.backoff.failed()).await;
    }

    fn tell_lag(&self, oldest_ms: Option<u64>) {
        let now_ms = unix_ms();
        // What was not heard of may be as old as the last look at everything, which is nothing while looks are on time.
        let unheard_ms =
            Some(self.swept_ms).filter(|swept| now_ms.saturating_sub(*swept) > 2 * as_ms(SWEEP_EVERY));
        let known_ms = self.waiting.values().chain(self.refused.values()).copied();
        let oldest = known_ms.chain(oldest_ms).chain(unheard_ms).min();
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

/// All that is to be acknowledged.
fn ids(handed: &AuditBatch) -> impl Iterator<Item = AuditId> {
    let entries = handed.entries.iter().map(|entry| entry.id);
    entries.chain(handed.malformed.iter().map(|(id, _)| *id))
}
