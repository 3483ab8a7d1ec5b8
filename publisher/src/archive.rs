//! The audit in PostgreSQL: a copy that is kept for as long as you like, and can be asked about all markets at once.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backbone::{AuditEntry, AuditId, StreamId};
use protocol::{MarketId, Position, Secret};
use service::rotation::Live;
use sqlx::{
    Connection, PgConnection, PgPool, Postgres, QueryBuilder, Row, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow},
};
use tokio::{sync::OnceCell, time::timeout};

use crate::audit::{AuditRequest, Page};

/// Connections to Postgres at once: the exporter's, and those of requests.
const POOL_SIZE: u32 = 4;
/// How long it may take to get a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long Postgres works on a statement before it gives up.
const STATEMENT_TIMEOUT: &str = "8s";
/// How long Postgres may take to answer before it counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long bringing the tables up to date may take, waiting for another publisher that does so included.
const MIGRATE_TIMEOUT: Duration = Duration::from_mins(5);

/// The tables, a step each, in order. What was released does not change any more.
const MIGRATIONS: &[(i64, &str, &str)] = &[(1, "audit", include_str!("../migrations/0001_audit.sql"))];

/// Where the database is, and who asks it (`DATABASE_URL`). Clones share it; it may change.
#[derive(Clone)]
pub struct Database(Live<PgConnectOptions>);

impl Database {
    /// Reads `postgres://user:password@host:5432/database?sslmode=verify-full`.
    ///
    /// # Errors
    /// A sentence that has nothing of the URL.
    pub fn parse(url: &Secret) -> Result<Self, String> {
        Ok(Self(Live::new(parse(url)?)))
    }

    /// For connections that do a statement at a time.
    fn with_limits(&self) -> PgConnectOptions {
        (*self.0.get()).clone().options([("statement_timeout", STATEMENT_TIMEOUT)])
    }

    /// Takes another URL for new connections.
    ///
    /// # Errors
    /// As [`Self::parse`] has them; then nothing changes.
    pub fn replace(&self, url: &Secret) -> Result<(), String> {
        self.0.set(parse(url)?);
        Ok(())
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn parse(url: &Secret) -> Result<PgConnectOptions, String> {
    let url = url.expose();
    let options = Some(url).filter(|url| url.starts_with("postgres://") || url.starts_with("postgresql://"));
    let options: Option<PgConnectOptions> = options.and_then(|url| url.parse().ok());
    let options = options
        .ok_or("not a URL such as postgres://user:password@host:5432/database?sslmode=verify-full")?
        .application_name("kmarket-publisher");
    // What is slow shows in the metrics; the log has no use for statements.
    Ok(sqlx::ConnectOptions::disable_statement_logging(options))
}

/// The audit in Postgres. Connects when first used. Clones share it.
#[derive(Clone, Debug)]
pub struct Archive {
    database: Database,
    pool: PgPool,
    /// Set once the tables are known to be there.
    tables: Arc<OnceCell<()>>,
    /// The last question was not answered.
    is_away: Arc<AtomicBool>,
}

/// Why Postgres did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be reached, lets nobody in, or refused.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// The tables cannot be brought up to date.
    #[error("postgres, preparing the tables: {0}")]
    Migrate(#[from] MigrateError),
    /// It does not answer.
    #[error("postgres: no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It did not answer a moment ago.
    #[error("postgres does not answer")]
    Away,
    /// Names could not be kept as they are.
    #[error("postgres: the database's encoding is {0}; it has to be UTF8")]
    Encoding(String),
}

/// What [`Archive::insert`] found.
#[derive(Debug, Default)]
pub struct Inserted {
    /// Entries that were not there before.
    pub new: u64,
    /// Entries whose id another entry has that is there already.
    pub displaced: Vec<AuditId>,
}

impl Archive {
    /// The audit in this database. Must be made inside a runtime.
    #[must_use]
    pub fn new(database: Database) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(POOL_SIZE)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(database.with_limits());
        Self { database, pool, tables: Arc::default(), is_away: Arc::default() }
    }

    /// Makes sure that Postgres answers, and that its tables are there and up to date.
    ///
    /// # Errors
    /// When they are not.
    pub async fn prepare(&self) -> Result<(), ArchiveError> {
        self.tables.get_or_try_init(|| self.migrate()).await?;
        self.ask(async |_| Ok(())).await
    }

    async fn migrate(&self) -> Result<(), ArchiveError> {
        let step = |&(version, name, sql): &(i64, &'static str, &'static str)| {
            Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().map(step).collect());
        // A newer publisher may have been here before.
        migrator.set_ignore_missing(true);
        // A connection of its own, which no statement's limit holds for; one that fails half-way keeps the lock.
        let options = self.database.0.get();
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
        tracing::info!("the audit's tables in postgres are up to date");
        Ok(())
    }

    /// Has all of these entries there when it returns. What is there already stays as it is.
    ///
    /// # Errors
    /// When it is not known whether all of them are.
    pub async fn insert(&self, entries: &[AuditEntry]) -> Result<Inserted, ArchiveError> {
        if entries.is_empty() {
            return Ok(Inserted::default());
        }
        self.ask(async |connection| {
            let new =
                with_rows(sqlx::query(INSERT), entries).execute(&mut *connection).await?.rows_affected();
            let mut displaced = Vec::new();
            if new < as_u64(entries.len()) {
                let differing = with_rows(sqlx::query(DIFFERING), entries).fetch_all(connection).await?;
                displaced = differing.iter().map(read_id).collect::<Result<_, _>>()?;
            }
            Ok(Inserted { new, displaced })
        })
        .await
    }

    /// Where the newest of a market's entries older than this one stands in the log.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn newest_before(&self, id: &AuditId) -> Result<Option<Position>, ArchiveError> {
        let (ms, n) = parts(id);
        self.ask(async |connection| {
            let newest = sqlx::query(NEWEST_BEFORE).bind(bigint(id.market.get())).bind(ms).bind(n);
            let row = newest.fetch_optional(connection).await?;
            row.map(|row| Ok(Position::new(unsigned(&row, "epoch")?, unsigned(&row, "seq")?))).transpose()
        })
        .await
    }

