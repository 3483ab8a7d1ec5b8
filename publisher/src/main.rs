//! Runs the publisher, or one of its commands.

use std::{env, process::ExitCode};

use backbone::check::PUBLISHER;
use commands::{admin_token, check, inspect, probe, replay, send_override};
use publisher::{server, settings::Settings};
use service::settings::variable;

fn main() -> ExitCode {
    let args = || env::args().skip(2);
    let done = match env::args().nth(1).as_deref() {
        Some("check") => check::run(args(), PUBLISHER, |args| {
            let (settings, summary) = Settings::explain(args, variable)?;
            Ok((summary, Some(settings.redis)))
        }),
        Some("inspect") => inspect::admin_token(args(), variable),
        Some("override") => send_override::run(args(), variable),
        Some("probe") => {
            Settings::read(args(), variable).map(|settings| probe::run("publisher", settings.ops_listen))
        }
        Some("replay") => replay::run(args(), variable),
        Some("token") => admin_token::run(args(), variable),
        _ => Settings::read(env::args().skip(1), variable).map(server::run),
    };
    done.unwrap_or_else(|stop| commands::stop(&stop))
}
