//! `gateway inspect`

use std::process::ExitCode;

use shared::{
    cli::inspect,
    settings::{Setting, Stop, variable},
    token::{Audience, WsClaims},
};

const TABLE: &[Setting] = &[Setting {
    name: "JWT_SECRET",
    default: "",
    help: "the gateways' secret; without it the token is shown and not verified",
}];

const USAGE: &str = "\
gateway inspect TOKEN: what a client's token says, when it expires, and whether it is good under JWT_SECRET.

TOKEN may be -: it is read from standard input, and is in nobody's history. Exit code 0: it is good. 1: it is not, or was
not verified. 2: it is no token.";

pub(super) fn run(args: impl Iterator<Item = String>) -> Result<ExitCode, Stop> {
    inspect::run::<WsClaims>(USAGE, TABLE, "JWT_SECRET", Audience::Ws, args, variable)
}
