//! The audit for publishers that copy it elsewhere: a consumer group on each market's audit stream.
//!
//! All publishers are one consumer. Redis gives each new entry to whoever asks first, and remembers it as pending until
//! it is acknowledged; what is pending for too long is given again to whoever asks then. So a publisher that dies
//! leaves nothing behind, and no name that somebody would have to remove. An entry may be given twice; never not at all,
//! unless it is trimmed first.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use ::redis::{FromRedisValue, Pipeline, RedisError, RedisResult, Value, cmd};
use protocol::ids::MarketId;

use super::{
    RedisBackbone,
    decode::read_audit_entry,
    is_outage,
    nodes::{Node, slot},
};
use crate::{AuditEntry, AuditId, BackboneError, keys};

/// The consumer group on every audit stream.
const GROUP: &str = "postgres";
/// Its one consumer.
const CONSUMER: &str = "publisher";

/// What one market's audit gave.
#[derive(Debug)]
pub struct AuditBatch {
    /// Which market.
    pub market: MarketId,
    /// What is to be copied, oldest first.
    pub entries: Vec<AuditEntry>,
    /// Nothing older than the first of them is in Redis any more: what should have come before may have been trimmed.
    pub from_the_oldest: bool,
    /// Entries that nobody can understand, and why.
    pub malformed: Vec<(AuditId, BackboneError)>,
    /// Entries that were given to somebody who never acknowledged them, and have been trimmed since.
    pub trimmed: Vec<AuditId>,
    /// There may be more now.
    pub more: bool,
}

