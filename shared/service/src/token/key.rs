//! One key: it signs claims, and verifies that it signed a token.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Serialize, de::DeserializeOwned};

use super::hs256;

/// A secret, and the name that the tokens it signs have as `kid`.
#[derive(Clone)]
pub(super) struct Key {
    kid: Option<String>,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Key {
    /// Makes an HS256 key of `secret`.
    pub(super) fn hs256(kid: Option<String>, secret: &[u8]) -> Self {
        hs256::install();
        Self { kid, encoding: EncodingKey::from_secret(secret), decoding: DecodingKey::from_secret(secret) }
    }

    /// Returns the key's name.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Returns true if the key is to verify tokens whose header has this `kid`. A key without a name verifies them all.
    pub(super) fn verifies(&self, kid: Option<&str>) -> bool {
        self.kid.is_none() || self.kid() == kid
    }

    /// Returns the one algorithm of the tokens that this key signs and verifies.
    #[expect(clippy::unused_self, reason = "a key decides its tokens' algorithm; now all keys have the same")]
    pub(super) const fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }

    /// Returns a signed token with these claims.
    pub(super) fn sign(&self, claims: &impl Serialize) -> String {
        let header = Header { kid: self.kid.clone(), ..Header::new(self.algorithm()) };
        jsonwebtoken::encode(&header, claims, &self.encoding)
            .expect("claims of plain strings and numbers encode")
    }

    /// Returns the claims of a token that this key signed, unchecked. Returns `None` if the signature is wrong, or the
    /// claims have another shape.
    pub(super) fn claims<C: DeserializeOwned>(&self, token: &str) -> Option<C> {
        let mut signature_only = Validation::new(self.algorithm());
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_nbf = false;
        signature_only.validate_aud = false;
        jsonwebtoken::decode(token, &self.decoding, &signature_only).ok().map(|token| token.claims)
    }
}
