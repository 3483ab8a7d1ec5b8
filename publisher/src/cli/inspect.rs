//! `publisher inspect`

use std::process::ExitCode;

use shared::{
    cli::inspect,
    settings::{Setting, Stop},
    token::{AdminClaims, Audience},
};

const TABLE: &[Setting] = &[Setting {
    name: "ADMIN_JWT_SECRET",
    default: "",
    help: "the publishers' secret; without it the token is shown and not verified",
}];

const USAGE: &str = "\
publisher inspect TOKEN: what an admin token says, when it expires, and whether it is good under ADMIN_JWT_SECRET.

TOKEN may be -: it is read from standard input, and is in nobody's history. Exit code 0: it is good. 1: it is not, or was
not verified. 2: it is no token.";

/// Says what a token is.
///
/// # Errors
/// [`Stop`] with the help, or with everything that is wrong.
pub fn run(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    inspect::run::<AdminClaims>(USAGE, TABLE, "ADMIN_JWT_SECRET", Audience::Admin, args, env)
}
