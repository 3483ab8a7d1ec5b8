//! The seam between the services and what holds the markets' logs.
//!
//! [`Backbone`] has two implementations: [`RedisBackbone`] for production, and [`MemoryBackbone`], which lets one
//! process be the whole system. One conformance suite (`tests/it/redis/backbone.rs`) runs against both.

pub mod keys;
mod memory;
mod redis;
mod stream_id;
pub mod stuck;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use utoipa::ToSchema;

pub use self::{
    memory::MemoryBackbone,
    redis::{AuditBatch, InvalidRedisUrl, RedisBackbone, RedisConfig, TailFrom, check},
    stream_id::StreamId,
};
use protocol::{
    TraceContext,
    ids::MarketId,
    position::{Position, Seq},
    update::{MarketState, Payload, Update},
};

/// What holds every market's log, state and audit.
///
/// Every call is one round trip. None of them retries: the caller knows what may be asked again.
#[async_trait]
pub trait Backbone: Send + Sync + 'static {
    /// Appends each of `appends` to its market's log, with its state lines and audit entry, each in one atomic step;
    /// in order per market. The answers come in the order of `appends`, and one that fails does so alone.
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>>;

    /// Up to `limit` updates of the newest epoch after `after`, oldest first, with the log's top at that moment.
    async fn read_after(&self, market: MarketId, after: Seq, limit: usize) -> Result<LogPage, BackboneError>;

    /// Each market's state with the last `history` updates that led to it, from the same moment, in the order asked.
    async fn load(&self, markets: &[MarketId], history: usize) -> Result<Vec<Loaded>, BackboneError>;

    /// Which part of the backbone holds `market` now. Parts answer, and fail, on their own.
    fn partition(&self, market: MarketId) -> usize;

    /// For each cursor, all of one part, up to `limit` updates past it (of its epoch or a later one), oldest first. It
    /// may be answered by a replica, which may be behind.
    async fn read_tails(
        &self,
        cursors: &[(MarketId, Position)],
        limit: usize,
    ) -> Result<Tails, BackboneError>;

    /// The last update's position in each log, all of one part, in the order asked; [`Position::ORIGIN`] for an empty
    /// one, and for one that cannot be understood. It is the truth at the time, as is every answer but
    /// [`Backbone::read_tails`].
    async fn latest_positions(&self, markets: &[MarketId]) -> Result<Vec<Position>, BackboneError>;

    /// Every market that has a log, ascending. One that is new may be missing for a moment.
    async fn markets(&self) -> Result<Vec<MarketId>, BackboneError>;

    /// Up to `limit` audit entries of a market, newest first, older than the entry `before` if given.
    async fn audit(
        &self,
        market: MarketId,
        before: Option<AuditId>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError>;

    /// Keeps that these tokens are taken back, for [`Retention::revocation_ttl`].
    async fn revoke(&self, whom: Revoked, actor: &str) -> Result<Revocation, RevokeError>;

    /// The revocations that are kept, unless the newest of them is still the one at `known`.
    async fn revocations(&self, known: StreamId) -> Result<Option<Revocations>, BackboneError>;

    /// A new listener for changes of any market. It connects when first asked to [`ChangeListener::wait`]. Where changes of
    /// all markets cannot be listened for, it asks for those `followed` at the time.
    fn change_listener(&self, followed: Followed) -> Box<dyn ChangeListener>;

    /// Whether the backbone answers now.
    async fn ping(&self) -> Result<(), BackboneError>;
}

/// Answers with the markets that are followed, each with the cursor up to which it has been read.
pub type Followed = Arc<dyn Fn() -> Vec<(MarketId, Position)> + Send + Sync>;

/// Tells which markets have changed. Rings are hints: several changes may ring once, and the log is the truth.
#[async_trait]
pub trait ChangeListener: Send {
    /// Waits for the next ring. Each time listening begins somewhere, it is [`Changes::All`]. An error says that rings
    /// may be lost until then; it listens again by itself, without haste.
    async fn wait(&mut self) -> Result<Changes, BackboneError>;
}

/// What rang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// These markets changed.
    Markets(Vec<MarketId>),
    /// Listening began just now: anything may have changed before.
    All,
}

/// How long a revocation is kept: the life of the longest token, its leeway, and a minute for clocks that disagree.
pub const REVOCATION_TTL: Duration = Duration::from_secs(3600 + 5 + 60);

/// How much is kept (contract, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Updates a market's log keeps, about.
    pub history_len: usize,
    /// Audit entries a market keeps, about.
    pub audit_len: usize,
    /// How long an idempotency key is remembered.
    pub idempotency_ttl: Duration,
    /// How long a revocation is kept: until no token that it is about can be good any more.
    pub revocation_ttl: Duration,
    /// Revocations kept at most.
    pub revocations: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            history_len: 1000,
            audit_len: 100_000,
            idempotency_ttl: Duration::from_hours(24),
            revocation_ttl: REVOCATION_TTL,
            revocations: 10_000,
        }
    }
}

