//! What the commands of both services at the terminal have in common.

pub mod check;
pub mod inspect;
pub mod probe;

use std::process::ExitCode;

use crate::settings::Stop;

/// Ends a command that could not begin: help goes to standard output, problems (exit code 2) to standard error.
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

/// Takes the words in front of the first flag: what a command is about.
pub fn words(args: &mut std::iter::Peekable<impl Iterator<Item = String>>) -> Vec<String> {
    std::iter::from_fn(|| args.next_if(|arg| arg == "-" || !arg.starts_with('-'))).collect()
}
