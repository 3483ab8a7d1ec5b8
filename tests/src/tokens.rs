//! Tokens, signed with the tests' secrets.

use protocol::{MarketId, Secret, time::unix_ms};

use service::token::{AdminClaims, Audience, Keyring, Role, WsClaims};

/// The gateways' `JWT_SECRET`.
pub const JWT_SECRET: &str = "the tests' secret for sockets is long enough";
/// The publisher's `ADMIN_JWT_SECRET`.
pub const ADMIN_JWT_SECRET: &str = "the tests' secret for the desk is long enough";

/// The lifetime of a token unless the test gives one, in seconds.
const TTL_S: i64 = 600;

/// A token of `user` for all markets.
#[must_use]
pub fn for_user(user: u64) -> String {
    sign(user, None, TTL_S)
}

/// A token of `user` for only these markets.
#[must_use]
pub fn scoped(user: u64, markets: &[u64]) -> String {
    sign(user, Some(markets), TTL_S)
}

/// A token of `user` for all markets that expires in `seconds`; a negative number is in the past.
#[must_use]
pub fn expiring(user: u64, seconds: i64) -> String {
    sign(user, None, seconds)
}

/// A token of `user` for these markets, or for all, that expires in `seconds`.
#[must_use]
pub fn made(user: u64, markets: Option<&[u64]>, seconds: u64) -> String {
    sign(user, markets, seconds.cast_signed())
}

/// A token of `user` with this id (`jti`), issued `age_s` seconds ago, that expires in ten minutes.
#[must_use]
pub fn with_id(user: u64, jti: &str, age_s: u64) -> String {
    let (now, exp) = times(TTL_S);
    let claims = WsClaims {
        sub: user.to_string(),
        markets: None,
        iat: now.saturating_sub(age_s),
        exp,
        jti: Some(jti.to_owned()),
    };
    keys(JWT_SECRET, Audience::Ws).sign(&claims)
}

/// A token for the admin API.
#[must_use]
pub fn admin(role: Role) -> String {
    admin_expiring(role, TTL_S)
}

/// A token for the admin API that expires in `seconds`.
#[must_use]
pub fn admin_expiring(role: Role, seconds: i64) -> String {
    let (iat, exp) = times(seconds);
    keys(ADMIN_JWT_SECRET, Audience::Admin).sign(&AdminClaims { sub: "desk-1".to_owned(), role, iat, exp })
}

/// A token for the admin API, signed with these keys.
#[must_use]
pub fn admin_signed(keys: &Keyring, role: Role) -> String {
    let (iat, exp) = times(TTL_S);
    keys.sign(&AdminClaims { sub: "desk-1".to_owned(), role, iat, exp })
}

/// A token of `user` for all markets, signed with these keys.
#[must_use]
pub fn signed(keys: &Keyring, user: u64) -> String {
    signed_for(keys, user, TTL_S.unsigned_abs())
}

/// A token of `user` for all markets, signed with these keys, that expires in `seconds`.
#[must_use]
pub fn signed_for(keys: &Keyring, user: u64, seconds: u64) -> String {
    let (iat, exp) = times(seconds.cast_signed());
    keys.sign(&WsClaims { sub: user.to_string(), markets: None, iat, exp, jti: None })
}

/// The claims of a token that a gateway with the tests' secret signed.
#[must_use]
pub fn claims(token: &str) -> WsClaims {
    keys(JWT_SECRET, Audience::Ws).verify(token).expect("a token that the gateway has just signed")
}

/// When a token expires, in Unix seconds. Panics if it has expired.
#[must_use]
pub fn expiry_s(token: &str) -> u64 {
    claims(token).exp
}

fn sign(user: u64, markets: Option<&[u64]>, seconds: i64) -> String {
    let (iat, exp) = times(seconds);
    let id = |&market: &u64| MarketId::new(market).expect("tests use good market ids");
    let markets = markets.map(|markets| markets.iter().map(id).collect());
    keys(JWT_SECRET, Audience::Ws).sign(&WsClaims { sub: user.to_string(), markets, iat, exp, jti: None })
}

fn times(seconds: i64) -> (u64, u64) {
    let now = unix_ms() / 1000;
    (now, now.checked_add_signed(seconds).expect("an expiry after 1970"))
}

fn keys(secret: &str, audience: Audience) -> Keyring {
    Keyring::parse(&Secret::new(secret), audience).expect("the tests' secrets are long enough")
}
