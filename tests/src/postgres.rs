//! A real PostgreSQL on a port of its own.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::process::geteuid;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, postgres::PgRow};
use tempfile::TempDir;

use crate::{
    certificates::Certificates,
    directory::directory,
    ports::Port,
    process::Process,
    shared_set::SharedSet,
    wait::{until, within},
};

/// Another program may take a free port before Postgres does.
const PORT_ATTEMPTS: usize = 10;
/// The password of every user.
const PASSWORD: &str = "the-tests'-p@ssword/%";
const PASSWORD_IN_URL: &str = "the-tests'-p%40ssword%2F%25";
/// The password, plain and as in the URL, without its end, which other text may contain by chance.
pub const PASSWORDS: [&str; 2] = ["the-tests'-p@ssword", "the-tests'-p%40ssword"];

/// A PostgreSQL cluster. Dropping it ends the server and removes its files.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: Port,
    /// The user that it runs as, since it refuses to run as root.
    user: Option<(u32, u32)>,
    dir: TempDir,
    settings: Vec<String>,
    databases: AtomicU64,
}

/// One database of a cluster.
#[derive(Clone, Debug)]
pub struct Database {
    url: String,
}

impl Postgres {
    /// Returns the cluster that concurrent tests share. Each test creates a database of its own.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static SHARED: SharedSet<Postgres> = SharedSet::new(Postgres::start);
        SHARED.get()
    }

    /// Starts a cluster. Panics with installation instructions if PostgreSQL is missing.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// Starts a cluster that accepts TLS, with a certificate for 127.0.0.1, besides plain connections.
    #[must_use]
    pub fn with_tls(certificates: &Certificates) -> Self {
        Self::start_with(Some(certificates))
    }

    fn start_with(certificates: Option<&Certificates>) -> Self {
        let (dir, user) = (directory(), unprivileged_user());
        give_to(dir.path(), user);
        let password_file = dir.path().join("password");
        fs::write(&password_file, PASSWORD).expect("the directory is writable");
        let mut make = command("initdb", user);
        make.arg("--pgdata").arg(data(&dir)).arg("--pwfile").arg(&password_file);
        make.args(["--username", "postgres", "--auth", "scram-sha-256", "--encoding", "UTF8"]);
        make.args(["--locale", "C", "--no-sync"]);
        let made = make.output().expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let settings = certificates.map_or(Vec::new(), |certificates| tls_settings(certificates, &dir, user));
        for _ in 0..PORT_ATTEMPTS {
            let port = Port::free();
            if let Some(process) = run(&port, &dir, &settings, user) {
                return Self { process, port, user, dir, settings, databases: AtomicU64::new(0) };
            }
        }
        panic!("postgres found its port taken {PORT_ATTEMPTS} times in a row");
    }

    /// Creates a database. Its URL contains its owner.
    pub async fn database(&self) -> Database {
        self.database_with("").await
    }

    /// Creates a database with these options of `CREATE DATABASE`.
    pub async fn database_with(&self, options: &str) -> Database {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("kmarket{number}");
        let password = PASSWORD.replace('\'', "''");
        let admin = Database { url: self.url("postgres", "postgres") };
        admin.run(&format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'")).await;
        admin.run(&format!("CREATE DATABASE {name} OWNER {name} {options}")).await;
        Database { url: self.url(&name, &name) }
    }

    fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}:{PASSWORD_IN_URL}@127.0.0.1:{}/{database}", self.port.number())
    }

    /// The process, for its log and for signals.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills the server, as a crash does.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Restarts the server on the same port with everything that was committed. Returns when it is ready.
    pub fn restart(&mut self) {
        self.kill();
        // It refuses to start until the last child of the killed server has ended.
        self.process =
            until("postgres starts again", || run(&self.port, &self.dir, &self.settings, self.user));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A killed server would leave a segment of shared memory behind.
        self.process.end();
    }
}

impl Database {
    /// The database's `DATABASE_URL`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL with another password.
    #[must_use]
    pub fn url_with_password(&self, password: &str) -> String {
        self.url.replace(PASSWORD_IN_URL, password)
    }

