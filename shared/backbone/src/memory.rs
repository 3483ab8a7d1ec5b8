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
    Append, AppendError, Appended, AuditEntry, AuditId, Backbone, BackboneError, Doorbell, Durability,
    Followed, Loaded, LogPage, Retention, Revocation, Revocations, RevokeError, Revoked, Ring, Tails,
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
    bells: Vec<Weak<Bell>>,
    /// Each with where it stands, oldest first.
    revocations: VecDeque<(Position, Revocation)>,
}

#[derive(Debug, Default)]
struct Market {
    log: VecDeque<Update>,
    state: MarketState,
    audit: VecDeque<AuditEntry>,
    /// The last audit entry's id, (Unix ms, n).
    last_audit: Position,
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
            inner.bells.retain(|bell| bell.upgrade().is_some_and(|bell| bell.ring(id)));
        }
        answers
    }

    async fn read_after(&self, market: MarketId, after: Seq, limit: usize) -> Result<LogPage, BackboneError> {
        let inner = self.lock();
        let Some(market) = inner.markets.get(&market) else { return Ok(LogPage::default()) };
        let updates =
            market.log.iter().filter(|update| update.position.seq > after).take(limit).cloned().collect();
        Ok(LogPage { top: market.state.position, updates })
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

    fn part(&self, _: MarketId) -> usize {
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

    async fn tops(&self, markets: &[MarketId]) -> Result<Vec<Position>, BackboneError> {
        let inner = self.lock();
        let top = |id| inner.markets.get(id).map(|market: &Market| market.state.position).unwrap_or_default();
        Ok(markets.iter().map(top).collect())
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
        let before = before.map_or(Position::new(u64::MAX, u64::MAX), |id| id.place());
        let inner = self.lock();
        let entries = inner.markets.get(&market).map(|market| &market.audit).into_iter().flatten();
        Ok(entries.rev().filter(|entry| entry.id.place() < before).take(limit).cloned().collect())
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
        let last = revocations.back().map_or(Position::ORIGIN, |(position, _)| *position);
        let position = next_entry(last, now);
        let revocation = Revocation { whom, ts: position.epoch.get() };
        revocations.push_back((position, revocation.clone()));
        Ok(revocation)
    }

    async fn revocations(&self, known: Position) -> Result<Option<Revocations>, BackboneError> {
        let inner = self.lock();
        let newest = inner.revocations.back().map_or(Position::ORIGIN, |(position, _)| *position);
        let all = || inner.revocations.iter().map(|(_, revocation)| revocation.clone()).collect();
        Ok((newest != known).then(|| Revocations { newest, all: all() }))
    }

    fn doorbell(&self, _: Followed) -> Box<dyn Doorbell> {
        let bell = Arc::new(Bell::default());
        self.lock().bells.push(Arc::downgrade(&bell));
        Box::new(Listener { bell, started: false })
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
        self.last_audit = next_entry(self.last_audit, ts);
        let audit_id = AuditId::new(append.market, &self.last_audit.to_string());
        let payload = append.payload.text();
        let update = Update { position, ts, payload: payload.into(), trace: append.trace };
        push_bounded(&mut self.log, retention.history_len, update);
        push_bounded(
            &mut self.audit,
            retention.audit_len,
            AuditEntry {
                id: audit_id.clone(),
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

/// The id of the entry after `last` in a stream, at `ts`.
fn next_entry(last: Position, ts: u64) -> Position {
    if ts > last.epoch.get() { Position::new(ts, 0) } else { Position { seq: last.seq.next(), ..last } }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, bound: usize, item: T) {
    queue.push_back(item);
    while queue.len() > bound.max(1) {
        queue.pop_front();
    }
}

/// What rang and was not heard yet: at most one mark a market.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<BTreeSet<MarketId>>,
    notify: Notify,
}

impl Bell {
    fn rung(&self) -> MutexGuard<'_, BTreeSet<MarketId>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, market: MarketId) -> bool {
        self.rung().insert(market);
        self.notify.notify_one();
        true
    }
}

struct Listener {
    bell: Arc<Bell>,
    started: bool,
}

#[async_trait]
impl Doorbell for Listener {
    async fn wait(&mut self) -> Result<Ring, BackboneError> {
        if !self.started {
            self.started = true;
            return Ok(Ring::All);
        }
        loop {
            let rung = std::mem::take(&mut *self.bell.rung());
            if !rung.is_empty() {
                return Ok(Ring::Markets(rung.into_iter().collect()));
            }
            self.bell.notify.notified().await;
        }
    }
}
