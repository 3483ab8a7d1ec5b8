//! The content of a token: its subject, what it allows, and for how long.

use std::time::Duration;

use protocol::{ids::MarketId, time::unix_ms};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::settings::FromSetting;

/// The issuer of every token.
pub const ISSUER: &str = "kmarket";
/// How far clocks may differ, seconds.
pub const LEEWAY_S: u64 = 5;
/// The longest life of a client's token that the gateway signs, seconds.
pub const MAX_TTL_S: u64 = 3600;
const _: () = assert!(
    backbone::REVOCATION_TTL.as_secs() >= MAX_TTL_S + LEEWAY_S,
    "a revocation must outlive every token"
);

/// What a token is for. The other audience refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Sockets and REST reads.
    Ws,
    /// The admin API.
    Admin,
}

impl Audience {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Admin => "admin",
        }
    }
}

/// A client's claims: the user, and the markets that the user may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WsClaims {
    /// The user's id, as text.
    pub sub: String,
    /// The markets that the token allows: absent = all, empty = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub markets: Option<Vec<MarketId>>,
    /// Issued at, Unix seconds; 0 if the token does not say.
    #[serde(default)]
    pub iat: u64,
    /// Expires at, Unix seconds.
    pub exp: u64,
    /// The token's own id, by which this one token can be revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
}

/// An admin's claims: the actor, and what the actor may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminClaims {
    /// The actor that the audit names.
    pub sub: String,
    /// What the actor may do.
    pub role: Role,
    /// Issued at, Unix seconds; 0 if the token does not say.
    #[serde(default)]
    pub iat: u64,
    /// Expires at, Unix seconds.
    pub exp: u64,
}

impl AdminClaims {
    /// Returns the claims of a new token for `sub`, valid for `ttl` from now.
    #[must_use]
    pub fn new(sub: &str, role: Role, ttl: Duration) -> Self {
        let iat = unix_ms() / 1000;
        Self { sub: sub.to_owned(), role, iat, exp: iat.saturating_add(ttl.as_secs()) }
    }
}

/// Admin roles, in order: each may do what the roles before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads the audit and the list of markets.
    Viewer,
    /// Overrides prices, suspends and opens markets.
    Trader,
    /// Revokes tokens.
    Admin,
}

impl Role {
    /// Returns the role's name, as in the claim `role`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Trader => "trader",
            Self::Admin => "admin",
        }
    }
}

impl FromSetting for Role {
    fn parse(text: &str) -> Result<Self, String> {
        [Self::Viewer, Self::Trader, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a role: viewer, trader or admin"))
    }
}

/// What verification reads of any audience's claims.
pub trait Claims: DeserializeOwned + Clone {
    /// Returns `sub`.
    fn subject(&self) -> &str;
    /// Returns `iat`, Unix seconds.
    fn issued_at_s(&self) -> u64;
    /// Returns `exp`, Unix seconds.
    fn expires_at_s(&self) -> u64;
}

macro_rules! claims {
    ($($claims:ty),*) => {$(
        impl Claims for $claims {
            fn subject(&self) -> &str {
                &self.sub
            }

            fn issued_at_s(&self) -> u64 {
                self.iat
            }

            fn expires_at_s(&self) -> u64 {
                self.exp
            }
        }
    )*};
}

claims!(WsClaims, AdminClaims);

/// Returns the moment from which a token that expires at `exp_s` is refused, Unix milliseconds. It includes the leeway.
#[must_use]
pub const fn ends_ms(exp_s: u64) -> u64 {
    exp_s.saturating_add(LEEWAY_S).saturating_mul(1000)
}

/// All claims of a token: those of its audience, and those that every token has.
#[derive(Serialize, Deserialize)]
pub(super) struct AllClaims<C> {
    #[serde(flatten)]
    pub(super) claims: C,
    pub(super) iss: String,
    pub(super) aud: Audiences,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nbf: Option<u64>,
}

/// The claim `aud`: a string, or an array (RFC 7519 section 4.1.3) of one string. An array of several does not parse, so
/// that no token opens both APIs.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Audiences {
    One(String),
    Listed([String; 1]),
}

impl Audiences {
    pub(super) fn is(&self, audience: Audience) -> bool {
        let (Self::One(named) | Self::Listed([named])) = self;
        named == audience.as_str()
    }
}
