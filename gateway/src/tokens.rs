//! Which tokens are good here: those that our keys have signed and nobody has taken back.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
};

use backbone::{REVOCATION_TTL, Revocation, Revoked};
use service::{
    rotation::Live,
    token::{Keyring, TokenError, WsClaims},
};

/// Revocations kept here at most: as many as the backbone keeps, and as many that it may have lost since.
const MAX_KNOWN: usize = 20_000;

/// Verifies clients' tokens.
#[derive(Debug)]
pub struct Tokens {
    keys: Keyring,
    /// Of this process alone, so that nobody can choose ids that meet.
    hasher: RandomState,
    known: Live<Known>,
    /// Held while what is known is changed, by one at a time. Nobody who verifies waits for it.
    changing: Mutex<()>,
}

/// The revocations that are known, each with its moment, Unix milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Known {
    users: HashMap<Box<str>, u64>,
    tokens: HashMap<NonZeroU64, u64>,
}

/// What a connection keeps of its token, beside the user, to be found when it is revoked.
///
/// The id is a hash, 8 bytes: one that was revoked is always found. That another one of 10 000 revoked ids meets one of
/// 100 000 connections happens once in some 10^10 times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    issued_at_s: u64,
    id: Option<NonZeroU64>,
}

impl Tokens {
    /// Tokens that `keys` sign, none of them revoked.
    #[must_use]
    pub fn new(keys: Keyring) -> Self {
        Self { keys, hasher: RandomState::new(), known: Live::default(), changing: Mutex::default() }
    }

    /// A token with these claims.
    #[must_use]
    pub fn sign(&self, claims: &WsClaims) -> String {
        self.keys.sign(claims)
    }

    /// The claims of a token that is good now.
    ///
    /// # Errors
    /// [`TokenError`], which says nothing of the token itself.
    pub fn verify(&self, token: &str) -> Result<WsClaims, TokenError> {
        let claims: WsClaims = self.keys.verify(token)?;
        if self.known.get().has(&claims.sub, self.mark(&claims)) {
            return Err(TokenError::Revoked);
        }
        Ok(claims)
    }

    /// What is to be kept of a token.
    #[must_use]
    pub fn mark(&self, claims: &WsClaims) -> Mark {
        Mark { issued_at_s: claims.iat, id: claims.jti.as_deref().map(|id| self.hash(id)) }
    }

