//! Benches: each starts all the services that it needs, compares them with a baseline, and says what has to hold.

pub(crate) mod baseline;
pub(crate) mod environment;
pub(crate) mod fan_out;
pub(crate) mod handshakes;
pub(crate) mod memory;
pub(crate) mod publisher;
pub(crate) mod service;
pub(crate) mod spread;
pub(crate) mod stalled;
pub(crate) mod storm;
pub(crate) mod tail;
