//! Reads replies of Redis into the types of the seam.

use std::collections::HashMap;

use ::redis::{FromRedisValue, RedisError, Value};
use protocol::{
    TraceContext,
    ids::MarketId,
    position::{Epoch, Position, Seq},
    update::{MarketState, Update},
};

use crate::{AuditEntry, AuditId, BackboneError, Loaded, StreamId, keys};

/// Returns the error for a key whose content is not understood.
pub(super) fn malformed(key: &str, problem: &str) -> BackboneError {
    BackboneError::Malformed { key: key.to_owned(), problem: problem.to_owned() }
}

/// Reads entries of a log, in the order of the reply.
pub(super) fn read_updates(key: &str, entries: Value) -> Result<Vec<Update>, BackboneError> {
    let entries: Vec<(String, HashMap<String, String>)> =
        FromRedisValue::from_redis_value(entries).map_err(RedisError::from)?;
    entries
        .into_iter()
        .map(|(id, mut fields)| {
            let position = id.parse().map_err(|_| malformed(key, "an entry id is not <epoch>-<seq>"))?;
            let ts = fields.get("ts").and_then(|ts| ts.parse().ok());
            let ts = ts.ok_or_else(|| malformed(key, "an entry has no ts"))?;
            let payload = fields.remove("p").ok_or_else(|| malformed(key, "an entry has no p"))?;
            let trace = fields.get("t").map(|traceparent| TraceContext::new(traceparent));
            Ok(Update { position, ts, payload: payload.into(), trace })
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

/// Reads an entry of a market's audit.
pub(super) fn read_audit_entry(
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
        id: AuditId { market, entry: read_stream_id(key, id)? },
        position: Position::new(number(take("epoch")?)?, number(take("seq")?)?),
        ts: number(take("ts")?)?,
        actor: take("actor")?,
        reason: take("reason")?,
        before: take("before")?,
        after: take("after")?,
        request_id: take("requestId")?,
    })
}

/// Reads the id of an audit entry or a revocation.
pub(super) fn read_stream_id(key: &str, id: &str) -> Result<StreamId, BackboneError> {
    id.parse().map_err(|_| malformed(key, "an entry id is not <ms>-<n>"))
}

/// Reads a market's state, and the newest entries of its log, newest first, from the same moment. Keeps `history` of them.
pub(super) fn read_loaded(
    market: MarketId,
    state: HashMap<String, String>,
    log: Value,
    history: usize,
) -> Result<Loaded, BackboneError> {
    let mut state = read_state(market, state)?;
    let mut updates = read_updates(&keys::log(market), log)?;
    updates.reverse();
    // If state and log differ, the log decides.
    if let Some(last) = updates.last()
        && last.position != state.position
    {
        state.position = last.position;
        state.ts = last.ts;
    }
    // Keeps only the updates that lead to the state without a hole.
    let Position { epoch, seq } = state.position;
    let whole = updates
        .iter()
        .rev()
        .zip((0..=seq.get()).rev())
        .take_while(|(update, seq)| update.position == Position { epoch, seq: Seq::new(*seq) })
        .count();
    updates.drain(..updates.len() - whole.min(history));
    Ok(Loaded { state, updates })
}