/// One override to append.
#[derive(Clone, Debug)]
pub struct Append {
    /// Which market.
    pub market: MarketId,
    /// The lines it sets and removes.
    pub payload: Payload,
    /// When given, the append happens only if this is the log's current seq.
    pub expected_seq: Option<Seq>,
    /// When given, the same key with the same fingerprint is appended once.
    pub idempotency: Option<Idempotency>,
    /// Who does it (`sub` of their token).
    pub actor: String,
    /// Why, in their words.
    pub reason: String,
    /// The HTTP request it came in.
    pub request_id: String,
    /// The span that this is part of, where it is traced: who reads the update goes on from there.
    pub trace: Option<TraceContext>,
}

/// A key that makes a retry safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's key, 1 … 255 visible ASCII characters.
    pub key: String,
    /// A digest of the request, without spaces: the same key with another fingerprint is refused.
    pub fingerprint: String,
}

/// An update that is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where it stands.
    pub position: Position,
    /// Unix milliseconds at which it was accepted.
    pub ts: u64,
    /// Its audit entry.
    pub audit_id: AuditId,
    /// An earlier request with the same idempotency key had appended it already.
    pub replayed: bool,
    /// Who has it.
    pub durability: Durability,
}

/// Who has an update that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase")]
pub enum Durability {
    /// The process that holds the log, and whatever it does about its disk.
    Memory,
    /// As many replicas as were asked for as well.
    Replicated,
}

impl Durability {
    /// As answers say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Replicated => "replicated",
        }
    }
}

/// Why an update is not in the log.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The log is not where the caller believed.
    #[error("the market is at seq {}, not at the expected one", current.seq)]
    Conflict {
        /// Where it is.
        current: Position,
    },
    /// The idempotency key was used for another request.
    #[error("this idempotency key was used for a different request")]
    KeyReused,
    /// It is in the log, but too few replicas had it in time: a failover may lose it.
    #[error("appended as seq {}, but {replicas} of {wanted} replicas have it", position.seq)]
    NotReplicated {
        /// Where it stands.
        position: Position,
        /// How many replicas have it.
        replicas: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// It could not be asked; whether the update is in the log is not known.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
}

/// Whose tokens are taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// All of this user (`sub`) that were issued before.
    User(String),
    /// The one with this id (`jti`).
    Token(String),
}

/// A revocation that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Of whose tokens.
    pub whom: Revoked,
    /// The moment, Unix milliseconds.
    pub ts: u64,
}

/// All revocations that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// The newest one's id; [`StreamId::ZERO`] without any.
    pub newest: StreamId,
    /// Oldest first.
    pub all: Vec<Revocation>,
}

/// Why a revocation is not kept.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// As many are kept as may be.
    #[error("as many revocations are kept as may be")]
    Full,
    /// It could not be asked; whether it is kept is not known.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
}

/// Part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPage {
    /// The log's last update at that moment; [`Position::ORIGIN`] for an empty log.
    pub latest: Position,
    /// Updates, oldest first, each the next one's predecessor.
    pub updates: Vec<Update>,
}

/// What a read of several logs brought.
#[derive(Debug, Default)]
pub struct Tails {
    /// New updates, by market; one that has nothing new is left out.
    pub news: Vec<(MarketId, Vec<Update>)>,
    /// Markets that could not be read just now.
    pub unread: Vec<MarketId>,
    /// Why not.
    pub error: Option<BackboneError>,
}

/// A market as loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Every line as last set.
    pub state: MarketState,
    /// The updates that led there, oldest first, without a hole, the last one at the state's position.
    pub updates: Vec<Update>,
}

/// An audit entry's id, `<market>-<Unix ms>-<n>`. It is unique over all markets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuditId {
    /// The market whose audit has the entry.
    pub market: MarketId,
    /// The entry's id in that market's audit stream.
    pub entry: StreamId,
}

impl std::fmt::Display for AuditId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.market, self.entry)
    }
}

impl std::str::FromStr for AuditId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (market, entry) = text.split_once('-')?;
            Some(Self { market: market.parse().ok()?, entry: entry.parse().ok()? })
        };
        parse().ok_or("an audit id looks like 1001-1710001113000-0")
    }
}

/// One override as the audit keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id.
    pub id: AuditId,
    /// Where its update stands in the log.
    pub position: Position,
    /// Unix milliseconds at which it was accepted.
    pub ts: u64,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// JSON object of the lines it touched, as they were; a line that did not exist is absent.
    pub before: String,
    /// The payload as it was received.
    pub after: String,
    /// The HTTP request it came in.
    pub request_id: String,
}

/// The backbone could not answer.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// It is unreachable, or refused the command.
    #[error("redis: {0}")]
    Redis(#[from] ::redis::RedisError),
    /// It holds something that this version does not understand.
    #[error("{key}: {problem}")]
    Malformed {
        /// Where.
        key: String,
        /// What.
        problem: String,
    },
}

impl BackboneError {
    /// Whether nothing at all could be asked, rather than this one thing.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Redis(error) => redis::is_outage(error),
            Self::Malformed { .. } => false,
        }
    }

    /// Returns true if an append that failed this way certainly did nothing: it may be sent again.
    #[must_use]
    pub fn is_certainly_not_carried_out(&self) -> bool {
        match self {
            Self::Redis(error) => {
                error.is_connection_refusal()
                    || error.code().is_some_and(|code| REFUSED_WHOLE.contains(&code))
            }
            Self::Malformed { .. } => false,
        }
    }
}

/// Codes with which Redis refuses a script before its first write.
const REFUSED_WHOLE: [&str; 12] = [
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "NOSCRIPT",
    "NOAUTH",
];
