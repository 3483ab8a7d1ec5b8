//! Batches of audit entries for publishers that copy the audit elsewhere: a consumer group on each market's audit stream.
//!
//! All publishers are one consumer, so a publisher that dies leaves no consumer to remove. Redis delivers each new entry
//! to one read, and keeps it pending until it is acknowledged. An entry that is pending for too long is delivered again.
//! Delivery is at least once, unless the entry is trimmed first.

use std::{collections::HashMap, time::Duration};

use ::redis::{FromRedisValue, Pipeline, RedisError, RedisResult, Value, cmd};
use protocol::ids::MarketId;

use super::{RedisBackbone, decode::read_audit_entry, node::Node, slots::slot_of};
use crate::{
    AuditEntry, AuditId, BackboneError,
    error::{is_outage, missing_reply},
    keys,
};

/// The consumer group on every audit stream.
const GROUP: &str = "postgres";
/// Its one consumer.
const CONSUMER: &str = "publisher";

/// Audit entries of one market that are to be copied and then acknowledged.
#[derive(Debug)]
pub struct AuditBatch {
    /// The market.
    pub market: MarketId,
    /// The entries, oldest first.
    pub entries: Vec<AuditEntry>,
    /// True if Redis has no entry before the first of these. Earlier entries may have been trimmed before they were copied.
    pub from_the_oldest: bool,
    /// Entries that cannot be understood, and why.
    pub malformed: Vec<(AuditId, BackboneError)>,
    /// Entries that were delivered, never acknowledged, and trimmed since.
    pub trimmed: Vec<AuditId>,
    /// True if there may be more entries now.
    pub more: bool,
}

impl AuditBatch {
    fn empty(market: MarketId) -> Self {
        Self {
            market,
            entries: Vec::new(),
            from_the_oldest: false,
            malformed: Vec::new(),
            trimmed: Vec::new(),
            more: false,
        }
    }
}

impl RedisBackbone {
    /// Reads one batch per market, for markets of one partition.
    ///
    /// A batch has up to `limit` new entries. It also has up to `limit` entries that were delivered at least `abandoned`
    /// ago and are still not acknowledged.
    ///
    /// # Errors
    /// When the partition cannot be read. A market's own error says that only this market cannot be read.
    pub async fn read_audit_batches(
        &self,
        markets: &[MarketId],
        limit: usize,
        abandoned: Duration,
    ) -> Result<Vec<(MarketId, Result<AuditBatch, BackboneError>)>, BackboneError> {
        let Some(&first) = markets.first() else { return Ok(Vec::new()) };
        let node = self.nodes.primary_of(first).await?;
        let mut batches = self.read_group(&node, markets, limit, abandoned).await?;
        // A market has no group until its first read, and after its stream was deleted.
        let groupless = |(_, read): &&(MarketId, RedisResult<AuditBatch>)| matches!(read, Err(error) if error.code() == Some("NOGROUP"));
        let new: Vec<MarketId> = batches.iter().filter(groupless).map(|(market, _)| *market).collect();
        if !new.is_empty() {
            let created = self.create_groups(&node, &new).await?;
            batches.retain(|(market, _)| !new.contains(market));
            let (created, missing): (Vec<_>, Vec<_>) = created.into_iter().partition(|(_, exists)| *exists);
            batches.extend(missing.into_iter().map(|(market, _)| (market, Ok(AuditBatch::empty(market)))));
            let created: Vec<MarketId> = created.into_iter().map(|(market, _)| market).collect();
            batches.extend(self.read_group(&node, &created, limit, abandoned).await?);
        }
        Ok(batches.into_iter().map(|(market, read)| (market, read.map_err(BackboneError::from))).collect())
    }

