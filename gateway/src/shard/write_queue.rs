//! Which connections wait for a write, and how a message for a client gets there.

use std::{collections::VecDeque, time::Duration};

use protocol::server_message::Ack;
use slab::Slab;

use super::{Shard, connection::Connection};

/// Connections that have something to write and whose sockets accept it, each once, in the order they were queued.
#[derive(Default)]
pub(super) struct WriteQueue {
    /// Connection keys, with the time since the shard's start at which each was queued.
    keys: VecDeque<(usize, Duration)>,
    /// Time since the shard's start, as of this round.
    now: Duration,
}

impl WriteQueue {
    /// Begins a round at `now`, the time since the shard's start.
    pub(super) fn begin_round(&mut self, now: Duration) {
        self.now = now;
    }

    /// Queues connection `key`, unless it is queued or its socket accepts nothing.
    pub(super) fn push(&mut self, connections: &mut Slab<Connection>, key: usize) {
        if let Some(connection) = connections.get_mut(key)
            && !connection.queued
            && connection.blocked_since.is_none()
        {
            connection.queued = true;
            self.keys.push_back((key, self.now));
        }
    }

    /// Takes the connection that was queued first.
    pub(super) fn pop(&mut self) -> Option<usize> {
        self.keys.pop_front().map(|(key, _)| key)
    }

    /// Returns how many connections have waited for `interval`. Each connection counts from its own first update, so
    /// that later updates go with the first one, and writes are spread over time.
    pub(super) fn due(&self, interval: Duration) -> usize {
        if interval.is_zero() {
            return self.keys.len();
        }
        self.keys.partition_point(|(_, since)| *since + interval <= self.now)
    }

    /// Returns when the first connection was queued.
    pub(super) fn first_since(&self) -> Option<Duration> {
        self.keys.front().map(|&(_, since)| since)
    }

    /// Returns the keys of the first `count` connections.
    pub(super) fn first(&self, count: usize) -> impl Iterator<Item = usize> {
        self.keys.iter().take(count).map(|&(key, _)| key)
    }

    /// Frees memory that a crowd has left behind.
    pub(super) fn shrink(&mut self) {
        self.keys.shrink_to_fit();
    }
}

impl Shard {
    /// Sends a message to a client.
    pub(super) fn send(&mut self, key: usize, json: &str) {
        self.connections[key].push_text(json);
        self.queue_write(key);
    }

    /// Sends an ack to a client.
    pub(super) fn ack(&mut self, key: usize, ack: &Ack) {
        self.send(key, &ack.json());
    }

    /// Queues connection `key` for a write.
    pub(super) fn queue_write(&mut self, key: usize) {
        self.write_queue.push(&mut self.connections, key);
    }
}
