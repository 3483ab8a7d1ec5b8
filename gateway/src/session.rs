//! What a client's messages mean: pure, `(message, now) → action`. Knows nothing of sockets or of markets' logs.

use std::sync::Arc;

use protocol::{
    MarketId,
    client_message::{ClientMessage, ClientRequest, MessageId},
    close::CloseCode,
    error::Refusal,
    server_message,
};
use service::token::{WsClaims, ends_ms};

use crate::{
    limits::{Bucket, Rate},
    market::{Start, Wanted},
    tokens::{Mark, Tokens},
};

/// What holds for every session of a pod.
#[derive(Debug)]
pub struct Rules {
    /// Verifies a refreshed token.
    pub tokens: Arc<Tokens>,
    /// `MAX_MARKETS_PER_CONNECTION`.
    pub max_markets: usize,
    /// `MESSAGE_BURST` and `MESSAGE_RATE`.
    pub rate: Rate,
}

/// One client's standing.
#[derive(Debug)]
pub struct Session {
    scope: Scope,
    expires_at_s: u64,
    mark: Mark,
    bucket: Bucket,
    /// How many more messages the rate has refused than let through, since they were as many.
    strikes: u32,
}

/// Which markets a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    All,
    /// Sorted.
    Only(Box<[MarketId]>),
}

/// What is to be done about a message.
#[derive(Debug)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Send this JSON.
    Send(String),
    /// Say bye and close.
    Close(CloseCode),
    /// Begin delivery, then ack.
    Subscribe(Subscribe),
    /// End delivery, then ack.
    Unsubscribe {
        /// Echoed.
        id: Option<MessageId>,
        /// Of these.
        markets: Vec<MarketId>,
    },
    /// The scope may be another: end what it no longer allows, then ack.
    Refreshed {
        /// Echoed.
        id: Option<MessageId>,
    },
}

/// A subscribe or resume, sorted into what may be and what may not.
#[derive(Debug)]
pub struct Subscribe {
    /// Echoed.
    pub id: Option<MessageId>,
    /// Whether it is a resume, whose ack says what was recovered.
    pub resume: bool,
    /// What may be.
    pub wanted: Vec<Wanted>,
    /// What may not.
    pub rejected: Vec<(MarketId, Refusal)>,
}

/// The markets a connection is subscribed to.
pub trait Subscribed {
    /// How many.
    fn count(&self) -> usize;
    /// Whether this one.
    fn contains(&self, market: MarketId) -> bool;
}

impl Session {
    /// The session of a client with this token.
    #[must_use]
    pub fn new(claims: &WsClaims, rules: &Rules, now_ms: u64) -> Self {
        Self {
            scope: Scope::of(claims),
            expires_at_s: claims.exp,
            mark: rules.tokens.mark(claims),
            bucket: Bucket::full(rules.rate, now_ms),
            strikes: 0,
        }
    }

    /// Unix milliseconds at which the token, leeway included, ends.
    #[must_use]
    pub fn expires_at_ms(&self) -> u64 {
        ends_ms(self.expires_at_s)
    }

    /// By what the token is found when it is revoked.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Whether the token allows `market`.
    #[must_use]
    pub fn allows(&self, market: MarketId) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Only(markets) => markets.binary_search(&market).is_ok(),
        }
    }

    /// A text message of `user`, who holds `subscribed`, at `now_ms` of any clock that does not go back.
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
                    self.mark = rules.tokens.mark(&claims);
                    Action::Refreshed { id }
                }
                Ok(_) => refuse(id.as_ref(), Refusal::Unauthorized, "token: it is another user's"),
                Err(error) => refuse(id.as_ref(), Refusal::Unauthorized, &format!("token: {error}")),
            },
        }
    }

    /// A ping or pong frame: it counts like a message. Whether to answer, or to close.
    ///
    /// # Errors
    /// The code to close with, for a client that keeps on.
    pub fn control(&mut self, rules: &Rules, now_ms: u64) -> Result<bool, CloseCode> {
        match self.admit(rules, now_ms) {
            Ok(()) => Ok(true),
            Err(strikes) if strikes <= rules.rate.burst => Ok(false),
            Err(_) => Err(CloseCode::TooManyMessages),
        }
    }

    /// Counts a message against the rate; when it is above, says how many more were than were not.
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