    /// Runs one or more statements without parameters.
    pub async fn run(&self, sql: &str) {
        let done = Box::pin(async {
            let mut connection = self.connect().await?;
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
            connection.close().await
        });
        within(sql, done).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Returns the rows of a query; panics if it fails.
    pub async fn rows(&self, sql: &str) -> Vec<PgRow> {
        self.try_rows(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Returns the rows of a query.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn try_rows(&self, sql: &str) -> sqlx::Result<Vec<PgRow>> {
        let rows = Box::pin(async {
            let mut connection = self.connect().await?;
            let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await?;
            connection.close().await?;
            Ok(rows)
        });
        within(sql, rows).await
    }

    /// Returns the audit in the order of its ids: each entry's id, and its epoch, seq, ts, actor, reason, before,
    /// after and request id. Returns nothing without a table.
    pub async fn audit(&self) -> Vec<(String, [String; 8])> {
        let sql = "SELECT market_id || '-' || entry_ms || '-' || entry_n, epoch::text, seq::text, ts::text, actor, \
                   reason, before, after, request_id FROM audit ORDER BY market_id, entry_ms, entry_n";
        match self.try_rows(sql).await {
            Ok(rows) => rows
                .iter()
                .map(|row| (row.get(0), std::array::from_fn(|column| row.get(column + 1))))
                .collect(),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Locks the audit until the result is dropped. Postgres still accepts connections, but neither reads nor writes
    /// of the audit.
    pub async fn lock_audit(&self) -> impl Sized + use<> {
        let lock = Box::pin(async {
            let mut connection = self.connect().await?;
            sqlx::raw_sql("BEGIN; LOCK TABLE audit IN ACCESS EXCLUSIVE MODE")
                .execute(&mut connection)
                .await?;
            Ok(connection)
        });
        within("a lock", lock).await.unwrap_or_else(|error: sqlx::Error| panic!("{error}"))
    }

    async fn connect(&self) -> sqlx::Result<PgConnection> {
        PgConnection::connect(&self.url).await
    }
}

/// The user and group to run as; `None` unless this process is root.
fn unprivileged_user() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let id = |of: &str, user: &str| -> Option<u32> {
        let output = Command::new("id").args([of, user]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    let ids = |user: &str| Some((id("-u", user)?, id("-g", user)?));
    Some(ids("postgres").or_else(|| ids("nobody")).expect("a user other than root"))
}

/// The settings for TLS. Copies the files, since Postgres refuses a key that others can read.
fn tls_settings(certificates: &Certificates, dir: &TempDir, user: Option<(u32, u32)>) -> Vec<String> {
    let [certificate, key] = certificates.server_files();
    let copied = |setting: &str, file: PathBuf| {
        let own = data(dir).join(setting);
        fs::copy(file, &own).expect("the directory is writable");
        fs::set_permissions(&own, Permissions::from_mode(0o600)).expect("the file is ours");
        give_to(&own, user);
        format!("{setting}={}", own.display())
    };
    vec!["ssl=on".to_owned(), copied("ssl_cert_file", certificate), copied("ssl_key_file", key)]
}

/// Makes this user, if any, the owner of a file.
fn give_to(path: &Path, user: Option<(u32, u32)>) {
    if let Some((uid, gid)) = user {
        chown(path, Some(uid), Some(gid)).expect("root may give a file away");
    }
}

fn data(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

/// Starts a server. Returns `None` if it ends before it is ready.
fn run(port: &Port, dir: &TempDir, settings: &[String], user: Option<(u32, u32)>) -> Option<Process> {
    let mut command = command("postgres", user);
    command.arg("-D").arg(data(dir));
    let port = format!("port={}", port.number());
    for setting in [
        &port,
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        // As files, which are removed with the directory.
        "dynamic_shared_memory_type=mmap",
        "shared_buffers=16MB",
        "max_connections=50",
        "autovacuum=off",
    ]
    .into_iter()
    .chain(settings.iter().map(String::as_str))
    {
        command.args(["-c", setting]);
    }
    let process = Process::spawn("postgres", &mut command);
    let ready = |line: &str| line.contains("ready to accept connections").then_some(());
    process.find_line("readiness", ready).map(|()| process)
}

/// A program of Postgres, which Debian installs outside `PATH`.
fn command(name: &str, user: Option<(u32, u32)>) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|program| program.is_file());
    found.sort();
    let is_in_path = Command::new(name).arg("--version").output().is_ok();
    let program = match found.pop() {
        Some(program) => program,
        None if is_in_path => PathBuf::from(name),
        None => panic!("these tests need {name}: install it with `apt-get install postgresql`"),
    };
    let mut command = Command::new(program);
    command.current_dir(Path::new("/")).env_remove("PGDATA").env("LC_ALL", "C");
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}
