//! `gateway token` and `publisher token`: prints a signed token for a client, or for the admin API.

use std::{process::ExitCode, time::Duration};

use protocol::{MarketId, Secret, time::unix_ms, user::is_name};
use service::{
    settings::{Row, Setting, Settings, Stop},
    token::{ADMIN_JWT_SECRET, AdminClaims, Audience, JWT_SECRET, Keyring, MAX_TTL_S, Role, WsClaims},
};

/// Runs `gateway token`: prints a client's token.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn client(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let (keys, claims) = read_client(args, env)?;
    println!("{}", keys.sign(&claims));
    Ok(ExitCode::SUCCESS)
}

/// Runs `publisher token`: prints an admin token.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn admin(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let (keys, claims) = read_admin(args, env)?;
    println!("{}", keys.sign(&claims));
    Ok(ExitCode::SUCCESS)
}

fn read_client(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<(Keyring, WsClaims), Stop> {
    const SUB: Setting<String> = Setting::new("SUB", "", "required: the user's id");
    const MARKETS: Setting<Vec<MarketId>> =
        Setting::new("MARKETS", "", "markets that the token allows, such as 1001,1002; all by default");
    const TTL: Setting<Duration> =
        Setting::new("TTL", "10m", "how long the token is valid, at most 1h, such as 15m or 90s");
    const SECRET: Setting<Secret> = JWT_SECRET.with("", "required: the gateways' secret");
    const TABLE: &[Row] = &[SUB.row(), MARKETS.row(), TTL.row(), SECRET.row()];
    const USAGE: &str = "\
gateway token --sub 42 [--markets 1001,1002] [--ttl 10m]: prints a client's token, signed with JWT_SECRET.

SUB, MARKETS and TTL are flags only: the environment does not set them.";

    let mut settings = Settings::read(USAGE, TABLE, args, only(SECRET.name(), env))?;
    let keys = Keyring::required(&mut settings, &SECRET, Audience::Ws, &mut Vec::new());
    let sub = settings.optional(&SUB).unwrap_or_default();
    if !is_name(&sub) {
        settings.problem(SUB.name(), "required: 1 to 128 characters, no control characters");
    }
    let markets = settings.optional(&MARKETS);
    let ttl = settings.value(&TTL);
    if !(1..=MAX_TTL_S).contains(&ttl.as_secs()) {
        settings.problem(TTL.name(), "from 1s to 1h: revocations are kept no longer");
    }
    let Some(keys) = keys else { return Err(settings.stop()) };
    settings.finish()?;
    let iat = unix_ms() / 1000;
    let jti = Some(format!("{:032x}", rand::random::<u128>()));
    Ok((keys, WsClaims { sub, markets, iat, exp: iat + ttl.as_secs(), jti }))
}

fn read_admin(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<(Keyring, AdminClaims), Stop> {
    const SUB: Setting<String> =
        Setting::new("SUB", "", "required: the token's owner, the actor in the audit");
    const ROLE: Setting<Role> = Setting::new("ROLE", "", "required: viewer, trader or admin");
    const TTL: Setting<Duration> = Setting::new("TTL", "8h", "how long the token is valid");
    const TABLE: &[Row] = &[SUB.row(), ROLE.row(), TTL.row(), ADMIN_JWT_SECRET.row()];
    const USAGE: &str = "\
publisher token --sub desk-1 --role trader --ttl 8h: prints an admin token, signed with ADMIN_JWT_SECRET.

SUB, ROLE and TTL are flags only: the environment does not set them.";

    let mut settings = Settings::read(USAGE, TABLE, args, only(ADMIN_JWT_SECRET.name(), env))?;
    let keys = Keyring::required(&mut settings, &ADMIN_JWT_SECRET, Audience::Admin, &mut Vec::new());
    let sub = settings.required(&SUB);
    if sub.as_deref() == Some("") {
        settings.problem(SUB.name(), "must not be empty");
    }
    let role = settings.required(&ROLE);
    let ttl = settings.value(&TTL);
    if ttl.as_secs() == 0 {
        settings.problem(TTL.name(), "must be at least 1s");
    }
    let (Some(keys), Some(sub), Some(role)) = (keys, sub, role) else { return Err(settings.stop()) };
    settings.finish()?;
    Ok((keys, AdminClaims::new(&sub, role, ttl)))
}

/// Returns the part of `env` that is `secret`, or the file of it: everything else is a flag.
fn only(secret: &'static str, env: impl Fn(&str) -> Option<String>) -> impl Fn(&str) -> Option<String> {
    move |name| if name.starts_with(secret) { env(name) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "an example secret of forty bytes exactly";

    fn read_from(args: &str, env: &[(&str, &str)]) -> Result<(Keyring, AdminClaims), Stop> {
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        read_admin(args.split_whitespace().map(str::to_owned), env)
    }

    fn problems(read: Result<(Keyring, AdminClaims), Stop>) -> usize {
        match read {
            Err(Stop::Problems(problems)) => problems.len(),
            other => panic!("must not start: {other:?}"),
        }
    }

    #[test]
    fn a_token_s_subject_and_role_come_from_flags_alone() {
        let env = [("ADMIN_JWT_SECRET", SECRET), ("SUB", "root"), ("ROLE", "admin")];
        let (_, claims) = read_from("--sub desk-1 --role trader --ttl 90m", &env).unwrap();
        assert_eq!(
            (claims.sub.as_str(), claims.role, claims.exp - claims.iat),
            ("desk-1", Role::Trader, 5400)
        );
        assert_eq!(problems(read_from("", &env)), 2);
        assert_eq!(problems(read_from("--sub x --role king --ttl 0", &[])), 3);
        assert!(matches!(read_from("--help", &[]), Err(Stop::Help(text)) if text.contains("--sub")));
    }
}
