//! `gateway check` and `publisher check`: the configuration as the service would read it, and whether Redis is there.

use std::process::ExitCode;

use backbone::{RedisConfig, check};
use service::settings::Stop;

use crate::block_on;

/// Runs the command. `args` are those behind its name: the service's own flags, and `--connect`.
///
/// `explain` reads the service's settings and returns a summary of them with where its Redis is. `needed` are the
/// commands that the service asks of Redis.
///
/// # Errors
/// [`Stop`] with the help, or with everything that is wrong.
pub fn run(
    args: impl Iterator<Item = String>,
    needed: &[&str],
    explain: impl FnOnce(Vec<String>) -> Result<(String, Option<RedisConfig>), Stop>,
) -> Result<ExitCode, Stop> {
    let (connect, args): (Vec<_>, Vec<_>) = args.partition(|arg| arg == "--connect");
    let (summary, redis) = explain(args)?;
    println!("The settings are good. Those that are not as by default:\n{summary}");
    match redis.filter(|_| !connect.is_empty()) {
        Some(redis) => Ok(block_on(ask(&redis, needed))),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Asks Redis whether it is there and permits what the service needs. Exit code 1 if not.
async fn ask(config: &RedisConfig, needed: &[&str]) -> ExitCode {
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
