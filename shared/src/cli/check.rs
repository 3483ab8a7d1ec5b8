//! `gateway check` and `publisher check`: the configuration as the service would read it, and whether Redis is there.

use std::process::ExitCode;

use crate::backbone::{RedisConfig, check};

/// Whether `--connect` stands among a command's arguments, and the others, which are the service's own flags.
#[must_use]
pub fn take_connect(args: impl Iterator<Item = String>) -> (bool, Vec<String>) {
    let (connect, others): (Vec<_>, Vec<_>) = args.partition(|arg| arg == "--connect");
    (!connect.is_empty(), others)
}

/// Prints the summary of good settings, and with `redis` asks it whether it does: exit code 1 if not.
pub async fn report(summary: &str, redis: Option<(&RedisConfig, &[&str])>) -> ExitCode {
    println!("The settings are good. Those that are not as by default:\n{summary}");
    let Some((config, needed)) = redis else { return ExitCode::SUCCESS };
    let checked = check::check(config, needed).await;
    for found in &checked.found {
        println!("Redis at {found}");
    }
    for problem in &checked.problems {
        eprintln!("Redis at {problem}");
    }
    if checked.problems.is_empty() {
        println!("Redis answers and permits all that is needed.");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
