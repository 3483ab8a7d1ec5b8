//! Tokens: JSON Web Tokens for sockets (`docs/protocol.md#claims`) and for the admin API
//! (`docs/protocol.md#admin-tokens`).
//!
//! | file | what it does |
//! |---|---|
//! | `claims.rs` | defines what a token holds: audiences, claims, roles |
//! | `keyring.rs` | reads keys from settings, replaces them, signs with the first, picks one to verify with |
//! | `key.rs` | signs with one key, and verifies a signature |
//! | `verification.rs` | decides whether a token with a good signature is valid here and now |
//! | `hs256.rs` | gives `jsonwebtoken` its HS256, and no other algorithm |
//! | `bearer.rs` | reads the `Authorization` header, compares secrets in constant time |
//!
//! `jsonwebtoken` decodes tokens and verifies signatures, and nothing more. `verification.rs` checks every claim, by one
//! clock and with one leeway; all of the library's own checks of claims are off. They could not replace ours:
//!
//! - They accept an `iat` in the future, a second audience in `aud`, and an `exp` with a fraction.
//! - They accept a token without `aud` or `iss`, unless these are also listed as required.
//! - Their leeway is 60 s by default, and no test can set their clock.
//!
//! Only `Key` knows algorithms. Each key has one, and a token's header must name that one: a header never
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
