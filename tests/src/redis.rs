//! A real `redis-server` on a port of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use ::redis::{FromRedisValue, RedisResult, Value, aio::MultiplexedConnection};
use tempfile::TempDir;

use crate::{
    access::Access,
    acl::Users,
    certificates::Certificates,
    chaos::Chaos,
    directory::directory,
    ports::Port,
    process::{Process, Stream},
    redis_server::{copy_files, run},
    wait::{until, within},
};

/// Another program may take a free port before Redis does.
const PORT_ATTEMPTS: usize = 10;
/// The deadline of a test's own commands.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// The user of [`Redis::with_user`], with the permissions that a service needs. Its password needs percent-encoding
/// in a URL.
const USER: &str = "--user default off --user desk on >p@ss/word ~odds:* resetchannels -@all +@read +@write \
                    +@scripting +@connection +@transaction +time +wait +info";
const USER_IN_URL: &str = "desk:p%40ss%2Fword@";

/// A `redis-server`. Dropping it kills the server and removes its files.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: Port,
    args: Vec<String>,
    access: Access,
    dir: TempDir,
    /// The proxy whose port it announces as its own.
    chaos: Option<Chaos>,
    _certificates: Option<Arc<Certificates>>,
    _users: Option<Arc<Users>>,
}

impl Redis {
    /// Starts a Redis that keeps nothing on disk. Panics with installation instructions if Redis is missing.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a Redis with additional arguments.
    #[must_use]
    pub fn with(args: &[&str]) -> Self {
        Self::in_set(args, None)
    }

    /// Starts a replica of the plain Redis at this port of 127.0.0.1, and waits until it has all data.
    #[must_use]
    pub fn replica_of(primary: u16) -> Self {
        let replica = Self::start();
        replica.follow(primary);
        replica
    }

    /// Starts a Redis that writes every command to disk before it replies.
    #[must_use]
    pub fn durable() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts a Redis that accepts only one user, with a password and the permissions that a service needs.
    #[must_use]
    pub fn with_user() -> Self {
        Self::launch(USER.split(' ').map(str::to_owned).collect(), USER_IN_URL, None, None)
    }

    /// Starts a Redis with the users that the project ships.
    #[must_use]
    pub fn with_shipped_users() -> Self {
        Self::in_set_with_users(&[], &Arc::new(Users::make()))
    }

