//! Writes once per round to each connection with something to send.

use std::sync::atomic::Ordering;

use protocol::time::unix_us;
use service::telemetry::traces::{self, SpanKind};

use super::{
    Shard,
    connection::{Connection, Phase},
    handle::Traced,
};
use crate::metrics as names;

/// Approximate bytes written to one connection per round. A client far behind waits for the next round.
const WRITE_BYTES: usize = 64 * 1024;
/// Connections written to per round. After that, sockets, deadlines and other threads have their turn.
const WRITES_PER_ROUND: usize = 1024;
/// Connections whose memory is fetched together before the writes. There are enough to overlap most of the waiting, and
/// few enough that the kernel's work on the first does not evict the last.
const WARM_AT_ONCE: usize = 32;
/// How long a shard follows a traced update that no client has.
const TRACED_MS: u64 = 5_000;

impl Shard {
    /// Queues a connection whose socket accepts bytes again.
    pub(super) fn writable(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key)
            && connection.blocked_since.take().is_some()
        {
            self.queue_write(key);
        }
    }

    /// Writes to the connections whose time has come, and updates the counts.
    pub(super) fn write_round(&mut self) {
        let count = self.write_queue.due(self.settings.flush_interval).min(WRITES_PER_ROUND);
        for index in 0..count {
            if index % WARM_AT_ONCE == 0 {
                self.warm((count - index).min(WARM_AT_ONCE));
                self.ages.now_us = unix_us();
            }
            let Some(key) = self.write_queue.pop() else { break };
            self.write(key);
        }
        if self.writes > 0 {
            self.stats.messages_sent.fetch_add(self.messages, Ordering::Relaxed);
            metrics::counter!(names::MESSAGES_SENT).increment(std::mem::take(&mut self.messages));
            metrics::counter!(names::WRITES).increment(std::mem::take(&mut self.writes));
            names::UPDATE_AGE.add(&std::mem::take(&mut self.ages.counts));
            if !self.traced.is_empty() {
                self.end_traced();
            }
        }
    }

    /// Ends the traces of updates that some client has by now. Each span tells how many sockets got the update.
    fn end_traced(&mut self) {
        let Self { index, traced, subscriptions, now_ms, .. } = self;
        traced.retain(|Traced { market, position, read, since, since_ms }| {
            let (market, position) = (*market, *position);
            let sockets = subscriptions.count_reached(market, position);
            if sockets == 0 {
                return *now_ms < since_ms + TRACED_MS;
            }
            if let Some(mut span) = traces::child(read, "deliver", SpanKind::Producer, *since) {
                span.set("kmarket.market", market.to_string());
                span.set("kmarket.seq", position.seq.to_string());
                span.set("kmarket.shard", i64::try_from(*index).unwrap_or(i64::MAX));
                span.set("kmarket.sockets", i64::try_from(sockets).unwrap_or(i64::MAX));
            }
            false
        });
    }

    /// Fetches the memory of the next `count` connections into the cache. The kernel uses the caches during each write.
    /// Waiting for memory per connection would cost as much as everything else here.
    fn warm(&self, count: usize) {
        let mut seen = 0;
        for key in self.write_queue.first(count) {
            seen ^= self.subscriptions.warm(key);
            seen ^= self.connections.get(key).map_or(0, Connection::warm);
        }
        std::hint::black_box(seen);
    }

    /// Makes one write of what a connection has to send.
    fn write(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.queued = false;
        if connection.blocked_since.is_some() {
            return;
        }
        self.batch.begin(&connection.outgoing, WRITE_BYTES);
        self.subscriptions.gather(key, &mut self.batch);
        let bytes = self.batch.bytes();
        if bytes.is_empty() {
            return self.written(key);
        }
        self.writes += 1;
        let Ok(count) = connection.write(bytes) else { return self.remove(key, "gone") };
        let committed = self.subscriptions.commit(key, &self.batch, count, &mut self.ages);
        self.messages += committed.messages;
        let sent_outgoing = count.min(connection.outgoing.len());
        let cut = committed.cut_end.map_or(&[][..], |end| &bytes[count..end]);
        if sent_outgoing == connection.outgoing.len() && cut.is_empty() {
            connection.outgoing = Vec::new();
        } else {
            connection.outgoing.drain(..sent_outgoing);
            connection.outgoing.extend_from_slice(cut);
        }
        if count < bytes.len() {
            connection.blocked_since = Some(self.now_ms);
            self.schedule(key);
        } else if self.subscriptions.is_pending(key) {
            self.queue_write(key);
        }
        self.written(key);
    }

    /// Follows up on a write: a closing connection that sent its `bye` shuts its side, and a paused one may read again.
    fn written(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        match &mut connection.phase {
            Phase::Closing { shut, .. } => {
                if connection.outgoing.is_empty() && !std::mem::replace(shut, true) {
                    // If the peer is gone already, the next read finds out.
                    let _ = connection.socket.shutdown(std::net::Shutdown::Write);
                }
            }
            Phase::Open => {
                if !connection.unread.is_empty() || connection.readable {
                    self.to_unpause.push(key);
                }
            }
        }
    }
}
