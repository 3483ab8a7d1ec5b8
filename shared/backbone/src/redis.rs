//! The backbone on Redis Streams (contract, section 6).

mod audit_batches;
mod blocking_listener;
mod change_listener;
pub mod check;
mod decode;
mod listing;
mod nodes;
mod others;
mod replicas;
mod url;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Script, ServerErrorKind, Value, cmd,
    pipe,
};
use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};
use tokio::time::sleep;

pub use self::audit_batches::AuditBatch;
pub use self::url::{InvalidRedisUrl, RedisConfig, TailFrom};
use protocol::{
    ids::MarketId,
    position::{Position, Seq},
    update::{Update, quoted},
};

use self::{
    change_listener::RedisChangeListener,
    decode::{
        Entry, REVOKED_TOKEN, REVOKED_USER, malformed, read_answer, read_audit_entry, read_loaded,
        read_revocation, read_stream_id, read_updates,
    },
    nodes::{Node, Nodes, RETRY_AFTER_MS, is_misdirected, slot, slot_of_key},
};
use super::{
    Append, AppendError, Appended, AuditEntry, AuditId, Backbone, BackboneError, ChangeListener, Durability,
    Followed, Loaded, LogPage, Retention, Revocation, Revocations, RevokeError, Revoked, StreamId, Tails,
    keys,
};

/// How long replicas may take to have an append, milliseconds.
const WAIT_MS: u32 = 1000;

/// Logs, states and audits in one Redis, behind sentinels, or in a cluster.
pub struct RedisBackbone {
    nodes: Arc<Nodes>,
    append: Script,
    revoke: Script,
    retention: Retention,
    /// Replicas that must have an append before it is acknowledged.
    min_replicas: usize,
    /// The highest position seen in each market's log by whoever appends: a log whose top is below has lost history.
    /// One entry a market.
    remembered: Mutex<HashMap<MarketId, Position>>,
    /// Markets that have got further since [`Self::take_news`]: one mark a market.
    news: Mutex<BTreeSet<MarketId>>,
}

impl RedisBackbone {
    /// A backbone where `config` says. Connects when first used.
    ///
    /// # Errors
    /// When the URL or the certificates cannot be used.
    pub fn new(config: &RedisConfig, retention: Retention) -> Result<Self, InvalidRedisUrl> {
        let (topology, dialer) = config.parse()?;
        Ok(Self {
            nodes: Arc::new(Nodes::new(topology, dialer, config.tail_from)),
            append: Script::new(include_str!("append.lua")),
            revoke: Script::new(include_str!("revoke.lua")),
            retention,
            min_replicas: 0,
            remembered: Mutex::default(),
            news: Mutex::default(),
        })
    }

    /// The same, which acknowledges an append only when `min_replicas` replicas have it (`PUBLISH_MIN_REPLICAS`).
    #[must_use]
    pub fn with_min_replicas(self, min_replicas: usize) -> Self {
        Self { min_replicas, ..self }
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<MarketId, Position>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self) -> MutexGuard<'_, BTreeSet<MarketId>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this market is a new one.
    fn remember(&self, market: MarketId, position: Position) -> bool {
        let mut remembered = self.remembered();
        let known = remembered.get(&market).copied();
        if known.is_none_or(|known| known < position) {
            remembered.insert(market, position);
            self.news().insert(market);
        }
        known.is_none()
    }

    /// One round of appends: a pipeline to each node concerned. Each answer stands at its append's place, with the
    /// number of replicas that have it.
    async fn append_round(&self, appends: &[&Append]) -> Vec<(RedisResult<Value>, usize)> {
        let mut results: Vec<Option<(RedisResult<Value>, usize)>> = appends.iter().map(|_| None).collect();
        let mut by_node: BTreeMap<String, (Arc<Node>, Vec<usize>)> = BTreeMap::new();
        for (index, append) in appends.iter().enumerate() {
            match self.nodes.of(append.market).await {
                Ok(node) => {
                    by_node.entry(node.address.clone()).or_insert_with(|| (node, Vec::new())).1.push(index);
                }
                Err(error) => results[index] = Some((Err(error), 0)),
            }
        }
        let pipelines = by_node.into_values().map(|(node, indices)| self.append_at(node, appends, indices));
        for (indices, answers) in join_all(pipelines).await {
            match answers {
                Ok((answers, replicas)) => {
                    for (index, answer) in indices.into_iter().zip(answers) {
                        results[index] = Some((answer, replicas));
                    }
                }
                Err(error) => {
                    for index in indices {
                        results[index] = Some((Err(error.clone()), 0));
                    }
                }
            }
        }
        results.into_iter().map(|result| result.unwrap_or_else(|| (Err(unanswered()), 0))).collect()
    }

