//! What the gateway and the publisher both speak: identifiers, the log's updates, the wire protocol, tokens,
//! settings, and the backbone they meet at.
//!
//! This crate knows neither service. Imports run one way: both services use `shared`, never the reverse.

pub mod backbone;
pub mod backoff;
pub mod cli;
pub mod client;
pub mod http;
pub mod ids;
pub mod position;
pub mod price;
pub mod protocol;
pub mod rotation;
pub mod settings;
pub mod signals;
pub mod telemetry;
pub mod time;
pub mod token;
pub mod update;

pub use ids::MarketId;
pub use position::{Epoch, Position, Seq};
pub use update::{MarketState, Payload, Update};
