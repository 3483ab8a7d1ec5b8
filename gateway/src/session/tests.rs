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

fn send(session: &mut Session, rules: &Rules, text: &str) -> Action {
    session.text(text, "1", &HashSet::new(), rules, 0)
}

fn subscribe(action: Action) -> Subscribe {
    match action {
        Action::Subscribe(subscribe) => subscribe,
        other => panic!("{other:?}"),
    }
}

#[test]
fn markets_beyond_scope_or_limit_are_rejected_and_the_others_subscribed() {
    let rules = rules();
    let mut session = Session::new(&claims("1", Some(&[1, 2, 3, 4, 5]), 10), &rules, 0);
    let message = r#"{"type":"subscribe","markets":[9,1,2,3,4]}"#;
    let request = subscribe(send(&mut session, &rules, message));
    assert_eq!(request.wanted.iter().map(|wanted| wanted.market.get()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(request.rejected, [(market(9), Refusal::Forbidden), (market(4), Refusal::LimitExceeded)]);
    let held = HashSet::from([market(4), market(5), market(1)]);
    let again = subscribe(session.text(message, "1", &held, &rules, 0));
    assert_eq!(
        again.wanted.iter().map(|wanted| wanted.market.get()).collect::<Vec<_>>(),
        [1, 4],
        "a market that is subscribed already does not count"
    );
}

#[test]
fn an_empty_scope_allows_nothing() {
    let rules = rules();
    let mut session = Session::new(&claims("1", Some(&[]), 10), &rules, 0);
    let request = subscribe(send(&mut session, &rules, r#"{"type":"resume","offsets":{"1":5}}"#));
    assert!(request.resume && request.wanted.is_empty());
    assert_eq!(request.rejected, [(market(1), Refusal::Forbidden)]);
}

#[test]
fn a_client_above_the_rate_gets_errors_and_is_then_closed() {
    let rules = rules();
    let mut session = Session::new(&claims("1", None, 10), &rules, 0);
    let mut refused = 0;
    for _ in 0..20 {
        assert!(matches!(send(&mut session, &rules, r#"{"type":"pong"}"#), Action::Nothing));
    }
    loop {
        match send(&mut session, &rules, r#"{"type":"ping","id":4}"#) {
            Action::Send(json) => {
                assert!(json.contains("RATE_LIMITED") && json.contains(r#""id":4"#), "{json}");
                refused += 1;
            }
            Action::Close(code) => break assert_eq!(code, CloseCode::TooManyMessages),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 20);
}

/// The rate is 5 per second. A client that sends 8 per second gets errors forever; one that sends 20 is closed.
#[test]
fn a_client_far_above_the_rate_is_closed_though_some_messages_are_accepted() {
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
fn only_a_valid_token_of_the_same_user_refreshes() {
    let rules = rules();
    let far = protocol::time::unix_ms() / 1000 + 1000;
    let mut session = Session::new(&claims("1", None, 10), &rules, 0);
    let refresh =
        |claims: &WsClaims| format!(r#"{{"type":"refresh","token":"{}"}}"#, rules.tokens.sign(claims));
    for (token, is_valid) in [
        (refresh(&claims("2", None, far)), false),
        (refresh(&claims("1", None, 10)), false),
        (r#"{"type":"refresh","token":"x"}"#.to_owned(), false),
        (refresh(&claims("1", Some(&[7]), far)), true),
    ] {
        let action = send(&mut session, &rules, &token);
        assert_eq!(matches!(action, Action::Refreshed { .. }), is_valid, "{action:?}");
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
            send(&mut session, &rules, &text);
        }
    }

    /// No request is granted more markets than the limit.
    #[test]
    fn the_limit_holds(ids in proptest::collection::vec(1u64..9, 0..20), held in proptest::collection::hash_set(1u64..9, 0..4)) {
        let rules = rules();
        let mut session = Session::new(&claims("1", None, 10), &rules, 0);
        let mut held: HashSet<_> = held.into_iter().take(3).map(market).collect();
        let text = format!(r#"{{"type":"subscribe","markets":{ids:?}}}"#);
        let request = subscribe(session.text(&text, "1", &held, &rules, 0));
        held.extend(request.wanted.iter().map(|wanted| wanted.market));
        prop_assert!(held.len() <= rules.max_markets);
    }
}
