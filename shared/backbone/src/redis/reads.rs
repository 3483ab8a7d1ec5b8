//! Reads of single markets, and of latest positions. They go to primaries.

use std::collections::HashMap;

use ::redis::{Cmd, Pipeline, RedisResult, Value, cmd, pipe};
use futures_util::future::try_join_all;
use protocol::{
    ids::MarketId,
    position::{Position, Seq},
    update::Update,
};

use super::{
    decode::{read_audit_entry, read_loaded, read_updates},
    nodes::Nodes,
    slots::slot_of,
};
use crate::{AuditEntry, AuditId, BackboneError, Loaded, LogPage, StreamId, keys};

pub(super) async fn read_after(
    nodes: &Nodes,
    market: MarketId,
    after: Seq,
    limit: usize,
) -> Result<LogPage, BackboneError> {
    let Some(newest) = range(nodes, "XREVRANGE", market, ("+", "-"), 1).await?.pop() else {
        return Ok(LogPage::default());
    };
    let latest = newest.position;
    if after >= latest.seq {
        return Ok(LogPage { latest, updates: Vec::new() });
    }
    let from = Position { epoch: latest.epoch, seq: after.next() };
    let mut updates = range(nodes, "XRANGE", market, (&from.to_string(), "+"), limit).await?;
    // A new epoch may have begun between the two reads. Its updates do not belong to this page.
    updates.retain(|update| update.position.epoch == latest.epoch);
    let latest = updates.last().map_or(latest, |last| last.position.max(latest));
    Ok(LogPage { latest, updates })
}

pub(super) async fn load(
    nodes: &Nodes,
    markets: &[MarketId],
    history: usize,
) -> Result<Vec<Loaded>, BackboneError> {
    try_join_all(markets.iter().map(|&market| load_one(nodes, market, history))).await
}

pub(super) async fn latest_positions(
    nodes: &Nodes,
    markets: &[MarketId],
) -> Result<Vec<Position>, BackboneError> {
    let Some(&first) = markets.first() else { return Ok(Vec::new()) };
    let node = nodes.primary_of(first).await?;
    let mut reads = Pipeline::with_capacity(markets.len());
    reads.ignore_errors();
    for &market in markets {
        reads.add_command(newest(&keys::log(market), 1));
    }
    let replies: RedisResult<Vec<RedisResult<Value>>> = reads.query_async(&mut node.tails.clone()).await;
    let replies = nodes.note_each(&node, replies)?;
    let latest = |(market, reply): (&MarketId, RedisResult<Value>)| {
        let entries = reply.map_err(BackboneError::from);
        match entries.and_then(|entries| read_updates(&keys::log(*market), entries)) {
            Ok(mut updates) => Ok(updates.pop().map_or(Position::ORIGIN, |update| update.position)),
            Err(error) if error.is_outage() => Err(error),
            Err(_) => Ok(Position::ORIGIN),
        }
    };
    markets.iter().zip(replies).map(latest).collect()
}

pub(super) async fn audit(
    nodes: &Nodes,
    market: MarketId,
    before: Option<AuditId>,
    limit: usize,
) -> Result<Vec<AuditEntry>, BackboneError> {
    // No entry has a lower id than this one, and Redis rejects a range that ends before it.
    if before.as_ref().is_some_and(|id| id.entry == StreamId::ZERO) {
        return Ok(Vec::new());
    }
    let key = keys::audit(market);
    let end = before.map_or("+".to_owned(), |id| format!("({}", id.entry));
    let mut range = pipe();
    range.cmd("XREVRANGE").arg(&key).arg(end).arg("-").arg("COUNT").arg(limit);
    let (entries,): (Vec<(String, HashMap<String, String>)>,) = nodes.ask(slot_of(market), &range).await?;
    entries.into_iter().map(|(id, fields)| read_audit_entry(market, &key, &id, fields)).collect()
}

/// Returns the command that reads the newest `count` entries of a stream, newest first.
pub(super) fn newest(key: &str, count: usize) -> Cmd {
    let mut range = cmd("XREVRANGE");
    range.arg(key).arg("+").arg("-").arg("COUNT").arg(count);
    range
}

async fn load_one(nodes: &Nodes, market: MarketId, history: usize) -> Result<Loaded, BackboneError> {
    let mut transaction = pipe();
    // A transaction, so that state and log are of the same moment.
    transaction.atomic().cmd("HGETALL").arg(keys::state(market));
    transaction.add_command(newest(&keys::log(market), history.max(1)));
    let (state, log) = nodes.ask(slot_of(market), &transaction).await?;
    read_loaded(market, state, log, history)
}

/// Reads up to `count` entries of a market's log between two ids.
async fn range(
    nodes: &Nodes,
    command: &str,
    market: MarketId,
    (from, to): (&str, &str),
    count: usize,
) -> Result<Vec<Update>, BackboneError> {
    let key = keys::log(market);
    let mut range = pipe();
    range.cmd(command).arg(&key).arg(from).arg(to).arg("COUNT").arg(count);
    let (entries,): (Value,) = nodes.ask(slot_of(market), &range).await?;
    read_updates(&key, entries)
}
