//! The audit in PostgreSQL: a copy that is kept for as long as you like, and has the entries of all markets together.

mod database;
mod rows;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backbone::{AuditEntry, AuditId};
use protocol::Position;
use sqlx::{
    Connection, PgConnection, PgPool, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::PgPoolOptions,
};
use tokio::{sync::OnceCell, time::timeout};

pub(crate) use self::database::{DATABASE_URL, Database};
use crate::audit::{AuditRequest, Page};

/// Connections to Postgres: the exporter's, and those of requests.
const POOL_SIZE: u32 = 4;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long Postgres may take to reply before it counts as unreachable.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the migrations may take, including the wait for another publisher that runs them.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(5);

/// Version, name and SQL of each migration, in order. A released migration never changes.
const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "audit", include_str!("../migrations/0001_audit.sql"))];

/// The audit in Postgres. Connects when first used. Clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    database: Database,
    pool: PgPool,
    /// Set once the tables are known to be up to date.
    tables: Arc<OnceCell<()>>,
    /// The last attempt failed.
    is_unreachable: Arc<AtomicBool>,
}

/// Why Postgres did not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// Postgres cannot be reached, or refused the login or the statement.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    #[error("postgres, preparing the tables: {0}")]
    Migrate(#[from] MigrateError),
    #[error("postgres: no reply within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The last attempt failed, and this one was not made.
    #[error("postgres cannot be reached")]
    Unreachable,
    /// The database cannot store every name.
    #[error("postgres: the database's encoding is {0}; it has to be UTF8")]
    Encoding(String),
}

/// The outcome of [`Archive::insert`].
#[derive(Debug, Default)]
pub(crate) struct Inserted {
    /// How many entries were not there before.
    pub(crate) new: u64,
    /// Entries that are not stored, because another entry with the same id is there already.
    pub(crate) displaced: Vec<AuditId>,
}

impl Archive {
    /// Returns the audit in this database. Must be called inside a runtime.
    #[must_use]
    pub(crate) fn new(database: Database) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(POOL_SIZE)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(database.with_statement_timeout());
        Self { database, pool, tables: Arc::default(), is_unreachable: Arc::default() }
    }

    /// Makes sure that Postgres replies, and that its tables are up to date.
    ///
    /// # Errors
    /// [`ArchiveError`] if they are not.
    pub(crate) async fn prepare(&self) -> Result<(), ArchiveError> {
        self.tables.get_or_try_init(|| self.migrate()).await?;
        self.run(async |_| Ok(())).await
    }

    async fn migrate(&self) -> Result<(), ArchiveError> {
        let mut migrator = Migrator::with_migrations(migrations());
        // A newer publisher may have run further migrations.
        migrator.set_ignore_missing(true);
        // On a connection of its own, without a limit per statement. A pooled one would keep the lock after a failure.
        let options = self.database.options();
        let connect = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options));
        let mut connection = connect.await.map_err(|_| ArchiveError::TimedOut(CONNECT_TIMEOUT))??;
        let run = async {
            let encoding: String =
                sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut connection).await?;
            if encoding != "UTF8" {
                return Err(ArchiveError::Encoding(encoding));
            }
            Ok(migrator.run_direct(None, &mut connection, false).await?)
        };
        timeout(MIGRATE_TIMEOUT, run).await.map_err(|_| ArchiveError::TimedOut(MIGRATE_TIMEOUT))??;
        tracing::info!("the audit's tables in Postgres are up to date");
        Ok(())
    }

    /// Inserts entries. On success all of them are there, except the displaced ones. Existing rows stay as they are.
    ///
    /// # Errors
    /// [`ArchiveError`] if it is not known whether all of them are there.
    pub(crate) async fn insert(&self, entries: &[AuditEntry]) -> Result<Inserted, ArchiveError> {
        if entries.is_empty() {
            return Ok(Inserted::default());
        }
        self.run(async |connection| {
            let new = rows::insert(entries).execute(&mut *connection).await?.rows_affected();
            let mut displaced = Vec::new();
            if new < rows::as_u64(entries.len()) {
                let differing = rows::differing(entries).fetch_all(connection).await?;
                displaced = differing.iter().map(rows::read_id).collect::<Result<_, _>>()?;
            }
            Ok(Inserted { new, displaced })
        })
        .await
    }

    /// Returns the log position of the newest entry of the same market that is older than `id`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub(crate) async fn newest_before(&self, id: &AuditId) -> Result<Option<Position>, ArchiveError> {
        self.run(async |connection| {
            let row = rows::newest_before(id).fetch_optional(connection).await?;
            row.as_ref().map(rows::read_position).transpose()
        })
        .await
    }

    /// Returns how many of these entries are not there.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub(crate) async fn count_missing(&self, ids: &[AuditId]) -> Result<u64, ArchiveError> {
        if ids.is_empty() {
            return Ok(0);
        }
        self.run(async |connection| {
            let row = rows::count(ids).fetch_one(connection).await?;
            Ok(rows::as_u64(ids.len()).saturating_sub(rows::read_count(&row)?))
        })
        .await
    }

    /// Returns a page of the entries that are there.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub(crate) async fn page(&self, request: &AuditRequest) -> Result<Page, ArchiveError> {
        let AuditRequest { market, limit, .. } = *request;
        let mut select = rows::select(request);
        let rows = self.run(async |connection| select.build().fetch_all(connection).await).await?;
        let entries = rows.iter().take(limit).map(rows::read_entry).collect::<Result<Vec<_>, _>>()?;
        let next = entries.last().filter(|_| rows.len() > limit).map(|entry| entry.id);
        Ok(Page { market, entries, next })
    }

    /// Returns true if the last attempt failed. Callers with another source need not wait for Postgres then.
    #[must_use]
    pub(crate) fn is_unreachable(&self) -> bool {
        self.is_unreachable.load(Ordering::Relaxed)
    }

    async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ArchiveError> {
        let done = self.try_to_run(work).await;
        self.is_unreachable.store(done.is_err(), Ordering::Relaxed);
        done
    }

    /// Runs statements on a connection of the pool. A connection without a reply in time is not used again.
    async fn try_to_run<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ArchiveError> {
        self.pool.set_connect_options(self.database.with_statement_timeout());
        let mut connection = self.pool.acquire().await.map_err(|error| match error {
            sqlx::Error::PoolTimedOut => ArchiveError::TimedOut(CONNECT_TIMEOUT),
            error => error.into(),
        })?;
        match timeout(REPLY_TIMEOUT, work(&mut connection)).await {
            Ok(done) => Ok(done?),
            Err(_) => {
                connection.close_on_drop();
                Err(ArchiveError::TimedOut(REPLY_TIMEOUT))
            }
        }
    }
}

fn migrations() -> Vec<Migration> {
    let migration = |&(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    MIGRATIONS.iter().map(migration).collect()
}
