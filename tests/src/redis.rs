//! A real `redis-server`, alone on a free port.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use ::redis::{
    Client, FromRedisValue, IntoConnectionInfo, RedisResult, TlsCertificates, Value,
    aio::MultiplexedConnection,
};
use shared::{
    backbone::{RedisConfig, TailFrom},
    settings::Secret,
};
use tempfile::TempDir;

use crate::{
    acl::Users,
    certificates::Certificates,
    chaos::Chaos,
    ports::Port,
    process::{Process, Stream},
    wait::{until, within},
};

/// Something that is no test of ours may be faster than Redis to take a port that was free.
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
    /// Each service is a user of its own there ([`Users`]).
    pub has_users: bool,
}

/// A `redis-server`; killed on drop, and what it has on disk removed.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: Port,
    args: Vec<String>,
    access: Access,
    dir: TempDir,
    /// Between it and everybody who knows it by what it names as its port.
    chaos: Option<Chaos>,
    _certificates: Option<Arc<Certificates>>,
    _users: Option<Arc<Users>>,
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
        Self::in_set(args, None)
    }

    /// Starts one that follows the plain Redis at this port of 127.0.0.1, and has all of it.
    #[must_use]
    pub fn replica_of(primary: u16) -> Self {
        let replica = Self::start();
        replica.follow(primary);
        replica
    }

    /// Starts one that has everything on disk before it answers.
    #[must_use]
    pub fn durable() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts one that lets in one user only, with a password, who may do no more than a service does.
    #[must_use]
    pub fn with_user() -> Self {
        Self::launch(USER.split(' ').map(str::to_owned).collect(), USER_IN_URL, None, None)
    }

    /// Starts one with the users that the project ships.
    #[must_use]
    pub fn with_shipped_users() -> Self {
        Self::in_set_with_users(&[], &Arc::new(Users::make()))
    }

    /// Starts one of a set, with these arguments and these users.
    pub(crate) fn in_set_with_users(args: &[&str], users: &Arc<Users>) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).chain(users.args()).collect();
        Self::launch(args, "", None, Some(Arc::clone(users)))
    }

    /// Starts one that speaks TLS only, with a certificate for 127.0.0.1 of an authority of its own.
    #[must_use]
    pub fn with_tls() -> Self {
        Self::in_set(&[], Some(&Arc::new(Certificates::make())))
    }

    /// Starts one of a set, with these arguments; with these certificates it speaks TLS only.
    pub(crate) fn in_set(args: &[&str], certificates: Option<&Arc<Certificates>>) -> Self {
        let settings = certificates.into_iter().flat_map(|certificates| certificates.settings());
        let tls = settings.flat_map(|(name, value)| [format!("--{name}"), value]);
        let args = args.iter().map(|&arg| arg.to_owned()).chain(tls).collect();
        Self::launch(args, "", certificates.cloned(), None)
    }

    fn launch(
        args: Vec<String>,
        user: &str,
        certificates: Option<Arc<Certificates>>,
        users: Option<Arc<Users>>,
    ) -> Self {
        let dir = directory();
        let scheme = if certificates.is_some() { "rediss" } else { "redis" };
        for _ in 0..PORT_ATTEMPTS {
            let port = Port::free();
            let access = Access {
                url: format!("{scheme}://{user}127.0.0.1:{}", port.number()),
                ca_file: certificates.as_ref().map(|certificates| certificates.ca_file()),
                has_users: users.is_some(),
            };
            if let Some(process) = run(port.number(), &access, dir.path(), &args) {
                return Self {
                    process,
                    port,
                    args,
                    access,
                    dir,
                    chaos: None,
                    _certificates: certificates,
                    _users: users,
                };
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
        self.port.number()
    }

    /// Puts a proxy before it, whose port it names to others as its own from now on, by this setting.
    pub(crate) fn put_behind_chaos(&mut self, setting: &str) {
        let chaos = Chaos::before(self);
        self.tell::<()>(&format!("CONFIG SET {setting} {}", chaos.port()));
        self.args.extend([format!("--{setting}"), chaos.port().to_string()]);
        self.chaos = Some(chaos);
    }

    /// The proxy before it; only for one of a set that was started with proxies.
    #[must_use]
    pub fn chaos(&self) -> &Chaos {
        self.chaos.as_ref().expect("it was put behind one")
    }

    /// The port that others know it by.
    #[must_use]
    pub fn named_port(&self) -> u16 {
        self.chaos.as_ref().map_or(self.port(), Chaos::port)
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
        self.restart_with(&[]);
    }

    /// The same, with these arguments besides for this time. Returns when it has loaded what it has.
    pub fn restart_with(&mut self, args: &[&str]) {
        self.kill();
        let args: Vec<String> =
            self.args.iter().map(String::as_str).chain(args.iter().copied()).map(str::to_owned).collect();
        let again = run(self.port(), &self.access, self.dir.path(), &args);
        self.process = again.expect("the port of a killed redis-server is free");
    }

    /// Kills it and starts it with nothing.
    pub fn restart_empty(&mut self) {
        self.kill();
        // One that keeps nothing on disk has no such directory.
        let _ = fs::remove_dir_all(self.files());
        self.restart();
    }

    /// Copies what it has on disk, for [`Self::restart_from_copy`].
    pub fn copy(&self) {
        copy_files(&self.files(), &self.dir().join("copy"));
    }

    /// Kills it and starts it with what it had when it was copied.
    pub fn restart_from_copy(&mut self) {
        self.kill();
        fs::remove_dir_all(self.files()).expect("only Redis wrote there");
        copy_files(&self.dir().join("copy"), &self.files());
        self.restart();
    }

    /// Has `redis-cli` back it up while it runs, as the operators' guide says.
    pub fn back_up(&self) -> PathBuf {
        let file = self.dir().join("backup.rdb");
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port().to_string(), "--rdb"]).arg(&file);
        let done = command.output().expect("redis-cli comes with redis-server");
        assert!(done.status.success(), "{done:?}");
        file
    }

    /// Kills it, loses its disk, and restores it from a backup, as the operators' guide says.
    pub fn restore(&mut self, backup: &Path) {
        self.kill();
        fs::remove_dir_all(self.files()).expect("only Redis wrote there");
        fs::copy(backup, self.dump()).expect("room for a backup");
        self.restart_with(&["--appendonly", "no"]);
        self.tell::<()>("CONFIG SET appendonly yes");
        until("it is durable again", || {
            (self.info("aof_rewrite_in_progress")? == "0" && self.info("aof_enabled")? == "1").then_some(())
        });
    }

    /// Kills it and starts it with what it has on disk, which takes it about `time` to load: until then it answers
    /// `LOADING`. Returns when it has loaded.
    pub fn restart_loading(&mut self, time: Duration) {
        // One file with every key, which alone is read with pauses to answer in.
        let _: Value = self.tell("BGREWRITEAOF");
        self.wait_for_files();
        let keys: u64 = self.tell("DBSIZE");
        let delay_us = time.as_micros() / u128::from(keys.max(1));
        let delay_us = delay_us.to_string();
        self.restart_with(&[
            "--key-load-delay",
            &delay_us,
            "--loading-process-events-interval-bytes",
            "1024",
        ]);
        self.tell::<()>("CONFIG SET key-load-delay 0");
    }

    /// Becomes a replica of the plain Redis at this port of 127.0.0.1, and returns when it has all of it, on disk as
    /// well, and its primary knows that.
    pub fn follow(&self, primary: u16) {
        self.tell::<()>(&format!("REPLICAOF 127.0.0.1 {primary}"));
        until("the replica follows", || (self.info("master_link_status")? == "up").then_some(()));
        let primary = Access::at_port(primary).client();
        until("the primary knows the replica", || {
            let mut connection = primary.get_connection().ok()?;
            let info: String = ::redis::cmd("INFO").arg("replication").query(&mut connection).ok()?;
            let is_it = |line: &str| line.contains(&format!("port={},state=online", self.port()));
            info.lines().any(is_it).then_some(())
        });
        self.wait_for_files();
    }

    /// Refuses writes, as in these circumstances, until [`Self::cure`].
    pub fn refuse(&self, refusal: Refusal) {
        match refusal {
            // Of somebody who is not there.
            Refusal::ReadOnly => {
                self.tell::<()>(&format!("REPLICAOF 127.0.0.1 {}", Port::free().number()));
            }
            Refusal::OutOfMemory => self.tell("CONFIG SET maxmemory 1mb"),
            Refusal::TooFewReplicas => self.tell("CONFIG SET min-replicas-to-write 1"),
            Refusal::CannotSave => {
                // What a replica was sent may be there.
                let _ = fs::remove_file(self.dump());
                fs::create_dir(self.dump()).expect("the directory is writable");
                self.configure("save", "3600 1");
                self.tell::<()>("CONFIG SET stop-writes-on-bgsave-error yes");
                let _: Value = self.tell("BGSAVE");
                until("the save fails", || (self.info("rdb_last_bgsave_status")? == "err").then_some(()));
            }
        }
    }

    /// Ends [`Self::refuse`].
    pub fn cure(&self, refusal: Refusal) {
        match refusal {
            Refusal::ReadOnly => self.tell("REPLICAOF NO ONE"),
            Refusal::OutOfMemory => self.tell("CONFIG SET maxmemory 0"),
            Refusal::TooFewReplicas => self.tell("CONFIG SET min-replicas-to-write 0"),
            Refusal::CannotSave => {
                self.tell::<()>("CONFIG SET stop-writes-on-bgsave-error no");
                self.configure("save", "");
                fs::remove_dir(self.dump()).expect("the directory is empty");
            }
        }
    }

    /// The connections it has, as `CLIENT LIST` tells them; with `flag`, only those with this one.
    #[must_use]
    pub fn clients(&self, flag: Option<char>) -> Vec<String> {
        let clients: String = self.tell("CLIENT LIST");
        let has = |line: &&str| {
            let flags = line.split(' ').find_map(|field| field.strip_prefix("flags="));
            flag.is_none_or(|flag| flags.is_some_and(|flags| flags.contains(flag)))
        };
        clients.lines().filter(has).map(str::to_owned).collect()
    }

    /// Ends every connection on which somebody listens for changes.
    pub fn kill_tracking(&self) {
        for id in self.tracking() {
            let _: Value = self.tell(&format!("CLIENT KILL ID {id}"));
        }
    }

    /// Changes logs until it has closed `count` connections on which somebody listens, and does not read, because it
    /// had too much to say there. Blocks the thread.
    pub fn overflow_tracking(&self, count: usize) {
        // They count as normal clients.
        self.configure("client-output-buffer-limit", "normal 262144 0 0");
        let listened = self.tracking();
        let log = format!("odds:log:{}", "x".repeat(64 * 1024));
        until("Redis closes who does not read", || {
            (0..8).for_each(|_| self.tell::<()>(&format!("SET {log} x")));
            let said = self.process.said(Stream::Out);
            let closed = |id: &&String| {
                let is_it = |line: &str| {
                    line.contains(&format!("Client id={id} ")) && line.contains("output buffer limits")
                };
                said.lines().any(is_it)
            };
            (listened.iter().filter(closed).count() >= count).then_some(())
        });
        self.configure("client-output-buffer-limit", "normal 0 0 0");
        self.tell::<u64>(&format!("DEL {log}"));
    }

    /// Waits until so many connections listen. Blocks the thread.
    pub fn expect_tracking(&self, count: usize) {
        until("everybody listens", || (self.tracking().len() >= count).then_some(()));
    }

    /// The ids of connections on which somebody listens.
    fn tracking(&self) -> Vec<String> {
        let id =
            |client: &String| Some(client.split(' ').find_map(|field| field.strip_prefix("id="))?.to_owned());
        self.clients(Some('t')).iter().filter_map(id).collect()
    }

    fn files(&self) -> PathBuf {
        self.dir().join("appendonlydir")
    }

    /// Where it would save; a directory there keeps it from that.
    fn dump(&self) -> PathBuf {
        self.dir().join("dump.rdb")
    }

    /// Waits until the append-only file is not being written anew.
    fn wait_for_files(&self) {
        until("its files are whole", || {
            let is_over = |field: &str| Some(self.info(field)? == "0");
            (is_over("aof_rewrite_in_progress")? && is_over("aof_rewrite_scheduled")?).then_some(())
        });
    }

    /// `CONFIG SET` of a value that may have spaces.
    fn configure(&self, name: &str, value: &str) {
        let mut connection = self.access.client().get_connection().expect("Redis runs");
        let mut set = ::redis::cmd("CONFIG");
        set.arg("SET").arg(name).arg(value).query::<()>(&mut connection).expect("it is allowed");
    }
}

/// Why a Redis refuses writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `READONLY`: it is a replica.
    ReadOnly,
    /// `OOM`.
    OutOfMemory,
    /// `NOREPLICAS`.
    TooFewReplicas,
    /// `MISCONF`: it could not save.
    CannotSave,
}

impl Access {
    /// A plain Redis at this port of 127.0.0.1.
    #[must_use]
    pub fn at_port(port: u16) -> Self {
        Self { url: format!("redis://127.0.0.1:{port}"), ca_file: None, has_users: false }
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

    pub(crate) fn client(&self) -> Client {
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

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the directory is writable");
    for file in fs::read_dir(from).expect("Redis made it") {
        let file = file.expect("it can be listed");
        fs::copy(file.path(), to.join(file.file_name())).expect("it can be copied");
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
    // A replica is served at once.
    command.args(["--repl-diskless-sync-delay", "0"]);
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
