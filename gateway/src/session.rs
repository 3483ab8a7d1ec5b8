//! What a client's messages mean: pure, from a message and a time to an [`Action`]. A session knows neither sockets nor
//! logs.

use std::{collections::BTreeSet, sync::Arc};

use protocol::{
    MarketId,
    client_message::{ClientMessage, ClientRequest, MessageId},
    close::CloseCode,
    error::Refusal,
    server_message,
};
use service::{
    settings::{Setting, Settings},
    token::{WsClaims, ends_ms},
};

use crate::{
    limits::{Bucket, Rate},
    market::{Start, Wanted},
    tokens::{Fingerprint, Tokens},
};

/// The most subscriptions.
pub const MAX_MARKETS_PER_CONNECTION: Setting<usize> =
    Setting::new("MAX_MARKETS_PER_CONNECTION", "200", "markets that one connection may subscribe to");
/// The most messages at once.
pub const MESSAGE_BURST: Setting<u32> =
    Setting::new("MESSAGE_BURST", "20", "messages that a client may send at once");
/// The rate of messages.
pub const MESSAGE_RATE: Setting<u32> =
    Setting::new("MESSAGE_RATE", "5", "messages per second that a client may send after that");

/// The rules of all sessions of a gateway.
#[derive(Debug)]
pub struct Rules {
    /// Verifies the token of a `refresh`.
    pub tokens: Arc<Tokens>,
    /// `MAX_MARKETS_PER_CONNECTION`.
    pub max_markets: usize,
    /// `MESSAGE_BURST` and `MESSAGE_RATE` (docs/protocol.md#rules, rule 10).
    pub rate: Rate,
}

/// What a connection keeps of its client: the token's claims, and the use of the message rate.
#[derive(Debug)]
pub struct Session {
    scope: Scope,
    expires_at_s: u64,
    fingerprint: Fingerprint,
    bucket: Bucket,
    /// By how much refused messages exceed accepted ones, since the two were last equal.
    strikes: u32,
}

/// The markets that a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    All,
    /// In ascending order.
    Only(Box<[MarketId]>),
}

/// What a shard does about a message.
#[derive(Debug)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Send this JSON.
    Send(String),
    /// Send `bye` and close.
    Close(CloseCode),
    /// Begin delivery, then ack.
    Subscribe(Subscribe),
    /// End delivery, then ack.
    Unsubscribe {
        /// The message's id, which the ack echoes.
        id: Option<MessageId>,
        /// The markets to end.
        markets: Vec<MarketId>,
    },
    /// End delivery of markets that the new token does not allow, then ack.
    Refreshed {
        /// The message's id, which the ack echoes.
        id: Option<MessageId>,
    },
}

/// A `subscribe` or `resume`, its markets sorted into allowed and rejected ones.
#[derive(Debug)]
pub struct Subscribe {
    /// The message's id, which the ack echoes.
    pub id: Option<MessageId>,
    /// True for a `resume`: the ack reports what was recovered.
    pub resume: bool,
    /// The allowed markets.
    pub wanted: Vec<Wanted>,
    /// The rejected markets.
    pub rejected: Vec<(MarketId, Refusal)>,
}

/// The markets that a connection is subscribed to.
pub trait Subscribed {
    /// Returns the number of markets.
    fn count(&self) -> usize;
    /// Returns true if `market` is one of them.
    fn contains(&self, market: MarketId) -> bool;
}

impl Session {
    /// Begins the session of a client whose token has `claims`.
    #[must_use]
    pub fn new(claims: &WsClaims, rules: &Rules, now_ms: u64) -> Self {
        Self {
            scope: Scope::of(claims),
            expires_at_s: claims.exp,
            fingerprint: rules.tokens.fingerprint(claims),
            bucket: Bucket::full(rules.rate, now_ms),
            strikes: 0,
        }
    }

    /// Returns when the token expires, leeway included, in Unix milliseconds.
    #[must_use]
    pub fn expires_at_ms(&self) -> u64 {
        ends_ms(self.expires_at_s)
    }

