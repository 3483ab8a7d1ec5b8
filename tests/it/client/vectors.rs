//! `docs/vectors`: what every client must make of the same messages, and of the same real events.

mod clients;

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    MarketId,
    client::{Actions, AfterClose, Client, Event, Fetch},
};
use serde_json::Value;
use tests::{
    Redis, Rest, Services,
    admin::{Accepted, override_body},
    chaos::{Chaos, Weather},
    fresh_market,
    message::parse,
    vectors::{self, End, Expected, MessageStep, Messages, Scenario, ScenarioStep, Then},
};

use clients::{Running, State, Tokens};

#[test]
fn the_client_in_rust_makes_of_messages_what_the_vectors_say() {
    for (file, Messages { title, markets, steps, .. }) in vectors::all::<Messages>("messages") {
        let mut run = Run { client: Client::new(markets.into_iter().map(id)), fetches: Vec::new() };
        for (number, step) in steps.into_iter().enumerate() {
            println!("{file}: {title}: step {}: {step:?}", number + 1); // shown when it fails
            run.step(step);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_in_rust_and_in_javascript_know_the_same_after_every_scenario() {
    for (file, scenario) in vectors::all::<Scenario>("scenarios") {
        println!("{file}: {}", scenario.title); // shown when it fails
        System::start(&scenario).run(scenario).await;
    }
}

/// A real system, and what happened in it.
struct System {
    markets: BTreeMap<String, u64>,
    tokens: Tokens,
    chaos: Chaos,
    clients: Vec<Running>,
    /// The last accepted override, by market.
    last: BTreeMap<u64, (u64, u64)>,
    /// The epochs of each market.
    epochs: BTreeMap<u64, BTreeSet<u64>>,
    gateway: usize,
    services: Services,
    redis: Redis,
}

impl System {
    fn start(scenario: &Scenario) -> Self {
        let redis = Redis::start();
        let settings: Vec<(&str, &str)> =
            scenario.gateway.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let services = Services::start(&redis, &settings, &[]);
        let markets: BTreeMap<String, u64> =
            scenario.markets.iter().map(|name| (name.clone(), fresh_market())).collect();
        let tokens = Tokens::new(scenario.ttl_seconds);
        if let Some(scope) = &scenario.scope {
            tokens.narrow(scope.iter().map(|name| markets[name]).collect());
        }
        let chaos = Chaos::before_address(None);
        Self {
            markets,
            tokens,
            chaos,
            clients: Vec::new(),
            last: BTreeMap::new(),
            epochs: BTreeMap::new(),
            gateway: 0,
            services,
            redis,
        }
    }

    async fn run(mut self, scenario: Scenario) {
        let ids: Vec<u64> = self.markets.values().copied().collect();
        self.clients = vec![
            Running::rust(self.chaos.address(), &ids, &self.tokens),
            Running::java_script(self.chaos.address(), &ids, &self.tokens),
        ];
        for step in scenario.steps {
            println!("  {step:?}");
            self.step(step).await;
        }
        self.catch_up().await;
        let rest = Rest::of(self.services.gateway(self.gateway));
        for (name, end) in scenario.expect {
            let market = self.markets[&name];
            let known: Vec<_> =
                self.clients.iter().map(|client| client.state().markets[&market].clone()).collect();
            match end {
                End::Rejected { rejected } => {
                    assert!(
                        known.iter().all(|known| known.rejected.as_ref() == Some(&rejected)),
                        "{known:?}"
                    );
                }
                End::Known { history, seq, lines } => {
                    assert_eq!(known[0], known[1], "the clients agree on {name}");
                    assert_eq!((known[0].seq, &known[0].lines), (Some(seq), &lines), "{name}");
                    let epochs = self.epochs.get(&market).map_or(0, BTreeSet::len);
                    assert_eq!(epochs, history, "{name}'s histories");
                    let truth = rest.snapshot(market).await;
                    assert_eq!((truth.epoch, truth.seq), (known[0].epoch, seq), "{name} by REST");
                    assert_eq!(vectors::in_text(truth.payload.text()), lines, "{name} by REST");
                }
            }
        }
        for client in &self.clients {
            let saw = client.state().saw;
            assert!(scenario.saw.iter().all(|told| saw.contains(told)), "{saw:?} of {:?}", scenario.saw);
        }
    }

    async fn step(&mut self, step: ScenarioStep) {
        match step {
            ScenarioStep::Publish { publish, payload } => {
                let market = self.markets[&publish];
                let accepted = self.services.admin().publish(market, &payload).await;
                self.accepted(accepted);
            }
            ScenarioStep::PublishMany { publish_many, count, bytes } => {
                let (market, pad) = (self.markets[&publish_many], "x".repeat(bytes));
                let item = |n| override_body(market, &format!(r#"{{"win":{{"n":{n}.0,"pad":"{pad}"}}}}"#));
                let items: Vec<String> = (1..=count).map(item).collect();
                for items in items.chunks(500) {
                    let results: Vec<Value> =
                        self.services.admin().batch(&format!("[{}]", items.join(","))).await.ok();
                    for mut result in results {
                        assert_eq!(result.as_object_mut().unwrap().remove("ok"), Some(true.into()));
                        self.accepted(parse(&result.to_string()));
                    }
                }
            }
            ScenarioStep::Follow { follow } => {
                self.gateway = follow;
                self.chaos.lead_to_address(Some(self.services.gateway(follow).api));
                self.catch_up().await;
            }
            ScenarioStep::CatchUp { catch_up } => {
                assert!(catch_up);
                self.catch_up().await;
            }
            ScenarioStep::Cut { cut } => {
                assert!(cut);
                self.chaos.lead_to_address(None);
            }
            ScenarioStep::Kill { kill } => {
                self.chaos.lead_new_to(None);
                self.services.gateway(kill).process.kill();
            }
            ScenarioStep::Drain { drain, new_to } => {
                self.gateway = new_to;
                self.chaos.lead_new_to(Some(self.services.gateway(new_to).api));
                self.services.gateway(drain).process.terminate();
                assert!(self.services.gateway(drain).process.wait().success());
            }
            ScenarioStep::Trim { trim, keep } => {
                let _: u64 =
                    self.redis.tell(&format!("XTRIM odds:log:{{{}}} MAXLEN {keep}", self.markets[&trim]));
            }
            ScenarioStep::Lose { lose } => {
                let keys =
                    ["log", "state", "audit"].map(|kind| format!("odds:{kind}:{{{}}}", self.markets[&lose]));
                let removed: u64 = self.redis.tell(&format!("DEL {}", keys.join(" ")));
                assert_eq!(removed, 3);
            }
            ScenarioStep::Slow { slow } => {
                self.chaos.set(if slow { Weather::Held } else { Weather::Fair });
            }
            ScenarioStep::Narrow { narrow } => {
                let scope: BTreeSet<u64> = narrow.iter().map(|name| self.markets[name]).collect();
                self.tokens.narrow(scope.clone());
                let is_told = |state: &State| {
                    let outside = state.markets.iter().filter(|(market, _)| !scope.contains(market));
                    outside.map(|(_, known)| known).all(|known| known.rejected.is_some())
                };
                for client in &mut self.clients {
                    client.until("told of what is refused", is_told).await;
                }
            }
        }
    }

    fn accepted(&mut self, Accepted { market_id, epoch, seq, .. }: Accepted) {
        self.last.insert(market_id, (epoch, seq));
        self.epochs.entry(market_id).or_default().insert(epoch);
    }

    /// Waits until every client has the last update of every market in its scope, and knows that it is fresh.
    async fn catch_up(&mut self) {
        let (last, tokens) = (&self.last, &self.tokens);
        let is_there = |state: &State| {
            // A client without output has no markets.
            let mut visible = state.markets.iter().filter(|(market, _)| tokens.allow(**market)).peekable();
            visible.peek().is_some()
                && visible.all(|(market, known)| {
                    let (epoch, seq) = last.get(market).copied().unwrap_or_default();
                    known.fresh && (known.epoch, known.seq) == (epoch, Some(seq))
                })
        };
        for client in &mut self.clients {
            client.until(&format!("{last:?}"), is_there).await;
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
                assert_eq!(messages(&self.client.opened()), sorted(open));
                self.fetches.clear();
            }
            MessageStep::Say { say, sends } => {
                // This client sends requests without ids.
                let say = ["resume", "subscribe"]
                    .iter()
                    .fold(say, |say, kind| say.replace(&format!("\"id\":${kind},"), ""));
                let actions = self.client.received(&say).unwrap();
                let sent = messages(&self.take(actions));
                if let Some(sends) = sends {
                    assert_eq!(sent, sorted(sends));
                }
            }
            MessageStep::Get { get, answer } => {
                let path = |fetch: &Fetch| fetch.path().split("&limit").next() == Some(get.as_str());
                let at = self.fetches.iter().position(path).expect("it is asked for");
                let fetch = self.fetches.swap_remove(at);
                let actions = self.client.fetched(fetch, &answer).unwrap();
                self.take(actions);
            }
            MessageStep::Close { close, then } => {
                let done = match self.client.closed(close) {
                    AfterClose::Stop { .. } => Then::default(),
                    AfterClose::Reconnect { least_wait_ms, new_token, .. } => {
                        Then { reconnect: true, least_wait_ms, new_token }
                    }
                };
                assert_eq!(done, then);
            }
            MessageStep::Expect { expect, stale } => {
                for (market, expected) in expect {
                    self.expect(market, expected);
                }
                assert!(stale.is_none_or(|stale| stale == self.client.is_stale()));
            }
        }
    }

    fn take(&mut self, actions: Actions) -> Vec<String> {
        let changed = |event: &Event| matches!(event, Event::Changed(changed) if changed.text.is_empty());
        assert!(!actions.events.iter().any(changed), "a change says which message made it");
        self.fetches.extend(actions.fetch);
        actions.send
    }

    fn expect(&self, market: MarketId, expected: Option<Expected>) {
        let known = &self.client.markets()[&market];
        let Some(Expected { epoch, seq, lines, fresh, rejected }) = expected else {
            assert_eq!(known.seq, None, "nothing is known of it");
            return;
        };
        assert!(epoch.is_none_or(|epoch| epoch == known.epoch), "{known:?}");
        assert!(seq.is_none_or(|seq| Some(seq) == known.seq), "{known:?}");
        if let Some(lines) = lines {
            assert_eq!(vectors::written(&known.lines), lines);
        }
        assert!(fresh.is_none_or(|fresh| fresh == self.client.is_fresh(market)), "{known:?}");
        assert!(rejected.is_none_or(|rejected| rejected == Value::from(known.rejected.clone())), "{known:?}");
    }
}

fn id(market: u64) -> MarketId {
    MarketId::new(market).unwrap()
}

fn messages(texts: &[String]) -> Vec<Value> {
    sorted(texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect())
}

fn sorted(mut messages: Vec<Value>) -> Vec<Value> {
    messages.sort_by_key(ToString::to_string);
    messages
}
