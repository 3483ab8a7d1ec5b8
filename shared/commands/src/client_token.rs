//! `gateway token`: prints a client's token.

use std::{process::ExitCode, time::Duration};

use protocol::{MarketId, Secret, time::unix_ms, user::MAX_USER_ID_CHARS};
use service::{
    settings::{Row, Setting, Settings, Stop, variable},
    token::{Audience, JWT_SECRET, Keyring, MAX_TTL_S, WsClaims},
};

const SUB: Setting<String> = Setting::new("SUB", "", "required: the user's id");
const MARKETS: Setting<Vec<MarketId>> =
    Setting::new("MARKETS", "", "the markets it is good for, as 1001,1002; all by default");
const TTL: Setting<Duration> = Setting::new("TTL", "10m", "how long it is good for, at most 1h: 15m, 90s");
const SECRET: Setting<Secret> = JWT_SECRET.with("", "required: the gateways' secret");

const TABLE: &[Row] = &[SUB.row(), MARKETS.row(), TTL.row(), SECRET.row()];

const USAGE: &str = "\
gateway token --sub 42 [--markets 1001,1002] [--ttl 10m]: prints a client's token, signed with JWT_SECRET.

SUB, MARKETS and TTL are flags only, whatever the environment says.";

/// Prints a token with what the arguments behind the command's name say.
///
/// # Errors
/// [`Stop`] with the help, or with everything that is wrong.
pub fn run(args: impl Iterator<Item = String>) -> Result<ExitCode, Stop> {
    let env = |name: &str| if name.starts_with(SECRET.name()) { variable(name) } else { None };
    let mut settings = Settings::read(USAGE, TABLE, args, env)?;
    let keys = Keyring::required(&mut settings, &SECRET, Audience::Ws, &mut Vec::new());
    let sub = settings.optional(&SUB).unwrap_or_default();
    if sub.is_empty() || sub.chars().count() > MAX_USER_ID_CHARS || sub.contains(char::is_control) {
        settings.problem(SUB.name(), "required: 1 to 128 characters, no control characters");
    }
    let markets = settings.optional(&MARKETS);
    let ttl = settings.value(&TTL);
    if !(1..=MAX_TTL_S).contains(&ttl.as_secs()) {
        settings.problem(TTL.name(), "from 1s to 1h: a revocation is not kept for longer");
    }
    settings.finish()?;
    let iat = unix_ms() / 1000;
    let jti = Some(format!("{:032x}", rand::random::<u128>()));
    let claims = WsClaims { sub, markets, iat, exp: iat + ttl.as_secs(), jti };
    println!("{}", keys.map(|keys| keys.sign(&claims)).unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}