    /// Returns what identifies the token when it is revoked.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns true if the token allows `market`.
    #[must_use]
    pub fn allows(&self, market: MarketId) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Only(markets) => markets.binary_search(&market).is_ok(),
        }
    }

    /// Decides what a text message of `user` means. `now_ms` is of any clock that never goes back.
    pub fn text(
        &mut self,
        text: &str,
        user: &str,
        subscribed: &dyn Subscribed,
        rules: &Rules,
        now_ms: u64,
    ) -> Action {
        let parsed = ClientMessage::parse(text);
        let id = match &parsed {
            Ok(message) => message.id.clone(),
            Err(bad) => bad.id.clone(),
        };
        if let Err(strikes) = self.admit(rules, now_ms) {
            return if strikes > rules.rate.burst {
                Action::Close(CloseCode::TooManyMessages)
            } else {
                let message = format!("more than {} messages a second: slow down", rules.rate.count);
                refuse(id.as_ref(), Refusal::RateLimited, &message)
            };
        }
        let request = match parsed {
            Ok(message) => message.request,
            Err(bad) => return refuse(id.as_ref(), Refusal::BadMessage, &bad.message),
        };
        match request {
            ClientRequest::Ping { ts } => Action::Send(server_message::pong(id.as_ref(), ts.as_deref())),
            ClientRequest::Pong => Action::Nothing,
            ClientRequest::Unsubscribe { markets } => Action::Unsubscribe { id, markets },
            ClientRequest::Subscribe { markets, snapshot } => {
                let start = if snapshot { Start::Snapshot } else { Start::Live };
                let wanted = markets.into_iter().map(|market| Wanted::new(market, start));
                self.subscribe(id, false, wanted, subscribed, rules)
            }
            ClientRequest::Resume { offsets } => {
                let wanted =
                    offsets.into_iter().map(|(market, offset)| Wanted::new(market, Start::After(offset)));
                self.subscribe(id, true, wanted, subscribed, rules)
            }
            ClientRequest::Refresh { token } => match rules.tokens.verify(&token) {
                Ok(claims) if claims.sub == user => {
                    self.scope = Scope::of(&claims);
                    self.expires_at_s = claims.exp;
                    self.fingerprint = rules.tokens.fingerprint(&claims);
                    Action::Refreshed { id }
                }
                Ok(_) => refuse(id.as_ref(), Refusal::Unauthorized, "token: it is another user's"),
                Err(error) => refuse(id.as_ref(), Refusal::Unauthorized, &format!("token: {error}")),
            },
        }
    }

    /// Counts a ping or pong frame like a message. Returns false if the frame is to be ignored.
    ///
    /// # Errors
    /// The code to close with, as soon as refused messages exceed accepted ones by more than `MESSAGE_BURST`.
    pub fn control(&mut self, rules: &Rules, now_ms: u64) -> Result<bool, CloseCode> {
        match self.admit(rules, now_ms) {
            Ok(()) => Ok(true),
            Err(strikes) if strikes <= rules.rate.burst => Ok(false),
            Err(_) => Err(CloseCode::TooManyMessages),
        }
    }

    /// Counts a message. One above the rate is an error: by how much refused messages exceed accepted ones.
    fn admit(&mut self, rules: &Rules, now_ms: u64) -> Result<(), u32> {
        if self.bucket.take(rules.rate, now_ms) {
            self.strikes = self.strikes.saturating_sub(1);
            return Ok(());
        }
        self.strikes += 1;
        Err(self.strikes)
    }

    fn subscribe(
        &self,
        id: Option<MessageId>,
        resume: bool,
        markets: impl Iterator<Item = Wanted>,
        subscribed: &dyn Subscribed,
        rules: &Rules,
    ) -> Action {
        let mut subscribe = Subscribe { id, resume, wanted: Vec::new(), rejected: Vec::new() };
        let mut count = subscribed.count();
        for wanted in markets {
            let new = !subscribed.contains(wanted.market);
            if !self.allows(wanted.market) {
                subscribe.rejected.push((wanted.market, Refusal::Forbidden));
            } else if new && count >= rules.max_markets {
                subscribe.rejected.push((wanted.market, Refusal::LimitExceeded));
            } else {
                count += usize::from(new);
                subscribe.wanted.push(wanted);
            }
        }
        Action::Subscribe(subscribe)
    }
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug)]
pub struct SessionSettings {
    /// The most subscriptions of one connection.
    pub max_markets: usize,
    /// The rate of a client's messages.
    pub message_rate: Rate,
}

impl SessionSettings {
    /// Reads the settings.
    pub fn read(settings: &mut Settings) -> Self {
        let burst = settings.value(&MESSAGE_BURST);
        if burst == 0 {
            settings.problem(MESSAGE_BURST.name(), "at least 1");
        }
        Self {
            max_markets: settings.value(&MAX_MARKETS_PER_CONNECTION),
            message_rate: Rate::per_second(settings.value(&MESSAGE_RATE)).with_burst(burst),
        }
    }
}

impl Scope {
    fn of(claims: &WsClaims) -> Self {
        match &claims.markets {
            None => Self::All,
            Some(markets) => {
                let sorted: BTreeSet<_> = markets.iter().copied().collect();
                Self::Only(sorted.into_iter().collect())
            }
        }
    }
}

fn refuse(id: Option<&MessageId>, refusal: Refusal, message: &str) -> Action {
    metrics::counter!(crate::metrics::REFUSED, "code" => refusal.as_str()).increment(1);
    Action::Send(server_message::error(id, refusal, message))
}

#[cfg(test)]
mod tests;
