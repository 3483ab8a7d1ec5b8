//! A client's side of the protocol as a state machine without I/O (`docs/protocol.md#how-to-write-a-client`).
//!
//! Received texts go in; texts to send, requests to make and events come out. The `tail` command is built on it, and
//! `docs/vectors` states how it must handle each message.

mod messages;

use std::collections::{BTreeMap, VecDeque};

use self::messages::{
    Ack, Bye, Envelope, Page, Ping, Refusal, Rejected, State, Status, Update, lines_of, parse,
};
use crate::{close::CloseCode, ids::MarketId};

/// Updates that a market holds back while earlier ones are fetched. Beyond that the oldest are dropped, and fetched later.
const MAX_HELD_BACK: usize = 256;

/// Updates requested at once: as many as a page has at most.
const MAX_UPDATES: usize = 1000;

/// Line name → that line's JSON text, byte for byte as received.
pub type Lines = BTreeMap<String, String>;

/// A client's knowledge, over all its connections. Each connection begins with [`Client::opened`] and ends with
/// [`Client::closed`].
#[derive(Debug, Default)]
pub struct Client {
    markets: BTreeMap<MarketId, Market>,
    stale: bool,
    /// The gateway's announcement that it closes this connection.
    bye: Option<Bye>,
}

/// A client's knowledge of a market.
#[derive(Debug, Default)]
pub struct Market {
    /// The log's epoch; 0 while it is not known.
    pub epoch: u64,
    /// The last update in [`Market::lines`]; `None` before the first snapshot.
    pub seq: Option<u64>,
    /// That update's time, Unix milliseconds.
    pub ts: u64,
    /// Every line as last set.
    pub lines: Lines,
    /// The code with which the gateway rejected the market.
    pub rejected: Option<String>,
    /// The gateway acknowledged this connection's subscribe or resume.
    live: bool,
    /// The gateway will send a snapshot. Updates before it are ignored.
    awaits_snapshot: bool,
    /// Updates that were received while earlier ones are fetched; `None` while none are.
    held_back: Option<VecDeque<Update>>,
}

/// What the caller does next.
#[derive(Debug, Default)]
#[must_use = "the client depends on what it asks to send and to fetch"]
pub struct Actions {
    /// Texts to send, in order.
    pub send: Vec<String>,
    /// A request to make. Its response goes into [`Client::fetched`].
    pub fetch: Option<Fetch>,
    /// Events to show, in order.
    pub events: Vec<Event>,
}

/// A request by REST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// The updates of a market after this seq.
    Updates(MarketId, u64),
    /// A market's state.
    Snapshot(MarketId),
}

/// Something that a user of the client may want to know.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A market's lines changed.
    Changed(Changed),
    /// An update was received, but not the updates before it.
    Gap {
        /// The market.
        market: MarketId,
        /// The last update before the gap.
        after: u64,
        /// The first update after the gap.
        received: u64,
    },
    /// The gateway rejected a market, with this code.
    Rejected(MarketId, String),
    /// Prices may be old, for this reason; `None`: they are fresh again.
    Stale(Option<String>),
    /// The gateway refused a message, with this code and text.
    Refused(String, String),
    /// The gateway sent a heartbeat at this time of its clock, Unix milliseconds.
    Clock(u64),
    /// The gateway answered a ping with this `ts`.
    Pong(u64),
}

/// A change of a market.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// The market.
    pub market: MarketId,
    /// The market's seq after the change.
    pub seq: u64,
    /// That update's time, Unix milliseconds.
    pub ts: u64,
    /// The kind of message that changed it.
    pub cause: Cause,
    /// Line → text before and after, for the lines that the message carries or removes.
    pub lines: BTreeMap<String, (Option<String>, Option<String>)>,
    /// The message, as received.
    pub text: String,
}

/// The kind of message that changed a market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An update.
    Update,
    /// A snapshot replaced all lines.
    Snapshot {
        /// History was lost, or the client missed too much.
        reset: bool,
        /// The client was too slow.
        conflated: bool,
    },
}

