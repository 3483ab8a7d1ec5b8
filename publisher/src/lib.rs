//! The publisher: the way in for overrides. An admin API over the backbone, and a tool that replays recorded feeds.
//!
//! The path of one override, top to bottom: [`http`] takes the request, [`auth`] says who asks, [`overrides`] checks
//! what they ask and appends it; [`audit`] reads back who did what. [`batch`] does the same for many at once.
//! [`markets`] lists all markets, suspends and opens them; [`console`] is the page for all of this. [`revoke`] takes
//! clients' tokens back. [`export`] copies the audit to Postgres, and [`archive`] asks for it there.

pub mod append;
pub mod archive;
pub mod audit;
pub mod auth;
pub mod batch;
pub mod console;
pub mod export;
pub mod http;
pub mod markets;
pub mod metrics;
pub mod openapi;
pub mod ops;
pub mod revoke;
pub mod server;
pub mod settings;
pub mod state;
