//! Checks admin tokens and their roles (`docs/protocol.md#admin-tokens`).

use axum::http::{HeaderMap, header::AUTHORIZATION};
use service::token::{AdminClaims, Keyring, Role, TokenError, bearer};

/// Returns the claims of the request's bearer token if its role is `needed` or a higher one.
///
/// # Errors
/// [`Refused`] without a valid token, or if its role is lower.
pub(crate) fn authorize(keys: &Keyring, headers: &HeaderMap, needed: Role) -> Result<AdminClaims, Refused> {
    let token = match headers.get(AUTHORIZATION) {
        None => return Err(TokenError::Missing.into()),
        Some(value) => value.to_str().ok().and_then(bearer).ok_or(TokenError::Invalid)?,
    };
    let claims: AdminClaims = keys.verify(token)?;
    if claims.role < needed {
        return Err(Refused::Role { has: claims.role.as_str(), needed: needed.as_str() });
    }
    Ok(claims)
}

/// Why a request is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no token, or it is invalid.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is valid, but its role is too low.
    #[error("this needs the role {needed}; the token's is {has}")]
    Role {
        /// The token's role.
        has: &'static str,
        /// The lowest role that is allowed.
        needed: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::time::unix_ms;
    use service::token::Audience;

    use super::*;

    fn mint(keys: &Keyring, sub: &str, role: Role, ttl: Duration) -> String {
        keys.sign(&AdminClaims::new(sub, role, ttl))
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_role_may_do_what_the_roles_below_it_may() {
        let keys = Keyring::random(Audience::Admin);
        let roles = [Role::Viewer, Role::Trader, Role::Admin];
        for has in roles {
            let token = mint(&keys, "desk-1", has, Duration::from_mins(1));
            for needed in roles {
                let result = authorize(&keys, &headers(&format!("Bearer {token}")), needed);
                match result {
                    Ok(claims) => assert!(has >= needed && claims.sub == "desk-1", "{has:?} for {needed:?}"),
                    Err(refused) => {
                        assert!(has < needed);
                        assert_eq!(refused, Refused::Role { has: has.as_str(), needed: needed.as_str() });
                    }
                }
            }
        }
    }

    #[test]
    fn anything_but_a_valid_bearer_token_is_refused() {
        let keys = Keyring::random(Audience::Admin);
        let refused = |headers: &HeaderMap| authorize(&keys, headers, Role::Viewer).unwrap_err();
        assert_eq!(refused(&HeaderMap::new()), Refused::Token(TokenError::Missing));
        let token = mint(&keys, "desk-1", Role::Admin, Duration::from_mins(1));
        let other = mint(&Keyring::random(Audience::Admin), "desk-1", Role::Admin, Duration::from_mins(1));
        for value in [token.clone(), format!("Basic {token}"), format!("Bearer {other}"), "Bearer x".into()] {
            assert_eq!(refused(&headers(&value)), Refused::Token(TokenError::Invalid), "{value}");
        }
        assert!(authorize(&keys, &headers(&format!("bearer {token}")), Role::Viewer).is_ok());
    }

    #[test]
    fn an_expired_token_says_so() {
        let keys = Keyring::random(Audience::Admin);
        let iat = unix_ms() / 1000 - 60;
        let token = keys.sign(&AdminClaims { sub: "desk-1".into(), role: Role::Admin, iat, exp: iat + 10 });
        let refused = authorize(&keys, &headers(&format!("Bearer {token}")), Role::Viewer).unwrap_err();
        assert_eq!(refused, Refused::Token(TokenError::Expired));
    }
}
