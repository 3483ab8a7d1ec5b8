//! Rate limits, and permits for connections. Pure: times come in, and a dropped permit frees itself.

mod permits;
mod rate;

pub use self::{
    permits::{ConnectionPermit, ConnectionPermits, Full, MAX_CONNECTIONS_PER_USER},
    rate::{Bucket, KeyedRate, Rate},
};

/// Returns true if a collection has room for more than four times what it holds, and enough to be worth freeing.
#[must_use]
pub const fn is_roomy(len: usize, capacity: usize) -> bool {
    capacity > 1024 && len < capacity / 4
}
