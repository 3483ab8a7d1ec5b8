//! Verifies clients' tokens: the signature, the claims, and whether the token is revoked.

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

/// The most revocations in memory: twice as many as the backbone keeps, since it may have lost some.
const MAX_KNOWN: usize = 20_000;

/// Verifies clients' tokens.
#[derive(Debug)]
pub struct Tokens {
    keys: Keyring,
    /// Seeded in each process, so that a client cannot choose ids that collide.
    hasher: RandomState,
    known: Live<Known>,
    /// Serialises changes of `known`. Verifying does not wait for it.
    changing: Mutex<()>,
}

/// The known revocations, each with the time at which it was made, in Unix milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Known {
    users: HashMap<Box<str>, u64>,
    tokens: HashMap<NonZeroU64, u64>,
}

/// What a connection keeps of its token, besides the user, to find out whether the token is revoked.
///
/// The token's id is hashed to 8 bytes, so a revoked one is always found. The chance that one of 10 000 revoked ids
/// collides with one of 100 000 connections is about 1 in 10^10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    issued_at_s: u64,
    id: Option<NonZeroU64>,
}

impl Tokens {
    /// Verifies tokens that `keys` sign. No revocation is known yet.
    #[must_use]
    pub fn new(keys: Keyring) -> Self {
        Self { keys, hasher: RandomState::new(), known: Live::default(), changing: Mutex::default() }
    }

    /// Signs a token with these claims.
    #[must_use]
    pub fn sign(&self, claims: &WsClaims) -> String {
        self.keys.sign(claims)
    }

    /// Returns the claims of a token that is valid now.
    ///
    /// # Errors
    /// [`TokenError`], which reveals nothing of the token.
    pub fn verify(&self, token: &str) -> Result<WsClaims, TokenError> {
        let claims: WsClaims = self.keys.verify(token)?;
        if self.known.get().revoke(&claims.sub, self.fingerprint(&claims)) {
            return Err(TokenError::Revoked);
        }
        Ok(claims)
    }

    /// Returns what a connection keeps of a token.
    #[must_use]
    pub fn fingerprint(&self, claims: &WsClaims) -> Fingerprint {
        Fingerprint { issued_at_s: claims.iat, id: claims.jti.as_deref().map(|id| self.hash(id)) }
    }

    /// Returns the revocations that are known now.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        self.known.get()
    }

    /// Adds the revocations that the backbone keeps. Returns true if one of them is new. A revocation that the backbone
    /// has lost stays in force here until it expires.
    pub fn learn(&self, kept: &[Revocation], now_ms: u64) -> bool {
        self.change(|known| {
            if known.len() + kept.len() > MAX_KNOWN {
                *known = Known::default();
            }
            let mut is_new = false;
            for Revocation { revoked, ts } in
                kept.iter().filter(|revocation| is_in_force(revocation.ts, now_ms))
            {
                let known_ts = match revoked {
                    Revoked::User(user) => known.users.entry(user.as_str().into()).or_default(),
                    Revoked::Token(id) => known.tokens.entry(self.hash(id)).or_default(),
                };
                is_new |= *ts > *known_ts;
                *known_ts = (*known_ts).max(*ts);
            }
            is_new
        })
    }

    /// Drops expired revocations. The tokens that they concern have expired too.
    pub fn forget(&self, now_ms: u64) {
        self.change(|known| {
            known.users.retain(|_, ts| is_in_force(*ts, now_ms));
            known.tokens.retain(|_, ts| is_in_force(*ts, now_ms));
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let _serialised = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// Returns true if they revoke the token of `user` with this fingerprint.
    #[must_use]
    pub fn revoke(&self, user: &str, token: Fingerprint) -> bool {
        token.id.is_some_and(|id| self.tokens.contains_key(&id))
            || self.users.get(user).is_some_and(|ts| token.issued_at_s <= ts / 1000)
    }

    /// Returns the number of revocations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len() + self.tokens.len()
    }
}

fn is_in_force(ts: u64, now_ms: u64) -> bool {
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
    fn a_user_s_tokens_are_refused_if_issued_before_the_revocation_and_valid_if_issued_after() {
        let (tokens, now_s) = (tokens(), unix_ms() / 1000);
        tokens.learn(&[user("1", now_s * 1000 - 1_000)], unix_ms());
        let verify = |claims: &WsClaims| tokens.verify(&tokens.sign(claims)).map(|_| ());
        for (sub, iat, expected) in [
            ("1", 0, Err(TokenError::Revoked)),
            ("1", now_s - 2, Err(TokenError::Revoked)),
            ("1", now_s - 1, Err(TokenError::Revoked)),
            ("1", now_s, Ok(())),
            ("2", now_s - 2, Ok(())),
        ] {
            let claims = WsClaims { exp: now_s + 60, ..claims(sub, iat, None) };
            assert_eq!(verify(&claims), expected, "user {sub}, issued {} s before", now_s - iat);
        }
    }

    #[test]
    fn a_revoked_token_is_refused_and_the_user_s_other_tokens_are_valid() {
        let (tokens, now_s) = (tokens(), unix_ms() / 1000);
        tokens.learn(&[token("a", now_s * 1000)], unix_ms());
        for (jti, expected) in [(Some("a"), Err(TokenError::Revoked)), (Some("b"), Ok(())), (None, Ok(()))] {
            let token = tokens.sign(&claims("1", now_s, jti));
            assert_eq!(tokens.verify(&token).map(|_| ()), expected, "{jti:?}");
        }
    }

    #[test]
    fn a_revocation_stays_in_force_until_it_expires_though_the_backbone_has_lost_it() {
        let (tokens, ttl_ms) = (tokens(), u64::try_from(REVOCATION_TTL.as_millis()).unwrap());
        let token_a = tokens.fingerprint(&claims("1", 5, Some("a")));
        assert!(tokens.learn(&[user("1", 10_000), token("a", 11_000)], 12_000));
        assert!(!tokens.learn(&[user("1", 10_000)], 12_000), "known already");
        assert!(!tokens.learn(&[], 12_000) && tokens.known().revoke("1", token_a));
        assert!(tokens.learn(&[user("1", 20_000)], 21_000), "a later revocation concerns more tokens");
        tokens.forget(20_000 + ttl_ms);
        assert_eq!(tokens.known().len(), 1);
        tokens.forget(20_001 + ttl_ms);
        assert_eq!(tokens.known().len(), 0);
        assert!(!tokens.learn(&[user("1", 20_000)], 20_001 + ttl_ms), "expired");
    }

    #[test]
    fn no_revocation_is_lost_when_another_thread_forgets() {
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
    fn at_most_max_known_revocations_are_kept() {
        let tokens = tokens();
        let round = |round: u64| -> Vec<Revocation> {
            (0..10_000_u64).map(|n| user(&format!("{round}-{n}"), 1000 + round)).collect()
        };
        for number in 0..5 {
            tokens.learn(&round(number), 2000);
            assert!(tokens.known().len() <= MAX_KNOWN);
            assert!(tokens.known().revoke(&format!("{number}-0"), tokens.fingerprint(&claims("1", 0, None))));
        }
    }
}
