//! The secret in an `Authorization` header, and how two secrets are compared.

use protocol::Secret;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Returns the token of an `Authorization: Bearer <token>` header's value.
#[must_use]
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Returns true if two secrets are equal. The time it takes says nothing about where or whether they differ.
#[must_use]
pub fn same_secret(given: &str, expected: &Secret) -> bool {
    Sha256::digest(given.as_bytes()).ct_eq(&Sha256::digest(expected.expose().as_bytes())).into()
}
