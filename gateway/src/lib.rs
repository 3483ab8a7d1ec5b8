//! The gateway: live odds over WebSocket and REST.
//!
//! The modules follow an update's way from top to bottom: [`tail`] reads it from the backbone into a [`market`]'s
//! [`log`], encoded once as a [`frame`]; each [`shard`] writes it to its sockets, whose [`session`]s say what their
//! clients asked for within the [`limits`]. [`http`] is how clients come in.

pub mod board;
pub mod drain;
pub mod frame;
pub mod http;
pub mod limits;
pub mod log;
pub mod market;
pub mod markets;
pub mod metrics;
pub mod server;
pub mod session;
pub mod settings;
pub mod shard;
pub mod standalone;
pub mod tail;
pub mod tokens;
pub mod watchers;
pub mod work_queue;
