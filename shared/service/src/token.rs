//! Tokens: JSON Web Tokens for sockets (`docs/protocol.md#claims`) and for the admin API
//! (`docs/protocol.md#admin-tokens`).
//!
//! | file | what it does |
//! |---|---|
//! | `claims.rs` | says what a token holds: audiences, claims, roles |
//! | `keyring.rs` | reads keys from settings, replaces them, signs with the first, picks one to verify with |
//! | `key.rs` | signs with one key, and verifies a signature |
//! | `verification.rs` | decides whether a token with a good signature is valid here and now |
//! | `hs256.rs` | gives `jsonwebtoken` its HS256, and no other algorithm |
//! | `bearer.rs` | reads the `Authorization` header, compares secrets in constant time |
//!
//! `jsonwebtoken` decodes tokens and verifies signatures, and nothing more: all its checks of claims are off. Our checks
//! are stricter than it can be told to be. An `iat` in the future, an `aud` with a second audience, and an `exp` that is
//! not a whole number are refused here and accepted there. Its clock cannot be set by a test, its leeway is 60 s unless
//! changed, and it accepts a token without `aud` or `iss` unless these are also listed as required. With both at work
//! there would be two clocks and two leeways; so `verification.rs` has every rule, with one clock and one leeway.
//!
//! Only `Key` knows algorithms. A key says its own, and a token's header must name that one: a header never
//! selects an algorithm.

mod bearer;
mod claims;
mod hs256;
mod key;
mod keyring;
mod verification;

pub use self::{
    bearer::{bearer, same_secret},
    claims::{AdminClaims, Audience, Claims, ISSUER, LEEWAY_S, MAX_TTL_S, Role, WsClaims, ends_ms},
    keyring::{ADMIN_JWT_SECRET, InvalidKeys, JWT_SECRET, Keyring},
    verification::{MAX_TOKEN_BYTES, TokenError},
};

#[cfg(test)]
mod tests;
