//! The light client: many connections in one thread, each of which checks every message.

pub(crate) mod connection;
pub(crate) mod http;
pub(crate) mod message;
pub(crate) mod pool;
pub(crate) mod session;
