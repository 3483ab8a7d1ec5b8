use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use protocol::{MarketId, Secret, time::unix_ms};
use sha2::{Sha256, Sha384, Sha512};

use super::*;

const SECRET: &str = "an example secret of forty bytes exactly";

fn keyring(text: &str) -> Keyring {
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
    let token = keyring(SECRET).sign(&scoped);
    assert_eq!(keyring(SECRET).verify::<WsClaims>(&token), Ok(scoped));
}

/// Returns a token of exactly this header and these claims. `H` with SECRET signs it, so the signature is right.
fn raw<H: KeyInit + Mac>(header: &str, claims: &str) -> String {
    let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let head = format!("{}.{}", base64(header.as_bytes()), base64(claims.as_bytes()));
    let mut mac = <H as KeyInit>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(head.as_bytes());
    format!("{head}.{}", base64(&mac.finalize().into_bytes()))
}

/// Each row's token differs from a valid one in one thing, and is signed with the right secret unless the row says so.
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
        ("a valid token", plain.clone(), good),
        ("alg none: the token is not signed", header(r#"{"alg":"none","typ":"JWT"}"#), bad),
        ("alg HS256 with an empty signature, as an unsigned token has", format!("{signed}."), bad),
        (
            "alg RS256: a public key must not become an HMAC secret",
            header(r#"{"alg":"RS256","typ":"JWT"}"#),
            bad,
        ),
        (
            "alg HS384: exactly one algorithm is accepted, also with the right secret",
            raw::<Hmac<Sha384>>(
                r#"{"alg":"HS384","typ":"JWT"}"#,
                &body(&format!(r#""exp":{exp},"aud":"ws""#)),
            ),
            bad,
        ),
        (
            "alg HS512: the same",
            raw::<Hmac<Sha512>>(
                r#"{"alg":"HS512","typ":"JWT"}"#,
                &body(&format!(r#""exp":{exp},"aud":"ws""#)),
            ),
            bad,
        ),
        ("typ at+jwt: another kind of token", header(r#"{"alg":"HS256","typ":"at+jwt"}"#), bad),
        ("typ is JWT in capitals only", header(r#"{"alg":"HS256","typ":"jwt"}"#), bad),
        ("typ is missing", header(r#"{"alg":"HS256"}"#), bad),
        ("crit names an extension that we do not know", header(&head(r#","crit":["b64"],"b64":false"#)), bad),
        ("a key without a name accepts any kid", header(&head(r#","kid":"k9""#)), good),
        ("exp as text is no NumericDate", expires(&format!("\"{exp}\"")), bad),
        ("exp with a fraction: times are whole seconds", expires(&format!("{exp}.5")), bad),
        ("exp as a float of a whole second", expires(&format!("{exp}.0")), bad),
        ("exp below zero", expires("-1"), bad),
        ("exp null would never expire", expires("null"), bad),
        ("exp is missing: the token would never expire", with(&head(""), &body(r#""aud":"ws""#)), bad),
        ("exp appears twice", claims(r#","exp":9999999999"#), bad),
        ("iss is missing", with(&head(""), &format!(r#"{{"sub":"1","exp":{exp},"aud":"ws"}}"#)), bad),
        (
            "iss is another issuer",
            with(&head(""), &format!(r#"{{"sub":"1","iss":"x","exp":{exp},"aud":"ws"}}"#)),
            bad,
        ),
        (
            "iss is an array; RFC 7519 has one string",
            with(&head(""), &format!(r#"{{"sub":"1","iss":["kmarket"],"exp":{exp},"aud":"ws"}}"#)),
            bad,
        ),
        (
            "aud is missing: the token would be for both APIs",
            with(&head(""), &body(&format!(r#""exp":{exp}"#))),
            bad,
        ),
        ("aud is the other API", aud(r#""admin""#), bad),
        ("aud as an array of one (RFC 7519)", aud(r#"["ws"]"#), good),
        ("aud of both: no token opens both APIs", aud(r#"["ws","admin"]"#), bad),
        ("aud is an empty array", aud("[]"), bad),
        ("sub is missing", with(&head(""), &format!(r#"{{"iss":"kmarket","exp":{exp},"aud":"ws"}}"#)), bad),
        (
            "sub is empty",
            with(&head(""), &format!(r#"{{"sub":"","iss":"kmarket","exp":{exp},"aud":"ws"}}"#)),
            bad,
        ),
        ("expired, 1 s before the leeway ends", expires(&(NOW_S - LEEWAY_S + 1).to_string()), good),
        ("expired, exactly at the end of the leeway", expires(&(NOW_S - LEEWAY_S).to_string()), old),
        ("expired, 1 s after the leeway", expires(&(NOW_S - LEEWAY_S - 1).to_string()), old),
        ("nbf within the leeway", claims(&format!(r#","nbf":{}"#, NOW_S + LEEWAY_S)), good),
        ("nbf beyond the leeway: not valid yet", claims(&format!(r#","nbf":{}"#, NOW_S + LEEWAY_S + 1)), bad),
        ("nbf as text is no NumericDate", claims(r#","nbf":"0""#), bad),
        ("iat within the leeway", claims(&format!(r#","iat":{}"#, NOW_S + LEEWAY_S)), good),
        (
            "iat beyond the leeway: the token would outlive a revocation",
            claims(&format!(r#","iat":{}"#, NOW_S + LEEWAY_S + 1)),
            bad,
        ),
        ("a scope of decimal strings", claims(r#","markets":["1001"]"#), good),
        ("a scope of other strings", claims(r#","markets":["all"]"#), bad),
        ("a scope that is not an array", claims(r#","markets":"1001""#), bad),
        ("an empty scope is valid, and allows nothing", claims(r#","markets":[]"#), good),
        ("jti is a string", claims(r#","jti":"a""#), good),
        ("the signature is cut", plain[..plain.len() - 1].to_owned(), bad),
        ("the signature is missing", signed.to_owned(), bad),
        ("a wrong signature", format!("{signed}.{}", signature.chars().rev().collect::<String>()), bad),
        ("a space after the token", format!("{plain} "), bad),
        ("longer than MAX_TOKEN_BYTES", claims(&format!(r#","pad":"{}""#, "x".repeat(MAX_TOKEN_BYTES))), bad),
        ("1 MB", "a".repeat(1 << 20), bad),
        ("empty", String::new(), Err(TokenError::Missing)),
    ];
    let keyring = keyring(SECRET);
    for (reason, token, expected) in rows {
        let verified = keyring.verify_at::<WsClaims>(&token, NOW_S * 1000).map(|_| ());
        assert_eq!(verified, expected, "{reason}: {}", &token[..token.len().min(200)]);
    }
    let market = |text: &str| keyring.verify_at::<WsClaims>(&claims(text), NOW_S * 1000).unwrap().markets;
    assert_eq!(market(r#","markets":["1001"]"#), Some(vec![MarketId::new(1001).unwrap()]));
    assert_eq!(market(r#","markets":[]"#), Some(Vec::new()), "an empty scope is not all markets");
    let named = self::keyring(&format!("k1:{SECRET},k2:{}", SECRET.to_uppercase()));
    for (reason, kid, expected) in [
        ("the kid of its key", r#","kid":"k1""#, good),
        ("no kid among keys with names", "", bad),
        ("an unknown kid", r#","kid":"k9""#, bad),
        ("the kid of another key", r#","kid":"k2""#, bad),
        ("a kid that is not a string", r#","kid":1"#, bad),
    ] {
        let verified = named.verify_at::<WsClaims>(&header(&head(kid)), NOW_S * 1000).map(|_| ());
        assert_eq!(verified, expected, "{reason}");
    }
}

/// Holds also if both APIs have the same secret.
#[test]
fn a_token_for_several_audiences_opens_none_of_them() {
    let admin = Keyring::parse(&Secret::new(SECRET), Audience::Admin).unwrap();
    let exp = unix_ms() / 1000 + 60;
    let token = |aud: &str| {
        let claims = format!(r#"{{"sub":"1","role":"admin","iss":"kmarket","exp":{exp},"aud":{aud}}}"#);
        raw::<Hmac<Sha256>>(r#"{"alg":"HS256","typ":"JWT"}"#, &claims)
    };
    assert!(keyring(SECRET).verify::<WsClaims>(&token(r#"["ws"]"#)).is_ok());
    assert!(admin.verify::<AdminClaims>(&token(r#"["admin"]"#)).is_ok());
    for aud in
        [r#"["ws","admin"]"#, r#"["admin","ws"]"#, r#"["ws","ws"]"#, r#"["admin","x"]"#, r#"["x","ws"]"#]
    {
        assert_eq!(keyring(SECRET).verify::<WsClaims>(&token(aud)), Err(TokenError::Invalid), "{aud}");
        assert_eq!(admin.verify::<AdminClaims>(&token(aud)), Err(TokenError::Invalid), "{aud}");
    }
}

#[test]
fn replaced_keys_hold_for_every_clone_and_bad_ones_change_nothing() {
    let (live, other) = (keyring(SECRET), SECRET.to_uppercase());
    let clone = live.clone();
    let token = live.sign(&claims(60));
    live.replace(&Secret::new(&format!("new:{other}"))).unwrap();
    assert_eq!(clone.verify::<WsClaims>(&token), Err(TokenError::Invalid));
    assert!(keyring(&format!("new:{other}")).verify::<WsClaims>(&clone.sign(&claims(60))).is_ok());
    let token = live.sign(&claims(60));
    for bad in ["", "short", &format!("new:{other},b:short"), &format!("{other},{SECRET}")] {
        assert!(live.replace(&Secret::new(bad)).is_err(), "{bad}");
        assert!(clone.verify::<WsClaims>(&token).is_ok());
    }
}

#[test]
fn other_audience_key_or_shape_is_refused() {
    let admin = Keyring::parse(&Secret::new(SECRET), Audience::Admin).unwrap();
    let good = keyring(SECRET).sign(&claims(60));
    assert_eq!(admin.verify::<AdminClaims>(&good), Err(TokenError::Invalid));
    assert_eq!(keyring(SECRET).verify::<WsClaims>(&admin.sign(&claims(60))), Err(TokenError::Invalid));
    assert_eq!(Keyring::random(Audience::Ws).verify::<WsClaims>(&good), Err(TokenError::Invalid));
    assert_eq!(keyring(SECRET).verify::<WsClaims>(""), Err(TokenError::Missing));
    for cut in 0..good.len() {
        assert!(keyring(SECRET).verify::<WsClaims>(&good[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_new_first_key_signs_and_the_old_one_still_verifies() {
    let old = keyring(&format!("old:{SECRET}"));
    let both = keyring(&format!("new:{},old:{SECRET}", SECRET.to_uppercase()));
    assert!(both.verify::<WsClaims>(&old.sign(&claims(60))).is_ok());
    assert_eq!(old.verify::<WsClaims>(&both.sign(&claims(60))), Err(TokenError::Invalid));
    assert_eq!(
        both.verify::<WsClaims>(&keyring(SECRET).sign(&claims(60))),
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
    assert!(!format!("{:?}", keyring(SECRET)).contains(SECRET));
}
