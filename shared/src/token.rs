//! Tokens: HS256 JSON Web Tokens for sockets and for the admin API (contract, sections 2 and 5).

use std::{fmt, sync::Once};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error as JwtError, ErrorKind},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{ids::MarketId, settings::Secret};

/// The issuer of every token.
pub const ISSUER: &str = "kmarket";
/// How far clocks may disagree, seconds.
pub const LEEWAY_S: u64 = 5;
/// The shortest secret, bytes: as long as an HS256 signature, RFC 7518 section 3.2.
pub const MIN_SECRET_BYTES: usize = 32;
/// The longest token looked at, bytes. 200 markets in its scope take about 5 KiB.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// What a token is for; a token for one audience is refused by the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Sockets and REST reads.
    Ws,
    /// The admin API.
    Admin,
}

impl Audience {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Admin => "admin",
        }
    }
}

/// Who a socket belongs to and what it may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WsClaims {
    /// The user id, as text.
    pub sub: String,
    /// The markets it may see; absent = all, empty = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub markets: Option<Vec<MarketId>>,
    /// Issued at, Unix seconds.
    #[serde(default)]
    pub iat: u64,
    /// Expires at, Unix seconds.
    pub exp: u64,
}

/// Who may do what on the admin API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminClaims {
    /// The actor written into the audit.
    pub sub: String,
    /// What they may do.
    pub role: Role,
    /// Issued at, Unix seconds.
    #[serde(default)]
    pub iat: u64,
    /// Expires at, Unix seconds.
    pub exp: u64,
}

/// Admin roles; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads the audit.
    Viewer,
    /// Overrides prices.
    Trader,
    /// Everything.
    Admin,
}

impl Role {
    /// The role's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Trader => "trader",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Viewer, Self::Trader, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a role: viewer, trader or admin"))
    }
}

/// Why a token is refused. Says nothing of the token itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// None was given.
    #[error("a token is required")]
    Missing,
    /// It was good once.
    #[error("the token has expired: get a new one")]
    Expired,
    /// Anything else.
    #[error("the token is not valid here")]
    Invalid,
}

/// The keys that sign and verify one kind of token. The first signs; a token names its key by `kid` when keys have
/// names.
#[derive(Clone)]
pub struct Keyring {
    keys: Vec<Key>,
    audience: Audience,
}

#[derive(Clone)]
struct Key {
    kid: Option<String>,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// Why a text is not a keyring.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// A secret that is too short.
    #[error("each secret must have at least {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32")]
    TooShort,
    /// Several keys of which one has no name, or two have the same.
    #[error("several keys are written kid1:secret1,kid2:secret2, each with its own name")]
    BadNames,
}

impl Keyring {
    /// Reads `secret`, or `kid1:secret1,kid2:secret2` (contract, section 7, `JWT_SECRET`).
    ///
    /// # Errors
    /// [`InvalidKeys`] for a short secret or unclear names.
    pub fn parse(secrets: &Secret, audience: Audience) -> Result<Self, InvalidKeys> {
        let parts: Vec<&str> = secrets.expose().split(',').collect();
        let mut keys: Vec<Key> = Vec::with_capacity(parts.len());
        for part in &parts {
            let (kid, secret) = match part.split_once(':') {
                Some((kid, secret)) if is_kid(kid) => (Some(kid.to_owned()), secret),
                _ if parts.len() > 1 => return Err(InvalidKeys::BadNames),
                _ => (None, *part),
            };
            if secret.len() < MIN_SECRET_BYTES {
                return Err(InvalidKeys::TooShort);
            }
            if keys.iter().any(|key| key.kid == kid) {
                return Err(InvalidKeys::BadNames);
            }
            keys.push(Key::new(kid, secret.as_bytes()));
        }
        Ok(Self { keys, audience })
    }

    /// One unnamed random key, for a system whose tokens need not outlive the process.
    #[must_use]
    pub fn random(audience: Audience) -> Self {
        Self { keys: vec![Key::new(None, &rand::random::<[u8; 32]>())], audience }
    }

    /// A token with these claims for this ring's audience.
    #[must_use]
    pub fn sign(&self, claims: &impl Serialize) -> String {
        #[derive(Serialize)]
        struct Signed<'a, C> {
            #[serde(flatten)]
            claims: &'a C,
            iss: &'static str,
            aud: &'static str,
        }

        install_provider();
        let key = &self.keys[0];
        let header = Header { kid: key.kid.clone(), ..Header::new(Algorithm::HS256) };
        let signed = Signed { claims, iss: ISSUER, aud: self.audience.as_str() };
        jsonwebtoken::encode(&header, &signed, &key.encoding)
            .expect("claims of plain strings and numbers encode")
    }

    /// The claims of a token that this ring signed, for its audience, and that has not expired.
    ///
    /// # Errors
    /// [`TokenError`]; exactly HS256, `typ` JWT, and exp, iss and aud all required.
    pub fn verify<C: Claims>(&self, token: &str) -> Result<C, TokenError> {
        install_provider();
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        if header.alg != Algorithm::HS256 || header.typ.as_deref() != Some("JWT") {
            return Err(TokenError::Invalid);
        }
        let key = self
            .keys
            .iter()
            .find(|key| key.kid.is_none() || key.kid == header.kid)
            .ok_or(TokenError::Invalid)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[self.audience.as_str()]);
        let claims = jsonwebtoken::decode::<C>(token, &key.decoding, &validation)
            .map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                _ => TokenError::Invalid,
            })?
            .claims;
        if claims.subject().is_empty() { Err(TokenError::Invalid) } else { Ok(claims) }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys, {:?})", self.keys.len(), self.audience)
    }
}

