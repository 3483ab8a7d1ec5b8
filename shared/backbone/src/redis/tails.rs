//! Reads of several logs after their cursors, for the gateway's tail. A replica may serve them.

use ::redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, Value, cmd};
use protocol::{ids::MarketId, position::Position, update::Update};

use super::{
    decode::{malformed, read_updates},
    node::Node,
    nodes::Nodes,
};
use crate::{BackboneError, Tails, error::is_outage, keys};

pub(super) async fn read(
    nodes: &Nodes,
    cursors: &[(MarketId, Position)],
    limit: usize,
) -> Result<Tails, BackboneError> {
    let Some(&(first, _)) = cursors.first() else { return Ok(Tails::default()) };
    let node = nodes.tail_of(first).await?;
    // In a cluster, all keys of a command must share a slot.
    let group = if nodes.is_cluster() { 1 } else { cursors.len() };
    let mut tails = Tails::default();
    let mut replies = read_groups(nodes, &node, cursors, group, limit).await?;
    // A single key that is not a stream fails the whole command. Then each log is read by a command of its own.
    if group > 1 && matches!(replies.first(), Some((_, Err(error))) if !is_outage(error)) {
        replies = read_groups(nodes, &node, cursors, 1, limit).await?;
    }
    for (group, reply) in replies {
        match reply {
            Ok(streams) => tails.updates.extend(read_streams(streams)?),
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

/// Adds the keys of several logs and the cursors in them, the end of every `XREAD`.
pub(super) fn add_streams(read: &mut Cmd, cursors: &[(MarketId, Position)]) {
    read.arg("STREAMS");
    for (market, _) in cursors {
        read.arg(keys::log(*market));
    }
    for (_, cursor) in cursors {
        read.arg(cursor.to_string());
    }
}

/// Reads the logs in groups, with one command per group, in one round trip.
async fn read_groups<'a>(
    nodes: &Nodes,
    node: &Node,
    cursors: &'a [(MarketId, Position)],
    group: usize,
    limit: usize,
) -> Result<Vec<(&'a [(MarketId, Position)], RedisResult<Value>)>, BackboneError> {
    let mut reads = Pipeline::new();
    reads.ignore_errors();
    if node.is_replica && nodes.is_cluster() {
        reads.cmd("READONLY").ignore();
    }
    for group in cursors.chunks(group) {
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(limit);
        add_streams(&mut read, group);
        reads.add_command(read);
    }
    let replies: RedisResult<Vec<RedisResult<Value>>> = reads.query_async(&mut node.tails.clone()).await;
    let replies = nodes.note_each(node, replies)?;
    Ok(cursors.chunks(group).zip(replies).collect())
}

/// Reads the reply to `XREAD`. A log with a malformed entry is left out, so that it does not hold up the others.
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
