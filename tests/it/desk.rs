//! What traders see: overrides, batches, markets, the audit, revocations, and the pages.

mod audit;
mod audit_postgres;
mod batch;
mod console;
mod durability;
mod markets;
mod overrides;
mod pages;
mod racing_publishers;
mod revocation;