    /// Acknowledges entries of one partition: they are copied.
    ///
    /// # Errors
    /// When Redis does not confirm it. Then the entries are delivered again.
    pub async fn acknowledge_audit(&self, entries: &[AuditId]) -> Result<(), BackboneError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let node = self.nodes.primary_of(first.market).await?;
        let mut acks = Pipeline::new();
        for of_market in entries.chunk_by(|one, next| one.market == next.market) {
            let mut ack = cmd("XACK");
            ack.arg(keys::audit(of_market[0].market)).arg(GROUP);
            for id in of_market {
                ack.arg(id.entry.to_string());
            }
            acks.add_command(ack);
        }
        for reply in self.ask_each(&node, acks).await? {
            reply?;
        }
        Ok(())
    }

    /// Returns up to `limit` entries of a market, oldest first, from the first one that may not be acknowledged.
    /// Malformed entries are left out.
    ///
    /// # Errors
    /// When Redis cannot be read.
    pub async fn unacknowledged_audit(
        &self,
        market: MarketId,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError> {
        let key = keys::audit(market);
        let node = self.nodes.primary_of(market).await?;
        let mut reads = Pipeline::new();
        // In this order, so that an entry that is delivered between the two is in the second reply, as pending.
        reads.cmd("XINFO").arg("GROUPS").arg(&key);
        reads.cmd("XPENDING").arg(&key).arg(GROUP);
        let mut replies = self.ask_each(&node, reads).await?.into_iter();
        let (groups, pending) = (replies.next(), replies.next());
        // Redis rejects them while there is no group. Then no entry was delivered.
        let delivered = groups.transpose().or_else(none_if_rejected)?.and_then(last_delivered);
        let pending = pending.transpose().or_else(none_if_rejected)?.and_then(first_pending);
        let from = pending.or(delivered.map(|last| format!("({last}"))).unwrap_or_else(|| "-".to_owned());
        let mut range = ::redis::pipe();
        range.cmd("XRANGE").arg(&key).arg(from).arg("+").arg("COUNT").arg(limit);
        let (entries,): (Value,) = self.nodes.ask(slot_of(market), &range).await?;
        Ok(read_entries(market, entries)?.0)
    }

    async fn read_group(
        &self,
        node: &Node,
        markets: &[MarketId],
        limit: usize,
        abandoned: Duration,
    ) -> RedisResult<Vec<(MarketId, RedisResult<AuditBatch>)>> {
        let abandoned_ms = u64::try_from(abandoned.as_millis()).unwrap_or(u64::MAX);
        let mut reads = Pipeline::with_capacity(2 * markets.len());
        for &market in markets {
            let key = keys::audit(market);
            reads.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(CONSUMER).arg("COUNT").arg(limit);
            reads.arg("STREAMS").arg(&key).arg(">");
            // After the read, since entries that it has just delivered are not abandoned.
            reads.cmd("XAUTOCLAIM").arg(&key).arg(GROUP).arg(CONSUMER).arg(abandoned_ms).arg("0-0");
            reads.arg("COUNT").arg(limit);
        }
        let mut replies = self.ask_each(node, reads).await?.into_iter();
        let mut next = || replies.next().unwrap_or_else(|| Err(missing_reply()));
        let mut batches = Vec::with_capacity(markets.len());
        for &market in markets {
            let (new, claimed) = (next(), next());
            let read = || read_batch(market, new?, claimed?, limit);
            batches.push((market, read()));
        }
        self.find_older(node, &mut batches).await?;
        Ok(batches)
    }

    /// Sets [`AuditBatch::from_the_oldest`] of each batch.
    async fn find_older(
        &self,
        node: &Node,
        batches: &mut [(MarketId, RedisResult<AuditBatch>)],
    ) -> RedisResult<()> {
        let mut reads = Pipeline::new();
        let mut flags = Vec::new();
        for batch in batches.iter_mut().filter_map(|(_, batch)| batch.as_mut().ok()) {
            if let Some(first) = batch.entries.first() {
                let before = format!("({}", first.id.entry);
                reads.cmd("XREVRANGE").arg(keys::audit(batch.market)).arg(before).arg("-");
                reads.arg("COUNT").arg(1);
                flags.push(&mut batch.from_the_oldest);
            }
        }
        if flags.is_empty() {
            return Ok(());
        }
        for (from_the_oldest, older) in flags.into_iter().zip(self.ask_each(node, reads).await?) {
            let older: Vec<Value> = ::redis::from_redis_value(older?)?;
            *from_the_oldest = older.is_empty();
        }
        Ok(())
    }

    /// Creates groups. Returns each market, with true if it has a group now. A market without an audit has none.
    async fn create_groups(&self, node: &Node, markets: &[MarketId]) -> RedisResult<Vec<(MarketId, bool)>> {
        let mut creates = Pipeline::with_capacity(markets.len());
        for &market in markets {
            creates.cmd("XGROUP").arg("CREATE").arg(keys::audit(market)).arg(GROUP).arg(0);
        }
        let replies = self.ask_each(node, creates).await?;
        markets
            .iter()
            .zip(replies)
            .map(|(&market, reply)| match reply {
                Ok(_) => Ok((market, true)),
                // Another publisher has created it meanwhile.
                Err(error) if error.code() == Some("BUSYGROUP") => Ok((market, true)),
                Err(error) if is_outage(&error) => Err(error),
                Err(_) => Ok((market, false)),
            })
            .collect()
    }

    /// Sends commands to a node in one round trip. Redis may reject each of them independently.
    async fn ask_each(&self, node: &Node, mut commands: Pipeline) -> RedisResult<Vec<RedisResult<Value>>> {
        commands.ignore_errors();
        let replies = node.ask(&commands).await;
        self.nodes.note_each(node, replies)
    }
}

