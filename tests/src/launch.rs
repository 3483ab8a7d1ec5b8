//! Starting the services under test.

use std::{
    collections::BTreeMap,
    env,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    acl, binaries,
    http::Http,
    process::{Process, Stream},
    redis::Access,
    tokens::{ADMIN_JWT_SECRET, JWT_SECRET},
    wait::{DEADLINE, eventually},
};

/// How a service will be started: its environment (contract, section 7) and arguments.
#[derive(Clone, Debug)]
pub struct Launch {
    program: &'static str,
    env: BTreeMap<String, String>,
    args: Vec<String>,
}

/// A running gateway or publisher.
#[derive(Debug)]
pub struct Service {
    /// Its process: log and signals.
    pub process: Process,
    /// Where `LISTEN` ended up.
    pub api: SocketAddr,
    /// Where `OPS_LISTEN` ended up.
    pub ops: SocketAddr,
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Launch {
    /// A gateway on this Redis, with the limits that get in the way of tests off.
    #[must_use]
    pub fn gateway(redis: impl Into<Access>) -> Self {
        Self::embedded().on(&redis.into()).env("JWT_SECRET", JWT_SECRET)
    }

    /// A gateway without Redis: the whole system in one process.
    #[must_use]
    pub fn embedded() -> Self {
        Self::new("gateway").env("HANDSHAKE_RATE_LIMIT", "0").env("TOKEN_RATE_LIMIT", "0").env("WORKERS", "2")
    }

    /// A publisher on this Redis.
    #[must_use]
    pub fn publisher(redis: impl Into<Access>) -> Self {
        Self::new("publisher").on(&redis.into()).env("ADMIN_JWT_SECRET", ADMIN_JWT_SECRET)
    }

    fn on(self, redis: &Access) -> Self {
        let url = if redis.has_users { acl::as_user(&redis.url, self.program) } else { redis.url.clone() };
        let launch = self.env("REDIS_URL", &url);
        match &redis.ca_file {
            Some(file) => launch.env("REDIS_CA_FILE", &file.display().to_string()),
            None => launch,
        }
    }

    fn new(program: &'static str) -> Self {
        // Nothing of the developer's own environment reaches the services, except what a process needs to run.
        let path = env::var("PATH").unwrap_or_default();
        Self { program, env: BTreeMap::new(), args: Vec::new() }
            .env("PATH", &path)
            .env("RUST_BACKTRACE", "1")
            .env("LOG_FORMAT", "json")
            .env("LISTEN", "127.0.0.1:0")
            .env("OPS_LISTEN", "127.0.0.1:0")
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets several variables.
    #[must_use]
    pub fn envs(self, pairs: &[(&str, &str)]) -> Self {
        pairs.iter().fold(self, |launch, (name, value)| launch.env(name, value))
    }

    /// Removes a variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Starts a service and waits until it is ready.
    #[must_use]
    pub fn start(self) -> Service {
        let service = self.start_unready();
        service.wait_until_ready();
        service
    }

    /// Starts a service and waits until it listens.
    #[must_use]
    pub fn start_unready(self) -> Service {
        let process = self.spawn();
        let listener = |name: &str| {
            process.expect_line(&format!("\"listening\" with listener {name}"), |line| listening(line, name))
        };
        let (api, ops) = (listener("api"), listener("ops"));
        Service { process, api, ops }
    }

    /// Starts a command that ends by itself, and waits for that.
    #[must_use]
    pub fn run(self) -> Finished {
        let process = self.spawn();
        let status = process.wait();
        Finished { status, out: process.said(Stream::Out), err: process.said(Stream::Err) }
    }

    /// Starts it without waiting for anything.
    #[must_use]
    pub fn spawn(self) -> Process {
        let mut command = Command::new(binaries::path(self.program));
        command.env_clear().envs(&self.env).args(&self.args);
        Process::spawn(self.program, &mut command)
    }
}

impl Service {
    /// Asks `/readyz` until it says 200. Blocks the thread.
    fn wait_until_ready(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.is_ready() {
            assert!(
                Instant::now() < deadline,
                "readiness: not within {DEADLINE:?}\n{}",
                self.process.last_lines()
            );
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits until `/readyz` answers with this status.
    pub async fn expect_readiness(&self, status: u16) {
        let (http, url) = (Http::default(), self.ops_url("/readyz"));
        eventually("readiness", async || (http.get(&url).await.status == status).then_some(())).await;
    }

    fn is_ready(&self) -> bool {
        let ask = || -> io::Result<String> {
            let mut stream = TcpStream::connect(self.ops)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    }

    /// `http://ADDRESS/path` on the service's own listener.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    /// `http://ADDRESS/path` on the listener for operations.
    #[must_use]
    pub fn ops_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.ops)
    }
}

/// The path of a recorded feed in `tests/feeds/`.
#[must_use]
pub fn feed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("feeds").join(name);
    path.to_str().expect("the checkout's path is UTF-8").to_owned()
}

/// The field `name` of a JSON log line.
#[must_use]
pub fn log_field(line: &str, name: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line.get("fields")?.get(name)?.as_str()?.to_owned())
}

fn listening(line: &str, listener: &str) -> Option<SocketAddr> {
    let is = |name, value: &str| log_field(line, name).is_some_and(|found| found == value);
    if is("message", "listening") && is("listener", listener) {
        log_field(line, "address")?.parse().ok()
    } else {
        None
    }
}
