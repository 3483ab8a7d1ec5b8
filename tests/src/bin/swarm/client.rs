//! The light client: many connections in one thread. It checks every message.

mod connection;
mod http;
mod message;
mod pool;
mod session;

pub(crate) use self::http::{Asked, Endpoint, Http, TIMEOUT, connections, refusal, runtime};
pub(crate) use self::message::{due_us, payload, payload_bytes};
pub(crate) use self::pool::{ClientPool, End, Plan, Seen};
