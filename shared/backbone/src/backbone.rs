//! The trait that every backbone implements.

use async_trait::async_trait;
use protocol::{
    ids::MarketId,
    position::{Position, Seq},
};

use crate::{
    Append, AppendError, Appended, AuditEntry, AuditId, BackboneError, ChangeListener, Followed, Loaded,
    LogPage, Revocation, Revocations, RevokeError, Revoked, StreamId, Tails,
};

/// Holds every market's log, state and audit.
///
/// A backbone never retries, except commands that a node rejected without executing them. Only the caller knows what
/// else is safe to retry.
#[async_trait]
pub trait Backbone: Send + Sync + 'static {
    /// Appends overrides to their markets' logs, in order per market. Returns one result per override, in the order of
    /// `appends`.
    ///
    /// An override's log entry, state lines and audit entry are written in one atomic step. If an override fails, the
    /// others are still appended.
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>>;

    /// Returns up to `limit` updates after `after`, oldest first. They belong to the log's current epoch.
    async fn read_after(&self, market: MarketId, after: Seq, limit: usize) -> Result<LogPage, BackboneError>;

    /// Loads markets, in the order of `markets`: each state, with the last `history` updates that led to it. State and
    /// updates are of the same moment.
    async fn load(&self, markets: &[MarketId], history: usize) -> Result<Vec<Loaded>, BackboneError>;

    /// Returns the partition that holds `market`, as far as is known now. Partitions respond and fail independently.
    fn partition(&self, market: MarketId) -> usize;

    /// Reads several logs of one partition: up to `limit` updates after each cursor, oldest first. They belong to the
    /// cursor's epoch or to a later one.
    ///
    /// A replica may serve this read, so it may lag behind. All other calls read from primaries.
    async fn read_tails(
        &self,
        cursors: &[(MarketId, Position)],
        limit: usize,
    ) -> Result<Tails, BackboneError>;

    /// Returns the latest positions of several logs of one partition, in the order of `markets`. The position is
    /// [`Position::ORIGIN`] if a log is empty, or if its last entry is malformed.
    async fn latest_positions(&self, markets: &[MarketId]) -> Result<Vec<Position>, BackboneError>;

    /// Returns every market that has a log, ascending. A new market may be missing for a moment.
    async fn markets(&self) -> Result<Vec<MarketId>, BackboneError>;

    /// Returns up to `limit` audit entries of a market, newest first. With `before`, they are older than that entry.
    async fn audit(
        &self,
        market: MarketId,
        before: Option<AuditId>,
        limit: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError>;

    /// Stores a revocation of tokens by `actor`. It is kept for [`Retention::revocation_ttl`](crate::Retention).
    async fn revoke(&self, revoked: Revoked, actor: &str) -> Result<Revocation, RevokeError>;

    /// Returns all revocations that are kept, or `None` if the newest of them still has the id `known`.
    async fn revocations(&self, known: StreamId) -> Result<Option<Revocations>, BackboneError>;

    /// Creates a listener for changes of any market. It connects at the first [`ChangeListener::wait`].
    ///
    /// Where Redis does not allow listening to all markets, the listener watches those that `followed` returns.
    fn change_listener(&self, followed: Followed) -> Box<dyn ChangeListener>;

    /// Fails unless the backbone responds now.
    async fn ping(&self) -> Result<(), BackboneError>;
}
