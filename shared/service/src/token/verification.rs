//! The rules of a valid token, each in one place, by one clock: `docs/protocol.md#claims`.

use super::{
    claims::{AllClaims, Audience, Claims, ISSUER, LEEWAY_S, ends_ms},
    key::Key,
};

/// The longest token that is read, bytes. 200 markets in its scope take about 5 KiB.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Why a token is refused. It contains nothing of the token itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no token.
    #[error("a token is required")]
    Missing,
    /// The token was valid until it expired.
    #[error("the token has expired: get a new one")]
    Expired,
    /// The token was revoked.
    #[error("the token has been revoked")]
    Revoked,
    /// The token breaks any other rule.
    #[error("the token is not valid here")]
    Invalid,
}

/// Returns the claims of a token for `audience` that one of `keys` signed and that is valid at `now_ms`, Unix milliseconds.
///
/// # Errors
/// [`TokenError`], but never [`TokenError::Revoked`].
pub(super) fn verify<C: Claims>(
    keys: &[Key],
    audience: Audience,
    token: &str,
    now_ms: u64,
) -> Result<C, TokenError> {
    if token.is_empty() {
        return Err(TokenError::Missing);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Invalid);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
    let key = keys.iter().find(|key| key.verifies(header.kid.as_deref())).ok_or(TokenError::Invalid)?;
    // A reader must understand every extension that `crit` names (RFC 7515 section 4.1.11), and we know none.
    if header.alg != key.algorithm() || header.typ.as_deref() != Some("JWT") || header.crit.is_some() {
        return Err(TokenError::Invalid);
    }
    let AllClaims::<C> { claims, iss, aud, nbf } = key.claims(token).ok_or(TokenError::Invalid)?;
    if iss != ISSUER || !aud.is(audience) || claims.subject().is_empty() {
        return Err(TokenError::Invalid);
    }
    // A token from the future would outlive its user's revocation.
    let starts_s = claims.issued_at_s().max(nbf.unwrap_or(0));
    if starts_s.saturating_mul(1000) > now_ms.saturating_add(LEEWAY_S * 1000) {
        return Err(TokenError::Invalid);
    }
    if now_ms >= ends_ms(claims.expires_at_s()) {
        return Err(TokenError::Expired);
    }
    Ok(claims)
}