fn none_if_rejected(error: RedisError) -> RedisResult<Option<Value>> {
    if is_outage(&error) { Err(error) } else { Ok(None) }
}

/// Returns the id of the last entry that was delivered, from the reply to `XINFO GROUPS`.
fn last_delivered(groups: Value) -> Option<String> {
    let groups: Vec<HashMap<String, Value>> = FromRedisValue::from_redis_value(groups).ok()?;
    let text = |value: Option<Value>| -> Option<String> { ::redis::from_redis_value(value?).ok() };
    let ours = |group: &HashMap<String, Value>| text(group.get("name").cloned()).as_deref() == Some(GROUP);
    text(groups.into_iter().find(ours)?.remove("last-delivered-id"))
}

/// Returns the id of the first entry that is pending, from the reply to `XPENDING`.
fn first_pending(summary: Value) -> Option<String> {
    let (_, first, _, _): (u64, Option<String>, Value, Value) = ::redis::from_redis_value(summary).ok()?;
    first
}

/// Reads the replies to `XREADGROUP` and `XAUTOCLAIM`.
fn read_batch(market: MarketId, new: Value, claimed: Value, limit: usize) -> RedisResult<AuditBatch> {
    let new: Option<Vec<(String, Value)>> = ::redis::from_redis_value(new)?;
    let new = new.into_iter().flatten().next().map_or(Value::Nil, |(_, entries)| entries);
    // Redis 7 reports entries that were trimmed, and no longer counts them as pending. Redis 6.2 returns nil for them.
    let claimed: Vec<Value> = ::redis::from_redis_value(claimed)?;
    let mut claimed = claimed.into_iter().skip(1);
    let (again, trimmed) = (claimed.next().unwrap_or(Value::Nil), claimed.next());
    let trimmed: Vec<String> = trimmed.map_or(Ok(Vec::new()), ::redis::from_redis_value)?;

    let (new, new_malformed) = read_entries(market, new)?;
    let (again, again_malformed) = read_entries(market, again)?;
    let count = new.len() + new_malformed.len();
    let count_again = again.len() + again_malformed.len();
    Ok(AuditBatch {
        market,
        from_the_oldest: false,
        // Abandoned entries are older than new ones.
        entries: again.into_iter().chain(new).collect(),
        malformed: again_malformed.into_iter().chain(new_malformed).collect(),
        trimmed: trimmed.iter().filter_map(|id| Some(AuditId { market, entry: id.parse().ok()? })).collect(),
        more: count >= limit || count_again >= limit,
    })
}

type Malformed = Vec<(AuditId, BackboneError)>;

/// Reads entries of a market's audit, and sets malformed ones apart.
fn read_entries(market: MarketId, entries: Value) -> RedisResult<(Vec<AuditEntry>, Malformed)> {
    let key = keys::audit(market);
    let entries: Option<Vec<Option<(String, Value)>>> = ::redis::from_redis_value(entries)?;
    let (mut read, mut malformed) = (Vec::new(), Vec::new());
    for (id, fields) in entries.into_iter().flatten().flatten() {
        let fields =
            ::redis::from_redis_value(fields).map_err(|error| BackboneError::from(RedisError::from(error)));
        match fields.and_then(|fields| read_audit_entry(market, &key, &id, fields)) {
            Ok(entry) => read.push(entry),
            Err(error) => malformed.push((AuditId { market, entry: id.parse().unwrap_or_default() }, error)),
        }
    }
    Ok((read, malformed))
}
