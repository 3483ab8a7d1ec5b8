//! Runs the publisher, or one of its commands.

use std::{env, process::ExitCode};

use backbone::check::PUBLISHER;
use commands::{check, inspect, override_command, probe, replay, token};
use publisher::{server, settings::Settings};
use service::settings::variable;

fn main() -> ExitCode {
    let args = || env::args().skip(2);
    let done = match env::args().nth(1).as_deref() {
        Some("check") => check::run(args(), PUBLISHER, |args| {
            let (settings, summary) = Settings::explain(args, variable)?;
            Ok((summary, Some(settings.redis)))
        }),
        Some("inspect") => inspect::admin(args(), variable),
        Some("override") => override_command::run(args(), variable),
        Some("probe") => {
            Settings::read(args(), variable).map(|settings| probe::run("publisher", settings.ops_listen))
        }
        Some("replay") => replay::run(args(), variable),
        Some("token") => token::admin(args(), variable),
        _ => Settings::read(env::args().skip(1), variable).and_then(server::run),
    };
    done.unwrap_or_else(|stop| commands::stop(&stop))
}
