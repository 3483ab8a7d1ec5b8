//! The gateway: live odds over WebSocket and REST.
//!
//! An update's way through the modules: `tail` reads it from the backbone into a `market`'s `log`, encoded once as a
//! [`frame`]. Each `shard` writes it to its sockets. A client's way: `http` lets the client in as `access` allows, a
//! `session` decides what each of its messages means, and `limits` bounds both. [`server`] puts all of it together.

mod access;
mod board;
mod drain;
mod file_budget;
pub mod frame;
mod http;
mod limits;
mod listen;
mod listing;
mod log;
mod market;
mod markets;
mod metrics;
mod ops;
pub mod server;
mod session;
pub mod settings;
mod shard;
mod standalone;
mod state;
mod tail;
mod tokens;
mod upkeep;
mod watchers;
mod work_queue;
