//! The table `audit`: the statements that read and write it, and its rows.

use backbone::{AuditEntry, AuditId, StreamId};
use protocol::{MarketId, Position};
use sqlx::{
    Postgres, QueryBuilder, Row,
    postgres::{PgArguments, PgRow},
};

use crate::audit::AuditRequest;

type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// Returns the statement that inserts the entries whose ids are not there.
pub(super) fn insert(entries: &[AuditEntry]) -> Query {
    with_rows(sqlx::query(INSERT), entries)
}

/// Returns the statement that selects the ids of `entries` that another entry has.
pub(super) fn differing(entries: &[AuditEntry]) -> Query {
    with_rows(sqlx::query(DIFFERING), entries)
}

/// Returns the statement that selects the market's newest entry before this one.
pub(super) fn newest_before(id: &AuditId) -> Query {
    let (ms, n) = entry_id(id);
    sqlx::query(NEWEST_BEFORE).bind(bigint(id.market.get())).bind(ms).bind(n)
}

/// Returns the statement that counts how many of these entries are there.
pub(super) fn count(ids: &[AuditId]) -> Query {
    let markets: Vec<i64> = ids.iter().map(|id| bigint(id.market.get())).collect();
    let (ms, n): (Vec<i64>, Vec<i64>) = ids.iter().map(entry_id).unzip();
    sqlx::query(COUNT).bind(markets).bind(ms).bind(n)
}

/// Returns the statement that selects the rows of a page and one more, newest first.
pub(super) fn select(request: &AuditRequest) -> QueryBuilder<Postgres> {
    let AuditRequest { market, before, limit, actor, since, until } = request;
    let mut select = QueryBuilder::new("SELECT * FROM audit WHERE true");
    if let Some(actor) = actor {
        // The index has the first 64 characters.
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
    // An id has everything that its entry is sorted by.
    let before = before.as_ref().map(|before| (bigint(before.market.get()), entry_id(before)));
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

/// A statement over the rows that [`with_rows`] binds.
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

/// Inserts in the order of the key, so that two publishers that insert the same rows do not deadlock.
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

const COUNT: &str = "SELECT count(*) AS count FROM audit WHERE (market_id, entry_ms, entry_n) IN \
                     (SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[]))";

/// Binds the entries' columns, each as one array.
fn with_rows(query: Query, entries: &[AuditEntry]) -> Query {
    let numbers = |of: fn(&AuditEntry) -> i64| entries.iter().map(of).collect::<Vec<i64>>();
    let texts = |of: fn(&AuditEntry) -> &str| entries.iter().map(of).map(text).collect::<Vec<String>>();
    query
        .bind(numbers(|entry| bigint(entry.id.market.get())))
        .bind(numbers(|entry| entry_id(&entry.id).0))
        .bind(numbers(|entry| entry_id(&entry.id).1))
        .bind(numbers(|entry| bigint(entry.position.epoch.get())))
        .bind(numbers(|entry| bigint(entry.position.seq.get())))
        .bind(numbers(|entry| bigint(entry.ts)))
        .bind(texts(|entry| &entry.actor))
        .bind(texts(|entry| &entry.reason))
        .bind(texts(|entry| &entry.before))
        .bind(texts(|entry| &entry.after))
        .bind(texts(|entry| &entry.request_id))
}

/// Replaces U+0000, which Postgres cannot store, by its picture, U+2400. Only the `sub` of a token that another program
/// made can have the character.
fn text(text: &str) -> String {
    text.replace('\0', "\u{2400}")
}

/// Redis' clock and the logs' numbers stay far below the largest `bigint`.
fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn as_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Returns an entry's id in its stream: Unix ms and number.
fn entry_id(id: &AuditId) -> (i64, i64) {
    (bigint(id.entry.ms), bigint(id.entry.n))
}

pub(super) fn read_entry(row: &PgRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        id: read_id(row)?,
        position: read_position(row)?,
        ts: unsigned(row, "ts")?,
        actor: row.try_get("actor")?,
        reason: row.try_get("reason")?,
        before: row.try_get("before")?,
        after: row.try_get("after")?,
        request_id: row.try_get("request_id")?,
    })
}

pub(super) fn read_id(row: &PgRow) -> Result<AuditId, sqlx::Error> {
    let market =
        MarketId::new(unsigned(row, "market_id")?).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(AuditId { market, entry: StreamId { ms: unsigned(row, "entry_ms")?, n: unsigned(row, "entry_n")? } })
}

pub(super) fn read_position(row: &PgRow) -> Result<Position, sqlx::Error> {
    Ok(Position::new(unsigned(row, "epoch")?, unsigned(row, "seq")?))
}

pub(super) fn read_count(row: &PgRow) -> Result<u64, sqlx::Error> {
    unsigned(row, "count")
}

fn unsigned(row: &PgRow, column: &str) -> Result<u64, sqlx::Error> {
    row.try_get::<i64, _>(column).map(i64::unsigned_abs)
}
