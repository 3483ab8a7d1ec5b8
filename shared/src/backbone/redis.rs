//! The backbone on Redis Streams (contract, section 6).

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult, Script, ServerErrorKind, Value,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    cmd, pipe,
};
use async_trait::async_trait;
use deadpool_redis::{Manager, Pool, Runtime};
use tokio::sync::Notify;

use super::{
    Append, AppendError, Appended, AuditEntry, AuditId, Backbone, BackboneError, Doorbell, Loaded, LogPage,
    Retention, Ring, keys,
};
use crate::{
    ids::MarketId,
    position::{Epoch, Position, Seq},
    update::{MarketState, Update},
};

/// How long Redis may take to answer before the call fails. No command here blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections for reads that a request waits for (REST, audit, market loads). Each serves one request at a time.
const POOL_SIZE: usize = 8;

/// Logs, states and audits in one Redis.
pub struct RedisBackbone {
    client: Client,
    /// Appends and tail reads: multiplexed, so that concurrent requests share round trips.
    writes: ConnectionManager,
    tails: ConnectionManager,
    /// Everything else.
    reads: Pool,
    append: Script,
    retention: Retention,
    /// The highest position acknowledged per market: a log whose top is below has lost history. One entry a market.
    remembered: Mutex<HashMap<MarketId, Position>>,
}

impl RedisBackbone {
    /// A backbone on the Redis at `url`, as `redis://[user:password@]host[:port][/db]`. Connects when first used.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(url: &str, retention: Retention) -> Result<Self, RedisError> {
        let info = url.into_connection_info()?;
        let nodelay = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(nodelay);
        let client = Client::open(info.clone())?;
        let managed = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // Who asks decides whether to ask again.
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_secs(1));
        let pooled = Manager::new_with_config(info, connection_config())?;
        let reads = Pool::builder(pooled)
            .max_size(POOL_SIZE)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(RESPONSE_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(RESPONSE_TIMEOUT))
            .build()
            .map_err(|error| RedisError::from(std::io::Error::other(error)))?;
        Ok(Self {
            writes: ConnectionManager::new_lazy_with_config(client.clone(), managed.clone())?,
            tails: ConnectionManager::new_lazy_with_config(client.clone(), managed)?,
            client,
            reads,
            append: Script::new(include_str!("append.lua")),
            retention,
            remembered: Mutex::default(),
        })
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<MarketId, Position>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One pipeline of the script; its answers in order.
    async fn run_appends(&self, appends: &[&Append]) -> Result<Vec<RedisResult<Value>>, RedisError> {
        let mut pipeline = Pipeline::with_capacity(appends.len());
        pipeline.ignore_errors();
        for append in appends {
            let known = self.remembered().get(&append.market).copied().unwrap_or(Position::ORIGIN);
            self.add_append(&mut pipeline, append, known);
        }
        pipeline.query_async(&mut self.writes.clone()).await
    }

    fn add_append(&self, pipeline: &mut Pipeline, append: &Append, known: Position) {
        let market = append.market;
        let call = pipeline.cmd("EVALSHA").arg(self.append.get_hash());
        call.arg(if append.idempotency.is_some() { 4 } else { 3 });
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
            call.arg(&*line.name)
                .arg(crate::update::quoted(&line.name))
                .arg(line.text.as_deref().unwrap_or_default());
        }
    }

    fn remember(&self, market: MarketId, position: Position) {
        let mut remembered = self.remembered();
        let known = remembered.entry(market).or_default();
        *known = (*known).max(position);
    }
}

