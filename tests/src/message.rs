//! What a gateway sends (docs/protocol.md#server-to-client), read strictly: an unknown member is an error.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, from_slice, value::RawValue};

/// A message from server to client.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// `ack`.
    Ack(Ack),
    /// `odds_update`.
    Update(Update),
    /// `snapshot`.
    Snapshot(Snapshot),
    /// `pong`.
    Pong(Pong),
    /// `ping`.
    Ping(Ping),
    /// `status`.
    Status(Status),
    /// `error`.
    Error(ErrorMessage),
    /// `bye`.
    Bye(Bye),
    /// A type that this harness does not know; clients must ignore it.
    Unknown(String),
}

/// JSON text, byte for byte as received.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Raw(String);

/// `{"type":"ack",…}`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    #[serde(rename = "type")]
    _type: String,
    /// Whether no market was rejected.
    pub ok: bool,
    /// The id of the request.
    pub id: Option<Value>,
    /// The markets of the request that are now subscribed.
    pub subscribed: Option<Vec<u64>>,
    /// The position at which live delivery starts, by market id.
    pub positions: Option<BTreeMap<String, AckPosition>>,
    /// The markets that were rejected.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    /// The markets whose subscription an `unsubscribe` ended.
    pub unsubscribed: Option<Vec<u64>>,
}

/// A position in an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckPosition {
    /// The epoch.
    pub epoch: u64,
    /// The seq of the last update before live delivery.
    pub seq: u64,
    /// In the ack of a resume: whether missed updates are replayed.
    pub recovered: Option<bool>,
}

/// A market that an ack rejects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rejected {
    /// The market.
    pub market_id: u64,
    /// The reason.
    pub code: String,
}

/// `{"type":"odds_update",…}`, as REST lists it too.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Update {
    #[serde(rename = "type")]
    _type: OddsUpdate,
    /// The market.
    pub market_id: u64,
    /// Its seq in the market's log.
    pub seq: u64,
    /// When the publisher accepted it, in Unix milliseconds.
    pub ts: u64,
    /// The lines that it sets or removes.
    pub payload: Raw,
}

/// `{"type":"snapshot",…}`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Snapshot {
    #[serde(rename = "type", default)]
    _type: Option<String>,
    /// The market.
    pub market_id: u64,
    /// The seq of the last update in it.
    pub seq: u64,
    /// The time of that update, in Unix milliseconds.
    pub ts: u64,
    /// Every line as last set.
    pub payload: Raw,
    /// The epoch.
    pub epoch: u64,
    /// Whether history was lost or missed updates are no longer kept.
    #[serde(default)]
    pub reset: bool,
    /// Whether the client was too slow for single updates.
    #[serde(default)]
    pub conflated: bool,
}

/// `{"type":"pong",…}`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pong {
    #[serde(rename = "type")]
    _type: String,
    /// As in the `ping`.
    pub ts: Option<Value>,
    /// As in the `ping`.
    pub id: Option<Value>,
}

/// `{"type":"ping",…}`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    #[serde(rename = "type")]
    _type: String,
    /// The server's clock, in Unix milliseconds.
    pub ts: u64,
}

/// `{"type":"status",…}`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    #[serde(rename = "type")]
    _type: String,
    /// Whether the pod cannot vouch for fresh prices.
    pub stale: bool,
    /// The reason.
    pub reason: Option<String>,
    /// Since when, in Unix milliseconds.
    pub since: Option<u64>,
}

/// `{"type":"error",…}`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorMessage {
    #[serde(rename = "type")]
    _type: String,
    /// The id of the refused message, if it could be read.
    pub id: Option<Value>,
    /// The error code.
    pub code: String,
    /// The explanation for people.
    pub message: String,
}

/// `{"type":"bye",…}`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Bye {
    #[serde(rename = "type")]
    _type: String,
    /// The code of the close frame that follows.
    pub code: u16,
    /// The name of that code.
    pub reason: String,
    /// Whether the client should reconnect.
    pub reconnect: bool,
    /// How long to wait before that.
    pub after_ms: Option<u64>,
}

impl Message {
    /// Reads the payload of a text frame; panics unless docs/protocol.md knows such a message.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match Self::read(text.as_bytes()) {
            Ok(Self::Unknown(_)) => panic!("no such server message in docs/protocol.md: {text}"),
            Ok(message) => message,
            Err(error) => panic!("{error} in {text}"),
        }
    }

    /// Reads the payload of a text frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &[u8]) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(rename = "type")]
            kind: String,
        }

        let Envelope { kind } = from_slice(text)?;
        Ok(match kind.as_str() {
            "ack" => Self::Ack(from_slice(text)?),
            "odds_update" => Self::Update(from_slice(text)?),
            "snapshot" => Self::Snapshot(from_slice(text)?),
            "pong" => Self::Pong(from_slice(text)?),
            "ping" => Self::Ping(from_slice(text)?),
            "status" => Self::Status(from_slice(text)?),
            "error" => Self::Error(from_slice(text)?),
            "bye" => Self::Bye(from_slice(text)?),
            _ => Self::Unknown(kind),
        })
    }
}

impl Ack {
    /// The position of one market; panics without one.
    #[must_use]
    pub fn position(&self, market: u64) -> AckPosition {
        let position = self.positions.as_ref().and_then(|positions| positions.get(&market.to_string()));
        *position.unwrap_or_else(|| panic!("no position of market {market} in {self:?}"))
    }
}

impl Raw {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl PartialEq<&str> for Raw {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(raw.get().to_owned()))
    }
}

/// Parses JSON; panics with the text if it has another shape.
#[must_use]
pub fn parse<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Only `"odds_update"`: REST lists the same objects that the socket sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OddsUpdate {
    OddsUpdate,
}