    /// How many of these entries are not there.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn count_missing(&self, ids: &[AuditId]) -> Result<u64, ArchiveError> {
        if ids.is_empty() {
            return Ok(0);
        }
        let markets: Vec<i64> = ids.iter().map(|id| bigint(id.market.get())).collect();
        let (ms, n): (Vec<i64>, Vec<i64>) = ids.iter().map(parts).unzip();
        self.ask(async |connection| {
            let there = sqlx::query_scalar(COUNT).bind(&markets).bind(&ms).bind(&n);
            let there: i64 = there.fetch_one(connection).await?;
            Ok(as_u64(ids.len()).saturating_sub(there.unsigned_abs()))
        })
        .await
    }

    /// A page of it as it is.
    ///
    /// # Errors
    /// When Postgres does not say.
    pub async fn page(&self, request: &AuditRequest) -> Result<Page, ArchiveError> {
        let AuditRequest { market, limit, .. } = *request;
        let mut select = select(request);
        let rows = self.ask(async |connection| select.build().fetch_all(connection).await).await?;
        let entries = rows.iter().take(limit).map(read_entry).collect::<Result<Vec<_>, _>>()?;
        let next = entries.last().filter(|_| rows.len() > limit).map(|entry| entry.id);
        Ok(Page { market, entries, next })
    }

    /// Whether the last question was not answered. Whoever may be told something else need not ask then.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    async fn ask<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ArchiveError> {
        let done = self.try_to_ask(work).await;
        self.is_away.store(done.is_err(), Ordering::Relaxed);
        done
    }

    /// Does something on a connection. One that does not answer in time is not used again.
    async fn try_to_ask<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ArchiveError> {
        self.pool.set_connect_options(self.database.with_limits());
        let mut connection = self.pool.acquire().await.map_err(|error| match error {
            sqlx::Error::PoolTimedOut => ArchiveError::TimedOut(CONNECT_TIMEOUT),
            error => error.into(),
        })?;
        match timeout(ANSWER_TIMEOUT, work(&mut connection)).await {
            Ok(done) => Ok(done?),
            Err(_) => {
                connection.close_on_drop();
                Err(ArchiveError::TimedOut(ANSWER_TIMEOUT))
            }
        }
    }
}

/// The rows that [`with_rows`] gives a statement.
macro_rules! given {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            " UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], \
             $8::text[], $9::text[], $10::text[], $11::text[]) AS given (market_id, entry_ms, entry_n, epoch, seq, ts, \
             actor, reason, before, after, request_id) ",
            $after
        )
    };
}

/// In order, so that whoever inserts the same rows at the same time waits for the other, and not each for each.
const INSERT: &str = given!(
    "INSERT INTO audit (market_id, entry_ms, entry_n, epoch, seq, ts, actor, reason, before, after, request_id) \
     SELECT * FROM",
    "ORDER BY market_id, entry_ms, entry_n ON CONFLICT DO NOTHING"
);