impl Scope {
    fn of(claims: &WsClaims) -> Self {
        match &claims.markets {
            None => Self::All,
            Some(markets) => {
                let sorted: std::collections::BTreeSet<_> = markets.iter().copied().collect();
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
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use service::token::{Audience, Keyring, LEEWAY_S};

    use super::*;

    impl<S: std::hash::BuildHasher> Subscribed for HashSet<MarketId, S> {
        fn count(&self) -> usize {
            self.len()
        }

        fn contains(&self, market: MarketId) -> bool {
            HashSet::contains(self, &market)
        }
    }

    fn rules() -> Rules {
        let tokens = Arc::new(Tokens::new(Keyring::random(Audience::Ws)));
        Rules { tokens, max_markets: 3, rate: Rate::per_second(5).with_burst(20) }
    }

    fn claims(sub: &str, markets: Option<&[u64]>, exp: u64) -> WsClaims {
        let markets = markets.map(|ids| ids.iter().map(|&id| market(id)).collect());
        WsClaims { sub: sub.into(), markets, iat: 0, exp, jti: None }
    }

    fn market(id: u64) -> MarketId {
        MarketId::new(id).unwrap()
    }

    fn say(session: &mut Session, rules: &Rules, text: &str) -> Action {
        session.text(text, "1", &HashSet::new(), rules, 0)
    }

    fn subscribe(action: Action) -> Subscribe {
        match action {
            Action::Subscribe(subscribe) => subscribe,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_scope_or_the_limit_forbids_is_rejected_and_the_rest_goes_through() {
        let rules = rules();
        let mut session = Session::new(&claims("1", Some(&[1, 2, 3, 4, 5]), 10), &rules, 0);
        let message = r#"{"type":"subscribe","markets":[9,1,2,3,4]}"#;
        let asked = subscribe(say(&mut session, &rules, message));
        assert_eq!(asked.wanted.iter().map(|wanted| wanted.market.get()).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(asked.rejected, [(market(9), Refusal::Forbidden), (market(4), Refusal::LimitExceeded)]);
        let held = HashSet::from([market(4), market(5), market(1)]);
        let again = subscribe(session.text(message, "1", &held, &rules, 0));
        assert_eq!(
            again.wanted.iter().map(|wanted| wanted.market.get()).collect::<Vec<_>>(),
            [1, 4],
            "held already"
        );
    }

    #[test]
    fn an_empty_scope_allows_nothing() {
        let rules = rules();
        let mut session = Session::new(&claims("1", Some(&[]), 10), &rules, 0);
        let asked = subscribe(say(&mut session, &rules, r#"{"type":"resume","offsets":{"1":5}}"#));
        assert!(asked.resume && asked.wanted.is_empty());
        assert_eq!(asked.rejected, [(market(1), Refusal::Forbidden)]);
    }

    #[test]
    fn a_client_above_the_rate_is_told_and_then_closed() {
        let rules = rules();
        let mut session = Session::new(&claims("1", None, 10), &rules, 0);
        let mut told = 0;
        for _ in 0..20 {
            assert!(matches!(say(&mut session, &rules, r#"{"type":"pong"}"#), Action::Nothing));
        }
        loop {
            match say(&mut session, &rules, r#"{"type":"ping","id":4}"#) {
                Action::Send(json) => {
                    assert!(json.contains("RATE_LIMITED") && json.contains(r#""id":4"#), "{json}");
                    told += 1;
                }
                Action::Close(code) => break assert_eq!(code, CloseCode::TooManyMessages),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told, 20);
    }

    /// At 5 a second somebody who sends 8 is told so for ever; somebody who sends 20 is closed after a while.
    #[test]
    fn one_who_keeps_on_is_closed_though_some_messages_get_through() {
        for (every_ms, seconds) in [(125, None), (50, Some(4))] {
            let rules = rules();
            let mut session = Session::new(&claims("1", None, 10), &rules, 0);
            let closed_ms = (0..600_000).step_by(every_ms).find(|&now_ms| {
                let action = session.text(r#"{"type":"pong"}"#, "1", &HashSet::new(), &rules, now_ms);
                matches!(action, Action::Close(CloseCode::TooManyMessages))
            });
            assert_eq!(closed_ms.map(|ms| ms.div_ceil(1000)), seconds, "every {every_ms} ms");
        }
    }

    #[test]
    fn only_the_same_user_s_good_token_refreshes() {
        let rules = rules();
        let far = protocol::time::unix_ms() / 1000 + 1000;
        let mut session = Session::new(&claims("1", None, 10), &rules, 0);
        let refresh =
            |claims: &WsClaims| format!(r#"{{"type":"refresh","token":"{}"}}"#, rules.tokens.sign(claims));
        for (token, good) in [
            (refresh(&claims("2", None, far)), false),
            (refresh(&claims("1", None, 10)), false),
            (r#"{"type":"refresh","token":"x"}"#.to_owned(), false),
            (refresh(&claims("1", Some(&[7]), far)), true),
        ] {
            let action = say(&mut session, &rules, &token);
            assert_eq!(matches!(action, Action::Refreshed { .. }), good, "{action:?}");
        }
        assert_eq!(session.expires_at_ms(), (far + LEEWAY_S) * 1000);
        assert!(session.allows(market(7)) && !session.allows(market(1)));
    }

    proptest! {
        #[test]
        fn no_message_breaks_a_session(texts in proptest::collection::vec(".*", 0..30)) {
            let rules = rules();
            let mut session = Session::new(&claims("1", None, 10), &rules, 0);
            for text in texts {
                say(&mut session, &rules, &text);
            }
        }

        /// Whatever is asked, no more than the limit is ever granted.
        #[test]
        fn the_limit_holds(ids in proptest::collection::vec(1u64..9, 0..20), held in proptest::collection::hash_set(1u64..9, 0..4)) {
            let rules = rules();
            let mut session = Session::new(&claims("1", None, 10), &rules, 0);
            let mut held: HashSet<_> = held.into_iter().take(3).map(market).collect();
            let text = format!(r#"{{"type":"subscribe","markets":{ids:?}}}"#);
            let asked = subscribe(session.text(&text, "1", &held, &rules, 0));
            held.extend(asked.wanted.iter().map(|wanted| wanted.market));
            prop_assert!(held.len() <= rules.max_markets);
        }
    }
}
