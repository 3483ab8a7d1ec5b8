//! A client that holds the gateway to docs/protocol.md#rules, rule 1, whatever happens behind it.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::{
    desk::Desk,
    lines::Lines,
    message::{Message, Snapshot, Status, Update},
    redis::Redis,
    socket::Socket,
    stack::fresh_user,
    tokens,
    wait::within,
};

/// Follows markets on one connection and adds up their state. Panics at a hole, a duplicate or a reordering.
#[derive(Debug)]
pub struct Follower {
    user: u64,
    socket: Socket,
    known: BTreeMap<u64, Known>,
    statuses: Vec<Status>,
    /// The last `status` of this connection.
    stale: bool,
    /// Redis may have lost updates, so that a reset may lead back.
    less_is_true: bool,
}

/// What a [`Follower`] knows of a market.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The epoch.
    pub epoch: u64,
    /// The seq of the last update.
    pub seq: u64,
    /// Every line as last set.
    pub lines: Lines,
    /// The payload of every received update, by epoch and seq.
    pub updates: BTreeMap<(u64, u64), String>,
    /// How many snapshots had `reset`.
    pub resets: usize,
}

impl Follower {
    /// Subscribes to `markets` with snapshots, and waits for them.
    pub async fn start(gateway: SocketAddr, markets: &[u64]) -> Self {
        let user = fresh_user();
        let mut socket = Socket::connect(gateway, &tokens::for_user(user)).await;
        socket.send(format!(r#"{{"type":"subscribe","markets":{markets:?},"snapshot":true}}"#)).await;
        let ack = socket.ack().await;
        assert!(ack.ok, "{ack:?}");
        let mut follower = Self {
            user,
            socket,
            known: BTreeMap::new(),
            statuses: Vec::new(),
            stale: false,
            less_is_true: false,
        };
        while follower.known.len() < markets.len() {
            let Snapshot { market_id, epoch, seq, payload, reset, .. } = follower.socket.snapshot().await;
            assert!(!reset && markets.contains(&market_id));
            let lines = Lines::of(payload.text());
            let known = Known { epoch, seq, lines, ..Known::default() };
            assert!(follower.known.insert(market_id, known).is_none(), "one snapshot each");
        }
        follower
    }

    /// Drops the connection and resumes at this gateway.
    pub async fn resume(&mut self, gateway: SocketAddr) {
        assert!(self.try_resume(gateway).await, "the resume is acknowledged");
    }

    /// Like [`Self::resume`], but returns false if the gateway is gone.
    pub async fn try_resume(&mut self, gateway: SocketAddr) -> bool {
        let offset = |(market, Known { epoch, seq, .. }): (&u64, &Known)| {
            format!(r#""{market}":{{"epoch":{epoch},"seq":{seq}}}"#)
        };
        let offsets: Vec<String> = self.known.iter().map(offset).collect();
        let Some(socket) = Socket::try_connect(gateway, &tokens::for_user(self.user)).await else {
            return false;
        };
        self.socket = socket;
        self.stale = false;
        let resume = format!(r#"{{"type":"resume","offsets":{{{}}}}}"#, offsets.join(","));
        if !self.socket.try_send(resume).await {
            return false;
        }
        let ack = loop {
            match self.socket.try_recv().await {
                Some(Message::Status(status)) => self.take_status(status),
                Some(Message::Ack(ack)) => break ack,
                Some(Message::Bye(_)) | None => return false,
                other => panic!("the ack comes first, not {other:?}"),
            }
        };
        assert!(ack.ok, "{ack:?}");
        for (&market, known) in &self.known {
            let position = ack.position(market);
            assert!(position.recovered == Some(false) || position.epoch == known.epoch || known.seq == 0);
        }
        true
    }

    /// Allows resets that lead back, since Redis may have lost updates; `false` ends that.
    pub fn expect_loss(&mut self, expected: bool) {
        self.less_is_true = expected;
    }

    /// Takes messages until it has this update of the market or a later one.
    pub async fn reach(&mut self, market: u64, (epoch, seq): (u64, u64)) {
        let is_before = |known: &Known| known.seq < seq || (known.epoch != 0 && known.epoch < epoch);
        while is_before(self.known(market)) {
            self.take_next(&format!("{epoch}-{seq} of market {market}")).await;
        }
        // The first update of a market does not contain its epoch.
        let known = self.known.get_mut(&market).expect("only what was subscribed to");
        if known.epoch == 0 {
            known.epoch = epoch;
            known.updates = std::mem::take(&mut known.updates)
                .into_iter()
                .map(|((_, seq), text)| ((epoch, seq), text))
                .collect();
        }
    }

    /// Takes messages until it has every update that this desk published. Panics if a payload differs.
    pub async fn reach_all_of(&mut self, desk: &Desk) {
        for (&market, last) in desk.last() {
            if self.known.contains_key(&market) {
                self.reach(market, *last).await;
            }
        }
        for (market, position, payload) in desk.accepted() {
            let received = self.known.get(market).and_then(|known| known.updates.get(position));
            assert!(received.is_none_or(|received| received == payload), "{position:?} of {market}");
        }
    }

    /// Takes messages until the next `status`.
    pub async fn status(&mut self) -> Status {
        let before = self.statuses.len();
        while self.statuses.len() == before {
            self.take_next("a status").await;
        }
        self.statuses[before].clone()
    }

    /// What the follower knows of a market.
    #[must_use]
    pub fn known(&self, market: u64) -> &Known {
        &self.known[&market]
    }

    /// Every `status` received.
    #[must_use]
    pub fn statuses(&self) -> &[Status] {
        &self.statuses
    }

    /// Panics unless its state of the market equals the state in Redis. Blocks the thread.
    pub fn expect_as_in(&self, redis: &Redis, market: u64) {
        let known = self.known(market);
        let state: BTreeMap<String, String> = redis.tell(&format!("HGETALL odds:state:{{{market}}}"));
        let number = |field: &str| state.get(field).map_or(0, |value| value.parse().expect("a number"));
        assert_eq!((known.epoch, known.seq), (number("epoch"), number("seq")), "market {market}");
        let lines: BTreeMap<&str, &str> = state
            .iter()
            .filter_map(|(field, text)| Some((field.strip_prefix("l:")?, text.as_str())))
            .collect();
        assert_eq!(known.lines.len(), lines.len());
        for (line, text) in lines {
            assert_eq!(known.lines.get(line), Some(text), "line {line} of market {market}");
        }
    }

    /// Takes the next message that is not a heartbeat, on the way to `what`.
    async fn take_next(&mut self, what: &str) {
        assert!(within(what, self.try_take_next()).await, "{what}: the connection stays open");
    }

    /// Takes the next message that is not a heartbeat. Returns false once the connection has ended.
    pub async fn try_take_next(&mut self) -> bool {
        match self.socket.recv_patiently().await {
            Some(Message::Update(update)) => self.take_update(&update),
            Some(Message::Snapshot(snapshot)) => self.take_snapshot(&snapshot),
            Some(Message::Status(status)) => self.take_status(status),
            Some(Message::Bye(_)) | None => return false,
            other => panic!("an update, a snapshot or a status, not {other:?}"),
        }
        true
    }

    fn take_status(&mut self, status: Status) {
        assert_ne!(status.stale, self.stale, "told once: {:?}", self.statuses);
        self.stale = status.stale;
        self.statuses.push(status);
    }

    fn take_update(&mut self, update: &Update) {
        let known = self.known.get_mut(&update.market_id).expect("only what was subscribed to");
        assert_eq!(update.seq, known.seq + 1, "market {} after {known:?}", update.market_id);
        known.seq = update.seq;
        known.lines.apply(update.payload.text());
        let position = (known.epoch, update.seq);
        if let Some(former) = known.updates.insert(position, update.payload.text().to_owned()) {
            assert_eq!(former, update.payload.text(), "{position:?} of {} is one update", update.market_id);
        }
    }

    fn take_snapshot(&mut self, snapshot: &Snapshot) {
        let known = self.known.get_mut(&snapshot.market_id).expect("only what was subscribed to");
        assert!(snapshot.reset || snapshot.conflated, "{snapshot:?} after {known:?}");
        if !(self.less_is_true && snapshot.reset) {
            assert!(
                (snapshot.epoch, snapshot.seq) > (known.epoch, known.seq),
                "{snapshot:?} after {known:?}"
            );
            assert!(
                snapshot.seq >= known.seq,
                "clients that know only seq never see it go back: {snapshot:?}"
            );
        }
        (known.epoch, known.seq) = (snapshot.epoch, snapshot.seq);
        known.lines = Lines::of(snapshot.payload.text());
        known.resets += usize::from(snapshot.reset);
    }
}
