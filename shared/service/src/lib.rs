//! The parts that both services share around their own work: settings, secrets that change, tokens, telemetry, signals, the
//! HTTP listener and client, and pages.
//!
//! This crate knows neither service.

pub mod backoff;
pub mod http;
pub mod redis_settings;
pub mod rotation;
pub mod settings;
pub mod signals;
pub mod telemetry;
pub mod token;
