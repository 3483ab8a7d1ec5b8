//! The backbone of a single process: everything in memory, nothing survives a restart.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use protocol::{
    ids::MarketId,
    position::{Position, Seq},
    time::unix_ms,
    update::{MarketState, Update, lines_json},
};
use tokio::sync::Notify;

use super::{
    Append, AppendError, Appended, AuditEntry, AuditId, Backbone, BackboneError, ChangeListener, Changes,
    Durability, Followed, Loaded, LogPage, Retention, Revocation, Revocations, RevokeError, Revoked,
    StreamId, Tails,
};

/// Logs, states and audits in memory.
#[derive(Debug)]
pub struct MemoryBackbone {
    retention: Retention,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    markets: HashMap<MarketId, Market>,
    listeners: Vec<Weak<PendingChanges>>,
    /// Each with where it stands, oldest first.
    revocations: VecDeque<(StreamId, Revocation)>,
}

#[derive(Debug, Default)]
struct Market {
    log: VecDeque<Update>,
    state: MarketState,
    audit: VecDeque<AuditEntry>,
    /// The last audit entry's id, (Unix ms, n).
    last_audit: StreamId,
    answers: HashMap<String, Answer>,
    /// Keys of `answers`, oldest first.
    answer_ages: VecDeque<String>,
}

#[derive(Debug)]
struct Answer {
    fingerprint: String,
    appended: Appended,
}

impl MemoryBackbone {
    /// An empty backbone.
    #[must_use]
    pub fn new(retention: Retention) -> Self {
        Self { retention, inner: Mutex::default() }
    }

    /// Nothing panics while the lock is held, so that a poisoned one is still whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backbone for MemoryBackbone {
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
        let mut inner = self.lock();
        let mut answers = Vec::with_capacity(appends.len());
        for append in appends {
            let id = append.market;
            answers.push(inner.markets.entry(id).or_default().append(append, &self.retention));
            inner.listeners.retain(|pending| pending.upgrade().is_some_and(|pending| pending.notify(id)));
        }
        answers
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
        Ok(Tails { news: cursors.iter().filter_map(read).collect(), ..Tails::default() })
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

    async fn revoke(&self, whom: Revoked, _: &str) -> Result<Revocation, RevokeError> {
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
        let revocation = Revocation { whom, ts: id.ms };
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
        self.lock().listeners.push(Arc::downgrade(&pending));
        Box::new(Listener { pending, started: false })
    }

    async fn ping(&self) -> Result<(), BackboneError> {
        Ok(())
    }
}

impl Market {
    fn append(&mut self, append: Append, retention: &Retention) -> Result<Appended, AppendError> {
        if let Some(idempotency) = &append.idempotency
            && let Some(first) = self.answers.get(&idempotency.key)
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
                Answer { fingerprint: idempotency.fingerprint, appended: appended.clone() },
                retention,
            );
        }
        Ok(appended)
    }

    /// Keeps an answer for its time, and at most as many as the market keeps audit entries.
    fn remember(&mut self, key: String, answer: Answer, retention: &Retention) {
        let now = answer.appended.ts;
        while let Some(oldest) = self.answer_ages.front() {
            let age_ms =
                self.answers.get(oldest).map_or(u64::MAX, |answer| now.saturating_sub(answer.appended.ts));
            if u128::from(age_ms) < retention.idempotency_ttl.as_millis()
                && self.answers.len() < retention.audit_len
            {
                break;
            }
            self.answers.remove(oldest);
            self.answer_ages.pop_front();
        }
        self.answer_ages.push_back(key.clone());
        self.answers.insert(key, answer);
    }
}

/// Returns the id of the entry after `last` in a stream, at the Unix millisecond `now`.
fn next_id(last: StreamId, now: u64) -> StreamId {
    if now > last.ms { StreamId { ms: now, n: 0 } } else { StreamId { n: last.n + 1, ..last } }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, bound: usize, item: T) {
    queue.push_back(item);
    while queue.len() > bound.max(1) {
        queue.pop_front();
    }
}

/// Markets that changed and that the listener has not heard of yet: at most one entry per market.
#[derive(Debug, Default)]
struct PendingChanges {
    pending: Mutex<BTreeSet<MarketId>>,
    notify: Notify,
}

impl PendingChanges {
    fn pending(&self) -> MutexGuard<'_, BTreeSet<MarketId>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, market: MarketId) -> bool {
        self.pending().insert(market);
        self.notify.notify_one();
        true
    }
}

struct Listener {
    pending: Arc<PendingChanges>,
    started: bool,
}

#[async_trait]
impl ChangeListener for Listener {
    async fn wait(&mut self) -> Result<Changes, BackboneError> {
        if !self.started {
            self.started = true;
            return Ok(Changes::All);
        }
        loop {
            let pending = std::mem::take(&mut *self.pending.pending());
            if !pending.is_empty() {
                return Ok(Changes::Markets(pending.into_iter().collect()));
            }
            self.pending.notify.notified().await;
        }
    }
}
