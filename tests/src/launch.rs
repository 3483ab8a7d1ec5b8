//! Starting the services under test.

use std::{
    collections::BTreeMap,
    env, io,
    net::SocketAddr,
    panic::resume_unwind,
    path::Path,
    process::{Command, ExitStatus},
    thread,
};

use serde_json::Value;
use tokio::runtime::Builder;

use crate::{
    access::Access,
    acl, binaries,
    http::Http,
    process::{Process, Stream},
    tokens::{ADMIN_JWT_SECRET, JWT_SECRET},
    wait::eventually,
};

/// How a service will be started: its environment (README.md#configuration) and arguments.
#[derive(Clone, Debug)]
pub struct Launch {
    program: &'static str,
    env: BTreeMap<String, String>,
    args: Vec<String>,
}

/// A running gateway or publisher.
#[derive(Debug)]
pub struct Service {
    /// The process, for its log and for signals.
    pub process: Process,
    /// The address of its own listener (`LISTEN`).
    pub api: SocketAddr,
    /// The address of its listener for operations (`OPS_LISTEN`).
    pub ops: SocketAddr,
}

/// A command that ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Launch {
    /// A gateway on this Redis, without the rate limits that hinder tests.
    #[must_use]
    pub fn gateway(redis: impl Into<Access>) -> Self {
        Self::embedded().on(&redis.into()).env("JWT_SECRET", JWT_SECRET)
    }

    /// A gateway without Redis, which is the whole system in one process.
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
        // Of the developer's environment, only what a process needs to run reaches the services.
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
        // In a thread of its own, since the caller may be inside a runtime.
        let ready = thread::scope(|scope| {
            let wait = || {
                Builder::new_current_thread().enable_all().build()?.block_on(async {
                    service.expect_readiness(200).await;
                    io::Result::Ok(())
                })
            };
            scope.spawn(wait).join()
        });
        match ready {
            Ok(ready) => ready.expect("a runtime"),
            Err(panic) => resume_unwind(panic),
        }
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

    /// Starts a command and waits until it ends by itself.
    #[must_use]
    pub fn run(self) -> Finished {
        let process = self.spawn();
        let status = process.wait();
        Finished { status, out: process.said(Stream::Out), err: process.said(Stream::Err) }
    }

    /// Starts a process without waiting for anything.
    #[must_use]
    pub fn spawn(self) -> Process {
        let mut command = Command::new(binaries::path(self.program));
        command.env_clear().envs(&self.env).args(&self.args);
        Process::spawn(self.program, &mut command)
    }
}

impl Service {
    /// Waits until `/readyz` responds with this status.
    pub async fn expect_readiness(&self, status: u16) {
        let (http, url) = (Http::default(), self.ops_url("/readyz"));
        eventually("readiness", async || (http.get(&url).await.status == status).then_some(())).await;
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
