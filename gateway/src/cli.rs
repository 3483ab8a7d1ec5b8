//! The gateway's commands at the terminal.

mod check;
mod inspect;
mod probe;
mod tail;
mod token;

use std::process::ExitCode;

use shared::cli;

/// Runs the command that the arguments after the program's name begin with; `None`: they begin with none, and the
/// gateway serves.
pub fn run(mut args: impl Iterator<Item = String>) -> Option<ExitCode> {
    let command = args.next()?;
    let args = args.peekable();
    let done = match command.as_str() {
        "probe" => probe::run(args),
        "check" => check::run(args),
        "token" => token::run(args),
        "inspect" => inspect::run(args),
        "tail" => tail::run(args),
        _ => return None,
    };
    Some(done.unwrap_or_else(|stop| cli::stop(&stop)))
}

/// Runs what does I/O, on one thread.
fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}
