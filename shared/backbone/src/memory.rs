//! The backbone of a single process. It keeps everything in memory and loses it at a restart.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use protocol::{
    ids::MarketId,
    position::{Position, Seq},
    time::unix_ms,
    update::{MarketState, Update, lines_json},
};

use crate::{
    Append, AppendError, Appended, AuditEntry, AuditId, Backbone, BackboneError, ChangeListener, Changes,
    Durability, Followed, Loaded, LogPage, Retention, Revocation, Revocations, RevokeError, Revoked,
    StreamId, Tails, pending_changes::PendingChanges,
};

/// Keeps logs, states and audits in memory.
#[derive(Debug)]
pub struct MemoryBackbone {
    retention: Retention,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    markets: HashMap<MarketId, Market>,
    listeners: Vec<Weak<PendingChanges>>,
    /// Each with its entry's id, oldest first.
    revocations: VecDeque<(StreamId, Revocation)>,
}

#[derive(Debug, Default)]
struct Market {
    log: VecDeque<Update>,
    state: MarketState,
    audit: VecDeque<AuditEntry>,
    /// The last audit entry's id.
    last_audit: StreamId,
    /// The first result for each idempotency key.
    first_results: HashMap<String, FirstResult>,
    /// The keys of `first_results`, oldest first.
    idempotency_keys: VecDeque<String>,
}

#[derive(Debug)]
struct FirstResult {
    fingerprint: String,
    appended: Appended,
}

impl MemoryBackbone {
    /// Creates an empty backbone.
    #[must_use]
    pub fn new(retention: Retention) -> Self {
        Self { retention, inner: Mutex::default() }
    }

    /// Locks the content. No code panics while it holds the lock, so a poisoned lock still guards consistent data.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backbone for MemoryBackbone {
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
        let mut inner = self.lock();
        let mut results = Vec::with_capacity(appends.len());
        for append in appends {
            let id = append.market;
            results.push(inner.markets.entry(id).or_default().append(append, &self.retention));
            inner.notify(id);
        }
        results
    }

    async fn read_after(&self, market: MarketId, after: Seq, limit: usize) -> Result<LogPage, BackboneError> {
        let inner = self.lock();
        let Some(market) = inner.markets.get(&market) else { return Ok(LogPage::default()) };
        let updates =
            market.log.iter().filter(|update| update.position.seq > after).take(limit).cloned().collect();
        Ok(LogPage { latest: market.state.position, updates })
    }

    async fn load(&self, markets: &[MarketId], history: usize) -> Result<Vec<Loaded>, BackboneError> {
        let inner = self.lock();
        let load = |id| {
            let market: &Market = inner.markets.get(id)?;
            let skip = market.log.len().saturating_sub(history);
            Some(Loaded {
                state: market.state.clone(),
                updates: market.log.iter().skip(skip).cloned().collect(),
            })
        };
        Ok(markets.iter().map(|id| load(id).unwrap_or_default()).collect())
    }

    fn partition(&self, _: MarketId) -> usize {
        0
    }

    async fn read_tails(
        &self,
        cursors: &[(MarketId, Position)],
        limit: usize,
    ) -> Result<Tails, BackboneError> {
        let inner = self.lock();
        let read = |&(id, cursor): &(MarketId, Position)| {
            let log = &inner.markets.get(&id)?.log;
            let newer = log.partition_point(|update| update.position <= cursor);
            (newer < log.len()).then(|| (id, log.iter().skip(newer).take(limit).cloned().collect()))
        };
        Ok(Tails { updates: cursors.iter().filter_map(read).collect(), ..Tails::default() })
    }

    async fn latest_positions(&self, markets: &[MarketId]) -> Result<Vec<Position>, BackboneError> {
        let inner = self.lock();
        let latest =
            |id| inner.markets.get(id).map(|market: &Market| market.state.position).unwrap_or_default();
        Ok(markets.iter().map(latest).collect())
    }

    async fn markets(&self) -> Result<Vec<MarketId>, BackboneError> {
        let inner = self.lock();
        let begun = inner.markets.iter().filter(|(_, market)| market.state.position != Position::ORIGIN);
        let mut markets: Vec<MarketId> = begun.map(|(id, _)| *id).collect();
        markets.sort_unstable();
        Ok(markets)
    }

    async fn audit(
        &self,
        market: MarketId,
        before: Option<AuditId>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError> {
        let before = before.map_or(StreamId::MAX, |id| id.entry);
        let inner = self.lock();
        let entries = inner.markets.get(&market).map(|market| &market.audit).into_iter().flatten();
        Ok(entries.rev().filter(|entry| entry.id.entry < before).take(limit).cloned().collect())
    }

    async fn revoke(&self, revoked: Revoked, _: &str) -> Result<Revocation, RevokeError> {
        let mut inner = self.lock();
        let (now, revocations) = (unix_ms(), &mut inner.revocations);
        let is_over = |revocation: &Revocation| {
            u128::from(now.saturating_sub(revocation.ts)) > self.retention.revocation_ttl.as_millis()
        };
        while revocations.pop_front_if(|(_, revocation)| is_over(revocation)).is_some() {}
        if revocations.len() >= self.retention.revocations {
            return Err(RevokeError::Full);
        }
        let last = revocations.back().map_or(StreamId::ZERO, |(id, _)| *id);
        let id = next_id(last, now);
        let revocation = Revocation { revoked, ts: id.ms };
        revocations.push_back((id, revocation.clone()));
        Ok(revocation)
    }

    async fn revocations(&self, known: StreamId) -> Result<Option<Revocations>, BackboneError> {
        let inner = self.lock();
        let newest = inner.revocations.back().map_or(StreamId::ZERO, |(id, _)| *id);
        let all = || inner.revocations.iter().map(|(_, revocation)| revocation.clone()).collect();
        Ok((newest != known).then(|| Revocations { newest, all: all() }))
    }

    fn change_listener(&self, _: Followed) -> Box<dyn ChangeListener> {
        let pending = Arc::new(PendingChanges::default());
        pending.mark_all_changed();
        self.lock().listeners.push(Arc::downgrade(&pending));
        Box::new(Listener(pending))
    }

    async fn ping(&self) -> Result<(), BackboneError> {
        Ok(())
    }
}

