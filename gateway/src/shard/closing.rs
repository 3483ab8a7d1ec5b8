//! Ends connections: with a close frame, or because the peer has gone.

use std::{sync::atomic::Ordering, time::Duration};

use protocol::{close::CloseCode, server_message};

use super::{Shard, connection::Phase, drain_schedule::closing_times};
use crate::{frame, limits::is_roomy, metrics as names, tokens::Known};

/// How long a closed connection may take to read its `bye` and close its side.
const CLOSE_LINGER_MS: u64 = 5_000;
/// The longest random delay that a draining pod adds to a client's reconnect.
const MAX_DRAIN_SPREAD_MS: u64 = 3_000;

impl Shard {
    /// Sends `bye` and a close frame, and begins to close.
    pub(super) fn close(&mut self, key: usize, code: CloseCode) {
        if self.connections[key].is_open() {
            let spread_ms =
                if code == CloseCode::Draining { rand::random_range(0..=MAX_DRAIN_SPREAD_MS) } else { 0 };
            let connection = &mut self.connections[key];
            connection.push_text(&server_message::bye(code, code.after_ms() + spread_ms));
            frame::append_close(&mut connection.outgoing, code);
            self.begin_close(key, code);
        }
    }

    /// Begins to close, after the close frame was appended to `outgoing`.
    pub(super) fn begin_close(&mut self, key: usize, code: CloseCode) {
        self.stop_waiting(key);
        self.subscriptions.unsubscribe_all(key);
        let connection = &mut self.connections[key];
        connection.phase = Phase::Closing { until_ms: self.now_ms + CLOSE_LINGER_MS, shut: false };
        connection.unread = Vec::new();
        connection.deadlines.wake_ms = u64::MAX;
        let drain_ms = connection.deadlines.drain_ms.map(tracing::field::display);
        tracing::debug!(code = code.number(), drain_ms, "a connection is closed");
        self.stats.connections.fetch_sub(1, Ordering::Relaxed);
        metrics::counter!(names::CLOSES, "code" => code.number().to_string()).increment(1);
        self.schedule(key);
        self.queue_write(key);
    }

    /// Drops a connection. `why` is its code in the metric, unless the connection was closed before.
    pub(super) fn remove(&mut self, key: usize, why: &'static str) {
        self.stop_waiting(key);
        self.subscriptions.unsubscribe_all(key);
        let mut connection = self.connections.remove(key);
        if connection.is_open() {
            self.stats.connections.fetch_sub(1, Ordering::Relaxed);
            metrics::counter!(names::CLOSES, "code" => why).increment(1);
        }
        // Dropping the socket deregisters it too. This does it at once.
        let _ = self.poll.registry().deregister(&mut connection.socket);
        if is_roomy(self.connections.len(), self.connections.capacity()) {
            self.connections.shrink_to_fit();
            self.write_queue.shrink();
            self.subscriptions.shrink(self.connections.capacity());
        }
    }

    /// Closes a connection if its token has been revoked.
    pub(super) fn close_if_revoked(&mut self, key: usize, known: &Known) {
        let connection = &self.connections[key];
        if known.revoke(connection.permit.user(), connection.session.fingerprint()) {
            self.close(key, CloseCode::NotAllowed);
        }
    }

    /// Schedules the closing of every connection within `over`, in the order of their slab keys.
    pub(super) fn drain(&mut self, over: Duration) {
        let over_ms = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        self.drain_until_ms = Some(self.now_ms + over_ms);
        let keys = self.keys();
        let times = closing_times(keys.len(), over_ms, &mut rand::rng()).collect::<Vec<_>>();
        for (key, after_ms) in keys.into_iter().zip(times) {
            self.close_at(key, self.now_ms + after_ms);
        }
    }

    /// Schedules the closing of a connection by the drain.
    pub(super) fn close_at(&mut self, key: usize, at_ms: u64) {
        self.connections[key].deadlines.drain_ms = Some(at_ms);
        self.schedule(key);
    }

    fn stop_waiting(&mut self, key: usize) {
        if let Some(waiting) = self.connections[key].waiting.take() {
            for wanted in &waiting.subscribe.wanted {
                self.subscriptions.stop_waiting(key, wanted.market);
            }
        }
    }
}
