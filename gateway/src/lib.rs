//! The gateway: live odds over WebSocket and REST.
//!
//! An update's way through the modules: `tail` reads it from the backbone into a `market`'s `log`, encoded once as a
//! [`frame`]. Each `shard` writes it to its sockets. [`http`] lets clients in, a [`session`] decides what each of their
//! messages means, and [`limits`] bounds both.

pub mod board;
pub mod drain;
pub mod frame;
pub mod http;
pub mod limits;
mod log;
mod market;
mod markets;
mod metrics;
pub mod server;
pub mod session;
pub mod settings;
mod shard;
pub mod standalone;
mod tail;
pub mod tokens;
mod watchers;
mod work_queue;
