//! The client already in the field, as the contract's **field** marks describe it.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::{
    http::Http,
    lines::Lines,
    message::{Message, Update},
    socket::Socket,
};

/// How many updates it asks for at once.
const FETCH_LIMIT: usize = 200;

/// A client that on open sends only `resume` with its offsets, applies `seq == last + 1`, ignores lower ones, and on a
/// higher one fetches `updates?since_seq=last&limit=200`, applies them and continues from `toSeq`. It knows nothing of
/// `snapshot`, `epoch`, `ack` or `bye`.
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
    /// A client that has seen nothing of `market` yet.
    #[must_use]
    pub fn new(token: String, market: u64) -> Self {
        let (http, lines) = (Http::default(), Lines::default());
        Self { token, market, last: 0, lines, applied: Vec::new(), fetches: 0, http, connection: None }
    }

    /// Opens a connection to this gateway in place of the one it had, which just vanishes.
    pub async fn connect(&mut self, gateway: SocketAddr) {
        self.connection = None;
        let mut socket = Socket::connect(gateway, &self.token).await;
        let (market, last) = (self.market, self.last);
        socket.send(format_args!(r#"{{"type":"resume","offsets":{{"{market}":{last}}}}}"#)).await;
        self.connection = Some((gateway, socket));
    }

    /// Handles what comes until it has applied `seq` or something after it.
    pub async fn reach(&mut self, seq: u64) {
        while self.last < seq {
            let (gateway, socket) = self.connection.as_mut().expect("connected");
            let gateway = *gateway;
            if let Message::Update(update) = socket.recv().await {
                self.handle(gateway, update).await;
            }
        }
    }

    /// The seq it has come to.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// What its user sees.
    #[must_use]
    pub const fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Everything it applied, in the order it did.
    #[must_use]
    pub fn applied(&self) -> &[Update] {
        &self.applied
    }

    /// How often it had to fetch what it had missed.
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
        /// All that it looks at.
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