const DIFFERING: &str = given!(
    "SELECT market_id, entry_ms, entry_n FROM",
    "JOIN audit USING (market_id, entry_ms, entry_n) \
     WHERE (given.epoch, given.seq, given.ts, given.actor, given.reason, given.before, given.after, given.request_id) \
     <> (audit.epoch, audit.seq, audit.ts, audit.actor, audit.reason, audit.before, audit.after, audit.request_id)"
);

const NEWEST_BEFORE: &str = "SELECT epoch, seq FROM audit WHERE market_id = $1 AND (entry_ms, entry_n) < ($2, $3) \
                             ORDER BY entry_ms DESC, entry_n DESC LIMIT 1";

const COUNT: &str = "SELECT count(*) FROM audit WHERE (market_id, entry_ms, entry_n) IN \
                     (SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[]))";

/// The rows of a page and one more, newest first. `before`'s id has the whole order in it.
fn select(request: &AuditRequest) -> QueryBuilder<Postgres> {
    let AuditRequest { market, before, limit, actor, since, until } = request;
    let mut select = QueryBuilder::new("SELECT * FROM audit WHERE true");
    if let Some(actor) = actor {
        // The index has as much of it.
        let actor = text(actor);
        select.push(" AND left(actor, 64) = left(").push_bind(actor.clone());
        select.push(", 64) AND actor = ").push_bind(actor);
    }
    if let Some(since) = since {
        select.push(" AND entry_ms >= ").push_bind(bigint(*since));
    }
    if let Some(until) = until {
        select.push(" AND entry_ms <= ").push_bind(bigint(*until));
    }
    let before = before.as_ref().map(|before| (bigint(before.market.get()), parts(before)));
    if let Some(market) = market {
        select.push(" AND market_id = ").push_bind(bigint(market.get()));
        if let Some((_, (ms, n))) = before {
            select.push(" AND (entry_ms, entry_n) < (").push_bind(ms).push(", ").push_bind(n).push(")");
        }
        select.push(" ORDER BY entry_ms DESC, entry_n DESC");
    } else {
        if let Some((market, (ms, n))) = before {
            select.push(" AND (entry_ms, market_id, entry_n) < (").push_bind(ms).push(", ");
            select.push_bind(market).push(", ").push_bind(n).push(")");
        }
        select.push(" ORDER BY entry_ms DESC, market_id DESC, entry_n DESC");
    }
    select.push(" LIMIT ").push(limit + 1);
    select
}

type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// Binds these entries, a column each.
fn with_rows(query: Query, entries: &[AuditEntry]) -> Query {
    let numbers = |of: fn(&AuditEntry) -> i64| entries.iter().map(of).collect::<Vec<i64>>();
    let texts = |of: fn(&AuditEntry) -> &str| entries.iter().map(of).map(text).collect::<Vec<String>>();
    query
        .bind(numbers(|entry| bigint(entry.id.market.get())))
        .bind(numbers(|entry| parts(&entry.id).0))
        .bind(numbers(|entry| parts(&entry.id).1))
        .bind(numbers(|entry| bigint(entry.position.epoch.get())))
        .bind(numbers(|entry| bigint(entry.position.seq.get())))
        .bind(numbers(|entry| bigint(entry.ts)))
        .bind(texts(|entry| &entry.actor))
        .bind(texts(|entry| &entry.reason))
        .bind(texts(|entry| &entry.before))
        .bind(texts(|entry| &entry.after))
        .bind(texts(|entry| &entry.request_id))
}

/// As Postgres takes it, which knows no U+0000. Only a token that is not ours can have brought one, as its `sub`; the
/// row has U+2400, a picture of it.
fn text(text: &str) -> String {
    text.replace('\0', "\u{2400}")
}

/// Redis' clock and our seqs are far below its end.
fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Unix ms and number of an entry.
fn parts(id: &AuditId) -> (i64, i64) {
    (bigint(id.entry.ms), bigint(id.entry.n))
}

fn unsigned(row: &PgRow, column: &str) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>(column).map(i64::unsigned_abs)
}

fn read_entry(row: &PgRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        id: read_id(row)?,
        position: Position::new(unsigned(row, "epoch")?, unsigned(row, "seq")?),
        ts: unsigned(row, "ts")?,
        actor: row.try_get("actor")?,
        reason: row.try_get("reason")?,
        before: row.try_get("before")?,
        after: row.try_get("after")?,
        request_id: row.try_get("request_id")?,
    })
}

fn read_id(row: &PgRow) -> Result<AuditId, sqlx::Error> {
    let market =
        MarketId::new(unsigned(row, "market_id")?).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(AuditId { market, entry: StreamId { ms: unsigned(row, "entry_ms")?, n: unsigned(row, "entry_n")? } })
}
