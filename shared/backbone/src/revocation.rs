//! Revocations of tokens (`docs/protocol.md#revoked-tokens`).

use crate::{BackboneError, StreamId};

/// The tokens that a revocation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// All tokens of this user (`sub`) that were issued before the revocation.
    User(String),
    /// The token with this id (`jti`).
    Token(String),
}

/// A revocation that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The tokens that are revoked.
    pub revoked: Revoked,
    /// The moment of the revocation, Unix milliseconds.
    pub ts: u64,
}

/// All revocations that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// The id of the newest one; [`StreamId::ZERO`] if there is none.
    pub newest: StreamId,
    /// The revocations, oldest first.
    pub all: Vec<Revocation>,
}

/// Why a revocation is not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// As many revocations are in force as [`Retention::revocations`](crate::Retention) allows.
    #[error("the limit of revocations is reached")]
    Full,
    /// The backbone failed. Whether it keeps the revocation is unknown.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
}
