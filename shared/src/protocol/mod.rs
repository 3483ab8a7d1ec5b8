//! What clients and services say to each other (contract, sections 3 and 4): pure text in and out, no I/O.

pub mod client;
pub mod close;
pub mod error;
pub mod server;