    /// One pipeline to one node: the answers, and how many replicas have all of it.
    async fn append_at(
        &self,
        node: Arc<Node>,
        appends: &[&Append],
        indices: Vec<usize>,
    ) -> (Vec<usize>, RedisResult<(Vec<RedisResult<Value>>, usize)>) {
        let mut pipeline = Pipeline::with_capacity(indices.len() + 1);
        pipeline.ignore_errors();
        for &index in &indices {
            pipeline.add_command(self.append_command(appends[index]));
        }
        let answers = if self.min_replicas == 0 {
            let answers = pipeline.query_async(&mut node.writes.clone()).await;
            self.nodes.note_each(&node, answers).map(|answers| (answers, 0))
        } else {
            pipeline.cmd("WAIT").arg(self.min_replicas).arg(WAIT_MS);
            // It blocks the connection, which is nobody else's.
            let answers = node.ask(&pipeline).await;
            self.nodes.note_each(&node, answers).and_then(count_replicas)
        };
        let unknown = |answer: &RedisResult<Value>| matches!(answer, Err(error) if error.kind() == ServerErrorKind::NoScript.into());
        if answers.as_ref().is_ok_and(|(answers, _)| answers.iter().any(unknown)) {
            let mut load = cmd("SCRIPT");
            load.arg("LOAD").arg(include_str!("append.lua"));
            // When this fails, the next round's answers say so.
            let _: RedisResult<String> = load.query_async(&mut node.writes.clone()).await;
        }
        (indices, answers)
    }

    /// What was appended, if as many replicas have it as must.
    fn promised(&self, appended: Appended, replicas: usize) -> Result<Appended, AppendError> {
        match self.min_replicas {
            0 => Ok(appended),
            wanted if replicas >= wanted => Ok(Appended { durability: Durability::Replicated, ..appended }),
            wanted => Err(AppendError::NotReplicated { position: appended.position, replicas, wanted }),
        }
    }

    fn append_command(&self, append: &Append) -> Cmd {
        let market = append.market;
        let known = self.remembered().get(&market).copied().unwrap_or(Position::ORIGIN);
        let mut call = cmd("EVALSHA");
        call.arg(self.append.get_hash()).arg(if append.idempotency.is_some() { 4 } else { 3 });
        call.arg(keys::log(market)).arg(keys::state(market)).arg(keys::audit(market));
        if let Some(idempotency) = &append.idempotency {
            call.arg(keys::idempotency(market, &idempotency.key));
        }
        call.arg(append.payload.text())
            .arg(append.expected_seq.map_or(String::new(), |seq| seq.to_string()))
            .arg(append.idempotency.as_ref().map_or("", |idempotency| &idempotency.fingerprint))
            .arg(self.retention.idempotency_ttl.as_secs().max(1))
            .arg(known.epoch.get())
            .arg(known.seq.get())
            .arg(self.retention.history_len)
            .arg(self.retention.audit_len)
            .arg(&append.actor)
            .arg(&append.reason)
            .arg(&append.request_id);
        for line in append.payload.lines() {
            call.arg(&*line.name).arg(quoted(&line.name)).arg(line.text.as_deref().unwrap_or_default());
        }
        if let Some(trace) = &append.trace {
            call.arg(trace.as_str());
        }
        call
    }

    /// Reads of one market in one round trip.
    async fn read<T: FromRedisValue>(&self, market: MarketId, reads: &Pipeline) -> Result<T, BackboneError> {
        self.nodes.ask(slot(market), reads).await
    }

