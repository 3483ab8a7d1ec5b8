//! What fails: processes, networks, Redis, and hostile peers.

mod disturbances;
mod drain;
mod fault_sequences;
mod hostile;
mod outages;
mod soak;