impl AuditBatch {
    fn nothing(market: MarketId) -> Self {
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
    /// The markets that were appended to, here or elsewhere, as far as was heard since this was last asked.
    #[must_use]
    pub fn take_news(&self) -> BTreeSet<MarketId> {
        std::mem::take(&mut *self.news())
    }

    /// Gives up to `limit` new audit entries of each of these markets, all of one part, and as many that were given to
    /// somebody `abandoned` ago or earlier and are still not acknowledged.
    ///
    /// # Errors
    /// When the part cannot be asked; for each market, when it alone cannot.
    pub async fn read_audit_batches(
        &self,
        markets: &[MarketId],
        limit: usize,
        abandoned: Duration,
    ) -> Result<Vec<(MarketId, Result<AuditBatch, BackboneError>)>, BackboneError> {
        let Some(&first) = markets.first() else { return Ok(Vec::new()) };
        let node = self.nodes.of(first).await?;
        let mut handed = self.read_group(&node, markets, limit, abandoned).await?;
        // A market is without a group until it is first asked for, and when its stream was made anew.
        let groupless = |(_, read): &&(MarketId, RedisResult<AuditBatch>)| matches!(read, Err(error) if error.code() == Some("NOGROUP"));
        let new: Vec<MarketId> = handed.iter().filter(groupless).map(|(market, _)| *market).collect();
        if !new.is_empty() {
            let created = self.create_groups(&node, &new).await?;
            handed.retain(|(market, _)| !new.contains(market));
            let (created, missing): (Vec<_>, Vec<_>) = created.into_iter().partition(|(_, exists)| *exists);
            handed.extend(missing.into_iter().map(|(market, _)| (market, Ok(AuditBatch::nothing(market)))));
            let created: Vec<MarketId> = created.into_iter().map(|(market, _)| market).collect();
            handed.extend(self.read_group(&node, &created, limit, abandoned).await?);
        }
        Ok(handed.into_iter().map(|(market, read)| (market, read.map_err(BackboneError::from))).collect())
    }

    /// Says that these entries, all of one part, are where they should be.
    ///
    /// # Errors
    /// When that cannot be said. Then they are given to somebody again.
    pub async fn acknowledge_audit(&self, entries: &[AuditId]) -> Result<(), BackboneError> {
        let Some(first) = entries.first() else { return Ok(()) };
        let node = self.nodes.of(first.market).await?;
        let mut acks = Pipeline::new();
        for of_market in entries.chunk_by(|one, next| one.market == next.market) {
            let mut ack = cmd("XACK");
            ack.arg(keys::audit(of_market[0].market)).arg(GROUP);
            for id in of_market {
                ack.arg(id.entry.to_string());
            }
            acks.add_command(ack);
        }
        for answer in self.ask_each(&node, acks).await? {
            answer?;
        }
        Ok(())
    }

    /// The entries of a market that may not have been acknowledged by now, oldest first, up to `limit`. An entry that
    /// cannot be understood is left out.
    ///
    /// # Errors
    /// When Redis cannot be asked.
    pub async fn unacknowledged_audit(
        &self,
        market: MarketId,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError> {
        let key = keys::audit(market);
        let node = self.nodes.of(market).await?;
        let mut look = Pipeline::new();
        // In this order: what is given to somebody between the two is pending, and in the second answer.
        look.cmd("XINFO").arg("GROUPS").arg(&key);
        look.cmd("XPENDING").arg(&key).arg(GROUP);
        let mut answers = self.ask_each(&node, look).await?.into_iter();
        let (groups, pending) = (answers.next(), answers.next());
        // Without a group nothing was ever given to anybody.
        let given = groups.transpose().or_else(none_if_refused)?.and_then(last_given);
        let pending = pending.transpose().or_else(none_if_refused)?.and_then(first_pending);
        let from = pending.or(given.map(|last| format!("({last}"))).unwrap_or_else(|| "-".to_owned());
        let mut range = ::redis::pipe();
        range.cmd("XRANGE").arg(&key).arg(from).arg("+").arg("COUNT").arg(limit);
        let (entries,): (Value,) = self.nodes.ask(slot(market), &range).await?;
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
            // Behind the other: what that has just given is not abandoned.
            reads.cmd("XAUTOCLAIM").arg(&key).arg(GROUP).arg(CONSUMER).arg(abandoned_ms).arg("0-0");
            reads.arg("COUNT").arg(limit);
        }
        let mut answers = self.ask_each(node, reads).await?.into_iter();
        let mut next = || answers.next().unwrap_or_else(|| Err(super::unanswered()));
        let mut handed = Vec::with_capacity(markets.len());
        for &market in markets {
            let (new, claimed) = (next(), next());
            let read = || read_handed(market, new?, claimed?, limit);
            handed.push((market, read()));
        }
        self.see_whether_oldest(node, &mut handed).await?;
        Ok(handed)
    }

    async fn see_whether_oldest(
        &self,
        node: &Node,
        handed: &mut [(MarketId, RedisResult<AuditBatch>)],
    ) -> RedisResult<()> {
        let mut looks = Pipeline::new();
        let mut looked_at = Vec::new();
        for handed in handed.iter_mut().filter_map(|(_, handed)| handed.as_mut().ok()) {
            if let Some(first) = handed.entries.first() {
                let before = format!("({}", first.id.entry);
                looks
                    .cmd("XREVRANGE")
                    .arg(keys::audit(handed.market))
                    .arg(before)
                    .arg("-")
                    .arg("COUNT")
                    .arg(1);
                looked_at.push(&mut handed.from_the_oldest);
            }
        }
        if looked_at.is_empty() {
            return Ok(());
        }
        for (from_the_oldest, older) in looked_at.into_iter().zip(self.ask_each(node, looks).await?) {
            let older: Vec<Value> = ::redis::from_redis_value(older?)?;
            *from_the_oldest = older.is_empty();
        }
        Ok(())
    }

    /// Each with whether there is a group now; there is none for a market without an audit.
    async fn create_groups(&self, node: &Node, markets: &[MarketId]) -> RedisResult<Vec<(MarketId, bool)>> {
        let mut creates = Pipeline::with_capacity(markets.len());
        for &market in markets {
            creates.cmd("XGROUP").arg("CREATE").arg(keys::audit(market)).arg(GROUP).arg(0);
        }
        let answers = self.ask_each(node, creates).await?;
        markets
            .iter()
            .zip(answers)
            .map(|(&market, answer)| match answer {
                Ok(_) => Ok((market, true)),
                // Another publisher was faster.
                Err(error) if error.code() == Some("BUSYGROUP") => Ok((market, true)),
                Err(error) if is_outage(&error) => Err(error),
                Err(_) => Ok((market, false)),
            })
            .collect()
    }

    /// Asks a node all of it in one round trip. Each may be refused on its own.
    async fn ask_each(&self, node: &Node, mut commands: Pipeline) -> RedisResult<Vec<RedisResult<Value>>> {
        commands.ignore_errors();
        let answers = node.ask(&commands).await;
        self.nodes.note_each(node, answers)
    }
}

fn none_if_refused(error: RedisError) -> RedisResult<Option<Value>> {
    if is_outage(&error) { Err(error) } else { Ok(None) }
}

/// The last entry that the group gave to anybody, of `XINFO GROUPS`.
fn last_given(groups: Value) -> Option<String> {
    let groups: Vec<HashMap<String, Value>> = FromRedisValue::from_redis_value(groups).ok()?;
    let text = |value: Option<Value>| -> Option<String> { ::redis::from_redis_value(value?).ok() };
    let ours = |group: &HashMap<String, Value>| text(group.get("name").cloned()).as_deref() == Some(GROUP);
    text(groups.into_iter().find(ours)?.remove("last-delivered-id"))
}

/// The first entry that is given and not acknowledged, of `XPENDING`.
fn first_pending(summary: Value) -> Option<String> {
    let (_, first, _, _): (u64, Option<String>, Value, Value) = ::redis::from_redis_value(summary).ok()?;
    first
}

fn read_handed(market: MarketId, new: Value, claimed: Value, limit: usize) -> RedisResult<AuditBatch> {
    let new: Option<Vec<(String, Value)>> = ::redis::from_redis_value(new)?;
    let new = new.into_iter().flatten().next().map_or(Value::Nil, |(_, entries)| entries);
    // Redis 7 tells, and forgets, which of them it has no more; Redis 6.2 has nil in their place.
    let claimed: Vec<Value> = ::redis::from_redis_value(claimed)?;
    let mut claimed = claimed.into_iter().skip(1);
    let (again, gone) = (claimed.next().unwrap_or(Value::Nil), claimed.next());
    let gone: Vec<String> = gone.map_or(Ok(Vec::new()), ::redis::from_redis_value)?;

    let (new, new_malformed) = read_entries(market, new)?;
    let (again, again_malformed) = read_entries(market, again)?;
    let given = new.len() + new_malformed.len();
    let given_again = again.len() + again_malformed.len();
    Ok(AuditBatch {
        market,
        from_the_oldest: false,
        // What was abandoned is older.
        entries: again.into_iter().chain(new).collect(),
        malformed: again_malformed.into_iter().chain(new_malformed).collect(),
        trimmed: gone.iter().filter_map(|id| Some(AuditId { market, entry: id.parse().ok()? })).collect(),
        more: given >= limit || given_again >= limit,
    })
}

type Malformed = Vec<(AuditId, BackboneError)>;

/// Entries of a market's audit, and those that are none.
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
