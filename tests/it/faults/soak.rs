//! Rule 1 of `docs/protocol.md#rules` for clients that act at random.
//!
//! They subscribe, unsubscribe, resume, vanish and change pods in any order. Each market's seq goes up by exactly 1 from
//! the ack's position, or jumps through a snapshot.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tests::{
    Lines, Message, Rest, Socket, Stack, admin::override_body, eventually, fresh_market, fresh_user,
    message::Ack, tokens,
};
use tokio::sync::watch;

const MARKETS: usize = 4;
const CLIENTS: u64 = 24;
const CONNECTIONS_EACH: usize = 12;
const ACTIONS_EACH: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_clients_do_each_market_s_seq_goes_up_by_one_or_jumps_through_a_snapshot() {
    let seed: u64 = rand::random();
    // The output shows this when the test fails.
    println!("seed {seed}");
    let stack =
        Stack::with(&[("MESSAGE_BURST", "1000000"), ("HISTORY_LEN", "20"), ("RESUME_MAX", "20")], &[]);
    let markets: [u64; MARKETS] = std::array::from_fn(|_| fresh_market());

    let (stop, stopped) = watch::channel(false);
    let publishing = tokio::spawn(publish(stack.clone(), markets, StdRng::seed_from_u64(seed), stopped));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(client + 1));
            tokio::spawn(Client::new(stack.clone(), markets, rng).live())
        })
        .collect();
    let mut lived = Vec::new();
    for client in clients {
        lived.push(client.await.unwrap());
    }
    stop.send_replace(true);
    let published = publishing.await.unwrap();

    let rest = Rest::of(stack.gateway(0));
    let mut tops = BTreeMap::new();
    for market in markets {
        let snapshot = eventually("the last update", async || {
            Some(rest.snapshot(market).await).filter(|snapshot| snapshot.seq == published[&market])
        })
        .await;
        tops.insert(market, (snapshot.seq, Lines::of(snapshot.payload.text())));
    }
    for mut client in lived {
        client.connect().await;
        client.resume_all().await;
        for (market, (top, lines)) in &tops {
            client.receive_until(*market, *top).await;
            let known = &client.known[market];
            assert_eq!(known.seq, *top);
            assert!(
                known.lines.as_ref().is_none_or(|known| known == lines),
                "{market}: {known:?} is not {lines:?}"
            );
        }
    }
}

