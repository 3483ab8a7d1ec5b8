//! What runs at the terminal: `check`, `inspect`, `probe`, `tail`, `token`, `override` and `replay`.
//!
//! Both binaries call these from `main`. The services themselves use nothing of this crate, so that they need no WebSocket
//! client and no TLS for one.

pub mod admin_token;
pub mod check;
pub mod client_token;
pub mod http_client;
pub mod inspect;
pub mod probe;
pub mod replay;
pub mod send_override;
pub mod tail;

use std::process::ExitCode;

use service::settings::Stop;

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

/// Runs a command that does I/O, on one thread.
pub fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            eprintln!("no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
