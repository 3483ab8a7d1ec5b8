//! `gateway check` and `publisher check`: checks the settings that the service would use; with `--connect` also Redis.

use std::process::ExitCode;

use backbone::{RedisConfig, check};
use service::settings::Stop;

use crate::block_on;

/// Runs the command. `args` are the service's own flags, and `--connect`.
///
/// `explain` reads the service's settings, and returns a summary of them and where its Redis is. `needed` are the Redis
/// commands that the service sends. The exit code is 1 if Redis cannot be reached or does not permit them.
///
/// # Errors
/// [`Stop`] with the help, or with every problem.
pub fn run(
    args: impl Iterator<Item = String>,
    needed: &[&str],
    explain: impl FnOnce(Vec<String>) -> Result<(String, Option<RedisConfig>), Stop>,
) -> Result<ExitCode, Stop> {
    let (connect, args): (Vec<_>, Vec<_>) = args.partition(|arg| arg == "--connect");
    let (summary, redis) = explain(args)?;
    println!("The settings are valid. These differ from their defaults:\n{summary}");
    match redis.filter(|_| !connect.is_empty()) {
        Some(redis) => Ok(block_on(check_redis(&redis, needed))),
        None => Ok(ExitCode::SUCCESS),
    }
}

async fn check_redis(config: &RedisConfig, needed: &[&str]) -> ExitCode {
    let checked = check::check(config, needed).await;
    for found in &checked.found {
        println!("Redis at {found}");
    }
    for problem in &checked.problems {
        eprintln!("Redis at {problem}");
    }
    if checked.problems.is_empty() {
        println!("Redis answers, and permits every command that is needed.");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
