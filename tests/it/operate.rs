//! What operators see: start, settings, commands, logs, traces, documents, and secrets that change.

mod canary;
mod cli;
mod embedded;
mod logs;
mod openapi;
mod operations;
mod rotation;
mod start;
mod traces;
