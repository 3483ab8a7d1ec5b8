//! Once a round, one write to each connection that is owed something.

use std::sync::atomic::Ordering;

use protocol::time::unix_us;
use service::telemetry::traces::{self, SpanKind};

use super::{
    Shard,
    connection::{Connection, Phase},
    handle::Traced,
};
use crate::metrics as names;

/// Bytes written to one connection in a round, about: a client far behind waits for its next turn.
const WRITE_BYTES: usize = 64 * 1024;
/// Connections written to in a round: beyond it the sockets, the clock and other threads come first again.
const WRITES_A_ROUND: usize = 1024;
/// Connections whose memory is fetched together before they are written to: many enough that most of the waiting is
/// shared, few enough that the kernel's work on one does not evict the last.
const WARM_AT_ONCE: usize = 32;
/// How long a traced update is looked after until somebody has it.
const TRACED_MS: u64 = 5_000;

impl Shard {
    pub(super) fn writable(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key)
            && connection.blocked_since.take().is_some()
        {
            self.queue_write(key);
        }
    }

    pub(super) fn write_round(&mut self) {
        let count = self.write_queue.due(self.settings.flush_interval).min(WRITES_A_ROUND);
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

    /// Ends the traces of updates that somebody has as of this round, and says how many do.
    fn end_traced(&mut self) {
        let Self { index, traced, subscriptions, now_ms, .. } = self;
        traced.retain(|Traced { market, position, read, since, since_ms }| {
            let (market, position) = (*market, *position);
            let sockets = subscriptions.reached(market, position);
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

    /// Has the next `count` connections' memory fetched. Between two writes the kernel has used the caches for itself, and
    /// waiting for memory would cost one connection as much as everything else here.
    fn warm(&self, count: usize) {
        let mut seen = 0;
        for key in self.write_queue.first(count) {
            seen ^= self.subscriptions.warm(key);
            seen ^= self.connections.get(key).map_or(0, Connection::warm);
        }
        std::hint::black_box(seen);
    }

    /// One write of what the connection is owed.
    fn write(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.queued = false;
        if connection.blocked_since.is_some() {
            return;
        }
        self.batch.begin(&connection.out, WRITE_BYTES);
        self.subscriptions.gather(key, &mut self.batch);
        let bytes = self.batch.bytes();
        if bytes.is_empty() {
            return self.written(key);
        }
        self.writes += 1;
        let Ok(count) = connection.write(bytes) else { return self.remove(key, "gone") };
        let committed = self.subscriptions.commit(key, &self.batch, count, &mut self.ages);
        self.messages += committed.messages;
        let sent_answers = count.min(connection.out.len());
        let cut = committed.cut_end.map_or(&[][..], |end| &bytes[count..end]);
        if sent_answers == connection.out.len() && cut.is_empty() {
            connection.out = Vec::new();
        } else {
            connection.out.drain(..sent_answers);
            connection.out.extend_from_slice(cut);
        }
        if count < bytes.len() {
            connection.blocked_since = Some(self.now_ms);
            self.schedule(key);
        } else if self.subscriptions.is_pending(key) {
            self.queue_write(key);
        }
        self.written(key);
    }

    /// What follows a write: a closing connection whose bye is out shuts its side; a paused one may read again.
    fn written(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        match &mut connection.phase {
            Phase::Closing { shut, .. } => {
                if connection.out.is_empty() && !std::mem::replace(shut, true) {
                    // When it is gone already, the next read says so.
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
