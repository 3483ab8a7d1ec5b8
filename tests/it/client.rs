//! What clients see: handshake, messages, delivery, closing, REST reads and tokens.

mod autobahn;
mod clients;
mod closing;
mod field_client;
mod handshake;
mod limits;
mod malformed;
mod replies;
mod rest;
mod resume;
mod slow_clients;
mod subscriptions;
mod token_endpoint;
mod vectors;
mod wrong_tokens;
