//! What clients say.

use protocol::{
    MarketId, client_message::MessageId, close::CloseCode, error::Refusal, server_message::Ack, time::unix_ms,
};

use super::{
    Shard,
    connection::{Connection, Waiting},
};
use crate::{
    frame::{self, Message},
    session::Action,
};

/// Reads of one socket in a round: a flood waits for its next turn.
const READS_A_ROUND: usize = 4;
/// How long a request may wait for the backbone before its client is sent elsewhere.
const REQUEST_TIMEOUT_MS: u64 = 5_000;

impl Shard {
    pub(super) fn readable(&mut self, key: usize, ends: bool) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.readable = true;
            connection.read_ends |= ends;
            self.read(key);
        }
    }

    pub(super) fn read(&mut self, key: usize) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        self.read_into(key, &mut buffer);
        self.read_buffer = buffer;
    }

    fn read_into(&mut self, key: usize, buffer: &mut [u8]) {
        for _ in 0..READS_A_ROUND {
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
                    // A short read has emptied the socket: what comes later, its end included, is another event.
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

    pub(super) fn process_unread(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut bytes = std::mem::take(&mut connection.unread);
        let taken = self.process(key, &mut bytes);
        if let Some(connection) = self.connections.get_mut(key) {
            // A frame that comes in very many pieces is not copied at each.
            connection.unread = if taken == 0 { bytes } else { bytes[taken..].to_vec() };
        }
    }

    /// Goes on with what the client said while it was not listened to.
    pub(super) fn unpause(&mut self, key: usize) {
        if self.connections.get(key).is_some_and(|connection| !connection.is_paused()) {
            self.process_unread(key);
            if self.connections.get(key).is_some_and(|connection| connection.readable) {
                self.to_read.push(key);
            }
        }
    }

    /// Takes whole frames off `bytes` while the connection may be served, and all of them once it may not any more: how
    /// many bytes that were.
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
                    frame::append_pong(&mut connection.out, payload);
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
                frame::append_close_echo(&mut connection.out, code);
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
                self.connections[key].waiting = Some(Box::new(Waiting { subscribe, until_ms }));
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
