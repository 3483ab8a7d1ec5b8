//! A real `redis-server`, alone on a free port.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use ::redis::{
    Client, FromRedisValue, IntoConnectionInfo, RedisResult, TlsCertificates, aio::MultiplexedConnection,
};
use shared::{
    backbone::{RedisConfig, TailFrom},
    settings::Secret,
};
use tempfile::TempDir;

use crate::{
    ports,
    process::Process,
    wait::{DEADLINE, within},
};

/// Another process may be faster than Redis to take a port that was free.
const PORT_ATTEMPTS: usize = 10;
/// How long the test's own commands to a Redis may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// The user of [`Redis::with_user`], with what a service needs and nothing else, and its password, which needs
/// percent-encoding in a URL.
const USER: &str = "--user default off --user desk on >p@ss/word ~odds:* resetchannels -@all +@read +@write \
                    +@scripting +@connection +@transaction +time +wait +info";
const USER_IN_URL: &str = "desk:p%40ss%2Fword@";

/// How services get to a Redis: `REDIS_URL` and `REDIS_CA_FILE`.
#[derive(Clone, Debug)]
pub struct Access {
    /// `REDIS_URL`.
    pub url: String,
    /// `REDIS_CA_FILE`.
    pub ca_file: Option<PathBuf>,
}

/// A `redis-server`; killed on drop, and what it has on disk removed.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: u16,
    args: Vec<String>,
    access: Access,
    dir: TempDir,
}

impl Redis {
    /// Starts one that keeps nothing on disk; panics with what to install when there is none.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts one with these arguments besides.
    #[must_use]
    pub fn with(args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self::launch(directory(), args, ("redis", ""), None)
    }

    /// Starts one that has everything on disk before it answers.
    #[must_use]
    pub fn durable() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts one that lets in one user only, with a password, who may do no more than a service does.
    #[must_use]
    pub fn with_user() -> Self {
        Self::launch(directory(), USER.split(' ').map(str::to_owned).collect(), ("redis", USER_IN_URL), None)
    }

    /// Starts one that speaks TLS only, with a certificate for 127.0.0.1 of an authority of its own.
    #[must_use]
    pub fn with_tls() -> Self {
        let dir = directory();
        let ca_file = make_certificates(dir.path());
        let file = |name: &str| dir.path().join(name).display().to_string();
        let args = [
            ("--tls-cert-file", file("redis.crt")),
            ("--tls-key-file", file("redis.key")),
            ("--tls-ca-cert-file", file("ca.crt")),
            ("--tls-auth-clients", "no".to_owned()),
        ];
        let args = args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        Self::launch(dir, args, ("rediss", ""), Some(&ca_file))
    }

    fn launch(dir: TempDir, args: Vec<String>, (scheme, user): (&str, &str), ca_file: Option<&Path>) -> Self {
        for _ in 0..PORT_ATTEMPTS {
            let port = ports::free();
            let access = Access {
                url: format!("{scheme}://{user}127.0.0.1:{port}"),
                ca_file: ca_file.map(Path::to_owned),
            };
            if let Some(process) = run(port, &access, dir.path(), &args) {
                return Self { process, port, args, access, dir };
            }
        }
        panic!("redis-server found its port taken {PORT_ATTEMPTS} times in a row");
    }

    /// How services get to it.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Its `REDIS_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        self.access.url.clone()
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process: log and signals.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A connection of the test's own, to look at the keys.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = self.access.client();
        within("connection to Redis", client.get_multiplexed_async_connection()).await.expect("Redis runs")
    }

    /// What it answers to one command, on a connection for just that. Blocks the thread.
    ///
    /// # Errors
    /// Whatever Redis refuses, and that it cannot be reached.
    pub fn ask<T: FromRedisValue>(&self, command: &str) -> RedisResult<T> {
        let mut connection = self.access.client().get_connection_with_timeout(COMMAND_TIMEOUT)?;
        connection.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        let mut words = command.split(' ');
        let mut asked = ::redis::cmd(words.next().unwrap_or_default());
        words.for_each(|word| _ = asked.arg(word));
        asked.query(&mut connection)
    }

    /// What it answers to one command that it must not refuse. Blocks the thread.
    pub fn tell<T: FromRedisValue>(&self, command: &str) -> T {
        self.ask(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// The value of a field of `INFO`. Blocks the thread.
    #[must_use]
    pub fn info(&self, field: &str) -> Option<String> {
        let info: String = self.ask("INFO all").ok()?;
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(str::to_owned)
    }

    /// Kills it (SIGKILL), and all it knew and had not on disk with it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Kills it and starts it on the same port, with what it has on disk.
    pub fn restart(&mut self) {
        self.kill();
        let again = run(self.port, &self.access, self.dir.path(), &self.args);
        self.process = again.expect("the port of a killed redis-server is free");
    }
}

impl Access {
    /// A plain Redis at this port of 127.0.0.1.
    #[must_use]
    pub fn at_port(port: u16) -> Self {
        Self { url: format!("redis://127.0.0.1:{port}"), ca_file: None }
    }

    /// The same for a backbone in the test's own process.
    #[must_use]
    pub fn config(&self) -> RedisConfig {
        let ca_pem = self.ca_pem().map(|pem| Secret::new(&String::from_utf8(pem).expect("PEM is ASCII")));
        RedisConfig { url: Secret::new(&self.url), ca_pem, tail_from: TailFrom::Primary }
    }

    fn ca_pem(&self) -> Option<Vec<u8>> {
        self.ca_file.as_ref().map(|file| fs::read(file).expect("the harness wrote it"))
    }

    fn client(&self) -> Client {
        let info = self.url.as_str().into_connection_info().expect("the URL is well-formed");
        match self.ca_pem() {
            Some(pem) => {
                let trusted = TlsCertificates { client_tls: None, root_cert: Some(pem) };
                Client::build_with_tls(info, trusted)
            }
            None => Client::open(info),
        }
        .expect("the URL is well-formed")
    }
}

impl From<&Redis> for Access {
    fn from(redis: &Redis) -> Self {
        redis.access.clone()
    }
}

impl From<&Self> for Access {
    fn from(access: &Self) -> Self {
        access.clone()
    }
}

/// Looks again and again until `look` finds something. Blocks the thread: for starting things.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A directory for a server's files.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Starts a server; `None` when the port is taken.
fn run(port: u16, access: &Access, dir: &Path, args: &[String]) -> Option<Process> {
    let mut command = server();
    let port = port.to_string();
    let ports = match access.ca_file {
        Some(_) => ["--port", "0", "--tls-port", &port],
        None => ["--port", &port, "--tls-port", "0"],
    };
    command.args(ports).args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(dir).args(args);
    let process = Process::spawn("redis-server", &mut command);
    let ready = |line: &str| line.contains("Ready to accept connections").then_some(());
    process.find_line("readiness", ready).map(|()| process)
}

/// `redis-server`, which is known to be there.
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

/// An authority and a certificate of 127.0.0.1 signed by it; the authority's file.
fn make_certificates(dir: &Path) -> PathBuf {
    let make = |name: &str, more: &[&str]| {
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", &format!("/CN=KMarket tests {name}")])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
            .args(more)
            .current_dir(dir)
            .output()
            .expect("these tests need the openssl command");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    };
    make("ca", &[]);
    let signed = ["-CA", "ca.crt", "-CAkey", "ca.key"];
    let names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
    make("redis", &[signed.as_slice(), &names].concat());
    dir.join("ca.crt")
}
