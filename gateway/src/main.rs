//! `gateway` and its commands.

use std::{env, process::ExitCode};

use backbone::check::GATEWAY;
use commands::{check, inspect, probe, tail, token};
use gateway::{server, settings::Settings};
use service::settings::variable;

/// Returns memory to the kernel within seconds after many clients have left. glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = || env::args().skip(2);
    let done = match env::args().nth(1).as_deref() {
        Some("check") => check::run(args(), GATEWAY, |args| {
            let (settings, summary) = Settings::explain(args, variable)?;
            Ok((summary, settings.redis))
        }),
        Some("inspect") => inspect::client(args(), variable),
        Some("probe") => {
            Settings::read(args(), variable).map(|settings| probe::run("gateway", settings.listen.ops))
        }
        Some("tail") => tail::run(args(), variable),
        Some("token") => token::client(args(), variable),
        _ => Settings::read(env::args().skip(1), variable).map(server::run),
    };
    done.unwrap_or_else(|stop| commands::stop(&stop))
}
