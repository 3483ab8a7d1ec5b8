//! The publisher: the admin API over the markets' logs.
//!
//! The path of one override: `http` receives the request and routes it. `auth` checks the token and its role, and
//! [`protocol::overrides`] the body. `append` appends the override to its market's log and counts the outcome. `response`
//! shapes the result, and `problem` has the code of every error.
//!
//! [`batch`] does the same for many overrides, and `markets` for the line `status` of many markets. `audit_reader` reads
//! who overrode what: from Postgres if `export` copies the audit there (`archive`), else from the backbone. `revoke`
//! revokes clients' tokens. `console` is the page for the trading desk.

mod append;
mod archive;
mod audit;
mod audit_reader;
mod auth;
pub mod batch;
mod console;
mod export;
pub mod http;
mod markets;
pub mod metrics;
mod openapi;
mod ops;
mod problem;
mod request;
mod response;
mod revoke;
pub mod server;
pub mod settings;
pub mod state;