#[async_trait]
impl Backbone for RedisBackbone {
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
        let mut pending: Vec<usize> = (0..appends.len()).collect();
        let mut answers: Vec<Option<Result<Appended, AppendError>>> = appends.iter().map(|_| None).collect();
        // A Redis that does not know the script yet has executed nothing: load it and ask those again.
        for may_load in [true, false] {
            let asked: Vec<&Append> = pending.iter().map(|&index| &appends[index]).collect();
            let results = match self.run_appends(&asked).await {
                Ok(results) => results,
                Err(error) => pending.iter().map(|_| Err(error.clone())).collect(),
            };
            let mut unknown_script = Vec::new();
            for (&index, result) in pending.iter().zip(results) {
                if may_load
                    && matches!(&result, Err(error) if error.kind() == ServerErrorKind::NoScript.into())
                {
                    unknown_script.push(index);
                    continue;
                }
                let market = appends[index].market;
                let answer = result.map_err(BackboneError::from).map_err(AppendError::from);
                let answer = answer.and_then(|value| read_answer(market, value));
                if let Ok(appended) = &answer {
                    self.remember(market, appended.position);
                }
                answers[index] = Some(answer);
            }
            pending = unknown_script;
            if pending.is_empty() {
                break;
            }
            let mut load = cmd("SCRIPT");
            load.arg("LOAD").arg(include_str!("append.lua"));
            // When this fails, the second round's answers say so.
            let _: RedisResult<String> = load.query_async(&mut self.writes.clone()).await;
        }
        answers.into_iter().flatten().collect()
    }

    async fn read_after(&self, market: MarketId, after: Seq, limit: usize) -> Result<LogPage, BackboneError> {
        let key = keys::log(market);
        let mut connection = self.reads.get().await?;
        let newest: Value = cmd("XREVRANGE")
            .arg(&key)
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .query_async(&mut connection)
            .await?;
        let Some(top) = read_updates(&key, newest)?.pop() else { return Ok(LogPage::default()) };
        let top = top.position;
        if after >= top.seq {
            return Ok(LogPage { top, updates: Vec::new() });
        }
        let from = Position { epoch: top.epoch, seq: after.next() };
        let entries: Value = cmd("XRANGE")
            .arg(&key)
            .arg(from.to_string())
            .arg("+")
            .arg("COUNT")
            .arg(limit)
            .query_async(&mut connection)
            .await?;
        let mut updates = read_updates(&key, entries)?;
        // A new epoch may have begun between the two reads: what is of it does not belong to this page.
        updates.retain(|update| update.position.epoch == top.epoch);
        let top = updates.last().map_or(top, |last| last.position.max(top));
        Ok(LogPage { top, updates })
    }

    async fn load(&self, markets: &[MarketId], history: usize) -> Result<Vec<Loaded>, BackboneError> {
        let mut pipeline = pipe();
        for &market in markets {
            // MULTI around each market's pair: state and log from the same moment.
            pipeline.cmd("MULTI").ignore();
            pipeline.cmd("HGETALL").arg(keys::state(market)).ignore();
            pipeline
                .cmd("XREVRANGE")
                .arg(keys::log(market))
                .arg("+")
                .arg("-")
                .arg("COUNT")
                .arg(history.max(1))
                .ignore();
            pipeline.cmd("EXEC");
        }
        let mut connection = self.reads.get().await?;
        let pairs: Vec<(HashMap<String, String>, Value)> = pipeline.query_async(&mut connection).await?;
        markets
            .iter()
            .zip(pairs)
            .map(|(&market, (state, log))| {
                let mut state = read_state(market, state)?;
                let mut updates = read_updates(&keys::log(market), log)?;
                updates.reverse();
                // The log decides: what is kept of it counts only as far as it leads to the state without a hole.
                if let Some(last) = updates.last()
                    && last.position != state.position
                {
                    state.position = last.position;
                    state.ts = last.ts;
                }
                let whole = updates
                    .iter()
                    .rev()
                    .zip((0..=state.position.seq.get()).rev())
                    .take_while(|(update, seq)| {
                        update.position == Position { epoch: state.position.epoch, seq: Seq::new(*seq) }
                    })
                    .count();
                updates.drain(..updates.len() - whole.min(history));
                Ok(Loaded { state, updates })
            })
            .collect()
    }

    async fn read_tails(
        &self,
        cursors: &[(MarketId, Position)],
        limit: usize,
    ) -> Result<Vec<(MarketId, Vec<Update>)>, BackboneError> {
        if cursors.is_empty() {
            return Ok(Vec::new());
        }
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(limit).arg("STREAMS");
        for (market, _) in cursors {
            read.arg(keys::log(*market));
        }
        for (_, cursor) in cursors {
            read.arg(cursor.to_string());
        }
        let streams: Option<Vec<(String, Value)>> = match read.query_async(&mut self.tails.clone()).await? {
            Value::Nil => None,
            Value::Map(streams) => Some(
                streams
                    .into_iter()
                    .map(|(key, entries)| Ok((String::from_redis_value(key)?, entries)))
                    .collect::<RedisResult<_>>()?,
            ),
            streams => Some(FromRedisValue::from_redis_value(streams).map_err(RedisError::from)?),
        };
        streams
            .into_iter()
            .flatten()
            .map(|(key, entries)| {
                let market = keys::market_of_log(&key).ok_or_else(|| malformed(&key, "not a log's key"))?;
                Ok((market, read_updates(&key, entries)?))
            })
            .collect()
    }

    async fn audit(
        &self,
        market: MarketId,
        before: Option<AuditId>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError> {
        let key = keys::audit(market);
        let end = before.map_or("+".to_owned(), |id| format!("({}", id.entry()));
        let mut read = cmd("XREVRANGE");
        read.arg(&key).arg(end).arg("-").arg("COUNT").arg(limit);
        let entries: Vec<(String, HashMap<String, String>)> =
            read.query_async(&mut self.reads.get().await?).await?;
        entries.into_iter().map(|(id, fields)| read_audit_entry(market, &key, &id, fields)).collect()
    }

    fn doorbell(&self) -> Box<dyn Doorbell> {
        Box::new(TrackingDoorbell { client: self.client.clone(), listening: None })
    }

    async fn ping(&self) -> Result<(), BackboneError> {
        cmd("PING").query_async::<Value>(&mut self.tails.clone()).await?;
        Ok(())
    }
}

fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
}

fn malformed(key: &str, problem: &str) -> BackboneError {
    BackboneError::Malformed { key: key.to_owned(), problem: problem.to_owned() }
}

/// Reads what `append.lua` answers.
fn read_answer(market: MarketId, value: Value) -> Result<Appended, AppendError> {
    let answer: Vec<String> =
        FromRedisValue::from_redis_value(value).map_err(RedisError::from).map_err(BackboneError::from)?;
    let number = |index: usize| answer.get(index).and_then(|text: &String| text.parse::<u64>().ok());
    let position = || Some(Position::new(number(1)?, number(2)?));
    let read = || match answer.first().map(String::as_str)? {
        kind @ ("ok" | "replayed") => Some(Ok(Appended {
            position: position()?,
            ts: number(3)?,
            audit_id: AuditId::new(market, answer.get(4)?),
            replayed: kind == "replayed",
        })),
        "conflict" => Some(Err(AppendError::Conflict { current: position()? })),
        "reused" => Some(Err(AppendError::KeyReused)),
        _ => None,
    };
    read().unwrap_or_else(|| {
        Err(malformed(&keys::log(market), "the append script answered something else").into())
    })
}

/// Reads entries of a log, in the order Redis gave them.
fn read_updates(key: &str, entries: Value) -> Result<Vec<Update>, BackboneError> {
    let entries: Vec<(String, HashMap<String, String>)> =
        FromRedisValue::from_redis_value(entries).map_err(RedisError::from)?;
    entries
        .into_iter()
        .map(|(id, mut fields)| {
            let position = id.parse().map_err(|_| malformed(key, "an entry id is not <epoch>-<seq>"))?;
            let ts = fields.get("ts").and_then(|ts| ts.parse().ok());
            let ts = ts.ok_or_else(|| malformed(key, "an entry has no ts"))?;
            let payload = fields.remove("p").ok_or_else(|| malformed(key, "an entry has no p"))?;
            Ok(Update { position, ts, payload: payload.into() })
        })
        .collect()
}