impl Key {
    fn new(kid: Option<String>, secret: &[u8]) -> Self {
        Self { kid, encoding: EncodingKey::from_secret(secret), decoding: DecodingKey::from_secret(secret) }
    }
}

/// Claims that say who they are about.
pub trait Claims: DeserializeOwned + Clone {
    /// `sub`.
    fn subject(&self) -> &str;
}

impl Claims for WsClaims {
    fn subject(&self) -> &str {
        &self.sub
    }
}

impl Claims for AdminClaims {
    fn subject(&self) -> &str {
        &self.sub
    }
}

/// Whether two secrets are equal, in a time that tells nothing of where or whether they differ.
#[must_use]
pub fn same_secret(given: &str, expected: &Secret) -> bool {
    Sha256::digest(given.as_bytes()).ct_eq(&Sha256::digest(expected.expose().as_bytes())).into()
}

/// The token in an `Authorization: Bearer <token>` header's value.
#[must_use]
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_kid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// HS256 and nothing else. jsonwebtoken's own provider also brings RSA and elliptic curves, which we neither want to
/// accept nor to ship (RUSTSEC-2023-0071 in `rsa` has no fix).
fn install_provider() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key| {
            hs256(*algorithm, key.as_bytes()).map(|key| Box::new(key) as Box<dyn JwtSigner>)
        },
        verifier_factory: |algorithm, key| {
            hs256(*algorithm, key.try_get_as_bytes()?).map(|key| Box::new(key) as Box<dyn JwtVerifier>)
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        PROVIDER.install_default().expect("nothing else in this process installs a JWT provider");
    });
}

struct Hs256(hmac::Hmac<Sha256>);

fn hs256(algorithm: Algorithm, secret: &[u8]) -> Result<Hs256, JwtError> {
    use hmac::KeyInit;

    if algorithm != Algorithm::HS256 {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    hmac::Hmac::new_from_slice(secret).map(Hs256).map_err(|_| ErrorKind::InvalidKeyFormat.into())
}

impl Hs256 {
    fn mac(&self, message: &[u8]) -> hmac::Hmac<Sha256> {
        use hmac::Mac;

        let mut mac = self.0.clone();
        mac.update(message);
        mac
    }
}

impl signature::Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        use hmac::Mac;

        Ok(self.mac(message).finalize().into_bytes().to_vec())
    }
}

impl signature::Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        use hmac::Mac;

        self.mac(message).verify_slice(signature).map_err(signature::Error::from_source)
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::unix_ms;

    const SECRET: &str = "an example secret of forty bytes exactly";

    fn ring(text: &str) -> Keyring {
        Keyring::parse(&Secret::new(text), Audience::Ws).unwrap()
    }

    fn claims(exp_in_s: i64) -> WsClaims {
        let now = unix_ms() / 1000;
        WsClaims { sub: "1".into(), markets: None, iat: now, exp: now.checked_add_signed(exp_in_s).unwrap() }
    }

    #[test]
    fn a_token_returns_its_claims() {
        let scoped = WsClaims { markets: Some(vec![MarketId::new(1001).unwrap()]), ..claims(60) };
        let token = ring(SECRET).sign(&scoped);
        assert_eq!(ring(SECRET).verify::<WsClaims>(&token), Ok(scoped));
    }

    #[test]
    fn expiry_has_five_seconds_of_leeway() {
        let verify =
            |exp_in_s| ring(SECRET).verify::<WsClaims>(&ring(SECRET).sign(&claims(exp_in_s))).map(|_| ());
        assert_eq!(verify(-3), Ok(()));
        assert_eq!(verify(-7), Err(TokenError::Expired));
    }

    #[test]
    fn other_audience_key_or_shape_is_refused() {
        let admin = Keyring::parse(&Secret::new(SECRET), Audience::Admin).unwrap();
        let good = ring(SECRET).sign(&claims(60));
        assert_eq!(admin.verify::<AdminClaims>(&good), Err(TokenError::Invalid));
        assert_eq!(ring(SECRET).verify::<WsClaims>(&admin.sign(&claims(60))), Err(TokenError::Invalid));
        assert_eq!(Keyring::random(Audience::Ws).verify::<WsClaims>(&good), Err(TokenError::Invalid));
        assert_eq!(ring(SECRET).verify::<WsClaims>(""), Err(TokenError::Missing));
        for cut in 0..good.len() {
            assert!(ring(SECRET).verify::<WsClaims>(&good[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(ring(SECRET).verify::<WsClaims>(&"a".repeat(1 << 20)), Err(TokenError::Invalid));
    }

    #[test]
    fn a_new_first_key_signs_and_the_old_one_still_verifies() {
        let old = ring(&format!("old:{SECRET}"));
        let both = ring(&format!("new:{},old:{SECRET}", SECRET.to_uppercase()));
        assert!(both.verify::<WsClaims>(&old.sign(&claims(60))).is_ok());
        assert_eq!(old.verify::<WsClaims>(&both.sign(&claims(60))), Err(TokenError::Invalid));
        assert_eq!(
            both.verify::<WsClaims>(&ring(SECRET).sign(&claims(60))),
            Err(TokenError::Invalid),
            "no kid"
        );
    }

    #[test]
    fn weak_or_unclear_keys_are_refused() {
        let parse = |text: &str| Keyring::parse(&Secret::new(text), Audience::Ws).map(|_| ());
        assert_eq!(parse("short"), Err(InvalidKeys::TooShort));
        assert_eq!(parse("a:short"), Err(InvalidKeys::TooShort));
        assert_eq!(parse(&format!("{SECRET},{SECRET}")), Err(InvalidKeys::BadNames));
        assert_eq!(parse(&format!("a:{SECRET},a:{SECRET}")), Err(InvalidKeys::BadNames));
        assert!(!format!("{:?}", ring(SECRET)).contains(SECRET));
    }
}
