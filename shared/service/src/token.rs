//! Tokens: HS256 JSON Web Tokens for sockets and for the admin API (contract, sections 2 and 5).

use std::{fmt, sync::Once, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error as JwtError, ErrorKind},
};
use protocol::{Secret, ids::MarketId, time::unix_ms};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    rotation::{Live, SecretFile},
    settings::{FromSetting, Setting, Settings},
};

/// The issuer of every token.
pub const ISSUER: &str = "kmarket";
/// How far clocks may disagree, seconds.
pub const LEEWAY_S: u64 = 5;
/// The longest life of a client's token that the token endpoint signs, seconds.
pub const MAX_TTL_S: u64 = 3600;
const _: () = assert!(
    backbone::REVOCATION_TTL.as_secs() >= MAX_TTL_S + LEEWAY_S,
    "a revocation must outlive every token"
);
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
    /// Issued at, Unix seconds; 0 when the token does not say.
    #[serde(default)]
    pub iat: u64,
    /// Expires at, Unix seconds.
    pub exp: u64,
    /// The token's own id, by which it alone can be revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
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

/// Signs clients' tokens and verifies them.
pub const JWT_SECRET: Setting<Secret> = Setting::new(
    "JWT_SECRET",
    "",
    "signs tokens, 32 bytes or more; several: kid1:secret1,kid2:secret2, the first signs; embedded: random",
);
/// Signs admin tokens and verifies them.
pub const ADMIN_JWT_SECRET: Setting<Secret> = Setting::new(
    "ADMIN_JWT_SECRET",
    "",
    "required: signs admin tokens, 32 bytes or more; several: kid1:secret1,kid2:secret2, the first signs",
);

impl AdminClaims {
    /// Returns the claims of a new token for `sub`, good for `ttl` from now.
    #[must_use]
    pub fn new(sub: &str, role: Role, ttl: Duration) -> Self {
        let iat = unix_ms() / 1000;
        Self { sub: sub.to_owned(), role, iat, exp: iat.saturating_add(ttl.as_secs()) }
    }
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

impl FromSetting for Role {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
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
    /// It was taken back.
    #[error("the token has been revoked")]
    Revoked,
    /// Anything else.
    #[error("the token is not valid here")]
    Invalid,
}

/// The keys that sign and verify one kind of token. The first signs; a token names its key by `kid` when keys have
/// names. Clones share the keys, also when they are replaced.
#[derive(Clone)]
pub struct Keyring {
    keys: Live<Vec<Key>>,
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
        Ok(Self { keys: Live::new(parse_keys(secrets)?), audience })
    }

    /// Reads the keyring that `setting` says. Returns `None` where it is not set, or not a good one, which is a problem.
    /// A keyring from a file goes into `files`: it follows the file.
    #[must_use]
    pub fn read(
        settings: &mut Settings,
        setting: &Setting<Secret>,
        audience: Audience,
        files: &mut Vec<SecretFile>,
    ) -> Option<Self> {
        match Self::parse(&settings.optional(setting)?, audience) {
            Ok(keys) => {
                let followed = keys.clone();
                files.extend(settings.secret_file(setting, move |secrets| {
                    followed.replace(secrets).map_err(|error| error.to_string())
                }));
                Some(keys)
            }
            Err(error) => {
                settings.problem(setting.name(), &error.to_string());
                None
            }
        }
    }

    /// Reads the keyring as [`Keyring::read`] does. A missing one is a problem.
    #[must_use]
    pub fn required(
        settings: &mut Settings,
        setting: &Setting<Secret>,
        audience: Audience,
        files: &mut Vec<SecretFile>,
    ) -> Option<Self> {
        settings.required(setting)?;
        Self::read(settings, setting, audience, files)
    }

    /// The same ring with these keys from now on, for every clone. Keys that cannot be read change nothing.
    ///
    /// # Errors
    /// [`InvalidKeys`], as [`Keyring::parse`].
    pub fn replace(&self, secrets: &Secret) -> Result<(), InvalidKeys> {
        self.keys.set(parse_keys(secrets)?);
        Ok(())
    }

    /// One unnamed random key, for a system whose tokens need not outlive the process.
    #[must_use]
    pub fn random(audience: Audience) -> Self {
        Self { keys: Live::new(vec![Key::new(None, &rand::random::<[u8; 32]>())]), audience }
    }