    /// Up to `count` entries of a market's log between two ids.
    async fn range(
        &self,
        command: &str,
        market: MarketId,
        (from, to): (&str, &str),
        count: usize,
    ) -> Result<Vec<Update>, BackboneError> {
        let key = keys::log(market);
        let mut range = pipe();
        range.cmd(command).arg(&key).arg(from).arg(to).arg("COUNT").arg(count);
        let (entries,): (Value,) = self.read(market, &range).await?;
        read_updates(&key, entries)
    }

    async fn load_one(&self, market: MarketId, history: usize) -> Result<Loaded, BackboneError> {
        let mut transaction = pipe();
        // State and log from the same moment.
        transaction.atomic().cmd("HGETALL").arg(keys::state(market));
        transaction.add_command(newest(&keys::log(market), history.max(1)));
        let (state, log) = self.read(market, &transaction).await?;
        read_loaded(market, state, log, history)
    }

    /// Reads the cursors in groups, one command each, in one round trip.
    async fn read_groups<'a>(
        &self,
        node: &Node,
        cursors: &'a [(MarketId, Position)],
        group: usize,
        limit: usize,
    ) -> Result<Vec<(&'a [(MarketId, Position)], RedisResult<Value>)>, BackboneError> {
        let mut reads = Pipeline::new();
        reads.ignore_errors();
        if node.is_replica && self.nodes.is_cluster() {
            reads.cmd("READONLY").ignore();
        }
        for group in cursors.chunks(group) {
            reads.add_command(xread(group, limit));
        }
        let answers: RedisResult<Vec<RedisResult<Value>>> = reads.query_async(&mut node.tails.clone()).await;
        let answers = self.nodes.note_each(node, answers)?;
        Ok(cursors.chunks(group).zip(answers).collect())
    }

    async fn ping_node(&self, node: &Node) -> RedisResult<()> {
        let ping = cmd("PING").query_async::<Value>(&mut node.tails.clone()).await;
        self.nodes.note(node, ping).map(|_| ())
    }
}

