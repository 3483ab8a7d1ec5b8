//! `publisher token`: prints an admin token.

use std::{process::ExitCode, time::Duration};

use service::{
    settings::{Row, Setting, Settings, Stop},
    token::{ADMIN_JWT_SECRET, AdminClaims, Audience, Keyring, Role},
};

const SUB: Setting<String> = Setting::new("SUB", "", "required: whose token it is; the actor in the audit");
const ROLE: Setting<Role> = Setting::new("ROLE", "", "required: viewer, trader or admin");
const TTL: Setting<Duration> = Setting::new("TTL", "8h", "how long it is good for: 15m, 8h");

const TABLE: &[Row] = &[SUB.row(), ROLE.row(), TTL.row(), ADMIN_JWT_SECRET.row()];

const USAGE: &str = "\
publisher token --sub desk-1 --role trader --ttl 8h: prints an admin token, signed with ADMIN_JWT_SECRET.

SUB, ROLE and TTL are flags only, whatever the environment says.";

/// Prints a token with what the arguments behind the command's name say.
///
/// # Errors
/// [`Stop`] with the help, or with everything that is wrong.
pub fn run(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let (keys, claims) = read(args, env)?;
    println!("{}", keys.sign(&claims));
    Ok(ExitCode::SUCCESS)
}

fn read(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<(Keyring, AdminClaims), Stop> {
    let env = |name: &str| if name.starts_with(ADMIN_JWT_SECRET.name()) { env(name) } else { None };
    let mut settings = Settings::read(USAGE, TABLE, args, env)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "an example secret of forty bytes exactly";

    fn read_from(args: &str, env: &[(&str, &str)]) -> Result<(Keyring, AdminClaims), Stop> {
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        read(args.split_whitespace().map(str::to_owned), env)
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
