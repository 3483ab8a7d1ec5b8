//! A client's side of the protocol (docs/protocol.md, "How to write a client"), without I/O: texts that came go in, what
//! to send, to fetch and to show comes out. `gateway tail` is made of it, and docs/vectors says what it must do.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::ids::MarketId;

/// Updates kept of a market while what is missing before them is fetched. Beyond it the oldest go, and are fetched too.
const MAX_LATER: usize = 256;

/// Updates asked for at once: as many as an answer has at most.
const MAX_UPDATES: usize = 1000;

/// Line name → that line's JSON text, byte for byte as it came.
pub type Lines = BTreeMap<String, String>;

/// What one client knows. Every connection begins with [`Client::opened`] and ends with [`Client::closed`].
#[derive(Debug, Default)]
pub struct Client {
    markets: BTreeMap<MarketId, Market>,
    stale: bool,
    bye: Option<Bye>,
}

/// What is known of a market.
#[derive(Debug, Default)]
pub struct Market {
    /// Which history; 0 as long as that is not known.
    pub epoch: u64,
    /// The last update in [`Market::lines`]; `None` before anything has come.
    pub seq: Option<u64>,
    /// Its time, Unix milliseconds.
    pub ts: u64,
    /// Every line as last set.
    pub lines: Lines,
    /// Why the gateway does not deliver it.
    pub rejected: Option<String>,
    /// This connection's subscribe or resume was answered.
    live: bool,
    /// A snapshot is announced: until it has come, no update fits.
    awaits: bool,
    /// What came while updates before it are fetched.
    later: Option<VecDeque<Update>>,
}

/// What follows from something that came.
#[derive(Debug, Default)]
pub struct Turn {
    /// To send, in order.
    pub send: Vec<String>,
    /// To fetch; its answer goes into [`Client::fetched`].
    pub fetch: Option<Fetch>,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// A request over REST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// The updates of a market after this seq.
    Updates(MarketId, u64),
    /// A market's state.
    Snapshot(MarketId),
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A market's lines are others.
    Changed(Changed),
    /// An update came whose predecessors, from `after` on, did not.
    Gap {
        /// Whose.
        market: MarketId,
        /// The last one before.
        after: u64,
        /// The one that came.
        came: u64,
    },
    /// The gateway does not deliver a market, and why.
    Rejected(MarketId, String),
    /// The gateway cannot vouch for fresh prices, or (`None`) can again.
    Stale(Option<String>),
    /// The gateway refused a message: code and text.
    Refused(String, String),
    /// The gateway's clock as its heartbeat left, Unix milliseconds.
    Clock(u64),
    /// A ping with this `ts` was answered.
    Pong(u64),
}

/// How a market changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// Which.
    pub market: MarketId,
    /// The seq that it is at now.
    pub seq: u64,
    /// That update's time, Unix milliseconds.
    pub ts: u64,
    /// How that is known.
    pub cause: Cause,
    /// Line → before and after, of those that were carried or went.
    pub lines: BTreeMap<String, (Option<String>, Option<String>)>,
    /// The message, as it came.
    pub text: String,
}

/// Why lines changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An update.
    Update,
    /// A state in place of what was known.
    Snapshot {
        /// History was lost, or too much was missed.
        reset: bool,
        /// This client was too slow.
        conflated: bool,
    },
}

/// What to do when a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: a bug, or not allowed.
    Stop {
        /// The close code.
        code: u16,
        /// Its name, as far as the gateway said it.
        reason: String,
    },
    /// Connect again, to any gateway, after a backoff on top of this.
    Reconnect {
        /// The close code.
        code: u16,
        /// The least time to wait, milliseconds.
        least_wait_ms: u64,
        /// The token is not good any more.
        new_token: bool,
    },
}