#[async_trait]
impl Backbone for RedisBackbone {
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
        let mut answers: Vec<Option<Result<Appended, AppendError>>> = appends.iter().map(|_| None).collect();
        let mut pending: Vec<usize> = (0..appends.len()).collect();
        let mut new = Vec::new();
        let mut pauses = RETRY_AFTER_MS.into_iter();
        while !pending.is_empty() {
            let asked: Vec<&Append> = pending.iter().map(|&index| &appends[index]).collect();
            let results = self.append_round(&asked).await;
            let pause_ms = pauses.next();
            let mut again = Vec::new();
            for (index, (result, replicas)) in pending.into_iter().zip(results) {
                // Refused without having been carried out: asking again appends once.
                if let Err(error) = &result
                    && (is_misdirected(error) || error.kind() == ServerErrorKind::NoScript.into())
                    && pause_ms.is_some()
                {
                    again.push(index);
                    continue;
                }
                let market = appends[index].market;
                let answer = result.map_err(|error| AppendError::from(BackboneError::from(error)));
                let answer = answer.and_then(|value| read_answer(market, value));
                if let Ok(appended) = &answer
                    && self.remember(market, appended.position)
                {
                    new.push(market);
                }
                answers[index] = Some(answer.and_then(|appended| self.promised(appended, replicas)));
            }
            pending = again;
            if let Some(pause_ms) = pause_ms.filter(|_| !pending.is_empty()) {
                sleep(Duration::from_millis(pause_ms)).await;
            }
        }
        self.list(new);
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(BackboneError::from(unanswered()).into())))
            .collect()
    }

    async fn read_after(&self, market: MarketId, after: Seq, limit: usize) -> Result<LogPage, BackboneError> {
        let Some(newest) = self.range("XREVRANGE", market, ("+", "-"), 1).await?.pop() else {
            return Ok(LogPage::default());
        };
        let latest = newest.position;
        if after >= latest.seq {
            return Ok(LogPage { latest, updates: Vec::new() });
        }
        let from = Position { epoch: latest.epoch, seq: after.next() };
        let mut updates = self.range("XRANGE", market, (&from.to_string(), "+"), limit).await?;
        // A new epoch may have begun between the two reads: what is of it does not belong to this page.
        updates.retain(|update| update.position.epoch == latest.epoch);
        let latest = updates.last().map_or(latest, |last| last.position.max(latest));
        Ok(LogPage { latest, updates })
    }

    async fn load(&self, markets: &[MarketId], history: usize) -> Result<Vec<Loaded>, BackboneError> {
        try_join_all(markets.iter().map(|&market| self.load_one(market, history))).await
    }

    fn partition(&self, market: MarketId) -> usize {
        self.nodes.partition_of(market)
    }

    async fn read_tails(
        &self,
        cursors: &[(MarketId, Position)],
        limit: usize,
    ) -> Result<Tails, BackboneError> {
        let Some(&(first, _)) = cursors.first() else { return Ok(Tails::default()) };
        let node = self.nodes.tail_of(first).await?;
        // In a cluster a command's keys share a slot.
        let group = if self.nodes.is_cluster() { 1 } else { cursors.len() };
        let mut tails = Tails::default();
        let mut answers = self.read_groups(&node, cursors, group, limit).await?;
        // One key that is no stream fails the whole command: then each is asked for alone.
        if group > 1 && matches!(answers.first(), Some((_, Err(error))) if !is_outage(error)) {
            answers = self.read_groups(&node, cursors, 1, limit).await?;
        }
        for (group, answer) in answers {
            match answer {
                Ok(streams) => tails.news.extend(read_streams(streams)?),
                Err(error) if is_outage(&error) => {
                    tails.unread.extend(group.iter().map(|(market, _)| *market));
                    tails.error = Some(error.into());
                }
                Err(error) => {
                    tracing::error!(market = %group[0].0, %error, "a log cannot be read: its clients stay behind");
                }
            }
        }
        Ok(tails)
    }

    async fn latest_positions(&self, markets: &[MarketId]) -> Result<Vec<Position>, BackboneError> {
        let Some(&first) = markets.first() else { return Ok(Vec::new()) };
        let node = self.nodes.of(first).await?;
        let mut reads = Pipeline::with_capacity(markets.len());
        reads.ignore_errors();
        for &market in markets {
            reads.add_command(newest(&keys::log(market), 1));
        }
        let answers: RedisResult<Vec<RedisResult<Value>>> = reads.query_async(&mut node.tails.clone()).await;
        let answers = self.nodes.note_each(&node, answers)?;
        let latest = |(market, answer): (&MarketId, RedisResult<Value>)| {
            let entries = answer.map_err(BackboneError::from);
            match entries.and_then(|entries| read_updates(&keys::log(*market), entries)) {
                Ok(mut updates) => Ok(updates.pop().map_or(Position::ORIGIN, |update| update.position)),
                Err(error) if error.is_outage() => Err(error),
                Err(_) => Ok(Position::ORIGIN),
            }
        };
        markets.iter().zip(answers).map(latest).collect()
    }

    async fn markets(&self) -> Result<Vec<MarketId>, BackboneError> {
        listing::read(&self.nodes).await
    }

    async fn audit(
        &self,
        market: MarketId,
        before: Option<AuditId>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError> {
        // Before the first id that there can be is nothing, and Redis refuses an interval that ends there.
        if before.as_ref().is_some_and(|id| id.entry == StreamId::ZERO) {
            return Ok(Vec::new());
        }
        let key = keys::audit(market);
        let end = before.map_or("+".to_owned(), |id| format!("({}", id.entry));
        let mut range = pipe();
        range.cmd("XREVRANGE").arg(&key).arg(end).arg("-").arg("COUNT").arg(limit);
        let (entries,): (Vec<(String, HashMap<String, String>)>,) = self.read(market, &range).await?;
        entries.into_iter().map(|(id, fields)| read_audit_entry(market, &key, &id, fields)).collect()
    }

    async fn revoke(&self, whom: Revoked, actor: &str) -> Result<Revocation, RevokeError> {
        let (field, name) = match &whom {
            Revoked::User(id) => (REVOKED_USER, id),
            Revoked::Token(id) => (REVOKED_TOKEN, id),
        };
        let ttl_ms = u64::try_from(self.retention.revocation_ttl.as_millis()).unwrap_or(u64::MAX);
        let mut call = pipe();
        // Rare enough to bring the script along.
        call.cmd("SCRIPT").arg("LOAD").arg(include_str!("revoke.lua")).ignore();
        call.cmd("EVALSHA").arg(self.revoke.get_hash()).arg(1).arg(keys::REVOKED);
        call.arg(ttl_ms).arg(self.retention.revocations).arg(field).arg(name).arg(actor);
        let (entry,): (Option<String>,) = self.nodes.ask(slot_of_key(keys::REVOKED), &call).await?;
        let entry = entry.ok_or(RevokeError::Full)?;
        Ok(Revocation { whom, ts: read_stream_id(keys::REVOKED, &entry)?.ms })
    }

    async fn revocations(&self, known: StreamId) -> Result<Option<Revocations>, BackboneError> {
        let slot = slot_of_key(keys::REVOKED);
        let mut latest = pipe();
        latest.add_command(newest(keys::REVOKED, 1));
        let (latest,): (Vec<Entry>,) = self.nodes.ask(slot, &latest).await?;
        if id_of_last(&latest)? == known {
            return Ok(None);
        }
        let mut range = pipe();
        range.cmd("XRANGE").arg(keys::REVOKED).arg("-").arg("+");
        let (entries,): (Vec<Entry>,) = self.nodes.ask(slot, &range).await?;
        let newest = id_of_last(&entries)?;
        // What is not understood must not hide the others.
        let report = |error: &BackboneError| tracing::error!(%error, "a revocation cannot be read");
        let read = |entry| read_revocation(entry).inspect_err(report).ok();
        Ok(Some(Revocations { newest, all: entries.into_iter().filter_map(read).collect() }))
    }

    fn change_listener(&self, followed: Followed) -> Box<dyn ChangeListener> {
        Box::new(RedisChangeListener::new(Arc::clone(&self.nodes), followed))
    }

    async fn ping(&self) -> Result<(), BackboneError> {
        let map = self.nodes.map().await?;
        try_join_all(map.nodes().iter().map(|node| self.ping_node(node))).await?;
        Ok(())
    }
}

