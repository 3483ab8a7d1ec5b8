//! What Redis holds, and which Redis: the backbone, key layout, rights, epochs, and topologies.

mod backbone;
mod epochs;
mod least_privilege;
mod redis_layout;
mod sentinels_gone;
mod tail_from_replica;
mod topologies;
mod tracking_refused;
