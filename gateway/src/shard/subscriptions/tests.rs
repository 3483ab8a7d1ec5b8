use backbone::Loaded;
use proptest::prelude::*;
use protocol::{MarketState, Payload, Update, client_message::Offset};
use service::telemetry::Counts;

use super::{batch::LARGE_FRAME_BYTES, *};
use crate::{
    frame,
    log::Bound,
    market::{Start, Wanted},
};

const BOUND: Bound = Bound { updates: 6, bytes: 100_000 };
const CLIENTS: usize = 3;
const MARKETS: u64 = 3;

/// A step of the test.
#[derive(Clone, Debug)]
enum Step {
    Publish {
        market: u64,
        count: u64,
    },
    NewEpoch {
        market: u64,
    },
    /// History is lost, and its seqs are used again for other updates.
    GoBack {
        market: u64,
        count: u64,
    },
    Look {
        market: u64,
    },
    Subscribe {
        client: usize,
        market: u64,
        snapshot: bool,
    },
    /// The client resumes from its position.
    Resume {
        client: usize,
        market: u64,
    },
    Unsubscribe {
        client: usize,
        market: u64,
    },
    /// The socket accepts this many bytes.
    Write {
        client: usize,
        room: usize,
    },
    Leave {
        client: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (client, market) = (0..CLIENTS, 1..=MARKETS);
    let step = prop_oneof![
        4 => (market.clone(), 1u64..5).prop_map(|(market, count)| Step::Publish { market, count }),
        1 => market.clone().prop_map(|market| Step::NewEpoch { market }),
        1 => (market.clone(), 1u64..9).prop_map(|(market, count)| Step::GoBack { market, count }),
        4 => market.clone().prop_map(|market| Step::Look { market }),
        2 => (client.clone(), market.clone(), any::<bool>()).prop_map(|(client, market, snapshot)| Step::Subscribe { client, market, snapshot }),
        1 => (client.clone(), market.clone()).prop_map(|(client, market)| Step::Resume { client, market }),
        1 => (client.clone(), market).prop_map(|(client, market)| Step::Unsubscribe { client, market }),
        5 => (client.clone(), 0usize..600).prop_map(|(client, room)| Step::Write { client, room }),
        1 => client.prop_map(|client| Step::Leave { client }),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A client: the bytes it received, and what follows from them by rule 1 of `docs/protocol.md#rules`.
#[derive(Default)]
struct Client {
    cut: Vec<u8>,
    received: Vec<u8>,
    at: HashMap<u64, At>,
}

/// A position, and the history it belongs to: two histories may have the same epoch.
#[derive(Clone, Copy, Debug)]
struct At {
    position: Position,
    history: u64,
}

impl Client {
    /// Processes the whole frames that were received.
    fn digest(&mut self) {
        while self.received.len() >= 4 {
            let (header, length) = match self.received[1] {
                126 => (4, usize::from(u16::from_be_bytes([self.received[2], self.received[3]]))),
                short => (2, usize::from(short)),
            };
            if self.received.len() < header + length {
                return;
            }
            let frame: Vec<u8> = self.received.drain(..header + length).collect();
            let message: serde_json::Value = serde_json::from_slice(&frame[header..]).expect("whole frames");
            let number = |name: &str| message[name].as_u64();
            let (market, seq) = (number("marketId").unwrap(), number("seq").unwrap());
            let at = self.at.get_mut(&market).expect("a message came from a market that is not subscribed");
            let history = message["payload"]["l"]["history"].as_u64();
            match message["type"].as_str() {
                Some("snapshot") => {
                    at.position = Position::new(number("epoch").unwrap(), seq);
                    at.history = history.unwrap_or(at.history);
                }
                _ => {
                    assert_eq!(seq, at.position.seq.get() + 1, "a hole or a duplicate in {market}");
                    assert_eq!(Some(at.history), history, "another history without a reset");
                    at.position.seq = at.position.seq.next();
                }
            }
        }
    }
}

struct World {
    registry: Arc<Markets>,
    subscriptions: Subscriptions,
    latest_positions: HashMap<u64, At>,
    clients: Vec<Client>,
    ages: Ages,
}

fn id(market: u64) -> MarketId {
    MarketId::new(market).unwrap()
}

fn update(at: At) -> Update {
    let pad = if at.position.seq.get().is_multiple_of(5) { LARGE_FRAME_BYTES } else { 0 };
    let payload = format!(r#"{{"l":{{"history":{},"p":1.50,"pad":"{:pad$}"}}}}"#, at.history, "");
    Update { position: at.position, ts: 1, payload: payload.into(), trace: None }
}

impl World {
    fn new() -> Self {
        let registry = Markets::new(BOUND, 1, Box::new(|_| 0));
        let mut subscriptions = Subscriptions::new(0, Arc::clone(&registry));
        for client in 0..CLIENTS {
            subscriptions.add_connection(client);
        }
        for market in 1..=MARKETS {
            let _ = registry.follow(id(market));
            registry.finish_load(id(market), Loaded::default(), true);
        }
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        Self { registry, subscriptions, latest_positions: HashMap::new(), clients, ages: Ages::default() }
    }

    fn latest(&mut self, market: u64) -> &mut At {
        self.latest_positions.entry(market).or_insert(At { position: Position::new(100, 0), history: 0 })
    }

    fn publish(&mut self, market: u64) {
        let latest = self.latest(market);
        latest.position.seq = latest.position.seq.next();
        let next = update(*latest);
        assert_eq!(self.registry.finish_read(id(market), &[next]), 1);
    }

    fn new_epoch(&mut self, market: u64) {
        let latest = self.latest(market);
        latest.history += 1;
        latest.position = Position::new(latest.position.epoch.get() + 1, latest.position.seq.get() + 3);
        let first = update(*latest);
        self.registry.finish_read(id(market), std::slice::from_ref(&first));
        self.load(market, first);
    }

    fn go_back(&mut self, market: u64, count: u64) {
        let latest = self.latest(market);
        if latest.position.seq.get() <= count {
            return;
        }
        latest.history += 1;
        latest.position = Position::new(latest.position.epoch.get(), latest.position.seq.get() - count);
        let (last, position) = (update(*latest), latest.position);
        self.registry.check(id(market), position);
        self.load(market, last);
    }

    /// Loads the market from a log that has only `last`.
    fn load(&mut self, market: u64, last: Update) {
        let mut state = MarketState::default();
        state.apply(last.position, 1, &Payload::parse(&last.payload).unwrap());
        self.registry.finish_load(id(market), Loaded { state, updates: vec![last] }, true);
    }

    fn begin(&mut self, client: usize, market: u64, start: Start) {
        let held = self.subscriptions.open(id(market));
        let Some(begin) = held.begin(&mut Wanted::new(id(market), start), 4) else {
            return self.subscriptions.close_unused(id(market));
        };
        self.flush(client);
        self.subscriptions.subscribe(client, id(market), begin);
        let history = self.latest(market).history;
        self.clients[client].at.insert(market, At { position: begin.cursor, history });
    }

    /// Sends the rest of a cut frame, as every ack does first.
    fn flush(&mut self, client: usize) {
        let client = &mut self.clients[client];
        let cut = std::mem::take(&mut client.cut);
        client.received.extend(cut);
        client.digest();
    }

    fn write(&mut self, client: usize, room: usize) {
        let mut batch = Batch::default();
        batch.begin(&self.clients[client].cut, 500);
        self.subscriptions.gather(client, &mut batch);
        let written = room.min(batch.bytes().len());
        let committed = self.subscriptions.commit(client, &batch, written, &mut self.ages);
        let to = &mut self.clients[client];
        to.received.extend_from_slice(&batch.bytes()[..written]);
        let rest_of_cut = to.cut.split_off(written.min(to.cut.len()));
        to.cut = rest_of_cut;
        if let Some(end) = committed.cut_end {
            to.cut.extend_from_slice(&batch.bytes()[written..end]);
        }
        to.digest();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish { market, count } => (0..count).for_each(|_| self.publish(market)),
            Step::NewEpoch { market } => self.new_epoch(market),
            Step::GoBack { market, count } => self.go_back(market, count),
            Step::Look { market } => {
                self.subscriptions.look(id(market), |_| {});
            }
            Step::Subscribe { client, market, snapshot } => {
                self.begin(client, market, if snapshot { Start::Snapshot } else { Start::Live });
            }
            Step::Resume { client, market } => {
                if let Some(at) = self.clients[client].at.get(&market).copied() {
                    // A log cannot tell a resume from a lost history of the same epoch, so no client tries it.
                    let position = at.position;
                    let epoch = (position != Position::ORIGIN).then_some(position.epoch);
                    if at.history == self.latest(market).history {
                        self.begin(client, market, Start::After(Offset { epoch, seq: position.seq }));
                    }
                }
            }
            Step::Unsubscribe { client, market } => {
                self.flush(client);
                self.subscriptions.unsubscribe(client, id(market));
                self.clients[client].at.remove(&market);
            }
            Step::Write { client, room } => self.write(client, room),
            Step::Leave { client } => {
                self.subscriptions.unsubscribe_all(client);
                self.clients[client] = Client::default();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// After any steps in any order, each client has seen each market without hole or duplicate, and catches up. When
    /// all have left, no market is held.
    #[test]
    fn every_client_sees_every_market_whole(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        for market in 1..=MARKETS {
            world.subscriptions.look(id(market), |_| {});
        }
        for client in 0..CLIENTS {
            while world.subscriptions.is_pending(client) || !world.clients[client].cut.is_empty() {
                world.write(client, 10_000);
            }
            for (market, at) in &world.clients[client].at {
                let latest = world.latest_positions.get(market).map_or(Position::ORIGIN, |latest| latest.position);
                prop_assert_eq!(at.position.seq, latest.seq, "client {} in {}", client, market);
            }
            world.subscriptions.unsubscribe_all(client);
        }
        prop_assert!(world.subscriptions.markets.is_empty() && world.subscriptions.entries.is_empty());
        prop_assert_eq!(world.registry.watched(), 0);
    }
}

#[test]
fn a_subscription_takes_40_bytes() {
    assert_eq!(std::mem::size_of::<Entry>(), 40);
}

#[test]
fn ages_of_live_updates_are_recorded_and_of_replays_not() {
    let mut world = World::new();
    world.begin(0, 1, Start::Live);
    world.publish(1);
    world.publish(1);
    world.subscriptions.look(id(1), |_| {});
    let ages = |world: &mut World| {
        world.ages.now_us = 1_700;
        world.write(0, 10_000);
        let Counts { buckets, sum_us } = std::mem::take(&mut world.ages.counts);
        (buckets.iter().sum::<u64>(), sum_us)
    };
    // Each was accepted at 1 ms.
    assert_eq!(ages(&mut world), (2, 1_400));
    let first = Offset { epoch: Some(protocol::Epoch::new(100)), seq: protocol::Seq::new(1) };
    world.begin(0, 1, Start::After(first));
    world.publish(1);
    world.subscriptions.look(id(1), |_| {});
    assert_eq!(ages(&mut world), (1, 700));
    world.begin(0, 1, Start::Snapshot);
    assert_eq!(ages(&mut world), (0, 0));
}

#[test]
fn a_frame_is_written_as_it_was_encoded() {
    let mut world = World::new();
    world.begin(0, 1, Start::Live);
    world.publish(1);
    world.subscriptions.look(id(1), |_| {});
    let mut batch = Batch::default();
    batch.begin(&[], 500);
    world.subscriptions.gather(0, &mut batch);
    let expected = frame::text(&protocol::server_message::odds_update(
        id(1),
        &update(At { position: Position::new(100, 1), history: 0 }),
    ));
    assert_eq!(batch.bytes(), &*expected);
}
