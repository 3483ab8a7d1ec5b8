//! Tokens, signed as the services sign them.

use shared::{
    MarketId,
    settings::Secret,
    time::unix_ms,
    token::{AdminClaims, Audience, Keyring, Role, WsClaims},
};

/// The gateways' `JWT_SECRET`.
pub const JWT_SECRET: &str = "the tests' secret for sockets is long enough";
/// The publisher's `ADMIN_JWT_SECRET`.
pub const ADMIN_JWT_SECRET: &str = "the tests' secret for the desk is long enough";

/// How long tokens are good for unless a test is about that, seconds.
const TTL_S: i64 = 600;

/// A token for `user` that sees all markets.
#[must_use]
pub fn for_user(user: u64) -> String {
    sign(user, None, TTL_S)
}

/// A token for `user` that sees only `markets`.
#[must_use]
pub fn scoped(user: u64, markets: &[u64]) -> String {
    sign(user, Some(markets), TTL_S)
}

/// A token for `user` that sees all markets and expires in `seconds`; negative: expired long since.
#[must_use]
pub fn expiring(user: u64, seconds: i64) -> String {
    sign(user, None, seconds)
}

/// A token for `user` that sees `markets`, or all, and expires in `seconds`.
#[must_use]
pub fn made(user: u64, markets: Option<&[u64]>, seconds: u64) -> String {
    sign(user, markets, seconds.cast_signed())
}

/// A token for `user` with this id (`jti`), issued `age_s` seconds ago, that expires in ten minutes.
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
    ring(JWT_SECRET, Audience::Ws).sign(&claims)
}

/// A token for the desk.
#[must_use]
pub fn admin(role: Role) -> String {
    admin_expiring(role, TTL_S)
}

/// A token for the desk that expires in `seconds`.
#[must_use]
pub fn admin_expiring(role: Role, seconds: i64) -> String {
    let (iat, exp) = times(seconds);
    ring(ADMIN_JWT_SECRET, Audience::Admin).sign(&AdminClaims { sub: "desk-1".to_owned(), role, iat, exp })
}

/// A token for the desk that other keys sign.
#[must_use]
pub fn admin_signed(keys: &Keyring, role: Role) -> String {
    let (iat, exp) = times(TTL_S);
    keys.sign(&AdminClaims { sub: "desk-1".to_owned(), role, iat, exp })
}

/// A token for `user` that other keys sign.
#[must_use]
pub fn signed(keys: &Keyring, user: u64) -> String {
    signed_for(keys, user, TTL_S.unsigned_abs())
}

/// A token for `user` that other keys sign and that expires in `seconds`.
#[must_use]
pub fn signed_for(keys: &Keyring, user: u64, seconds: u64) -> String {
    let (iat, exp) = times(seconds.cast_signed());
    keys.sign(&WsClaims { sub: user.to_string(), markets: None, iat, exp, jti: None })
}

/// The claims in a token that the tests' gateways signed.
#[must_use]
pub fn claims(token: &str) -> WsClaims {
    ring(JWT_SECRET, Audience::Ws).verify(token).expect("a token that the gateway has just signed")
}

/// When a token ends, Unix seconds; it must be within its leeway still.
#[must_use]
pub fn expiry_s(token: &str) -> u64 {
    claims(token).exp
}

fn sign(user: u64, markets: Option<&[u64]>, seconds: i64) -> String {
    let (iat, exp) = times(seconds);
    let id = |&market: &u64| MarketId::new(market).expect("tests use good market ids");
    let markets = markets.map(|markets| markets.iter().map(id).collect());
    ring(JWT_SECRET, Audience::Ws).sign(&WsClaims { sub: user.to_string(), markets, iat, exp, jti: None })
}

fn times(seconds: i64) -> (u64, u64) {
    let now = unix_ms() / 1000;
    (now, now.checked_add_signed(seconds).expect("an expiry after 1970"))
}

fn ring(secret: &str, audience: Audience) -> Keyring {
    Keyring::parse(&Secret::new(secret), audience).expect("the tests' secrets are long enough")
}
