//! The harness of the end-to-end tests: real `redis-server`, `gateway` and `publisher` processes on free ports, and
//! the clients that talk to them.
//!
//! ```text
//! Stack ──▶ Redis, Launch ──▶ Service (gateway, publisher) ──▶ Process (its log, signals, killed on drop)
//!   └─────▶ Socket, RawSocket, FieldClient, Http, Admin: the clients
//! ```
//!
//! Everything here panics with a sentence when what it waits for does not come within [`DEADLINE`]: it is only ever
//! called from a test. Nothing waits for a time to pass.

pub mod admin;
pub mod binaries;
pub mod field;
pub mod http;
pub mod launch;
pub mod lines;
pub mod message;
pub mod process;
pub mod raw;
pub mod redis;
pub mod rest;
pub mod socket;
pub mod stack;
pub mod tokens;
pub mod wait;

pub use admin::Admin;
pub use field::FieldClient;
pub use http::{Answer, Http};
pub use launch::{Launch, Service};
pub use lines::Lines;
pub use message::Message;
pub use raw::RawSocket;
pub use redis::Redis;
pub use rest::Rest;
pub use socket::{Event, Socket};
pub use stack::{Stack, fresh_market, fresh_user};
pub use wait::{DEADLINE, eventually, within};
