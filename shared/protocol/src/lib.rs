//! The protocol as types: ids, positions, prices, payloads, messages and codes. Text in, text out.
//!
//! This crate does no I/O and knows no HTTP framework. Every other crate of the workspace builds on it.
//! What clients see of it is in `docs/protocol.md`.

pub mod client;
pub mod client_message;
pub mod close;
pub mod error;
pub mod ids;
pub mod json;
pub mod overrides;
pub mod position;
pub mod price;
pub mod schema;
mod secret;
pub mod server_message;
pub mod time;
mod trace_context;
pub mod update;
pub mod user;

pub use ids::MarketId;
pub use position::{Epoch, Position, Seq};
pub use secret::Secret;
pub use trace_context::TraceContext;
pub use update::{MarketState, Payload, Update};
