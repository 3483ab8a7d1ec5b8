//! `gateway inspect` and `publisher inspect`: prints a token's claims, and whether the token is valid or why not.

use std::{
    io::{self, Read},
    process::ExitCode,
};

use jsonwebtoken::{Algorithm, Header, dangerous};
use protocol::{Secret, time::unix_ms};
use serde_json::{Map, Value};
use service::{
    settings::{Row, Setting, Settings, Stop},
    token::{
        ADMIN_JWT_SECRET, AdminClaims, Audience, Claims, ISSUER, JWT_SECRET, Keyring, LEEWAY_S,
        MAX_TOKEN_BYTES, TokenError, WsClaims,
    },
};

use crate::words;

/// Runs `gateway inspect`, for a client's token.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn client(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    const SECRET: Setting<Secret> =
        JWT_SECRET.with("", "the gateways' secret; without it the token is shown and not verified");
    const TABLE: &[Row] = &[SECRET.row()];
    const USAGE: &str = "\
gateway inspect TOKEN: prints a client token's claims, when it expires, and whether it is valid under JWT_SECRET.

With - for TOKEN it is read from standard input, which keeps it out of the shell's history. Exit code 0: it is valid. 1: it
is not, or was not verified. 2: it is not a token.";
    run::<WsClaims>(USAGE, TABLE, &SECRET, Audience::Ws, args, env)
}

/// Runs `publisher inspect`, for an admin token.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn admin(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    const SECRET: Setting<Secret> =
        ADMIN_JWT_SECRET.with("", "the publishers' secret; without it the token is shown and not verified");
    const TABLE: &[Row] = &[SECRET.row()];
    const USAGE: &str = "\
publisher inspect TOKEN: prints an admin token's claims, when it expires, and whether it is valid under ADMIN_JWT_SECRET.

With - for TOKEN it is read from standard input, which keeps it out of the shell's history. Exit code 0: it is valid. 1: it
is not, or was not verified. 2: it is not a token.";
    run::<AdminClaims>(USAGE, TABLE, &SECRET, Audience::Admin, args, env)
}

fn run<C: Claims>(
    usage: &str,
    table: &'static [Row],
    secret: &Setting<Secret>,
    audience: Audience,
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let mut args = args.peekable();
    let words = words(&mut args);
    let mut settings = Settings::read(usage, table, args, env)?;
    let token = match words.as_slice() {
        [word] => read(word).map_err(|error| error.to_string()),
        _ => Err("one is expected, or - for standard input".to_owned()),
    };
    if let Err(problem) = &token {
        settings.problem("TOKEN", problem);
    }
    let keys = Keyring::read(&mut settings, secret, audience, &mut Vec::new());
    settings.finish()?;
    Ok(report::<C>(&token.unwrap_or_default(), keys.as_ref(), secret.name()))
}

/// Returns the token of the command line, or with `-` of standard input.
fn read(word: &str) -> io::Result<String> {
    if word != "-" {
        return Ok(word.to_owned());
    }
    let mut text = String::new();
    io::stdin().take(2 * MAX_TOKEN_BYTES as u64).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Prints the token's content and validity. Exit code 0: it is valid. 1: it is not, or there are no keys to verify it with.
/// 2: it is not a token.
fn report<C: Claims>(token: &str, keys: Option<&Keyring>, secret: &str) -> ExitCode {
    let decoded = (jsonwebtoken::decode_header(token), dangerous::insecure_decode_claims(token));
    let (Ok(header), Ok(claims)) = decoded else {
        eprintln!("This is not a token: header.claims.signature, each in base64url, is expected.");
        return ExitCode::from(2);
    };
    let claims: Map<String, Value> = claims;
    let now_s = unix_ms() / 1000;
    println!("header  {}", serde_json::to_string(&header).unwrap_or_default());
    println!("claims  {}", Value::Object(claims.clone()));
    match seconds(&claims, "exp") {
        Some(exp) if exp > now_s => println!("expires in {}", in_words(exp - now_s)),
        Some(exp) => println!("expired {} ago", in_words(now_s - exp)),
        None => println!("has no exp, which is not allowed"),
    }
    let Some(keys) = keys else {
        println!("Not verified: {secret} is not set.");
        return ExitCode::FAILURE;
    };
    match keys.verify::<C>(token) {
        Ok(_) => {
            println!("Valid under {secret}. (Only the services know whether it was revoked.)");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("Not valid under {secret}:");
            for reason in reasons(token, &header, &claims, keys, error) {
                println!("  {reason}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Returns every rule of `docs/protocol.md#claims` that the token breaks, in words.
fn reasons(
    token: &str,
    header: &Header,
    claims: &Map<String, Value>,
    keys: &Keyring,
    error: TokenError,
) -> Vec<String> {
    let now_s = unix_ms() / 1000;
    let mut reasons = Vec::new();
    if header.alg != Algorithm::HS256 {
        reasons.push(format!("its algorithm is {:?}, not HS256", header.alg));
    }
    if header.typ.as_deref() != Some("JWT") {
        reasons.push("its typ is not JWT".to_owned());
    }
    if !keys.has_key(header.kid.as_deref()) {
        reasons.push(match &header.kid {
            Some(kid) => format!("no key is named {kid:?}"),
            None => "it names no key (kid), and the keys have names".to_owned(),
        });
    } else if !keys.has_signed(token) {
        reasons.push("its signature is not by this secret".to_owned());
    }
    if claims.get("iss").and_then(Value::as_str) != Some(ISSUER) {
        reasons.push(format!("iss is not {ISSUER:?}"));
    }
    let audience = keys.audience();
    let aud = claims.get("aud");
    if aud.and_then(Value::as_str) != Some(audience)
        && aud.and_then(Value::as_array).is_none_or(|list| list.len() != 1 || list[0] != audience)
    {
        reasons.push(format!("aud is not {audience:?}"));
    }
    if claims.get("sub").and_then(Value::as_str).is_none_or(str::is_empty) {
        reasons.push("sub is missing or empty".to_owned());
    }
    match seconds(claims, "exp") {
        Some(exp) if exp + LEEWAY_S <= now_s => reasons.push("it has expired".to_owned()),
        Some(_) => {}
        None => reasons.push("exp is not a whole number of Unix seconds".to_owned()),
    }
    for name in ["iat", "nbf"] {
        if seconds(claims, name).is_some_and(|at| at > now_s + LEEWAY_S) {
            reasons.push(format!("{name} is in the future"));
        }
    }
    if reasons.is_empty() {
        reasons.push(error.to_string());
    }
    reasons
}

fn seconds(claims: &Map<String, Value>, name: &str) -> Option<u64> {
    claims.get(name).and_then(Value::as_u64)
}

/// Writes a time in its two largest units, such as `2 days 3 hours`.
fn in_words(seconds: u64) -> String {
    let units = [("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)];
    let mut left = seconds;
    let mut words = Vec::new();
    for (name, size) in units {
        let count = left / size;
        left %= size;
        if count > 0 {
            words.push(format!("{count} {name}{}", if count == 1 { "" } else { "s" }));
        }
    }
    words.truncate(2);
    if words.is_empty() { "less than a second".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn a_time_is_written_in_two_units() {
        for (seconds, words) in [
            (0, "less than a second"),
            (1, "1 second"),
            (61, "1 minute 1 second"),
            (3_600, "1 hour"),
            (28_799, "7 hours 59 minutes"),
            (200_000, "2 days 7 hours"),
        ] {
            assert_eq!(in_words(seconds), words);
        }
    }
}