/// An answer that does not fill a gap: connect again and resume.
#[derive(Debug, thiserror::Error)]
pub enum Unfilled {
    /// Not in the protocol's shape.
    #[error("{0}")]
    Shape(#[from] serde_json::Error),
    /// The gateway said that it may be old.
    #[error("the answer may be old")]
    Stale,
    /// It ends before what has come already.
    #[error("the answer has nothing new")]
    NothingNew,
}

impl Fetch {
    /// Where, below the gateway's address.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Updates(market, seq) => {
                format!("/api/markets/{market}/odds/updates?since_seq={seq}&limit={MAX_UPDATES}")
            }
            Self::Snapshot(market) => format!("/api/markets/{market}/odds/snapshot"),
        }
    }
}

impl Client {
    /// One that wants these markets.
    #[must_use]
    pub fn new(markets: impl IntoIterator<Item = MarketId>) -> Self {
        let markets = markets.into_iter().map(|market| (market, Market::default())).collect();
        Self { markets, ..Self::default() }
    }

    /// The markets it wants, and what it knows of each.
    #[must_use]
    pub fn markets(&self) -> &BTreeMap<MarketId, Market> {
        &self.markets
    }

    /// Whether the gateway has said that it cannot vouch for fresh prices.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Whether the gateway vouches for a market's prices, and nothing of it is missing.
    #[must_use]
    pub fn is_fresh(&self, market: MarketId) -> bool {
        let is_whole = |market: &Market| market.live && !market.awaits && market.later.is_none();
        !self.stale && self.markets.get(&market).is_some_and(is_whole)
    }

