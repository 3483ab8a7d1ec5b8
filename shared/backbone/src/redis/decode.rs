//! What Redis answers, read into our types.

use std::collections::HashMap;

use ::redis::{FromRedisValue, RedisError, Value};
use protocol::{
    TraceContext,
    ids::MarketId,
    position::{Epoch, Position, Seq},
    update::{MarketState, Update},
};

use crate::{
    AppendError, Appended, AuditEntry, AuditId, BackboneError, Durability, Loaded, Revocation, Revoked,
    StreamId, keys,
};

pub(super) fn malformed(key: &str, problem: &str) -> BackboneError {
    BackboneError::Malformed { key: key.to_owned(), problem: problem.to_owned() }
}

/// Reads what `append.lua` answers.
pub(super) fn read_answer(market: MarketId, value: Value) -> Result<Appended, AppendError> {
    let answer: Vec<String> =
        FromRedisValue::from_redis_value(value).map_err(RedisError::from).map_err(BackboneError::from)?;
    let number = |index: usize| answer.get(index).and_then(|text: &String| text.parse::<u64>().ok());
    let position = || Some(Position::new(number(1)?, number(2)?));
    let read = || match answer.first().map(String::as_str)? {
        kind @ ("ok" | "replayed") => Some(Ok(Appended {
            position: position()?,
            ts: number(3)?,
            audit_id: AuditId { market, entry: answer.get(4)?.parse().ok()? },
            replayed: kind == "replayed",
            durability: Durability::Memory,
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

/// A stream's entry: its id and its fields.
pub(super) type Entry = (String, HashMap<String, String>);

/// The field of a revocation that names a user.
pub(super) const REVOKED_USER: &str = "user";
/// The field of a revocation that names a token.
pub(super) const REVOKED_TOKEN: &str = "jti";

/// Reads the id of an entry of the audit or of the revocations.
pub(super) fn read_stream_id(key: &str, id: &str) -> Result<StreamId, BackboneError> {
    id.parse().map_err(|_| malformed(key, "an entry id is not <ms>-<n>"))
}

pub(super) fn read_revocation((id, mut fields): Entry) -> Result<Revocation, BackboneError> {
    let user = fields.remove(REVOKED_USER).map(Revoked::User);
    let whom = user.or_else(|| fields.remove(REVOKED_TOKEN).map(Revoked::Token));
    let whom = whom.ok_or_else(|| malformed(keys::REVOKED, &format!("entry {id} names nobody")))?;
    Ok(Revocation { whom, ts: read_stream_id(keys::REVOKED, &id)?.ms })
}

/// A market's state and the newest `history` entries of its log, newest first, from the same moment.
pub(super) fn read_loaded(
    market: MarketId,
    state: HashMap<String, String>,
    log: Value,
    history: usize,
) -> Result<Loaded, BackboneError> {
    let mut state = read_state(market, state)?;
    let mut updates = read_updates(&keys::log(market), log)?;
    updates.reverse();
    // The log decides.
    if let Some(last) = updates.last()
        && last.position != state.position
    {
        state.position = last.position;
        state.ts = last.ts;
    }
    // What is kept counts only as far as it leads to the state without a hole.
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
