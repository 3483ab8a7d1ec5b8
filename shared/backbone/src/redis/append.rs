//! Appending: `append.lua`, called in one pipeline per node.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::redis::{
    Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, cmd, from_redis_value,
};
use futures_util::future::join_all;
use protocol::{ids::MarketId, json::quoted, position::Position};
use tokio::time::sleep;

use super::{RedisBackbone, decode::malformed, node::Node, nodes::RETRY_AFTER_MS};
use crate::{
    Append, AppendError, Appended, AuditId, BackboneError, Durability,
    error::{is_misdirected, missing_reply},
    keys,
};

/// The script that appends one override.
pub(super) const SCRIPT: &str = include_str!("../append.lua");

/// How long replicas may take to have an append, milliseconds.
const WAIT_MS: u32 = 1000;

/// What Redis replied to one append.
struct Reply {
    value: RedisResult<Value>,
    /// The number of replicas that have the append.
    replicas: usize,
}

impl RedisBackbone {
    /// Appends overrides, and sends those again that a node rejected without executing them.
    pub(super) async fn append_all(&self, appends: &[Append]) -> Vec<Result<Appended, AppendError>> {
        let mut results: Vec<Option<Result<Appended, AppendError>>> = appends.iter().map(|_| None).collect();
        let mut unsent: Vec<usize> = (0..appends.len()).collect();
        let mut new_markets = Vec::new();
        let mut pauses = RETRY_AFTER_MS.into_iter();
        while !unsent.is_empty() {
            let sent: Vec<&Append> = unsent.iter().map(|&index| &appends[index]).collect();
            let replies = self.send(&sent).await;
            let pause_ms = pauses.next();
            let mut rejected = Vec::new();
            for (index, reply) in unsent.into_iter().zip(replies) {
                if pause_ms.is_some() && matches!(&reply.value, Err(error) if was_not_executed(error)) {
                    rejected.push(index);
                    continue;
                }
                let market = appends[index].market;
                let value = reply.value.map_err(|error| AppendError::from(BackboneError::from(error)));
                let appended = value.and_then(|value| read_reply(market, value));
                if let Ok(appended) = &appended
                    && self.remembered.record(market, appended.position)
                {
                    new_markets.push(market);
                }
                results[index] =
                    Some(appended.and_then(|appended| self.check_replicas(appended, reply.replicas)));
            }
            unsent = rejected;
            if let Some(pause_ms) = pause_ms.filter(|_| !unsent.is_empty()) {
                sleep(Duration::from_millis(pause_ms)).await;
            }
        }
        self.list(new_markets);
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(BackboneError::from(missing_reply()).into())))
            .collect()
    }

    /// Sends appends to their nodes at the same time. Returns the replies in the order of `appends`.
    async fn send(&self, appends: &[&Append]) -> Vec<Reply> {
        let mut replies: Vec<Option<Reply>> = appends.iter().map(|_| None).collect();
        let mut by_node: BTreeMap<String, (Arc<Node>, Vec<usize>)> = BTreeMap::new();
        for (index, append) in appends.iter().enumerate() {
            match self.nodes.primary_of(append.market).await {
                Ok(node) => {
                    by_node.entry(node.address.clone()).or_insert_with(|| (node, Vec::new())).1.push(index);
                }
                Err(error) => replies[index] = Some(Reply { value: Err(error), replicas: 0 }),
            }
        }
        let pipelines = by_node.into_values().map(|(node, indices)| self.send_to(node, appends, indices));
        for (indices, sent) in join_all(pipelines).await {
            match sent {
                Ok((values, replicas)) => {
                    for (index, value) in indices.into_iter().zip(values) {
                        replies[index] = Some(Reply { value, replicas });
                    }
                }
                Err(error) => {
                    for index in indices {
                        replies[index] = Some(Reply { value: Err(error.clone()), replicas: 0 });
                    }
                }
            }
        }
        let missing = || Reply { value: Err(missing_reply()), replicas: 0 };
        replies.into_iter().map(|reply| reply.unwrap_or_else(missing)).collect()
    }

    /// Sends the appends at `indices` to one node. Returns the values, and the number of replicas that have all of them.
    async fn send_to(
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
        let replies = if self.min_replicas == 0 {
            let values = pipeline.query_async(&mut node.writes.clone()).await;
            self.nodes.note_each(&node, values).map(|values| (values, 0))
        } else {
            pipeline.cmd("WAIT").arg(self.min_replicas).arg(WAIT_MS);
            // WAIT blocks its connection, so this one is not shared.
            let values = node.ask(&pipeline).await;
            self.nodes.note_each(&node, values).and_then(split_off_replicas)
        };
        let lacked_script = |value: &RedisResult<Value>| value.as_ref().is_err_and(lacks_script);
        if replies.as_ref().is_ok_and(|(values, _)| values.iter().any(lacked_script)) {
            let mut load = cmd("SCRIPT");
            load.arg("LOAD").arg(SCRIPT);
            // If this fails, the appends are rejected again.
            let _: RedisResult<String> = load.query_async(&mut node.writes.clone()).await;
        }
        (indices, replies)
    }

    fn append_command(&self, append: &Append) -> Cmd {
        let market = append.market;
        let known = self.remembered.position(market);
        let mut call = cmd("EVALSHA");
        call.arg(self.append_script.get_hash()).arg(if append.idempotency.is_some() { 4 } else { 3 });
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

    /// Fails an append that too few replicas have.
    fn check_replicas(&self, appended: Appended, replicas: usize) -> Result<Appended, AppendError> {
        match self.min_replicas {
            0 => Ok(appended),
            wanted if replicas >= wanted => Ok(Appended { durability: Durability::Replicated, ..appended }),
            wanted => Err(AppendError::NotReplicated { position: appended.position, replicas, wanted }),
        }
    }
}

/// Splits the reply to `WAIT`, the last one, from the others.
fn split_off_replicas(mut values: Vec<RedisResult<Value>>) -> RedisResult<(Vec<RedisResult<Value>>, usize)> {
    let replicas = values.pop().unwrap_or_else(|| Err(missing_reply()))?;
    Ok((values, from_redis_value(replicas)?))
}

/// Returns true if sending an append again after this error appends it only once.
fn was_not_executed(error: &RedisError) -> bool {
    is_misdirected(error) || lacks_script(error)
}

fn lacks_script(error: &RedisError) -> bool {
    error.kind() == ServerErrorKind::NoScript.into()
}

/// Reads what `append.lua` returned.
fn read_reply(market: MarketId, value: Value) -> Result<Appended, AppendError> {
    let reply: Vec<String> =
        FromRedisValue::from_redis_value(value).map_err(RedisError::from).map_err(BackboneError::from)?;
    let number = |index: usize| reply.get(index).and_then(|text: &String| text.parse::<u64>().ok());
    let position = || Some(Position::new(number(1)?, number(2)?));
    let read = || match reply.first().map(String::as_str)? {
        kind @ ("ok" | "replayed") => Some(Ok(Appended {
            position: position()?,
            ts: number(3)?,
            audit_id: AuditId { market, entry: reply.get(4)?.parse().ok()? },
            replayed: kind == "replayed",
            durability: Durability::Memory,
        })),
        "conflict" => Some(Err(AppendError::Conflict { current: position()? })),
        "reused" => Some(Err(AppendError::KeyReused)),
        _ => None,
    };
    read()
        .unwrap_or_else(|| Err(malformed(&keys::log(market), "unexpected reply of the append script").into()))
}