impl Inner {
    /// Tells every listener that a market changed, and forgets the listeners that are gone.
    fn notify(&mut self, market: MarketId) {
        self.listeners.retain(|listener| match listener.upgrade() {
            Some(pending) => {
                pending.mark_changed([market]);
                true
            }
            None => false,
        });
    }
}

impl Market {
    fn append(&mut self, append: Append, retention: &Retention) -> Result<Appended, AppendError> {
        if let Some(idempotency) = &append.idempotency
            && let Some(first) = self.first_results.get(&idempotency.key)
        {
            if first.fingerprint != idempotency.fingerprint {
                return Err(AppendError::KeyReused);
            }
            return Ok(Appended { replayed: true, ..first.appended.clone() });
        }
        let current = self.state.position;
        if append.expected_seq.is_some_and(|expected| expected != current.seq) {
            return Err(AppendError::Conflict { current });
        }
        let ts = unix_ms();
        let epoch = if current == Position::ORIGIN { ts / 1000 } else { current.epoch.get() };
        let position = Position::new(epoch, current.seq.next().get());

        let former = append.payload.lines().iter();
        let before =
            lines_json(former.filter_map(|line| Some((&*line.name, &**self.state.lines.get(&line.name)?))));
        self.last_audit = next_id(self.last_audit, ts);
        let audit_id = AuditId { market: append.market, entry: self.last_audit };
        let payload = append.payload.text();
        let update = Update { position, ts, payload: payload.into(), trace: append.trace };
        push_bounded(&mut self.log, retention.history_len, update);
        push_bounded(
            &mut self.audit,
            retention.audit_len,
            AuditEntry {
                id: audit_id,
                position,
                ts,
                actor: append.actor,
                reason: append.reason,
                before,
                after: payload.to_owned(),
                request_id: append.request_id,
            },
        );
        self.state.apply(position, ts, &append.payload);
        let appended = Appended { position, ts, audit_id, replayed: false, durability: Durability::Memory };
        if let Some(idempotency) = append.idempotency {
            self.remember(
                idempotency.key,
                FirstResult { fingerprint: idempotency.fingerprint, appended: appended.clone() },
                retention,
            );
        }
        Ok(appended)
    }

    /// Keeps a result while its idempotency key is remembered. Keeps at most as many as audit entries.
    fn remember(&mut self, key: String, result: FirstResult, retention: &Retention) {
        let now = result.appended.ts;
        while let Some(oldest) = self.idempotency_keys.front() {
            let kept = self.first_results.get(oldest);
            let age_ms = kept.map_or(u64::MAX, |kept| now.saturating_sub(kept.appended.ts));
            if u128::from(age_ms) < retention.idempotency_ttl.as_millis()
                && self.first_results.len() < retention.audit_len
            {
                break;
            }
            self.first_results.remove(oldest);
            self.idempotency_keys.pop_front();
        }
        self.idempotency_keys.push_back(key.clone());
        self.first_results.insert(key, result);
    }
}

/// Returns the id of a stream's next entry, after `last`, at the Unix millisecond `now`.
fn next_id(last: StreamId, now: u64) -> StreamId {
    if now > last.ms { StreamId { ms: now, n: 0 } } else { StreamId { n: last.n + 1, ..last } }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, bound: usize, item: T) {
    queue.push_back(item);
    while queue.len() > bound.max(1) {
        queue.pop_front();
    }
}

struct Listener(Arc<PendingChanges>);

#[async_trait]
impl ChangeListener for Listener {
    async fn wait(&mut self) -> Result<Changes, BackboneError> {
        self.0.next().await
    }
}
