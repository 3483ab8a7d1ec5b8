//! The messages and responses that a client reads, as far as it reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::Lines;
use crate::ids::MarketId;

/// The type of a message.
#[derive(Deserialize)]
pub(super) struct Envelope {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// An update, with its text as received.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) market_id: MarketId,
    pub(super) seq: u64,
    pub(super) ts: u64,
    pub(super) payload: Lines,
    pub(super) text: String,
}

impl Update {
    pub(super) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let State { market_id, seq, ts, payload, .. } = parse(text)?;
        let payload = payload.into_iter().map(|(name, line)| (name, line.get().to_owned())).collect();
        Ok(Self { market_id, seq, ts, payload, text: text.to_owned() })
    }
}

/// A snapshot, from the socket or by REST. An update has fewer members.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    pub(super) market_id: MarketId,
    pub(super) seq: u64,
    pub(super) ts: u64,
    pub(super) payload: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    pub(super) epoch: u64,
    #[serde(default)]
    pub(super) reset: bool,
    #[serde(default)]
    pub(super) conflated: bool,
    /// By REST only.
    #[serde(default)]
    pub(super) stale: bool,
}

/// A page of updates by REST.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) updates: Vec<Box<RawValue>>,
    pub(super) epoch: u64,
    pub(super) complete: bool,
    #[serde(default)]
    pub(super) stale: bool,
}

#[derive(Deserialize)]
pub(super) struct Ack {
    #[serde(default)]
    pub(super) positions: BTreeMap<MarketId, Position>,
    #[serde(default)]
    pub(super) rejected: Vec<Rejected>,
}

#[derive(Deserialize)]
pub(super) struct Position {
    pub(super) epoch: u64,
    pub(super) recovered: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rejected {
    pub(super) market_id: MarketId,
    pub(super) code: String,
}

#[derive(Deserialize)]
pub(super) struct Status {
    pub(super) stale: bool,
    pub(super) reason: Option<String>,
}

/// A ping or a pong.
#[derive(Deserialize)]
pub(super) struct Ping {
    pub(super) ts: u64,
}

#[derive(Deserialize)]
pub(super) struct Refusal {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bye {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) reconnect: bool,
    #[serde(default)]
    pub(super) after_ms: u64,
}

/// Returns the lines of a payload, without those that are `null`.
pub(super) fn lines_of(payload: &BTreeMap<String, Box<RawValue>>) -> Lines {
    let present = payload.iter().filter(|(_, line)| line.get() != "null");
    present.map(|(name, line)| (name.clone(), line.get().to_owned())).collect()
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text)
}