/// What to do after a connection has ended (`docs/protocol.md#close-codes`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterClose {
    /// Stop: there is a bug, or the client is not allowed any more.
    Stop {
        /// The close code.
        code: u16,
        /// The reason in the gateway's `bye`, if it sent one.
        reason: String,
    },
    /// Connect again, to any gateway, after `least_wait_ms` and a backoff.
    Reconnect {
        /// The close code.
        code: u16,
        /// The least time to wait, milliseconds.
        least_wait_ms: u64,
        /// Get a new token first: this one has expired.
        new_token: bool,
    },
}

/// Why a response does not fill a gap. The client must connect again and resume.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It does not have the protocol's shape.
    #[error("{0}")]
    Shape(#[from] serde_json::Error),
    /// The gateway marked it as possibly old.
    #[error("the response may be old")]
    Stale,
    /// It has no update that the client lacks.
    #[error("the response has nothing new")]
    NothingNew,
}

impl Fetch {
    /// Returns the path and query of the request.
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
    /// Follows these markets. It knows nothing of them yet.
    #[must_use]
    pub fn new(markets: impl IntoIterator<Item = MarketId>) -> Self {
        let markets = markets.into_iter().map(|market| (market, Market::default())).collect();
        Self { markets, ..Self::default() }
    }

    /// Returns the client's knowledge of each market.
    #[must_use]
    pub fn markets(&self) -> &BTreeMap<MarketId, Market> {
        &self.markets
    }

    /// Returns true while the gateway's prices may be old.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Returns true if a market's prices are fresh, and none of its updates is missing.
    #[must_use]
    pub fn is_fresh(&self, market: MarketId) -> bool {
        let is_whole = |market: &Market| market.live && !market.awaits_snapshot && market.held_back.is_none();
        !self.stale && self.markets.get(&market).is_some_and(is_whole)
    }

