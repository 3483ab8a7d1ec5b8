//! The end-to-end tests: the sentences of `docs/protocol.md`, on real processes.
//!
//! They are one binary. So the services are built once, and tests that break nothing share a running system.

#![expect(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod client;
mod desk;
mod faults;
mod operate;
mod recorded;
mod redis;