/// Takes what `WAIT` said, the last of these answers, from the others.
fn count_replicas(mut answers: Vec<RedisResult<Value>>) -> RedisResult<(Vec<RedisResult<Value>>, usize)> {
    let replicas = answers.pop().unwrap_or_else(|| Err(unanswered()))?;
    Ok((answers, ::redis::from_redis_value(replicas)?))
}

/// The newest `count` entries of a stream, newest first.
fn newest(key: &str, count: usize) -> Cmd {
    let mut range = cmd("XREVRANGE");
    range.arg(key).arg("+").arg("-").arg("COUNT").arg(count);
    range
}

fn id_of_last(entries: &[Entry]) -> Result<StreamId, BackboneError> {
    entries.last().map_or(Ok(StreamId::ZERO), |(id, _)| read_stream_id(keys::REVOKED, id))
}

fn xread(cursors: &[(MarketId, Position)], limit: usize) -> Cmd {
    let mut read = cmd("XREAD");
    read.arg("COUNT").arg(limit).arg("STREAMS");
    for (market, _) in cursors {
        read.arg(keys::log(*market));
    }
    for (_, cursor) in cursors {
        read.arg(cursor.to_string());
    }
    read
}

/// What a read brought. A log with an entry that cannot be understood is left where it was; it holds up no other.
fn read_streams(streams: Value) -> Result<Vec<(MarketId, Vec<Update>)>, BackboneError> {
    let streams: Option<Vec<(String, Value)>> =
        FromRedisValue::from_redis_value(streams).map_err(RedisError::from)?;
    let read = |(key, entries): (String, Value)| {
        let market = keys::market_of_log(&key).ok_or_else(|| malformed(&key, "not a log's key"))?;
        Ok((market, read_updates(&key, entries)?))
    };
    let report =
        |error: &BackboneError| tracing::error!(%error, "a log cannot be followed: its clients stay behind");
    Ok(streams.into_iter().flatten().filter_map(|stream| read(stream).inspect_err(report).ok()).collect())
}

/// Whether an error says that nothing could be asked, rather than that this one thing was refused.
pub(super) fn is_outage(error: &RedisError) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::ResponseError)
            | ErrorKind::Parse
            | ErrorKind::UnexpectedReturnType
            | ErrorKind::Extension
    )
}

fn unanswered() -> RedisError {
    (ErrorKind::Client, "Redis answered fewer commands than it was asked").into()
}