/// Publishes small batches for random markets until told to stop; the last seq of each.
async fn publish(
    stack: Stack,
    markets: [u64; MARKETS],
    mut rng: StdRng,
    stopped: watch::Receiver<bool>,
) -> BTreeMap<u64, u64> {
    let admin = stack.admin();
    let mut published: BTreeMap<u64, u64> = markets.into_iter().map(|market| (market, 0)).collect();
    while !*stopped.borrow() {
        let items: Vec<String> = (0..rng.random_range(1..8))
            .map(|_| {
                let market = markets[rng.random_range(0..MARKETS)];
                *published.get_mut(&market).unwrap() += 1;
                let line = rng.random_range(0..5);
                let payload = match rng.random_range(0..10) {
                    0 => format!(r#"{{"line {line}":null}}"#),
                    _ => format!(
                        r#"{{"line {line}":{{"home":{}.{:02}0}}}}"#,
                        line + 2,
                        rng.random_range(0..100)
                    ),
                };
                override_body(market, &payload)
            })
            .collect();
        assert_eq!(admin.batch(&format!("[{}]", items.join(","))).await.status, 200);
    }
    published
}

struct Client {
    stack: Stack,
    markets: [u64; MARKETS],
    rng: StdRng,
    token: String,
    socket: Option<Socket>,
    /// The client's knowledge of each market, from this connection and earlier ones.
    known: BTreeMap<u64, Known>,
    /// The markets that this connection is subscribed to.
    subscribed: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    epoch: u64,
    seq: u64,
    /// `None` when delivery began in the middle, without a snapshot.
    lines: Option<Lines>,
}

impl Client {
    fn new(stack: Stack, markets: [u64; MARKETS], rng: StdRng) -> Self {
        let nothing = Known { lines: Some(Lines::default()), ..Known::default() };
        let known = markets.into_iter().map(|market| (market, nothing.clone())).collect();
        let token = tokens::for_user(fresh_user());
        Self { stack, markets, rng, token, socket: None, known, subscribed: Vec::new() }
    }

    async fn live(mut self) -> Self {
        for _ in 0..CONNECTIONS_EACH {
            self.connect().await;
            self.resume_all().await;
            for _ in 0..self.rng.random_range(0..=ACTIONS_EACH) {
                let market = self.markets[self.rng.random_range(0..MARKETS)];
                match self.rng.random_range(0..4) {
                    0 => self.unsubscribe(market).await,
                    1 => self.subscribe(market).await,
                    _ => self.receive_some().await,
                }
            }
        }
        self
    }

    async fn connect(&mut self) {
        self.socket = None;
        self.subscribed.clear();
        let gateway = self.stack.gateway(self.rng.random_range(0..2)).api;
        self.socket = Some(Socket::connect(gateway, &self.token).await);
    }

    async fn resume_all(&mut self) {
        let offsets: Vec<String> = self
            .known
            .iter()
            .map(|(market, Known { epoch, seq, .. })| {
                if self.rng.random_bool(0.5) {
                    format!(r#""{market}":{seq}"#)
                } else {
                    format!(r#""{market}":{{"epoch":{epoch},"seq":{seq}}}"#)
                }
            })
            .collect();
        let ack = self.ask(&format!(r#"{{"type":"resume","offsets":{{{}}}}}"#, offsets.join(","))).await;
        assert!(ack.ok, "{ack:?}");
        for market in self.markets {
            let position = ack.position(market);
            let known = self.known.get_mut(&market).unwrap();
            assert!(position.seq >= known.seq, "{position:?} is before {known:?}");
            known.epoch = position.epoch;
            if position.recovered == Some(false) {
                known.seq = position.seq;
                known.lines = None;
            }
        }
        self.subscribed = self.markets.to_vec();
    }

    async fn subscribe(&mut self, market: u64) {
        let snapshot = self.rng.random_bool(0.5);
        let ack =
            self.ask(&format!(r#"{{"type":"subscribe","markets":[{market}],"snapshot":{snapshot}}}"#)).await;
        assert!(ack.ok, "{ack:?}");
        if !self.subscribed.contains(&market) {
            self.subscribed.push(market);
            let position = ack.position(market);
            let known = self.known.get_mut(&market).unwrap();
            // The client misses what happened while it did not listen, unless nothing happened.
            let lines = if position.seq == known.seq { known.lines.take() } else { None };
            *known = Known { epoch: position.epoch, seq: position.seq, lines };
        }
    }

    async fn unsubscribe(&mut self, market: u64) {
        let ack = self.ask(&format!(r#"{{"type":"unsubscribe","markets":[{market}]}}"#)).await;
        assert!(ack.ok, "{ack:?}");
        self.subscribed.retain(|subscribed| *subscribed != market);
    }

    async fn receive_some(&mut self) {
        if !self.subscribed.is_empty() {
            for _ in 0..self.rng.random_range(1..40) {
                let message = self.socket.as_mut().unwrap().recv().await;
                self.take(message);
            }
        }
    }

    async fn receive_until(&mut self, market: u64, seq: u64) {
        while self.known[&market].seq < seq {
            let message = self.socket.as_mut().unwrap().recv().await;
            self.take(message);
        }
    }

    /// Sends a request, and takes the messages that come before its ack.
    async fn ask(&mut self, request: &str) -> Ack {
        self.socket.as_mut().unwrap().send(request).await;
        loop {
            match self.socket.as_mut().unwrap().recv().await {
                Message::Ack(ack) => return ack,
                message => self.take(message),
            }
        }
    }

    /// Checks rule 1 of `docs/protocol.md#rules`.
    fn take(&mut self, message: Message) {
        let market = match &message {
            Message::Update(update) => update.market_id,
            Message::Snapshot(snapshot) => snapshot.market_id,
            other => panic!("updates and snapshots only, not {other:?}"),
        };
        assert!(self.subscribed.contains(&market), "not subscribed: {message:?}");
        let known = self.known.get_mut(&market).unwrap();
        match message {
            Message::Update(update) => {
                assert_eq!(update.seq, known.seq + 1, "market {market}");
                known.seq = update.seq;
                if let Some(lines) = &mut known.lines {
                    lines.apply(update.payload.text());
                }
            }
            Message::Snapshot(snapshot) => {
                assert!(snapshot.seq >= known.seq, "{snapshot:?} is before {}", known.seq);
                let lines = Some(Lines::of(snapshot.payload.text()));
                *known = Known { epoch: snapshot.epoch, seq: snapshot.seq, lines };
            }
            _ => unreachable!("only those have a market"),
        }
    }
}
