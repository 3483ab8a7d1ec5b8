//! The client already in the field, as described by what docs/protocol.md marks **field**.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::{
    http::Http,
    lines::Lines,
    message::{Message, Update},
    socket::Socket,
};

/// How many updates one request asks for.
const FETCH_LIMIT: usize = 200;

/// A client that sends only `resume` with its offsets. It applies an update with `seq == last + 1` and ignores lower
/// ones. On a higher seq it fetches `updates?since_seq=last&limit=200`, applies them and continues from `toSeq`. It
/// ignores `snapshot`, `epoch`, `ack` and `bye`.
#[derive(Debug)]
pub struct FieldClient {
    token: String,
    market: u64,
    last: u64,
    lines: Lines,
    applied: Vec<Update>,
    fetches: usize,
    http: Http,
    connection: Option<(SocketAddr, Socket)>,
}

impl FieldClient {
    /// A client without any update of `market` yet.
    #[must_use]
    pub fn new(token: String, market: u64) -> Self {
        let (http, lines) = (Http::default(), Lines::default());
        Self { token, market, last: 0, lines, applied: Vec::new(), fetches: 0, http, connection: None }
    }

    /// Opens a connection to this gateway. The former connection is dropped without a close frame.
    pub async fn connect(&mut self, gateway: SocketAddr) {
        self.connection = None;
        let mut socket = Socket::connect(gateway, &self.token).await;
        let (market, last) = (self.market, self.last);
        socket.send(format_args!(r#"{{"type":"resume","offsets":{{"{market}":{last}}}}}"#)).await;
        self.connection = Some((gateway, socket));
    }

    /// Handles messages until it has applied `seq` or a later update.
    pub async fn reach(&mut self, seq: u64) {
        while self.last < seq {
            let (gateway, socket) = self.connection.as_mut().expect("connected");
            let gateway = *gateway;
            if let Message::Update(update) = socket.recv().await {
                self.handle(gateway, update).await;
            }
        }
    }

    /// The seq of the last update that it has applied.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// The lines that its user sees.
    #[must_use]
    pub const fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Every update that it has applied, in order.
    #[must_use]
    pub fn applied(&self) -> &[Update] {
        &self.applied
    }

    /// How often it fetched missed updates.
    #[must_use]
    pub const fn fetches(&self) -> usize {
        self.fetches
    }

    async fn handle(&mut self, gateway: SocketAddr, update: Update) {
        if update.seq > self.last + 1 {
            self.fetch(gateway).await;
        }
        if update.seq == self.last + 1 {
            self.last = update.seq;
            self.apply(update);
        }
    }

    async fn fetch(&mut self, gateway: SocketAddr) {
        /// The members that it reads.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Missed {
            to_seq: u64,
            updates: Vec<Update>,
        }

        self.fetches += 1;
        let (market, last) = (self.market, self.last);
        let path = format!("/api/markets/{market}/odds/updates?since_seq={last}&limit={FETCH_LIMIT}");
        let missed: Missed = self.http.get(&format!("http://{gateway}{path}")).await.ok();
        self.last = missed.to_seq;
        missed.updates.into_iter().for_each(|update| self.apply(update));
    }

    fn apply(&mut self, update: Update) {
        self.lines.apply(update.payload.text());
        self.applied.push(update);
    }
}
