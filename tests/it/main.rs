//! The end-to-end tests: the contract's sentences, on real processes.
//!
//! One binary, so that the services are built once and the tests share a running system where they break nothing.

#![expect(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod audit;
mod audit_postgres;
mod autobahn;
mod backbone;
mod batch;
mod canary;
mod cli;
mod clients;
mod closing;
mod console;
mod disturbances;
mod drain;
mod durability;
mod embedded;
mod epochs;
mod fault_sequences;
mod faults;
mod field_client;
mod handshake;
mod hostile;
mod least_privilege;
mod limits;
mod logs;
mod malformed;
mod markets;
mod openapi;
mod operations;
mod overrides;
mod pages;
mod racing_publishers;
mod recorded_market;
mod recording;
mod redis_layout;
mod replay;
mod replies;
mod rest;
mod resume;
mod revocation;
mod rotation;
mod sentinels_gone;
mod slow_clients;
mod soak;
mod start;
mod subscriptions;
mod tail_from_replica;
mod token_endpoint;
mod topologies;
mod traces;
mod tracking_refused;
mod vectors;
mod wrong_tokens;
