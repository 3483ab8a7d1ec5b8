//! The seam between the services and the store that holds the markets' logs.
//!
//! The trait [`Backbone`] is the seam. It has two implementations: [`RedisBackbone`] for production, and
//! [`MemoryBackbone`], which makes one process the whole system. `tests/it/redis/backbone.rs` states what both must do
//! and runs against each of them.

mod append;
mod audit;
mod backbone;
mod changes;
mod error;
pub mod failing;
pub mod keys;
mod memory;
mod pending_changes;
mod read;
mod redis;
mod retention;
mod revocation;
mod stream_id;

pub use self::{
    append::{Append, AppendError, Appended, Durability, Idempotency},
    audit::{AuditEntry, AuditId},
    backbone::Backbone,
    changes::{ChangeListener, Changes, Followed},
    error::BackboneError,
    memory::MemoryBackbone,
    read::{Loaded, LogPage, Tails},
    redis::{AuditBatch, InvalidRedisUrl, RedisBackbone, RedisConfig, TailFrom, check},
    retention::{REVOCATION_TTL, Retention},
    revocation::{Revocation, Revocations, RevokeError, Revoked},
    stream_id::StreamId,
};
