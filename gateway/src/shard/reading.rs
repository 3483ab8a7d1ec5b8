//! Reads what clients send, and acts on it.

use protocol::{
    MarketId, client_message::MessageId, close::CloseCode, error::Refusal, server_message::Ack, time::unix_ms,
};

use super::{
    Shard,
    connection::{Connection, WaitingRequest},
};
use crate::{
    frame::{self, Message},
    session::Action,
};

/// Reads of one socket per round. A client that sends more waits for the next round.
const READS_PER_ROUND: usize = 4;
/// How long a request may wait for the backbone before the connection is closed with 1013.
const REQUEST_TIMEOUT_MS: u64 = 5_000;

impl Shard {
    /// Reads from a socket that has become readable. `ends` tells whether the peer has closed its side.
    pub(super) fn readable(&mut self, key: usize, ends: bool) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.readable = true;
            connection.read_ends |= ends;
            self.read(key);
        }
    }

    /// Reads from a socket as long as it has bytes, up to `READS_PER_ROUND` times.
    pub(super) fn read(&mut self, key: usize) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        self.read_into(key, &mut buffer);
        self.read_buffer = buffer;
    }

    fn read_into(&mut self, key: usize, buffer: &mut [u8]) {
        for _ in 0..READS_PER_ROUND {
            let Some(connection) = self.connections.get_mut(key) else { return };
            if !connection.readable || connection.is_paused() {
                return;
            }
            match connection.read(buffer) {
                Ok(Some(0)) | Err(_) => return self.remove(key, "gone"),
                Ok(None) => {
                    connection.readable = false;
                    return;
                }
                Ok(Some(count)) => {
                    connection.deadlines.heard_ms = self.now_ms;
                    // A short read has emptied the socket. Later bytes, and its end, are other events.
                    connection.readable = count == buffer.len() || connection.read_ends;
                    if !connection.is_open() {
                        continue;
                    }
                    let bytes = &mut buffer[..count];
                    if connection.unread.is_empty() {
                        let taken = self.process(key, bytes);
                        if let Some(connection) = self.connections.get_mut(key) {
                            connection.unread = bytes[taken..].to_vec();
                        }
                    } else {
                        connection.unread.extend_from_slice(bytes);
                        self.process_unread(key);
                    }
                }
            }
        }
        self.to_read.push(key);
    }

    /// Processes the bytes that were received earlier.
    pub(super) fn process_unread(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut bytes = std::mem::take(&mut connection.unread);
        let taken = self.process(key, &mut bytes);
        if let Some(connection) = self.connections.get_mut(key) {
            // This avoids a copy for each piece of a frame that comes in many pieces.
            connection.unread = if taken == 0 { bytes } else { bytes[taken..].to_vec() };
        }
    }

    /// Processes messages again, unless the connection is still paused.
    pub(super) fn unpause(&mut self, key: usize) {
        if self.connections.get(key).is_some_and(|connection| !connection.is_paused()) {
            self.process_unread(key);
            if self.connections.get(key).is_some_and(|connection| connection.readable) {
                self.to_read.push(key);
            }
        }
    }

    /// Processes the whole frames in `bytes` until the connection is paused. Returns how many bytes are done with: all of
    /// them once the connection is closed.
    fn process(&mut self, key: usize, bytes: &mut [u8]) -> usize {
        let max_bytes = self.settings.max_message_bytes;
        let mut taken = 0;
        while let Some(connection) = self.connections.get_mut(key)
            && connection.is_open()
        {
            if connection.is_paused() {
                return taken;
            }
            let mut joined = Vec::new();
            match connection.reader.read(&mut bytes[taken..], max_bytes, &mut joined) {
                Ok(Some((count, message))) => {
                    taken += count;
                    if let Some(message) = message {
                        self.message(key, &message);
                    }
                }
                Ok(None) => return taken,
                Err(code) => self.close(key, code),
            }
        }
        bytes.len()
    }

    fn message(&mut self, key: usize, message: &Message<'_>) {
        let connection = &mut self.connections[key];
        let rules = &self.settings.rules;
        match *message {
            Message::Text(text) => {
                let subscribed = self.subscriptions.of(key);
                let Connection { session, permit, .. } = connection;
                let action = session.text(text, permit.user(), &subscribed, rules, self.now_ms);
                self.act(key, action);
            }
            Message::Ping(payload) => match connection.session.control(rules, self.now_ms) {
                Ok(true) => {
                    frame::append_pong(&mut connection.outgoing, payload);
                    self.queue_write(key);
                }
                Ok(false) => {}
                Err(code) => self.close(key, code),
            },
            Message::Pong | Message::EmptyFragment => {
                if let Err(code) = connection.session.control(rules, self.now_ms) {
                    self.close(key, code);
                }
            }
            Message::Close(code) => {
                frame::append_close_echo(&mut connection.outgoing, code);
                self.begin_close(key, CloseCode::Normal);
            }
        }
    }

    fn act(&mut self, key: usize, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Send(json) => self.send(key, &json),
            Action::Close(code) => self.close(key, code),
            Action::Subscribe(subscribe) => {
                let until_ms = self.now_ms + REQUEST_TIMEOUT_MS;
                self.connections[key].waiting = Some(Box::new(WaitingRequest { subscribe, until_ms }));
                self.try_subscribe(key);
            }
            Action::Unsubscribe { id, markets } => {
                for &market in &markets {
                    self.subscriptions.unsubscribe(key, market);
                }
                self.ack(key, &Ack { id, unsubscribed: Some(markets), ..Ack::default() });
            }
            Action::Refreshed { id } => self.refreshed(key, id),
        }
    }

    fn refreshed(&mut self, key: usize, id: Option<MessageId>) {
        let session = &self.connections[key].session;
        let expires_ms = self.now_ms + session.expires_at_ms().saturating_sub(unix_ms());
        let lost: Vec<MarketId> =
            self.subscriptions.of(key).markets().filter(|&id| !session.allows(id)).collect();
        for &market in &lost {
            self.subscriptions.unsubscribe(key, market);
        }
        self.connections[key].deadlines.expires_ms = expires_ms;
        self.schedule(key);
        let rejected = lost.into_iter().map(|market| (market, Refusal::Forbidden)).collect();
        self.ack(key, &Ack { id, rejected, ..Ack::default() });
    }
}