    /// A token with these claims for this ring's audience.
    #[must_use]
    pub fn sign(&self, claims: &impl Serialize) -> String {
        install_provider();
        let keys = self.keys.get();
        let key = &keys[0];
        let header = Header { kid: key.kid.clone(), ..Header::new(Algorithm::HS256) };
        let aud = Audiences::One(self.audience.as_str().to_owned());
        let signed = Signed { claims, iss: ISSUER.to_owned(), aud, nbf: None };
        jsonwebtoken::encode(&header, &signed, &key.encoding)
            .expect("claims of plain strings and numbers encode")
    }

    /// The claims of a token that this ring signed, for its audience, and that is good now.
    ///
    /// # Errors
    /// [`TokenError`]; exactly HS256, `typ` JWT, and exp, iss, aud and sub all required.
    pub fn verify<C: Claims>(&self, token: &str) -> Result<C, TokenError> {
        self.verify_at(token, unix_ms())
    }

    /// What its tokens are for, as `aud` says it.
    #[must_use]
    pub const fn audience(&self) -> &'static str {
        self.audience.as_str()
    }

    /// Whether there is a key for tokens with this `kid`.
    #[must_use]
    pub fn has(&self, kid: Option<&str>) -> bool {
        self.keys.get().iter().any(|key| key.kid.is_none() || key.kid.as_deref() == kid)
    }

    /// Whether the signature of a token is by one of these keys, whatever else it says.
    #[must_use]
    pub fn has_signed(&self, token: &str) -> bool {
        install_provider();
        let by = |key: &Key| jsonwebtoken::decode::<Value>(token, &key.decoding, &signature_alone()).is_ok();
        self.keys.get().iter().any(by)
    }

    /// The same at a time of the caller's, Unix milliseconds.
    fn verify_at<C: Claims>(&self, token: &str, now_ms: u64) -> Result<C, TokenError> {
        install_provider();
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        // What `crit` names must be understood (RFC 7515 section 4.1.11), and we know no extension.
        if header.alg != Algorithm::HS256 || header.typ.as_deref() != Some("JWT") || header.crit.is_some() {
            return Err(TokenError::Invalid);
        }
        let keys = self.keys.get();
        let key =
            keys.iter().find(|key| key.kid.is_none() || key.kid == header.kid).ok_or(TokenError::Invalid)?;
        let Signed { claims, iss, aud, nbf } =
            jsonwebtoken::decode::<Signed<C>>(token, &key.decoding, &signature_alone())
                .map_err(|_| TokenError::Invalid)?
                .claims;
        let is_for_us = iss == ISSUER && aud.is(self.audience) && !claims.subject().is_empty();
        // Issued in the future, it would outlive its user's revocation.
        let starts_s = claims.issued_at_s().max(nbf.unwrap_or(0));
        if !is_for_us || starts_s.saturating_mul(1000) > now_ms.saturating_add(LEEWAY_S * 1000) {
            return Err(TokenError::Invalid);
        }
        if now_ms >= ends_ms(claims.expires_at_s()) {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

/// When a token that expires at `exp_s` is not good any more, leeway included, Unix milliseconds.
#[must_use]
pub const fn ends_ms(exp_s: u64) -> u64 {
    exp_s.saturating_add(LEEWAY_S).saturating_mul(1000)
}

/// A token's claims and what every token has besides.
#[derive(Serialize, Deserialize)]
struct Signed<C> {
    #[serde(flatten)]
    claims: C,
    iss: String,
    aud: Audiences,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
}

/// `aud` is a string, or an array (RFC 7519 section 4.1.3). A token that is for others as well is for none of ours: no
/// token opens both APIs.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Listed([String; 1]),
}

impl Audiences {
    fn is(&self, audience: Audience) -> bool {
        let (Self::One(named) | Self::Listed([named])) = self;
        named == audience.as_str()
    }
}

/// The signature; [`Keyring::verify_at`] looks at the claims itself, all by one clock and with one leeway.
fn signature_alone() -> Validation {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    validation
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys, {:?})", self.keys.get().len(), self.audience)
    }
}

impl Key {
    fn new(kid: Option<String>, secret: &[u8]) -> Self {
        Self { kid, encoding: EncodingKey::from_secret(secret), decoding: DecodingKey::from_secret(secret) }
    }
}

