//! The harness of the end-to-end tests: real `redis-server`, `gateway` and `publisher` processes on free ports, and
//! the clients that talk to them.
//!
//! ```text
//! Stack ──▶ Redis, Services ──▶ Launch ──▶ Service (gateway, publisher) ──▶ Process (its log, signals, killed on drop)
//! Redis, Cluster, Sentinels ──▶ Access: how services connect to them; Postgres
//!   └─────▶ Socket, RawSocket, FieldClient, Http, Admin: the clients
//! ```
//!
//! Every wait panics after [`DEADLINE`] and says what it waited for, since only tests and the load tool use this crate.
//! Nothing waits for a fixed time to pass.

pub mod access;
pub mod acl;
pub mod admin;
pub mod binaries;
pub mod certificates;
pub mod chaos;
pub mod cluster;
pub mod collector;
pub mod commands;
pub mod crowd;
pub mod desk;
mod directory;
pub mod field;
pub mod follower;
pub mod frame;
pub mod http;
pub mod launch;
pub mod lines;
pub mod message;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod raw;
pub mod recording;
pub mod redis;
mod redis_server;
pub mod rest;
pub mod sentinels;
pub mod shared_set;
pub mod socket;
pub mod stack;
pub mod tokens;
pub mod vectors;
pub mod wait;

pub use access::Access;
pub use admin::Admin;
pub use certificates::Certificates;
pub use cluster::Cluster;
pub use collector::Collector;
pub use commands::Commands;
pub use crowd::Crowd;
pub use desk::Desk;
pub use field::FieldClient;
pub use follower::Follower;
pub use http::{Http, Response};
pub use launch::{Launch, Service};
pub use lines::Lines;
pub use message::Message;
pub use postgres::Postgres;
pub use raw::RawSocket;
pub use redis::Redis;
pub use rest::Rest;
pub use sentinels::Sentinels;
pub use shared_set::SharedSet;
pub use socket::{Event, Socket};
pub use stack::{Services, Stack, fresh_market, fresh_user};
pub use wait::{DEADLINE, eventually, within};
