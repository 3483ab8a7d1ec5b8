//! Messages from client to server: text in, requests out (`docs/protocol.md#client-to-server`).

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess},
};
use serde_json::value::RawValue;

use crate::{
    ids::{MAX_SAFE_INTEGER, MarketId},
    json::json_problem,
    position::{Epoch, Seq},
};

/// The longest `id` a client may give a message, characters.
pub const MAX_ID_CHARS: usize = 64;

/// A message, and the id that the ack repeats.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientMessage {
    /// The client's own id for the message.
    pub id: Option<MessageId>,
    /// The request.
    pub request: ClientRequest,
}

/// What a message requests (`docs/protocol.md#client-to-server`).
#[derive(Clone, Debug, PartialEq)]
pub enum ClientRequest {
    /// Starts live delivery.
    Subscribe {
        /// The markets, each once, in the client's order.
        markets: Vec<MarketId>,
        /// Sends each market's snapshot first.
        snapshot: bool,
    },
    /// Stops live delivery.
    Unsubscribe {
        /// The markets, each once, in the client's order.
        markets: Vec<MarketId>,
    },
    /// Starts live delivery, and replays the updates after each offset.
    Resume {
        /// The client's last update in each market, each once, in the client's order.
        offsets: Vec<(MarketId, Offset)>,
    },
    /// Requests a pong with the same `ts`.
    Ping {
        /// Any JSON number, as written; `None` if absent.
        ts: Option<Box<str>>,
    },
    /// Answers a ping. It only shows that the client is alive.
    Pong,
    /// Replaces the connection's token.
    Refresh {
        /// The new token.
        token: String,
    },
}

/// A client's last update in a market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The update's epoch, if the client knows epochs.
    pub epoch: Option<Epoch>,
    /// The update's seq; 0 for none.
    pub seq: Seq,
}

/// A message's id: a string of at most 64 characters, or an integer. Responses repeat it unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum MessageId {
    /// A string.
    Text(String),
    /// An integer.
    Number(i64),
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// The message's id, if it could be read.
    pub id: Option<MessageId>,
    /// A sentence for people that names the field.
    pub message: String,
}

impl ClientMessage {
    /// Reads a text frame.
    ///
    /// # Errors
    /// [`BadMessage`] that names the field. Unknown members are ignored, so that newer clients can talk to older pods.
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

/// Every known member, not parsed yet, so that each error can name its field. serde refuses a member that appears twice.
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

/// Keeps an explicit `null` as `Some`. The field's own rule then refuses or reads it.
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

/// Reads `{"1001":1024,"1002":{"epoch":E,"seq":88}}`, with each market once.
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
                // Our acks write epoch 0 for "no log yet". A client that returns it makes no claim.
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
    fn messages_of_existing_clients_parse() {
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
    fn an_id_is_kept_and_a_bad_message_names_its_field() {
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
