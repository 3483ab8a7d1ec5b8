//! `gateway token`

use std::{process::ExitCode, time::Duration};

use shared::{
    MarketId,
    settings::{Secret, Setting, Settings, Stop, variable},
    time::unix_ms,
    token::{Audience, Keyring, MAX_TTL_S, MAX_USER_ID_CHARS, WsClaims},
};

const TABLE: &[Setting] = &[
    Setting { name: "SUB", default: "", help: "required: the user's id" },
    Setting {
        name: "MARKETS",
        default: "",
        help: "the markets it is good for, as 1001,1002; all by default",
    },
    Setting { name: "TTL", default: "10m", help: "how long it is good for, at most 1h: 15m, 90s" },
    Setting { name: "JWT_SECRET", default: "", help: "required: the gateways' secret" },
];

const USAGE: &str = "\
gateway token --sub 42 [--markets 1001,1002] [--ttl 10m]: prints a client's token, signed with JWT_SECRET.

SUB, MARKETS and TTL are flags only, whatever the environment says.";

pub(super) fn run(args: impl Iterator<Item = String>) -> Result<ExitCode, Stop> {
    let env = |name: &str| if name.starts_with("JWT_SECRET") { variable(name) } else { None };
    let mut settings = Settings::read(USAGE, TABLE, args, env)?;
    let keys = settings.optional::<Secret>("JWT_SECRET").map(|secret| Keyring::parse(&secret, Audience::Ws));
    let keys = match keys {
        Some(Ok(keys)) => Some(keys),
        Some(Err(problem)) => {
            settings.problem("JWT_SECRET", &problem.to_string());
            None
        }
        None => {
            settings.problem("JWT_SECRET", "required");
            None
        }
    };
    let sub: String = settings.optional("SUB").unwrap_or_default();
    if sub.is_empty() || sub.chars().count() > MAX_USER_ID_CHARS || sub.contains(char::is_control) {
        settings.problem("SUB", "required: 1 to 128 characters, no control characters");
    }
    let markets: Option<Vec<MarketId>> = settings.optional("MARKETS");
    let ttl: Duration = settings.value("TTL");
    if !(1..=MAX_TTL_S).contains(&ttl.as_secs()) {
        settings.problem("TTL", "from 1s to 1h: a revocation is not kept for longer");
    }
    settings.finish()?;
    let iat = unix_ms() / 1000;
    let jti = Some(format!("{:032x}", rand::random::<u128>()));
    let claims = WsClaims { sub, markets, iat, exp: iat + ttl.as_secs(), jti };
    println!("{}", keys.map(|keys| keys.sign(&claims)).unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}