    /// A connection is open: what to send.
    pub fn opened(&mut self) -> Vec<String> {
        self.stale = false; // while prices are stale, nobody new is let in
        self.bye = None;
        for market in self.markets.values_mut() {
            (market.live, market.awaits, market.later) = (false, false, None);
        }
        let (mut offsets, mut unknown) = (Vec::new(), Vec::new());
        for (id, market) in &self.markets {
            match market.seq {
                Some(seq) => offsets.push(format!(r#""{id}":{{"epoch":{},"seq":{seq}}}"#, market.epoch)),
                None => unknown.push(format!(r#""{id}""#)),
            }
        }
        let mut send = Vec::new();
        if !offsets.is_empty() {
            send.push(format!(r#"{{"type":"resume","offsets":{{{}}}}}"#, offsets.join(",")));
        }
        if !unknown.is_empty() {
            let markets = unknown.join(",");
            send.push(format!(r#"{{"type":"subscribe","markets":[{markets}],"snapshot":true}}"#));
        }
        send
    }

    /// A message came.
    ///
    /// # Errors
    /// When it is not in the protocol's shape. It changes nothing then.
    pub fn heard(&mut self, text: &str) -> Result<Turn, serde_json::Error> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(rename = "type")]
            kind: String,
        }

        let mut turn = Turn::default();
        match serde_json::from_str::<Envelope>(text)?.kind.as_str() {
            "ack" => self.acked(read(text)?, &mut turn),
            "odds_update" => self.updated(Update::read(text)?, &mut turn),
            "snapshot" => {
                let state: State = read(text)?;
                if self.markets.get(&state.market_id).is_some_and(|market| market.live) {
                    self.replace(&state, text, &mut turn);
                }
            }
            "status" => {
                let Status { stale, reason } = read(text)?;
                self.stale = stale;
                turn.events.push(Event::Stale(stale.then(|| reason.unwrap_or_default())));
            }
            "ping" => {
                turn.events.push(Event::Clock(read::<Ping>(text)?.ts));
                turn.send.push(r#"{"type":"pong"}"#.to_owned());
            }
            "pong" => turn.events.push(Event::Pong(read::<Ping>(text)?.ts)),
            "error" => {
                let Refusal { code, message } = read(text)?;
                turn.events.push(Event::Refused(code, message));
            }
            "bye" => self.bye = Some(read(text)?),
            // What else a later gateway may say is for later clients.
            _ => {}
        }
        Ok(turn)
    }

    /// The answer to a fetch came, with status 200.
    ///
    /// # Errors
    /// [`Unfilled`]: what is missing cannot be had this way.
    pub fn fetched(&mut self, fetch: Fetch, text: &str) -> Result<Turn, Unfilled> {
        let mut turn = Turn::default();
        let (Fetch::Updates(id, _) | Fetch::Snapshot(id)) = fetch;
        let Some(market) = self.markets.get_mut(&id).filter(|market| market.later.is_some()) else {
            return Ok(turn); // a snapshot came meanwhile
        };
        let before = market.seq;
        match fetch {
            Fetch::Updates(..) => {
                let page: Page = read(text)?;
                if page.stale {
                    return Err(Unfilled::Stale);
                }
                if !page.complete || (market.epoch != 0 && page.epoch != market.epoch) {
                    turn.fetch = Some(Fetch::Snapshot(id));
                    return Ok(turn);
                }
                let updates: Vec<Update> =
                    page.updates.iter().map(|update| Update::read(update.get())).collect::<Result<_, _>>()?;
                for update in updates {
                    if Some(update.seq) == market.seq.map(|seq| seq + 1) {
                        turn.events.push(market.apply(update));
                    }
                }
            }
            Fetch::Snapshot(_) => {
                let state: State = read(text)?;
                if state.stale {
                    return Err(Unfilled::Stale);
                }
                let reset = state.epoch != market.epoch;
                let later = market.later.take();
                self.replace(&State { reset, ..state }, text, &mut turn);
                self.market(id).later = later;
            }
        }
        let market = self.market(id);
        if market.seq == before {
            return Err(Unfilled::NothingNew);
        }
        for update in market.later.take().unwrap_or_default() {
            self.updated(update, &mut turn);
        }
        Ok(turn)
    }

    /// The connection has ended, with this close code (1006 when there was none).
    pub fn closed(&mut self, code: u16) -> Next {
        // What the gateway said before it closed counts more than what the network made of its close.
        let bye = self.bye.take();
        let code = bye.as_ref().map_or(code, |bye| bye.code);
        for market in self.markets.values_mut() {
            market.live = false;
        }
        let is_final = matches!(code, 1002 | 1003 | 1007 | 1009 | 4403);
        if bye.as_ref().map_or(is_final, |bye| !bye.reconnect) {
            return Next::Stop { code, reason: bye.map(|bye| bye.reason).unwrap_or_default() };
        }
        let of_the_table = match code {
            1013 | 4409 => 1000,
            4429 => 5000,
            _ => 0,
        };
        let least_wait_ms = bye.map_or(0, |bye| bye.after_ms).max(of_the_table);
        Next::Reconnect { code, least_wait_ms, new_token: code == 4401 }
    }

    fn acked(&mut self, ack: Ack, turn: &mut Turn) {
        for Rejected { market_id, code } in ack.rejected {
            if let Some(market) = self.markets.get_mut(&market_id) {
                (market.live, market.later, market.rejected) = (false, None, Some(code.clone()));
                turn.events.push(Event::Rejected(market_id, code));
            }
        }
        for (id, position) in ack.positions {
            let Some(market) = self.markets.get_mut(&id) else { continue };
            if market.live {
                // It was asked for the epoch alone.
                market.epoch = if market.epoch == 0 { position.epoch } else { market.epoch };
                continue;
            }
            (market.live, market.rejected) = (true, None);
            market.awaits = position.recovered != Some(true);
            if !market.awaits {
                market.epoch = position.epoch;
            }
        }
    }

    fn updated(&mut self, update: Update, turn: &mut Turn) {
        let id = update.market_id;
        let Some(market) = self.markets.get_mut(&id) else { return };
        let Some(seq) = market.seq.filter(|_| market.live && !market.awaits) else { return };
        if update.seq <= seq {
            return;
        }
        if let Some(later) = &mut market.later {
            if later.len() == MAX_LATER {
                later.pop_front();
            }
            later.push_back(update);
        } else if update.seq == seq + 1 {
            turn.events.push(market.apply(update));
            if market.epoch == 0 {
                // Its first update says nothing of it, and the answer to this does.
                turn.send.push(format!(r#"{{"type":"subscribe","markets":["{id}"]}}"#));
            }
        } else {
            turn.events.push(Event::Gap { market: id, after: seq, came: update.seq });
            turn.fetch = Some(Fetch::Updates(id, seq));
            market.later = Some(VecDeque::from([update]));
        }
    }

    /// A state in place of what was known of its market, which is wanted.
    fn replace(&mut self, state: &State, text: &str, turn: &mut Turn) {
        let market = self.market(state.market_id);
        let after = lines_of(&state.payload);
        let mut lines: BTreeMap<String, (Option<String>, Option<String>)> = BTreeMap::new();
        for (name, line) in std::mem::replace(&mut market.lines, after.clone()) {
            lines.entry(name).or_default().0 = Some(line);
        }
        for (name, line) in after {
            lines.entry(name).or_default().1 = Some(line);
        }
        (market.epoch, market.seq, market.ts) = (state.epoch, Some(state.seq), state.ts);
        (market.awaits, market.later) = (false, None);
        let cause = Cause::Snapshot { reset: state.reset, conflated: state.conflated };
        let (market, seq, ts) = (state.market_id, state.seq, state.ts);
        turn.events.push(Event::Changed(Changed { market, seq, ts, cause, lines, text: text.to_owned() }));
    }

    fn market(&mut self, id: MarketId) -> &mut Market {
        self.markets.entry(id).or_default()
    }
}

impl Market {
    fn apply(&mut self, update: Update) -> Event {
        let Update { market_id: market, seq, ts, payload, text } = update;
        let mut lines = BTreeMap::new();
        for (name, line) in payload {
            let after = Some(line).filter(|line| line != "null");
            let before = match &after {
                Some(line) => self.lines.insert(name.clone(), line.clone()),
                None => self.lines.remove(&name),
            };
            lines.insert(name, (before, after));
        }
        (self.seq, self.ts) = (Some(seq), ts);
        Event::Changed(Changed { market, seq, ts, cause: Cause::Update, lines, text })
    }
}

#[derive(Debug)]
struct Update {
    market_id: MarketId,
    seq: u64,
    ts: u64,
    payload: Lines,
    text: String,
}

impl Update {
    fn read(text: &str) -> Result<Self, serde_json::Error> {
        let State { market_id, seq, ts, payload, .. } = read(text)?;
        let payload = payload.into_iter().map(|(name, line)| (name, line.get().to_owned())).collect();
        Ok(Self { market_id, seq, ts, payload, text: text.to_owned() })
    }
}

/// A snapshot, of the socket or of REST; an update has fewer members.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    market_id: MarketId,
    seq: u64,
    ts: u64,
    payload: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    reset: bool,
    #[serde(default)]
    conflated: bool,
    /// REST only.
    #[serde(default)]
    stale: bool,
}

#[derive(Deserialize)]
struct Page {
    updates: Vec<Box<RawValue>>,
    epoch: u64,
    complete: bool,
    #[serde(default)]
    stale: bool,
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    positions: BTreeMap<MarketId, Position>,
    #[serde(default)]
    rejected: Vec<Rejected>,
}

#[derive(Deserialize)]
struct Position {
    epoch: u64,
    recovered: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rejected {
    market_id: MarketId,
    code: String,
}

#[derive(Deserialize)]
struct Status {
    stale: bool,
    reason: Option<String>,
}

/// Or a pong.
#[derive(Deserialize)]
struct Ping {
    ts: u64,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bye {
    code: u16,
    reason: String,
    reconnect: bool,
    #[serde(default)]
    after_ms: u64,
}

/// A line that is `null` is none.
fn lines_of(payload: &BTreeMap<String, Box<RawValue>>) -> Lines {
    let there = payload.iter().filter(|(_, line)| line.get() != "null");
    there.map(|(name, line)| (name.clone(), line.get().to_owned())).collect()
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text)
}
