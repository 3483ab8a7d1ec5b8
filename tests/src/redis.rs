//! A real `redis-server`, alone on a free port.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    process::Command,
};

use ::redis::{Client, aio::MultiplexedConnection};
use tempfile::TempDir;

use crate::{process::Process, wait::within};

/// Free ports are found by binding port 0 and letting go; another process may be faster than Redis to take it.
const PORT_ATTEMPTS: usize = 10;

/// A `redis-server` that keeps nothing on disk; killed on drop.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl Redis {
    /// Starts one; panics with what to install when there is none.
    #[must_use]
    pub fn start() -> Self {
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port();
            let dir = tempfile::tempdir().expect("a temporary directory");
            if let Some(process) = run(port, &dir) {
                return Self { process, port, dir };
            }
        }
        panic!("redis-server found its port taken {PORT_ATTEMPTS} times in a row");
    }

    /// Its `REDIS_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection of the test's own, to look at the keys.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(self.url()).expect("the URL is well-formed");
        within("connection to Redis", client.get_multiplexed_async_connection()).await.expect("Redis runs")
    }

    /// Kills it, and all it knew with it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Kills it and starts an empty one on the same port.
    pub fn restart(&mut self) {
        self.kill();
        let again = run(self.port, &self.dir);
        self.process = again.expect("the port of a killed redis-server is free");
    }
}

/// Starts a server; `None` when the port is taken.
fn run(port: u16, dir: &TempDir) -> Option<Process> {
    if let Err(error) = Command::new("redis-server").arg("--version").output() {
        assert!(
            error.kind() != io::ErrorKind::NotFound,
            "these tests need redis-server: install it with `apt-get install redis-server`"
        );
        panic!("redis-server does not run: {error}");
    }
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(dir.path());
    let process = Process::spawn("redis-server", &mut command);
    let ready = |line: &str| line.contains("Ready to accept connections").then_some(());
    process.find_line("readiness", ready).map(|()| process)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on 127.0.0.1");
    listener.local_addr().expect("a bound listener has an address").port()
}
