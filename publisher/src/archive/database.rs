//! The database that `DATABASE_URL` names. The URL may change while the publisher runs.

use std::{fmt, sync::Arc};

use protocol::Secret;
use service::{
    rotation::{Live, SecretFile},
    settings::{Setting, Settings},
};
use sqlx::postgres::PgConnectOptions;

/// PostgreSQL that the audit is copied to.
pub(crate) const DATABASE_URL: Setting<Secret> = Setting::new(
    "DATABASE_URL",
    "",
    "PostgreSQL that the audit is copied to: postgres://user:password@host:5432/database?sslmode=verify-full",
);
/// How long Postgres works on a statement before it gives up.
const STATEMENT_TIMEOUT: &str = "8s";

/// Address and login of a database. Clones share it.
#[derive(Clone)]
pub(crate) struct Database(Live<PgConnectOptions>);

impl Database {
    /// Reads [`DATABASE_URL`], and adds its file to `files` if it has one.
    pub(crate) fn read(settings: &mut Settings, files: &mut Vec<SecretFile>) -> Option<Self> {
        let url = settings.optional(&DATABASE_URL)?;
        let options =
            parse(&url).inspect_err(|problem| settings.problem(DATABASE_URL.name(), problem)).ok()?;
        let database = Self(Live::new(options));
        let followed = database.clone();
        files.extend(settings.secret_file(&DATABASE_URL, move |url| followed.replace(url)));
        Some(database)
    }

    /// Returns the options of a new connection.
    #[must_use]
    pub(super) fn options(&self) -> Arc<PgConnectOptions> {
        self.0.get()
    }

    /// Returns the options of a new connection on which Postgres limits each statement's time.
    #[must_use]
    pub(super) fn with_statement_timeout(&self) -> PgConnectOptions {
        (*self.options()).clone().options([("statement_timeout", STATEMENT_TIMEOUT)])
    }

    /// Uses another URL for new connections. An invalid one changes nothing.
    fn replace(&self, url: &Secret) -> Result<(), String> {
        self.0.set(parse(url)?);
        Ok(())
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Reads `postgres://user:password@host:5432/database?sslmode=verify-full`. The error shows nothing of the URL.
fn parse(url: &Secret) -> Result<PgConnectOptions, String> {
    let url = url.expose();
    let options = Some(url).filter(|url| url.starts_with("postgres://") || url.starts_with("postgresql://"));
    let options: Option<PgConnectOptions> = options.and_then(|url| url.parse().ok());
    let options = options
        .ok_or("not a URL such as postgres://user:password@host:5432/database?sslmode=verify-full")?
        .application_name("kmarket-publisher");
    // Slow statements show in the metrics. Statements in the log would be noise.
    Ok(sqlx::ConnectOptions::disable_statement_logging(options))
}