    /// Starts a node of a set with these arguments and users.
    pub(crate) fn in_set_with_users(args: &[&str], users: &Arc<Users>) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).chain(users.args()).collect();
        Self::launch(args, "", None, Some(Arc::clone(users)))
    }

    /// Starts a Redis that speaks only TLS, with a certificate for 127.0.0.1 by an authority of its own.
    #[must_use]
    pub fn with_tls() -> Self {
        Self::in_set(&[], Some(&Arc::new(Certificates::make())))
    }

    /// Starts a node of a set with these arguments. With certificates it speaks only TLS.
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

    /// How services connect to it.
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

    /// Puts a proxy in front of it. With this setting it announces the proxy's port as its own.
    pub(crate) fn put_behind_chaos(&mut self, setting: &str) {
        let chaos = Chaos::before(self.port());
        self.tell::<()>(&format!("CONFIG SET {setting} {}", chaos.port()));
        self.args.extend([format!("--{setting}"), chaos.port().to_string()]);
        self.chaos = Some(chaos);
    }

    /// The proxy in front of it. Panics unless its set was started with proxies.
    #[must_use]
    pub fn chaos(&self) -> &Chaos {
        self.chaos.as_ref().expect("its set was started with proxies")
    }

    /// The port that it announces.
    #[must_use]
    pub fn named_port(&self) -> u16 {
        self.chaos.as_ref().map_or(self.port(), Chaos::port)
    }

    /// The directory of its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process, for its log and for signals.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Opens a connection for the test to read keys.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = self.access.client();
        within("connection to Redis", client.get_multiplexed_async_connection()).await.expect("Redis runs")
    }

    /// Sends one command on a connection of its own and returns the reply. Blocks the thread.
    ///
    /// # Errors
    /// The error reply, or that Redis cannot be reached.
    pub fn ask<T: FromRedisValue>(&self, command: &str) -> RedisResult<T> {
        let mut connection = self.access.client().get_connection_with_timeout(COMMAND_TIMEOUT)?;
        connection.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        let mut words = command.split(' ');
        let mut asked = ::redis::cmd(words.next().unwrap_or_default());
        words.for_each(|word| _ = asked.arg(word));
        asked.query(&mut connection)
    }

    /// Like [`Self::ask`], but panics on an error.
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

    /// Kills it (SIGKILL). Everything that is not on disk is lost.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Kills it and restarts it on the same port with the data on disk.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Like [`Self::restart`], with additional arguments this time. Returns when it has loaded its data.
    pub fn restart_with(&mut self, args: &[&str]) {
        self.kill();
        let args: Vec<String> =
            self.args.iter().map(String::as_str).chain(args.iter().copied()).map(str::to_owned).collect();
        let again = run(self.port(), &self.access, self.dir.path(), &args);
        self.process = again.expect("the port of a killed redis-server is free");
    }

    /// Kills it and restarts it without data.
    pub fn restart_empty(&mut self) {
        self.kill();
        // Fails if it keeps nothing on disk.
        let _ = fs::remove_dir_all(self.files());
        self.restart();
    }

    /// Copies the data on disk, for [`Self::restart_from_copy`].
    pub fn copy(&self) {
        copy_files(&self.files(), &self.dir().join("copy"));
    }

    /// Kills it and restarts it with the data of [`Self::copy`].
    pub fn restart_from_copy(&mut self) {
        self.kill();
        fs::remove_dir_all(self.files()).expect("only Redis wrote there");
        copy_files(&self.dir().join("copy"), &self.files());
        self.restart();
    }

    /// Backs it up with `redis-cli` while it runs, as docs/operations.md says.
    pub fn back_up(&self) -> PathBuf {
        let file = self.dir().join("backup.rdb");
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port().to_string(), "--rdb"]).arg(&file);
        let done = command.output().expect("redis-cli comes with redis-server");
        assert!(done.status.success(), "{done:?}");
        file
    }

    /// Kills it, removes its data, and restores it from a backup, as docs/operations.md says.
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

    /// Kills it and restarts it with the data on disk, which it takes about `time` to load. Until then it replies
    /// `LOADING`. Returns when it has loaded.
    pub fn restart_loading(&mut self, time: Duration) {
        // Only a file of the whole data is loaded with pauses in which Redis replies.
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

    /// Makes it a replica of the plain Redis at this port of 127.0.0.1. Returns when it has all data, on disk as
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

    /// Makes it refuse writes for this reason until [`Self::cure`].
    pub fn refuse(&self, refusal: Refusal) {
        match refusal {
            // A replica of a primary that does not exist.
            Refusal::ReadOnly => {
                self.tell::<()>(&format!("REPLICAOF 127.0.0.1 {}", Port::free().number()));
            }
            Refusal::OutOfMemory => self.tell("CONFIG SET maxmemory 1mb"),
            Refusal::TooFewReplicas => self.tell("CONFIG SET min-replicas-to-write 1"),
            Refusal::CannotSave => {
                // A replica may have received a file there.
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

    /// Its connections, as `CLIENT LIST` shows them; with `flag`, only the connections that have it.
    #[must_use]
    pub fn clients(&self, flag: Option<char>) -> Vec<String> {
        let clients: String = self.tell("CLIENT LIST");
        let has = |line: &&str| {
            let flags = line.split(' ').find_map(|field| field.strip_prefix("flags="));
            flag.is_none_or(|flag| flags.is_some_and(|flags| flags.contains(flag)))
        };
        clients.lines().filter(has).map(str::to_owned).collect()
    }

    /// Closes every connection of a change listener.
    pub fn kill_tracking(&self) {
        for id in self.tracking() {
            let _: Value = self.tell(&format!("CLIENT KILL ID {id}"));
        }
    }

    /// Changes keys until it has closed `count` connections of change listeners that do not read, because their
    /// output buffers are full. Blocks the thread.
    pub fn overflow_tracking(&self, count: usize) {
        // Redis counts them as normal clients.
        self.configure("client-output-buffer-limit", "normal 262144 0 0");
        let listeners = self.tracking();
        let log = format!("odds:log:{}", "x".repeat(64 * 1024));
        until("Redis closes the connections that are not read", || {
            (0..8).for_each(|_| self.tell::<()>(&format!("SET {log} x")));
            let said = self.process.said(Stream::Out);
            let closed = |id: &&String| {
                let is_it = |line: &str| {
                    line.contains(&format!("Client id={id} ")) && line.contains("output buffer limits")
                };
                said.lines().any(is_it)
            };
            (listeners.iter().filter(closed).count() >= count).then_some(())
        });
        self.configure("client-output-buffer-limit", "normal 0 0 0");
        self.tell::<u64>(&format!("DEL {log}"));
    }

    /// Waits until there are so many connections of change listeners. Blocks the thread.
    pub fn expect_tracking(&self, count: usize) {
        until("all change listeners are connected", || (self.tracking().len() >= count).then_some(()));
    }

    /// The ids of the connections of change listeners.
    fn tracking(&self) -> Vec<String> {
        let id =
            |client: &String| Some(client.split(' ').find_map(|field| field.strip_prefix("id="))?.to_owned());
        self.clients(Some('t')).iter().filter_map(id).collect()
    }

    fn files(&self) -> PathBuf {
        self.dir().join("appendonlydir")
    }

    /// The file that it saves to. A directory in its place makes saves fail.
    fn dump(&self) -> PathBuf {
        self.dir().join("dump.rdb")
    }

    /// Waits until no rewrite of the append-only file is running or due.
    fn wait_for_files(&self) {
        until("no rewrite of its files is running", || {
            let is_over = |field: &str| Some(self.info(field)? == "0");
            (is_over("aof_rewrite_in_progress")? && is_over("aof_rewrite_scheduled")?).then_some(())
        });
    }

    /// `CONFIG SET` of a value that may contain spaces.
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
    /// `MISCONF`: a save failed.
    CannotSave,
}

impl From<&Redis> for Access {
    fn from(redis: &Redis) -> Self {
        redis.access.clone()
    }
}