    /// Begins a connection that is open. Returns the texts to send.
    #[must_use]
    pub fn opened(&mut self) -> Vec<String> {
        self.stale = false; // a gateway with stale prices refuses handshakes
        self.bye = None;
        for market in self.markets.values_mut() {
            (market.live, market.awaits_snapshot, market.held_back) = (false, false, None);
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

    /// Handles a message of the gateway.
    ///
    /// # Errors
    /// If the message does not have the protocol's shape. It changes nothing then.
    pub fn received(&mut self, text: &str) -> Result<Actions, serde_json::Error> {
        let mut actions = Actions::default();
        match parse::<Envelope>(text)?.kind.as_str() {
            "ack" => self.acked(parse(text)?, &mut actions),
            "odds_update" => self.updated(Update::parse(text)?, &mut actions),
            "snapshot" => {
                let state: State = parse(text)?;
                if self.markets.get(&state.market_id).is_some_and(|market| market.live) {
                    self.replace(&state, text, &mut actions);
                }
            }
            "status" => {
                let Status { stale, reason } = parse(text)?;
                self.stale = stale;
                actions.events.push(Event::Stale(stale.then(|| reason.unwrap_or_default())));
            }
            "ping" => {
                actions.events.push(Event::Clock(parse::<Ping>(text)?.ts));
                actions.send.push(r#"{"type":"pong"}"#.to_owned());
            }
            "pong" => actions.events.push(Event::Pong(parse::<Ping>(text)?.ts)),
            "error" => {
                let Refusal { code, message } = parse(text)?;
                actions.events.push(Event::Refused(code, message));
            }
            "bye" => self.bye = Some(parse(text)?),
            // A later gateway may send other types, for later clients.
            _ => {}
        }
        Ok(actions)
    }

    /// Handles the response to a fetch, if its status is 200.
    ///
    /// # Errors
    /// [`FetchError`] if the response does not fill the gap.
    pub fn fetched(&mut self, fetch: Fetch, text: &str) -> Result<Actions, FetchError> {
        let mut actions = Actions::default();
        let (Fetch::Updates(id, _) | Fetch::Snapshot(id)) = fetch;
        let Some(market) = self.markets.get_mut(&id).filter(|market| market.held_back.is_some()) else {
            return Ok(actions); // a snapshot was received meanwhile
        };
        let before = market.seq;
        match fetch {
            Fetch::Updates(..) => {
                let page: Page = parse(text)?;
                if page.stale {
                    return Err(FetchError::Stale);
                }
                if !page.complete || (market.epoch != 0 && page.epoch != market.epoch) {
                    actions.fetch = Some(Fetch::Snapshot(id));
                    return Ok(actions);
                }
                let updates: Vec<Update> = page
                    .updates
                    .iter()
                    .map(|update| Update::parse(update.get()))
                    .collect::<Result<_, _>>()?;
                for update in updates {
                    if Some(update.seq) == market.seq.map(|seq| seq + 1) {
                        actions.events.push(market.apply(update));
                    }
                }
            }
            Fetch::Snapshot(_) => {
                let state: State = parse(text)?;
                if state.stale {
                    return Err(FetchError::Stale);
                }
                let reset = state.epoch != market.epoch;
                let held_back = market.held_back.take();
                self.replace(&State { reset, ..state }, text, &mut actions);
                self.market(id).held_back = held_back;
            }
        }
        let market = self.market(id);
        if market.seq == before {
            return Err(FetchError::NothingNew);
        }
        for update in market.held_back.take().unwrap_or_default() {
            self.updated(update, &mut actions);
        }
        Ok(actions)
    }

    /// Ends the connection, with its close code (1006 without one).
    #[must_use]
    pub fn closed(&mut self, code: u16) -> AfterClose {
        // The gateway's `bye` counts more than the close code, which the network may have replaced.
        let bye = self.bye.take();
        let code = bye.as_ref().map_or(code, |bye| bye.code);
        for market in self.markets.values_mut() {
            market.live = false;
        }
        let known = CloseCode::from_number(code).filter(|code| *code != CloseCode::Normal);
        let is_final = known.is_some_and(|code| !code.reconnect());
        if bye.as_ref().map_or(is_final, |bye| !bye.reconnect) {
            return AfterClose::Stop { code, reason: bye.map(|bye| bye.reason).unwrap_or_default() };
        }
        let least_wait_ms = bye.map_or(0, |bye| bye.after_ms).max(known.map_or(0, CloseCode::after_ms));
        AfterClose::Reconnect { code, least_wait_ms, new_token: known == Some(CloseCode::TokenExpired) }
    }

    fn acked(&mut self, ack: Ack, actions: &mut Actions) {
        for Rejected { market_id, code } in ack.rejected {
            if let Some(market) = self.markets.get_mut(&market_id) {
                (market.live, market.held_back, market.rejected) = (false, None, Some(code.clone()));
                actions.events.push(Event::Rejected(market_id, code));
            }
        }
        for (id, position) in ack.positions {
            let Some(market) = self.markets.get_mut(&id) else { continue };
            if market.live {
                // This subscribe only requested the epoch.
                market.epoch = if market.epoch == 0 { position.epoch } else { market.epoch };
                continue;
            }
            (market.live, market.rejected) = (true, None);
            market.awaits_snapshot = position.recovered != Some(true);
            if !market.awaits_snapshot {
                market.epoch = position.epoch;
            }
        }
    }

    fn updated(&mut self, update: Update, actions: &mut Actions) {
        let id = update.market_id;
        let Some(market) = self.markets.get_mut(&id) else { return };
        let Some(seq) = market.seq.filter(|_| market.live && !market.awaits_snapshot) else { return };
        if update.seq <= seq {
            return;
        }
        if let Some(held_back) = &mut market.held_back {
            if held_back.len() == MAX_HELD_BACK {
                held_back.pop_front();
            }
            held_back.push_back(update);
        } else if update.seq == seq + 1 {
            actions.events.push(market.apply(update));
            if market.epoch == 0 {
                // An update has no epoch, but the ack of this has.
                actions.send.push(format!(r#"{{"type":"subscribe","markets":["{id}"]}}"#));
            }
        } else {
            actions.events.push(Event::Gap { market: id, after: seq, received: update.seq });
            actions.fetch = Some(Fetch::Updates(id, seq));
            market.held_back = Some(VecDeque::from([update]));
        }
    }

    /// Replaces the lines of a followed market by those of `state`.
    fn replace(&mut self, state: &State, text: &str, actions: &mut Actions) {
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
        (market.awaits_snapshot, market.held_back) = (false, None);
        let cause = Cause::Snapshot { reset: state.reset, conflated: state.conflated };
        let (market, seq, ts) = (state.market_id, state.seq, state.ts);
        actions.events.push(Event::Changed(Changed { market, seq, ts, cause, lines, text: text.to_owned() }));
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
