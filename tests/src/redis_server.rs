//! Starts `redis-server` processes.

use std::{fs, io, path::Path, process::Command};

use crate::{access::Access, process::Process};

/// Starts a server. Returns `None` if the port is taken.
pub(crate) fn run(port: u16, access: &Access, dir: &Path, args: &[String]) -> Option<Process> {
    let mut command = server();
    let port = port.to_string();
    let ports = match access.ca_file {
        Some(_) => ["--port", "0", "--tls-port", &port],
        None => ["--port", &port, "--tls-port", "0"],
    };
    command.args(ports).args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    // Replicas get their data without delay.
    command.args(["--repl-diskless-sync-delay", "0"]);
    command.arg("--dir").arg(dir).args(args);
    let process = Process::spawn("redis-server", &mut command);
    let ready = |line: &str| line.contains("Ready to accept connections").then_some(());
    process.find_line("readiness", ready).map(|()| process)
}

/// A `redis-server` command. Panics with installation instructions if Redis is missing.
pub(crate) fn server() -> Command {
    if let Err(error) = Command::new("redis-server").arg("--version").output() {
        assert!(
            error.kind() != io::ErrorKind::NotFound,
            "these tests need redis-server: install it with `apt-get install redis-server`"
        );
        panic!("redis-server does not run: {error}");
    }
    Command::new("redis-server")
}

/// Copies a server's files.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the directory is writable");
    for file in fs::read_dir(from).expect("Redis made it") {
        let file = file.expect("it can be listed");
        fs::copy(file.path(), to.join(file.file_name())).expect("it can be copied");
    }
}