fn read_state(market: MarketId, fields: HashMap<String, String>) -> Result<MarketState, BackboneError> {
    let mut state = MarketState::default();
    for (field, text) in fields {
        let number = || {
            text.parse::<u64>().map_err(|_| malformed(&keys::state(market), "epoch, seq and ts are numbers"))
        };
        match field.as_str() {
            "epoch" => state.position.epoch = Epoch::new(number()?),
            "seq" => state.position.seq = Seq::new(number()?),
            "ts" => state.ts = number()?,
            _ => {
                if let Some(line) = field.strip_prefix(keys::LINE_PREFIX) {
                    state.lines.insert(line.into(), text.into());
                }
            }
        }
    }
    Ok(state)
}

fn read_audit_entry(
    market: MarketId,
    key: &str,
    id: &str,
    mut fields: HashMap<String, String>,
) -> Result<AuditEntry, BackboneError> {
    let mut take =
        |name: &str| fields.remove(name).ok_or_else(|| malformed(key, &format!("entry {id} has no {name}")));
    let number =
        |text: String| text.parse::<u64>().map_err(|_| malformed(key, "epoch, seq and ts are numbers"));
    Ok(AuditEntry {
        id: AuditId::new(market, id),
        position: Position::new(number(take("epoch")?)?, number(take("seq")?)?),
        ts: number(take("ts")?)?,
        actor: take("actor")?,
        reason: take("reason")?,
        before: take("before")?,
        after: take("after")?,
        request_id: take("requestId")?,
    })
}

/// `CLIENT TRACKING ON BCAST` on the logs' prefix: Redis pushes the key of every log that changes.
///
/// It needs RESP3, and a connection of its own, whose loss means that rings were lost.
struct TrackingDoorbell {
    client: Client,
    listening: Option<Listening>,
}

struct Listening {
    rung: Arc<Rung>,
    /// Held for its pushes alone.
    _connection: MultiplexedConnection,
}

/// What rang and was not heard yet: at most one mark a market.
#[derive(Default)]
struct Rung {
    marks: Mutex<Marks>,
    notify: Notify,
}

#[derive(Default)]
struct Marks {
    markets: BTreeSet<MarketId>,
    all: bool,
    disconnected: bool,
}

impl Rung {
    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, push: PushInfo) {
        match push.kind {
            PushKind::Invalidate => {
                let keys = Option::<Vec<String>>::from_redis_value(
                    push.data.into_iter().next().unwrap_or(Value::Nil),
                );
                let mut marks = self.marks();
                match keys {
                    Ok(Some(keys)) => {
                        marks.markets.extend(keys.iter().filter_map(|key| keys::market_of_log(key)));
                    }
                    // FLUSHALL pushes nil: everything changed.
                    _ => marks.all = true,
                }
            }
            PushKind::Disconnection => self.marks().disconnected = true,
            _ => return,
        }
        self.notify.notify_one();
    }
}

impl TrackingDoorbell {
    async fn listen(&self) -> Result<Listening, RedisError> {
        let rung = Arc::new(Rung::default());
        let for_pushes = Arc::clone(&rung);
        let config = connection_config().set_push_sender(move |push| {
            for_pushes.push(push);
            Ok::<(), ::redis::aio::SendError>(())
        });
        let info: ConnectionInfo = self.client.get_connection_info().clone();
        let resp3 = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(resp3))?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        cmd("CLIENT")
            .arg("TRACKING")
            .arg("ON")
            .arg("BCAST")
            .arg("PREFIX")
            .arg(keys::LOG_PREFIX)
            .query_async::<()>(&mut connection)
            .await?;
        Ok(Listening { rung, _connection: connection })
    }
}

#[async_trait]
impl Doorbell for TrackingDoorbell {
    async fn wait(&mut self) -> Result<Ring, BackboneError> {
        let Some(listening) = &self.listening else {
            self.listening = Some(self.listen().await?);
            return Ok(Ring::All);
        };
        loop {
            let marks = std::mem::take(&mut *listening.rung.marks());
            if marks.disconnected {
                self.listening = None;
                return Err(
                    RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset)).into()
                );
            }
            if marks.all {
                return Ok(Ring::All);
            }
            if !marks.markets.is_empty() {
                return Ok(Ring::Markets(marks.markets.into_iter().collect()));
            }
            listening.rung.notify.notified().await;
        }
    }
}
