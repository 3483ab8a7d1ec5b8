//! What an append takes, and what comes of it.

use protocol::{
    TraceContext,
    ids::MarketId,
    position::{Position, Seq},
    update::Payload,
};
use utoipa::ToSchema;

use crate::{AuditId, BackboneError};

/// One override to append.
#[derive(Clone, Debug)]
pub struct Append {
    /// The market whose log grows.
    pub market: MarketId,
    /// The lines that the override sets and removes.
    pub payload: Payload,
    /// If given, the append happens only while the log's latest seq is this one (optimistic locking).
    pub expected_seq: Option<Seq>,
    /// If given, the same key with the same fingerprint is appended once.
    pub idempotency: Option<Idempotency>,
    /// The person or program that makes the override: the `sub` of its token.
    pub actor: String,
    /// Why, in the actor's words.
    pub reason: String,
    /// The id of the HTTP request that brought the override.
    pub request_id: String,
    /// The span of the append if it is traced. Gateways that read the update continue the trace from there.
    pub trace: Option<TraceContext>,
}

/// A key that makes a retry safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's key, 1 … 255 visible ASCII characters.
    pub key: String,
    /// A digest of the request, without spaces. The same key with another fingerprint is refused.
    pub fingerprint: String,
}

/// An update that is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The update's position in the log.
    pub position: Position,
    /// Unix milliseconds at which the update was accepted.
    pub ts: u64,
    /// The id of its audit entry.
    pub audit_id: AuditId,
    /// True if an earlier request with the same idempotency key had appended the update already.
    pub replayed: bool,
    /// Where the update is stored.
    pub durability: Durability,
}

/// Where an acknowledged update is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "camelCase")]
pub enum Durability {
    /// In the process that holds the log, and on its disk if it writes to one.
    Memory,
    /// Also in as many replicas as the publisher requires.
    Replicated,
}

impl Durability {
    /// Returns the text that stands in responses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Replicated => "replicated",
        }
    }
}

/// Why an append is not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The log's latest seq is not the expected one.
    #[error("the market is at seq {}, not at the expected one", current.seq)]
    Conflict {
        /// The log's latest position.
        current: Position,
    },
    /// The idempotency key was used for a different request.
    #[error("this idempotency key was used for a different request")]
    KeyReused,
    /// The update is in the log, but too few replicas had it in time. A failover may lose it.
    #[error("appended as seq {}, but {replicas} of {wanted} replicas have it", position.seq)]
    NotReplicated {
        /// The update's position in the log.
        position: Position,
        /// The number of replicas that have it.
        replicas: usize,
        /// The number of replicas that must have it.
        wanted: usize,
    },
    /// The backbone failed. The outcome is unknown unless [`BackboneError::certainly_did_nothing`].
    #[error(transparent)]
    Backbone(#[from] BackboneError),
}
