//! Client → server: what a text frame says.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess},
};
use serde_json::value::RawValue;

use crate::{
    error::json_problem,
    ids::{MAX_SAFE_INTEGER, MarketId},
    position::{Epoch, Seq},
};

/// The longest `id` a client may give a message, characters.
pub const MAX_ID_CHARS: usize = 64;

/// A message and the id its answer echoes.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientMessage {
    /// The client's own id for it.
    pub id: Option<MessageId>,
    /// What it asks.
    pub request: ClientRequest,
}

/// What a client asks (contract, section 3).
#[derive(Clone, Debug, PartialEq)]
pub enum ClientRequest {
    /// Start live delivery, with each market's snapshot first if wanted.
    Subscribe {
        /// Each once, in the order given.
        markets: Vec<MarketId>,
        /// Whether snapshots come first.
        snapshot: bool,
    },
    /// Stop.
    Unsubscribe {
        /// Each once, in the order given.
        markets: Vec<MarketId>,
    },
    /// Subscribe, replaying what was missed after each offset.
    Resume {
        /// Each market once, in the order given.
        offsets: Vec<(MarketId, Offset)>,
    },
    /// Answered by a pong with the same `ts`.
    Ping {
        /// Any JSON number, as written; absent = none.
        ts: Option<Box<str>>,
    },
    /// Activity only.
    Pong,
    /// Replaces the connection's token.
    Refresh {
        /// The new one.
        token: String,
    },
}

/// Where a client stands in a market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The epoch, if the client knows of epochs.
    pub epoch: Option<Epoch>,
    /// The last update it has.
    pub seq: Seq,
}

/// A message's id: a string of at most 64 characters, or an integer. Echoed as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum MessageId {
    /// A string.
    Text(String),
    /// An integer.
    Number(i64),
}

/// A message that is refused, with the id to echo if it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// The client's id, if it had a good one.
    pub id: Option<MessageId>,
    /// What is wrong, naming the field.
    pub message: String,
}

impl ClientMessage {
    /// Reads a text frame.
    ///
    /// # Errors
    /// [`BadMessage`] that names what is wrong. Members that the contract does not know are ignored, so that newer
    /// clients can talk to older pods.
    pub fn parse(text: &str) -> Result<Self, BadMessage> {
        let bad = |message: String| BadMessage { id: None, message };
        // serde would read an array as the members in order.
        if !text.trim_start().starts_with('{') {
            return Err(bad("a message is a JSON object".to_owned()));
        }
        let raw: Raw<'_> = serde_json::from_str(text).map_err(|error| bad(json_problem(&error)))?;
        let id = match raw.id {
            None => None,
            Some(id) => Some(read_id(id).map_err(bad)?),
        };
        match raw.request() {
            Ok(request) => Ok(Self { id, request }),
            Err(message) => Err(BadMessage { id, message }),
        }
    }
}

/// Every member the contract knows, unread, so that each error can name its field. serde refuses one that stands
/// twice.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    markets: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    snapshot: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    offsets: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    ts: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    token: Option<&'a RawValue>,
}

/// `Some` also for an explicit `null`, which is then refused or read as the field's own rule says.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Raw<'_> {
    fn request(&self) -> Result<ClientRequest, String> {
        let kind =
            self.kind.as_deref().ok_or("type: missing; it names the message, such as \"subscribe\"")?;
        Ok(match kind {
            "subscribe" => ClientRequest::Subscribe {
                markets: self.markets()?,
                snapshot: self.snapshot.map_or(Ok(false), |raw| read("snapshot", raw))?,
            },
            "unsubscribe" => ClientRequest::Unsubscribe { markets: self.markets()? },
            "resume" => {
                let Offsets(offsets) = read("offsets", self.offsets.ok_or("offsets: missing")?)?;
                ClientRequest::Resume { offsets }
            }
            "ping" => ClientRequest::Ping { ts: self.ts.map(read_ts).transpose()? },
            "pong" => ClientRequest::Pong,
            "refresh" => {
                ClientRequest::Refresh { token: read("token", self.token.ok_or("token: missing")?)? }
            }
            _ => {
                return Err(
                    "type: unknown; one of subscribe, unsubscribe, resume, ping, pong, refresh".to_owned()
                );
            }
        })
    }

    fn markets(&self) -> Result<Vec<MarketId>, String> {
        let given: Vec<MarketId> = read("markets", self.markets.ok_or("markets: missing")?)?;
        let mut seen = std::collections::HashSet::with_capacity(given.len());
        Ok(given.into_iter().filter(|market| seen.insert(*market)).collect())
    }
}

