//! Updates of a market's log, and the state that they add up to.

use std::collections::BTreeMap;

use serde::de::Error;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, RefOr, Schema},
};

use crate::{
    TraceContext,
    json::{self, quoted},
    position::Position,
    schema::nullable,
};

/// One update of a market's log (`docs/protocol.md#terms`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The update's epoch and seq.
    pub position: Position,
    /// The Unix milliseconds at which it was accepted.
    pub ts: u64,
    /// The payload's JSON text, byte for byte as received. It is an object of whole lines.
    pub payload: Box<str>,
    /// The context of the append's span, if the update is traced.
    pub trace: Option<TraceContext>,
}

/// A payload as text, and taken apart into lines. The text stays as it was written, since prices are decimal text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    text: Box<str>,
    lines: Vec<Line>,
}

/// One line of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The line's name, decoded.
    pub name: Box<str>,
    /// The line's JSON text; `None` if the payload has `null`, which removes the line.
    pub text: Option<Box<str>>,
}

/// Why a text is not a payload.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPayload {
    /// It is not JSON, not an object, or has the same line twice.
    #[error("payload: {0}")]
    Json(#[from] serde_json::Error),
    /// A line is neither an object nor `null`.
    #[error("payload.{line}: a line is an object of selections, or null to remove it")]
    LineNotAnObject {
        /// The line's name.
        line: String,
    },
}

impl Payload {
    /// Takes a payload's JSON text apart.
    ///
    /// # Errors
    /// [`InvalidPayload`] unless it is an object of distinct lines, each an object or `null`.
    pub fn parse(text: &str) -> Result<Self, InvalidPayload> {
        let mut lines: Vec<Line> = Vec::new();
        for (name, value) in json::members(text)? {
            if lines.iter().any(|line| *line.name == *name) {
                return Err(serde_json::Error::custom(format_args!("the line {name:?} stands twice")).into());
            }
            let text = match value.get() {
                "null" => None,
                object if object.starts_with('{') => Some(object.into()),
                _ => return Err(InvalidPayload::LineNotAnObject { line: name }),
            };
            lines.push(Line { name: name.into(), text });
        }
        Ok(Self { text: text.into(), lines })
    }

    /// Returns the JSON text as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the lines in the order in which they were written.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}

impl PartialSchema for Payload {
    fn schema() -> RefOr<Schema> {
        let line = nullable(Object::new(), "A line: selection → price, in decimal odds, or other values.");
        Object::builder()
            .additional_properties(Some(line))
            .description(Some("Line name → line, whole; `null` removes the line. Prices are decimal text: `2.10` stays `2.10`."))
            .examples([serde_json::json!({ "moneyline": { "home": 1.85, "away": 2.15 } })])
            .into()
    }
}

impl ToSchema for Payload {}

/// A market's state: every line as last set, at a position (`docs/protocol.md#terms`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarketState {
    /// The position of the last update that it includes.
    pub position: Position,
    /// That update's `ts`, Unix milliseconds; 0 before the first.
    pub ts: u64,
    /// Line name → JSON text.
    pub lines: BTreeMap<Box<str>, Box<str>>,
}

impl MarketState {
    /// Sets and removes the lines of `payload`, which is at `position` and `ts`.
    pub fn apply(&mut self, position: Position, ts: u64, payload: &Payload) {
        for line in payload.lines() {
            match &line.text {
                Some(text) => self.lines.insert(line.name.clone(), text.clone()),
                None => self.lines.remove(&line.name),
            };
        }
        self.position = position;
        self.ts = ts;
    }

    /// Returns the state as one payload: an object of all lines, ordered by name.
    #[must_use]
    pub fn payload_json(&self) -> String {
        lines_json(self.lines.iter().map(|(name, text)| (&**name, &**text)))
    }
}

/// Writes a JSON object of lines. Names are quoted and escaped; texts stay as they are.
#[must_use]
pub fn lines_json<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut json = String::from("{");
    for (index, (name, text)) in lines.enumerate() {
        if index > 0 {
            json.push(',');
        }
        json.push_str(&quoted(name));
        json.push(':');
        json.push_str(text);
    }
    json.push('}');
    json
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_payload_keeps_its_text_byte_for_byte() {
        let text = r#"{ "moneyline" : {"home":1.850,"away":2.10} , "total":null }"#;
        let payload = Payload::parse(text).unwrap();
        assert_eq!(payload.text(), text);
        assert_eq!(payload.lines()[0].text.as_deref(), Some(r#"{"home":1.850,"away":2.10}"#));
        assert_eq!(payload.lines()[1].text, None);
    }

    #[test]
    fn a_line_is_an_object_or_null_and_stands_once() {
        for text in
            ["", "[]", "1", "{", r#"{"a":1}"#, r#"{"a":[]}"#, r#"{"a":"x"}"#, r#"{"a":{},"a":{}}"#, "{}x"]
        {
            assert!(Payload::parse(text).is_err(), "{text:?}");
        }
        let error = Payload::parse(r#"{"spread":5}"#).unwrap_err();
        assert!(error.to_string().contains("payload.spread"), "{error}");
    }

    #[test]
    fn null_removes_a_line_and_the_rest_stays() {
        let mut state = MarketState::default();
        state.apply(Position::new(7, 1), 1, &Payload::parse(r#"{"b":{"x":1.10},"a":{"y":2}}"#).unwrap());
        state.apply(Position::new(7, 2), 2, &Payload::parse(r#"{"a":null}"#).unwrap());
        assert_eq!(state.payload_json(), r#"{"b":{"x":1.10}}"#);
        assert_eq!(state.position, Position::new(7, 2));
    }

    proptest! {
        #[test]
        fn a_state_s_payload_parses_to_the_same_lines(lines in proptest::collection::btree_map(".*", 0u32.., 0..8)) {
            let state = MarketState {
                lines: lines.iter().map(|(name, n)| (name.as_str().into(), format!("{{\"p\":{n}.0}}").into())).collect(),
                ..MarketState::default()
            };
            let mut again = MarketState::default();
            again.apply(state.position, state.ts, &Payload::parse(&state.payload_json()).unwrap());
            prop_assert_eq!(again, state);
        }
    }
}