/// Claims that say who they are about, and for how long.
pub trait Claims: DeserializeOwned + Clone {
    /// `sub`.
    fn subject(&self) -> &str;
    /// `iat`, Unix seconds.
    fn issued_at_s(&self) -> u64;
    /// `exp`, Unix seconds.
    fn expires_at_s(&self) -> u64;
}

impl Claims for WsClaims {
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

impl Claims for AdminClaims {
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

fn parse_keys(secrets: &Secret) -> Result<Vec<Key>, InvalidKeys> {
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
    Ok(keys)
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
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::{Sha384, Sha512};

    use super::*;

    const SECRET: &str = "an example secret of forty bytes exactly";

    fn ring(text: &str) -> Keyring {
        Keyring::parse(&Secret::new(text), Audience::Ws).unwrap()
    }

    fn claims(exp_in_s: i64) -> WsClaims {
        let now = unix_ms() / 1000;
        WsClaims {
            sub: "1".into(),
            markets: None,
            iat: now,
            exp: now.checked_add_signed(exp_in_s).unwrap(),
            jti: None,
        }
    }

    #[test]
    fn a_token_returns_its_claims() {
        let scoped = WsClaims { markets: Some(vec![MarketId::new(1001).unwrap()]), ..claims(60) };
        let token = ring(SECRET).sign(&scoped);
        assert_eq!(ring(SECRET).verify::<WsClaims>(&token), Ok(scoped));
    }

    /// A token with this header and these claims as they stand, whose signature is good by `H` over SECRET.
    fn raw<H: KeyInit + Mac>(header: &str, claims: &str) -> String {
        let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let head = format!("{}.{}", base64(header.as_bytes()), base64(claims.as_bytes()));
        let mut mac = <H as KeyInit>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(head.as_bytes());
        format!("{head}.{}", base64(&mac.finalize().into_bytes()))
    }

    /// Every token here but one in a row is as a good one, and has a good signature.
    #[test]
    #[expect(clippy::too_many_lines, reason = "one table")]
    fn each_rule_refuses_the_token_that_breaks_it_alone() {
        type Hs = Hmac<Sha256>;
        const NOW_S: u64 = 1_700_000_000;
        let (good, bad, old) = (Ok(()), Err(TokenError::Invalid), Err(TokenError::Expired));
        let head = |header: &str| format!(r#"{{"alg":"HS256","typ":"JWT"{header}}}"#);
        let body = |claims: &str| format!(r#"{{"sub":"1","iss":"kmarket",{claims}}}"#);
        let exp = NOW_S + 60;
        let with = |header: &str, claims: &str| raw::<Hs>(header, claims);
        let claims = |more: &str| with(&head(""), &body(&format!(r#""exp":{exp},"aud":"ws"{more}"#)));
        let expires = |exp: &str| with(&head(""), &body(&format!(r#""exp":{exp},"aud":"ws""#)));
        let aud = |aud: &str| with(&head(""), &body(&format!(r#""exp":{exp},"aud":{aud}"#)));
        let header = |header: &str| with(header, &body(&format!(r#""exp":{exp},"aud":"ws""#)));
        let plain = claims("");
        let (signed, signature) = plain.rsplit_once('.').unwrap();
        let rows = [
            ("nothing is wrong with it", plain.clone(), good),
            ("none: whoever wrote it signed nothing", header(r#"{"alg":"none","typ":"JWT"}"#), bad),
            ("none, in the shape of such a token", format!("{signed}."), bad),
            (
                "RS256: a public key must not become an HMAC secret",
                header(r#"{"alg":"RS256","typ":"JWT"}"#),
                bad,
            ),
            (
                "HS384: exactly one algorithm, also where the secret is right",
                raw::<Hmac<Sha384>>(
                    r#"{"alg":"HS384","typ":"JWT"}"#,
                    &body(&format!(r#""exp":{exp},"aud":"ws""#)),
                ),
                bad,
            ),
            (
                "HS512: the same",
                raw::<Hmac<Sha512>>(
                    r#"{"alg":"HS512","typ":"JWT"}"#,
                    &body(&format!(r#""exp":{exp},"aud":"ws""#)),
                ),
                bad,
            ),
            ("typ at+jwt: another kind of token", header(r#"{"alg":"HS256","typ":"at+jwt"}"#), bad),
            ("typ must say JWT as we write it", header(r#"{"alg":"HS256","typ":"jwt"}"#), bad),
            ("typ is missing", header(r#"{"alg":"HS256"}"#), bad),
            ("crit names what we do not understand", header(&head(r#","crit":["b64"],"b64":false"#)), bad),
            ("a kid is nothing to a key without a name", header(&head(r#","kid":"k9""#)), good),
            ("exp as text is no NumericDate", expires(&format!("\"{exp}\"")), bad),
            ("exp with a fraction: our seconds are whole", expires(&format!("{exp}.5")), bad),
            ("exp as a float of a whole second: the same", expires(&format!("{exp}.0")), bad),
            ("exp below zero", expires("-1"), bad),
            ("exp null is a token for ever", expires("null"), bad),
            ("exp is missing: for ever", with(&head(""), &body(r#""aud":"ws""#)), bad),
            ("exp stands twice: which one holds?", claims(r#","exp":9999999999"#), bad),
            ("iss is missing", with(&head(""), &format!(r#"{{"sub":"1","exp":{exp},"aud":"ws"}}"#)), bad),
            (
                "iss is somebody else",
                with(&head(""), &format!(r#"{{"sub":"1","iss":"x","exp":{exp},"aud":"ws"}}"#)),
                bad,
            ),
            (
                "iss is one name (RFC 7519)",
                with(&head(""), &format!(r#"{{"sub":"1","iss":["kmarket"],"exp":{exp},"aud":"ws"}}"#)),
                bad,
            ),
            ("aud is missing: for anything", with(&head(""), &body(&format!(r#""exp":{exp}"#))), bad),
            ("aud is the other API", aud(r#""admin""#), bad),
            ("aud as an array of us alone is as good as text (RFC 7519)", aud(r#"["ws"]"#), good),
            ("aud of both: no token opens both APIs", aud(r#"["ws","admin"]"#), bad),
            ("aud of nobody", aud("[]"), bad),
            (
                "sub is missing",
                with(&head(""), &format!(r#"{{"iss":"kmarket","exp":{exp},"aud":"ws"}}"#)),
                bad,
            ),
            (
                "sub is empty",
                with(&head(""), &format!(r#"{{"sub":"","iss":"kmarket","exp":{exp},"aud":"ws"}}"#)),
                bad,
            ),
            ("expired, a second within the leeway", expires(&(NOW_S - LEEWAY_S + 1).to_string()), good),
            ("expired, the leeway is just over", expires(&(NOW_S - LEEWAY_S).to_string()), old),
            ("expired, a second beyond the leeway", expires(&(NOW_S - LEEWAY_S - 1).to_string()), old),
            ("nbf within the leeway", claims(&format!(r#","nbf":{}"#, NOW_S + LEEWAY_S)), good),
            (
                "nbf beyond the leeway: not good yet",
                claims(&format!(r#","nbf":{}"#, NOW_S + LEEWAY_S + 1)),
                bad,
            ),
            ("nbf as text is no NumericDate", claims(r#","nbf":"0""#), bad),
            (
                "iat within the leeway: clocks differ",
                claims(&format!(r#","iat":{}"#, NOW_S + LEEWAY_S)),
                good,
            ),
            (
                "iat beyond it would outlive a revocation",
                claims(&format!(r#","iat":{}"#, NOW_S + LEEWAY_S + 1)),
                bad,
            ),
            ("a scope of text is read as ids", claims(r#","markets":["1001"]"#), good),
            ("a scope of other text is none", claims(r#","markets":["all"]"#), bad),
            ("a scope that is no list", claims(r#","markets":"1001""#), bad),
            ("an empty scope is a good token for nothing", claims(r#","markets":[]"#), good),
            ("jti is text", claims(r#","jti":"a""#), good),
            ("the signature is cut", plain[..plain.len() - 1].to_owned(), bad),
            ("the signature is missing", signed.to_owned(), bad),
            ("another's signature", format!("{signed}.{}", signature.chars().rev().collect::<String>()), bad),
            ("white space is no part of a token", format!("{plain} "), bad),
            (
                "longer than is looked at",
                claims(&format!(r#","pad":"{}""#, "x".repeat(MAX_TOKEN_BYTES))),
                bad,
            ),
            ("1 MB", "a".repeat(1 << 20), bad),
            ("nothing", String::new(), Err(TokenError::Missing)),
        ];
        let ring = ring(SECRET);
        for (reason, token, answer) in rows {
            let verified = ring.verify_at::<WsClaims>(&token, NOW_S * 1000).map(|_| ());
            assert_eq!(verified, answer, "{reason}: {}", &token[..token.len().min(200)]);
        }
        let market = |text: &str| ring.verify_at::<WsClaims>(&claims(text), NOW_S * 1000).unwrap().markets;
        assert_eq!(market(r#","markets":["1001"]"#), Some(vec![MarketId::new(1001).unwrap()]));
        assert_eq!(market(r#","markets":[]"#), Some(Vec::new()), "not all");
        let named = self::ring(&format!("k1:{SECRET},k2:{}", SECRET.to_uppercase()));
        for (reason, kid, answer) in [
            ("the kid of its key", r#","kid":"k1""#, good),
            ("no kid among keys with names", "", bad),
            ("a kid that nobody has", r#","kid":"k9""#, bad),
            ("the kid of another key", r#","kid":"k2""#, bad),
            ("a kid that is no text", r#","kid":1"#, bad),
        ] {
            let verified = named.verify_at::<WsClaims>(&header(&head(kid)), NOW_S * 1000).map(|_| ());
            assert_eq!(verified, answer, "{reason}");
        }
    }

    /// Also where both APIs have one secret.
    #[test]
    fn a_token_for_several_audiences_opens_none_of_them() {
        let admin = Keyring::parse(&Secret::new(SECRET), Audience::Admin).unwrap();
        let exp = unix_ms() / 1000 + 60;
        let token = |aud: &str| {
            let claims = format!(r#"{{"sub":"1","role":"admin","iss":"kmarket","exp":{exp},"aud":{aud}}}"#);
            raw::<Hmac<Sha256>>(r#"{"alg":"HS256","typ":"JWT"}"#, &claims)
        };
        assert!(ring(SECRET).verify::<WsClaims>(&token(r#"["ws"]"#)).is_ok());
        assert!(admin.verify::<AdminClaims>(&token(r#"["admin"]"#)).is_ok());
        for aud in
            [r#"["ws","admin"]"#, r#"["admin","ws"]"#, r#"["ws","ws"]"#, r#"["admin","x"]"#, r#"["x","ws"]"#]
        {
            assert_eq!(ring(SECRET).verify::<WsClaims>(&token(aud)), Err(TokenError::Invalid), "{aud}");
            assert_eq!(admin.verify::<AdminClaims>(&token(aud)), Err(TokenError::Invalid), "{aud}");
        }
    }

    #[test]
    fn replaced_keys_hold_for_every_clone_and_bad_ones_change_nothing() {
        let (live, other) = (ring(SECRET), SECRET.to_uppercase());
        let clone = live.clone();
        let token = live.sign(&claims(60));
        live.replace(&Secret::new(&format!("new:{other}"))).unwrap();
        assert_eq!(clone.verify::<WsClaims>(&token), Err(TokenError::Invalid));
        assert!(ring(&format!("new:{other}")).verify::<WsClaims>(&clone.sign(&claims(60))).is_ok());
        let token = live.sign(&claims(60));
        for bad in ["", "short", &format!("new:{other},b:short"), &format!("{other},{SECRET}")] {
            assert!(live.replace(&Secret::new(bad)).is_err(), "{bad}");
            assert!(clone.verify::<WsClaims>(&token).is_ok());
        }
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
        assert_eq!(parse(&format!("a:{SECRET},b:{}", &SECRET[..31])), Err(InvalidKeys::TooShort), "each");
        assert_eq!(parse(&format!("a:{},b:{SECRET}", &SECRET[..31])), Err(InvalidKeys::TooShort), "each");
        assert_eq!(parse(&SECRET[..32]), Ok(()));
        assert_eq!(parse(&format!("{SECRET},{SECRET}")), Err(InvalidKeys::BadNames));
        assert_eq!(parse(&format!("a:{SECRET},a:{SECRET}")), Err(InvalidKeys::BadNames));
        assert!(!format!("{:?}", ring(SECRET)).contains(SECRET));
    }
}