    /// The revocations as they are known now.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        self.known.get()
    }

    /// Adds what the backbone keeps to what is known; whether anything is new. What the backbone has lost holds here
    /// until it is over.
    pub fn learn(&self, kept: &[Revocation], now_ms: u64) -> bool {
        self.change(|known| {
            if known.len() + kept.len() > MAX_KNOWN {
                *known = Known::default();
            }
            let mut is_news = false;
            for Revocation { revoked, ts } in kept.iter().filter(|revocation| holds(revocation.ts, now_ms)) {
                let moment = match revoked {
                    Revoked::User(user) => known.users.entry(user.as_str().into()).or_default(),
                    Revoked::Token(id) => known.tokens.entry(self.hash(id)).or_default(),
                };
                is_news |= *ts > *moment;
                *moment = (*moment).max(*ts);
            }
            is_news
        })
    }

    /// Drops what is over: the tokens concerned have expired.
    pub fn forget(&self, now_ms: u64) {
        self.change(|known| {
            known.users.retain(|_, ts| holds(*ts, now_ms));
            known.tokens.retain(|_, ts| holds(*ts, now_ms));
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = Known::clone(&self.known.get());
        let result = change(&mut known);
        self.known.set(known);
        result
    }

    fn hash(&self, id: &str) -> NonZeroU64 {
        NonZeroU64::new(self.hasher.hash_one(id)).unwrap_or(NonZeroU64::MIN)
    }
}

impl Known {
    /// Whether the token of `user` with this mark is revoked.
    #[must_use]
    pub fn has(&self, user: &str, mark: Mark) -> bool {
        mark.id.is_some_and(|id| self.tokens.contains_key(&id))
            || self.users.get(user).is_some_and(|ts| mark.issued_at_s <= ts / 1000)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len() + self.tokens.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn holds(ts: u64, now_ms: u64) -> bool {
    u128::from(now_ms.saturating_sub(ts)) <= REVOCATION_TTL.as_millis()
}

#[cfg(test)]
mod tests {
    use protocol::time::unix_ms;
    use service::token::Audience;

    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(Keyring::random(Audience::Ws))
    }

    fn claims(sub: &str, iat: u64, jti: Option<&str>) -> WsClaims {
        WsClaims { sub: sub.into(), markets: None, iat, exp: iat + 600, jti: jti.map(str::to_owned) }
    }

    fn user(id: &str, ts: u64) -> Revocation {
        Revocation { revoked: Revoked::User(id.into()), ts }
    }

    fn token(id: &str, ts: u64) -> Revocation {
        Revocation { revoked: Revoked::Token(id.into()), ts }
    }

    #[test]
    fn a_revoked_user_s_tokens_are_refused_up_to_that_moment_and_good_after_it() {
        let (tokens, now_s) = (tokens(), unix_ms() / 1000);
        tokens.learn(&[user("1", now_s * 1000 - 1_000)], unix_ms());
        let verify = |claims: &WsClaims| tokens.verify(&tokens.sign(claims)).map(|_| ());
        for (sub, iat, answer) in [
            ("1", 0, Err(TokenError::Revoked)),
            ("1", now_s - 2, Err(TokenError::Revoked)),
            ("1", now_s - 1, Err(TokenError::Revoked)),
            ("1", now_s, Ok(())),
            ("2", now_s - 2, Ok(())),
        ] {
            let claims = WsClaims { exp: now_s + 60, ..claims(sub, iat, None) };
            assert_eq!(verify(&claims), answer, "user {sub}, issued {} s before", now_s - iat);
        }
    }

    #[test]
    fn a_revoked_token_is_refused_and_its_user_s_others_are_good() {
        let (tokens, now_s) = (tokens(), unix_ms() / 1000);
        tokens.learn(&[token("a", now_s * 1000)], unix_ms());
        for (jti, answer) in [(Some("a"), Err(TokenError::Revoked)), (Some("b"), Ok(())), (None, Ok(()))] {
            let token = tokens.sign(&claims("1", now_s, jti));
            assert_eq!(tokens.verify(&token).map(|_| ()), answer, "{jti:?}");
        }
    }

    #[test]
    fn what_is_learnt_stays_until_it_is_over_whatever_the_backbone_has_lost() {
        let (tokens, ttl_ms) = (tokens(), u64::try_from(REVOCATION_TTL.as_millis()).unwrap());
        let marked = tokens.mark(&claims("1", 5, Some("a")));
        assert!(tokens.learn(&[user("1", 10_000), token("a", 11_000)], 12_000));
        assert!(!tokens.learn(&[user("1", 10_000)], 12_000), "known already");
        assert!(!tokens.learn(&[], 12_000) && tokens.known().has("1", marked));
        assert!(tokens.learn(&[user("1", 20_000)], 21_000), "a later moment takes more tokens back");
        tokens.forget(20_000 + ttl_ms);
        assert_eq!(tokens.known().len(), 1);
        tokens.forget(20_001 + ttl_ms);
        assert!(tokens.known().is_empty());
        assert!(!tokens.learn(&[user("1", 20_000)], 20_001 + ttl_ms), "over");
    }

    #[test]
    fn nothing_that_is_learnt_is_lost_while_another_forgets() {
        let tokens = tokens();
        std::thread::scope(|scope| {
            let forgetting = scope.spawn(|| (0..2000).for_each(|_| tokens.forget(2000)));
            for n in 0..500_u64 {
                tokens.learn(&[user(&n.to_string(), 1000)], 2000);
            }
            forgetting.join().unwrap();
        });
        assert_eq!(tokens.known().len(), 500);
    }

    #[test]
    fn no_more_is_kept_than_max_known() {
        let tokens = tokens();
        let round = |round: u64| -> Vec<Revocation> {
            (0..10_000_u64).map(|n| user(&format!("{round}-{n}"), 1000 + round)).collect()
        };
        for number in 0..5 {
            tokens.learn(&round(number), 2000);
            assert!(tokens.known().len() <= MAX_KNOWN);
            assert!(tokens.known().has(&format!("{number}-0"), tokens.mark(&claims("1", 0, None))));
        }
    }
}
