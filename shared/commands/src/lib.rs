//! The commands at the terminal, one file each: `check`, `inspect`, `override`, `probe`, `replay`, `tail` and `token`.
//!
//! `main` of both binaries calls them. The services use nothing of this crate, so their own code has no WebSocket client
//! and no TLS for one.
//!
//! The commands read their arguments with [`service::settings::Settings`], as the services do, and not with clap. So there
//! is one parser: each setting is a flag, an environment variable or a file (`NAME_FILE`), and all problems are reported at
//! once.

pub mod check;
mod http_client;
pub mod inspect;
pub mod override_command;
pub mod probe;
pub mod replay;
pub mod tail;
pub mod token;

use std::{iter::Peekable, process::ExitCode};

use service::settings::Stop;

/// Ends a command that could not begin. The help goes to standard output; problems go to standard error, with exit code 2.
#[must_use]
pub fn stop(stop: &Stop) -> ExitCode {
    match stop {
        Stop::Help(help) => {
            println!("{help}");
            ExitCode::SUCCESS
        }
        Stop::Problems(_) => {
            eprintln!("{stop}");
            ExitCode::from(2)
        }
    }
}

/// Takes the words in front of the first flag: a command's subject.
fn words(args: &mut Peekable<impl Iterator<Item = String>>) -> Vec<String> {
    std::iter::from_fn(|| args.next_if(|arg| arg == "-" || !arg.starts_with('-'))).collect()
}

/// Runs a command's I/O on this thread.
fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