fn read<'a, T: Deserialize<'a>>(field: &str, raw: &'a RawValue) -> Result<T, String> {
    serde_json::from_str(raw.get()).map_err(|error| format!("{field}: {}", json_problem(&error)))
}

fn read_id(raw: &RawValue) -> Result<MessageId, String> {
    let id = if raw.get().starts_with('"') {
        serde_json::from_str(raw.get())
            .ok()
            .filter(|text: &String| text.chars().count() <= MAX_ID_CHARS)
            .map(MessageId::Text)
    } else {
        raw.get().parse().ok().map(MessageId::Number)
    };
    id.ok_or_else(|| format!("id: a string of at most {MAX_ID_CHARS} characters, or an integer"))
}

fn read_ts(raw: &RawValue) -> Result<Box<str>, String> {
    let number = raw.get().starts_with(|c: char| c.is_ascii_digit() || c == '-') && raw.get().len() <= 32;
    if number { Ok(raw.get().into()) } else { Err("ts: a number, Unix milliseconds".to_owned()) }
}

/// `{"1001":1024,"1002":{"epoch":E,"seq":88}}`, each market once.
struct Offsets(Vec<(MarketId, Offset)>);

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Offsets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of market id → last seq")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Offsets, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut offsets = Vec::new();
                while let Some((market, offset)) = map.next_entry::<MarketId, Offset>()? {
                    if !seen.insert(market) {
                        return Err(de::Error::custom(format_args!("market {market} stands twice")));
                    }
                    offsets.push((market, offset));
                }
                Ok(Offsets(offsets))
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Full {
            epoch: Option<u64>,
            seq: u64,
        }

        #[derive(Clone, Copy)]
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Offset;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a seq (integer from 0), or {\"epoch\":E,\"seq\":N}")
            }

            fn visit_u64<E: de::Error>(self, seq: u64) -> Result<Offset, E> {
                if seq > MAX_SAFE_INTEGER {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(seq), &self));
                }
                Ok(Offset { epoch: None, seq: Seq::new(seq) })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Offset, E> {
                let seq = crate::ids::parse_decimal(text);
                self.visit_u64(seq.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))?)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Offset, A::Error> {
                let full = Full::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let offset = self.visit_u64::<A::Error>(full.seq)?;
                // Epoch 0 stands for "no log yet" in our own answers; given back, it claims nothing.
                let epoch = full.epoch.map(Epoch::new).filter(|epoch| *epoch != Epoch::NONE);
                Ok(Offset { epoch, ..offset })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn market(id: u64) -> MarketId {
        MarketId::new(id).unwrap()
    }

    fn request(text: &str) -> ClientRequest {
        ClientMessage::parse(text).unwrap().request
    }

    #[test]
    fn the_messages_of_the_field_parse() {
        assert_eq!(
            request(r#"{"type":"subscribe","markets":["1001","1002",1001]}"#),
            ClientRequest::Subscribe { markets: vec![market(1001), market(1002)], snapshot: false }
        );
        assert_eq!(
            request(r#"{"type":"unsubscribe","markets":["1002"]}"#),
            ClientRequest::Unsubscribe { markets: vec![market(1002)] }
        );
        let offset = |epoch, seq| Offset { epoch, seq: Seq::new(seq) };
        assert_eq!(
            request(r#"{"type":"resume","offsets":{"1001":1024,"1002":{"epoch":7,"seq":88},"3":{"seq":1}}}"#),
            ClientRequest::Resume {
                offsets: vec![
                    (market(1001), offset(None, 1024)),
                    (market(1002), offset(Some(Epoch::new(7)), 88)),
                    (market(3), offset(None, 1)),
                ]
            }
        );
        assert_eq!(request(r#"{"type":"resume","offsets":{}}"#), ClientRequest::Resume { offsets: vec![] });
        assert_eq!(
            request(r#"{"type":"ping","ts":1710001112223}"#),
            ClientRequest::Ping { ts: Some("1710001112223".into()) }
        );
        assert_eq!(request(r#"{"type":"pong","later":[1,{"x":2}]}"#), ClientRequest::Pong);
        assert_eq!(
            request(r#"{"type":"refresh","token":"t"}"#),
            ClientRequest::Refresh { token: "t".into() }
        );
    }

    #[test]
    fn an_id_is_echoed_and_a_bad_message_names_its_field() {
        let message = ClientMessage::parse(r#"{"type":"pong","id":"a\u00e9"}"#).unwrap();
        assert_eq!(message.id, Some(MessageId::Text("aé".into())));
        for (text, field) in [
            ("", "object"),
            ("[]", "object"),
            ("{}", "type"),
            (r#"{"type":5}"#, "invalid type"),
            (r#"{"type":"hello"}"#, "type"),
            (r#"{"type":"pong","type":"ping"}"#, "type"),
            (r#"{"type":"subscribe"}"#, "markets"),
            (r#"{"type":"subscribe","markets":null}"#, "markets"),
            (r#"{"type":"subscribe","markets":["x"]}"#, "markets"),
            (r#"{"type":"subscribe","markets":[0]}"#, "markets"),
            (r#"{"type":"subscribe","markets":[1.0]}"#, "markets"),
            (r#"{"type":"subscribe","markets":[1],"snapshot":"yes"}"#, "snapshot"),
            (r#"{"type":"resume"}"#, "offsets"),
            (r#"{"type":"resume","offsets":{"1":-1}}"#, "offsets"),
            (r#"{"type":"resume","offsets":{"1":1,"1":2}}"#, "offsets"),
            (r#"{"type":"resume","offsets":{"01":1}}"#, "offsets"),
            (r#"{"type":"resume","offsets":{"1":9007199254740992}}"#, "offsets"),
            (r#"{"type":"resume","offsets":{"1":{"epoch":1}}}"#, "offsets"),
            (r#"{"type":"ping","ts":"now"}"#, "ts"),
            (r#"{"type":"refresh"}"#, "token"),
            (r#"{"type":"pong","id":1.5}"#, "id"),
            (r#"{"type":"pong","id":{}}"#, "id"),
            (r#"{"type":"pong"} x"#, "trailing"),
        ] {
            let error = ClientMessage::parse(text).unwrap_err();
            assert!(error.message.contains(field), "{text}: {}", error.message);
        }
        let error = ClientMessage::parse(r#"{"type":"subscribe","markets":[0],"id":7}"#).unwrap_err();
        assert_eq!(error.id, Some(MessageId::Number(7)));
        assert!(ClientMessage::parse(&format!(r#"{{"type":"pong","id":"{}"}}"#, "x".repeat(65))).is_err());
        assert!(ClientMessage::parse(&format!(r#"{{"type":"pong","id":"{}"}}"#, "é".repeat(64))).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = ClientMessage::parse(&text);
        }

        #[test]
        fn near_messages_do_not_panic(kind in "subscribe|resume|ping|refresh", field in "markets|offsets|ts|token|id", value in r#"\[.*\]|\{.*\}|".*"|-?[0-9]{1,20}"#) {
            let _ = ClientMessage::parse(&format!(r#"{{"type":"{kind}","{field}":{value}}}"#));
        }
    }
}
