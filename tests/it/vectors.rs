//! docs/vectors: what every client must make of the same messages, and of the same real events.

use serde_json::Value;
use shared::{
    MarketId,
    client::{Client, Event, Fetch, Next, Turn},
};
use tests::vectors::{self, Expected, MessageStep, Messages, Then};

#[test]
fn the_client_in_rust_makes_of_messages_what_the_vectors_say() {
    for (file, Messages { title, markets, steps }) in vectors::all::<Messages>("messages") {
        let mut run = Run { client: Client::new(markets.into_iter().map(market)), fetches: Vec::new() };
        for (number, step) in steps.into_iter().enumerate() {
            println!("{file}: {title}: step {}: {step:?}", number + 1); // shown when it fails
            run.step(step);
        }
    }
}

struct Run {
    client: Client,
    fetches: Vec<Fetch>,
}

impl Run {
    fn step(&mut self, step: MessageStep) {
        match step {
            MessageStep::Open { open } => {
                assert_eq!(messages(self.client.opened()), sorted(open));
                self.fetches.clear();
            }
            MessageStep::Say { say, sends } => {
                // This client gives its requests no ids.
                let say = ["resume", "subscribe"]
                    .iter()
                    .fold(say, |say, kind| say.replace(&format!("\"id\":${kind},"), ""));
                let turn = self.client.heard(&say).unwrap();
                let sent = messages(self.take(turn));
                if let Some(sends) = sends {
                    assert_eq!(sent, sorted(sends));
                }
            }
            MessageStep::Get { get, answer } => {
                let path = |fetch: &Fetch| fetch.path().split("&limit").next() == Some(get.as_str());
                let at = self.fetches.iter().position(path).expect("it is asked for");
                let fetch = self.fetches.swap_remove(at);
                let turn = self.client.fetched(fetch, &answer).unwrap();
                self.take(turn);
            }
            MessageStep::Close { close, then } => {
                let done = match self.client.closed(close) {
                    Next::Stop { .. } => Then::default(),
                    Next::Reconnect { least_wait_ms, new_token, .. } => {
                        Then { reconnect: true, least_wait_ms, new_token }
                    }
                };
                assert_eq!(done, then);
            }
            MessageStep::Expect { expect, stale } => {
                for (id, expected) in expect {
                    self.expect(market(id), expected);
                }
                assert!(stale.is_none_or(|stale| stale == self.client.is_stale()));
            }
        }
    }

    fn take(&mut self, turn: Turn) -> Vec<String> {
        let changed = |event: &Event| matches!(event, Event::Changed(changed) if changed.text.is_empty());
        assert!(!turn.events.iter().any(changed), "a change says which message made it");
        self.fetches.extend(turn.fetch);
        turn.send
    }

    fn expect(&self, id: MarketId, expected: Option<Expected>) {
        let known = &self.client.markets()[&id];
        let Some(Expected { epoch, seq, lines, fresh, rejected }) = expected else {
            assert_eq!(known.seq, None, "nothing is known of it");
            return;
        };
        assert!(epoch.is_none_or(|epoch| epoch == known.epoch), "{known:?}");
        assert!(seq.is_none_or(|seq| Some(seq) == known.seq), "{known:?}");
        if let Some(lines) = lines {
            assert_eq!(vectors::written(&known.lines), lines);
        }
        assert!(fresh.is_none_or(|fresh| fresh == self.client.is_fresh(id)), "{known:?}");
        assert!(rejected.is_none_or(|rejected| rejected == known.rejected), "{known:?}");
    }
}

fn market(id: u64) -> MarketId {
    MarketId::new(id).unwrap()
}

fn messages(texts: Vec<String>) -> Vec<Value> {
    sorted(texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect())
}

fn sorted(mut messages: Vec<Value>) -> Vec<Value> {
    messages.sort_by_key(ToString::to_string);
    messages
}
