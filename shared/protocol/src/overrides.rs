//! Reads an override of the admin API, and checks it by `docs/protocol.md#rules-of-an-override`.
//!
//! Prices are decimal text. Every check reads the text, and the text passes through unchanged. Nothing recurses deeper than
//! [`MAX_NESTING`]: serde_json skips over a `RawValue` without recursion, and deeper values are refused before they are
//! parsed.

use std::collections::HashSet;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use utoipa::{
    ToSchema,
    openapi::{
        Object, RefOr, Schema, Type,
        schema::{AnyOf, Array, SchemaType},
    },
};

use crate::{
    MarketId, Payload, Seq,
    ids::MAX_SAFE_INTEGER,
    json::{json_problem, members},
    price::{InvalidOdds, MAX_DECIMALS, MAX_ODDS, check_decimal_odds},
    schema::{self, nullable, text},
};

/// The longest override, bytes: the largest payload, a reason of escaped characters, and room to spare.
pub const MAX_OVERRIDE_BYTES: usize = 64 * 1024;
/// The most lines in a payload.
const MAX_LINES: usize = 32;
/// The longest payload, bytes of JSON text.
const MAX_PAYLOAD_BYTES: usize = 16 * 1024;
/// How deep objects and arrays may be nested. The payload is the first level.
pub const MAX_NESTING: usize = 3;
/// The longest name in a payload, characters.
const MAX_NAME_CHARS: usize = 64;
/// The longest reason, characters.
pub const MAX_REASON_CHARS: usize = 500;
/// Members of a line that must be decimal odds.
pub const PRICED: [&str; 7] = ["home", "away", "draw", "over", "under", "yes", "no"];

/// A request to change a market's lines.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Override {
    /// The market.
    #[schema(rename = "marketId", schema_with = schema::market_id, required)]
    pub market: MarketId,
    /// The lines that it sets and removes.
    #[schema(schema_with = payload_schema, required)]
    pub payload: Payload,
    /// The reason, for the audit; empty if absent.
    #[schema(schema_with = reason_schema, required = false)]
    pub reason: String,
    /// The seq at which the market must be.
    #[schema(schema_with = expected_seq_schema, required = false)]
    pub expected_seq: Option<Seq>,
}

impl Override {
    /// Reads `{"marketId":1001,"payload":{…},"reason":"…","expectedSeq":1024}`; the last two are optional.
    ///
    /// # Errors
    /// [`InvalidOverride`] that names the field and the rule.
    pub fn parse(text: &str) -> Result<Self, InvalidOverride> {
        if text.len() > MAX_OVERRIDE_BYTES {
            return Err(InvalidOverride::TooLarge);
        }
        let (mut market, mut payload_text, mut reason, mut expected_seq) = (None, None, None, None);
        let mut seen = HashSet::new();
        for (name, value) in members(text).map_err(InvalidOverride::Json)? {
            match name.as_str() {
                "marketId" => market = Some(read("marketId", value)?),
                "payload" => payload_text = Some(value.get()),
                "reason" => reason = read::<Option<String>>("reason", value)?,
                "expectedSeq" => expected_seq = read::<Option<ExpectedSeq>>("expectedSeq", value)?,
                _ => return Err(InvalidOverride::UnknownField(shortened(&name))),
            }
            if !seen.insert(name.clone()) {
                return Err(InvalidOverride::FieldTwice(name));
            }
        }
        let market = market.ok_or(InvalidOverride::Missing("marketId"))?;
        let payload_text = payload_text.ok_or(InvalidOverride::Missing("payload"))?;
        if !payload_text.starts_with('{') {
            return Err(InvalidOverride::PayloadNotAnObject);
        }
        let reason = reason.unwrap_or_default();
        if !check_reason(&reason) {
            return Err(InvalidOverride::Reason);
        }
        let expected_seq = expected_seq.map(|ExpectedSeq(seq)| seq);
        Ok(Self { market, payload: payload(payload_text)?, reason, expected_seq })
    }
}

/// Returns the schema of a payload. It has the rules of [`payload`], except for its length and the decimals of a price.
fn payload_schema() -> RefOr<Schema> {
    let object = |values: RefOr<Schema>| {
        Object::builder()
            .property_names(Some(text(1, MAX_NAME_CHARS).build()))
            .additional_properties(Some(values))
    };
    let price = Object::builder()
        .schema_type(Type::Number)
        .exclusive_minimum(Some(1_u64))
        .maximum(Some(MAX_ODDS))
        .description(Some(format!("Decimal odds, at most {MAX_DECIMALS} decimals.")))
        .build();
    let scalar =
        || Object::with_type(SchemaType::from_iter([Type::String, Type::Number, Type::Boolean, Type::Null]));
    let selection = AnyOf::builder().item(scalar()).item(Array::new(scalar())).item(object(scalar().into()));
    let line = PRICED.iter().fold(object(selection.into()), |line, name| line.property(*name, price.clone()));
    object(nullable(line, "A line: selection → price. `null` removes it."))
        .min_properties(Some(1))
        .max_properties(Some(MAX_LINES))
        .description(Some(format!(
            "Line name → line, whole; at most {MAX_PAYLOAD_BYTES} bytes of JSON text."
        )))
        .into()
}

/// Returns the schema of a reason that [`check_reason`] accepts.
#[must_use]
pub fn reason_schema() -> RefOr<Schema> {
    let reason = text(0, MAX_REASON_CHARS).pattern(Some(r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$"));
    nullable(reason, "For the audit.")
}

fn expected_seq_schema() -> RefOr<Schema> {
    let seq =
        Object::builder().schema_type(Type::Integer).minimum(Some(0_u64)).maximum(Some(MAX_SAFE_INTEGER));
    nullable(seq, "The seq that the market must be at.")
}

/// Returns true if a reason is short enough and has no control characters except tabs and line ends.
#[must_use]
pub fn check_reason(reason: &str) -> bool {
    let unprintable = |c: char| c.is_control() && c != '\n' && c != '\t';
    reason.chars().count() <= MAX_REASON_CHARS && !reason.contains(unprintable)
}

/// Why a text is not an override.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOverride {
    /// The text is too long.
    #[error("an override has at most {MAX_OVERRIDE_BYTES} bytes")]
    TooLarge,
    /// The body is not UTF-8, and so not JSON.
    #[error("the body is not UTF-8 text")]
    NotUtf8,
    /// The text is not a JSON object.
    #[error("not a JSON object: {}", json_problem(.0))]
    Json(serde_json::Error),
    /// A field is unknown.
    #[error("{0}: unknown field; an override has marketId, payload, reason and expectedSeq")]
    UnknownField(String),
    /// A field appears twice.
    #[error("{0}: stands twice")]
    FieldTwice(String),
    /// A required field is missing.
    #[error("{0}: missing")]
    Missing(&'static str),
    /// A field has another type.
    #[error("{field}: {}", json_problem(problem))]
    WrongType {
        /// The field.
        field: &'static str,
        /// What was expected.
        problem: serde_json::Error,
    },
    /// The payload is not an object.
    #[error("payload: must be an object of lines")]
    PayloadNotAnObject,
    /// The reason is too long or has control characters.
    #[error("reason: at most {MAX_REASON_CHARS} characters, without control characters")]
    Reason,
    /// The payload breaks a rule.
    #[error(transparent)]
    Payload(#[from] InvalidPayload),
}

/// Checks a payload's JSON text against every rule of `docs/protocol.md#rules-of-an-override`.
///
/// # Errors
/// [`InvalidPayload`] that names the first broken rule and its path.
pub fn payload(text: &str) -> Result<Payload, InvalidPayload> {
    let mut check = PayloadCheck { path: String::from("payload") };
    if text.len() > MAX_PAYLOAD_BYTES {
        return Err(check.broken(Rule::TooLarge));
    }
    check.object(text, 1)?;
    Payload::parse(text).map_err(|_| check.broken(Rule::NotLines))
}

/// Why a payload is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {rule}")]
pub struct InvalidPayload {
    /// The path in the payload, such as `payload.moneyline.home`.
    pub path: String,
    /// The rule that is broken there.
    pub rule: Rule,
}

/// The rules of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum Rule {
    #[error("at most {MAX_PAYLOAD_BYTES} bytes of JSON text")]
    TooLarge,
    #[error("must have 1 to {MAX_LINES} lines")]
    LineCount,
    #[error("must be an object of selections, or null to remove the line")]
    NotLines,
    #[error("nested too deep: at most {MAX_NESTING} levels, the payload being the first")]
    TooDeep,
    #[error("a name in it is empty, longer than {MAX_NAME_CHARS} characters, or has control characters")]
    Name,
    #[error("stands twice")]
    Twice,
    #[error("holds a string that is not valid Unicode")]
    Text,
    #[error(transparent)]
    Price(#[from] InvalidOdds),
}

/// Walks a payload, and knows the path at which it is.
struct PayloadCheck {
    path: String,
}

impl PayloadCheck {
    /// Checks an object. `depth` is 1 for the payload, 2 for a line, 3 for a selection's value.
    fn object(&mut self, text: &str, depth: usize) -> Result<(), InvalidPayload> {
        // The text is known to be JSON. Only a name can still be invalid in it.
        let members = members(text).map_err(|_| self.broken(Rule::Text))?;
        if depth == 1 && !(1..=MAX_LINES).contains(&members.len()) {
            return Err(self.broken(Rule::LineCount));
        }
        let mut seen = HashSet::with_capacity(members.len());
        for (name, value) in &members {
            if !(1..=MAX_NAME_CHARS).contains(&name.chars().count()) || name.contains(char::is_control) {
                return Err(self.broken(Rule::Name));
            }
            let parent = self.path.len();
            self.path.push('.');
            self.path.push_str(name);
            if !seen.insert(name.as_str()) {
                return Err(self.broken(Rule::Twice));
            }
            let value = value.get();
            match depth {
                1 if value == "null" => {}
                1 if !value.starts_with('{') => return Err(self.broken(Rule::NotLines)),
                2 if PRICED.contains(&name.as_str()) => {
                    check_decimal_odds(value).map_err(|why| self.broken(Rule::Price(why)))?;
                }
                _ => self.value(value, depth + 1)?,
            }
            self.path.truncate(parent);
        }
        Ok(())
    }

    /// Checks a value. `depth` is its level if it is an object or an array.
    fn value(&mut self, text: &str, depth: usize) -> Result<(), InvalidPayload> {
        match text.as_bytes().first() {
            Some(b'{' | b'[') if depth > MAX_NESTING => Err(self.broken(Rule::TooDeep)),
            Some(b'{') => self.object(text, depth),
            Some(b'[') => {
                let items: Vec<&RawValue> =
                    serde_json::from_str(text).map_err(|_| self.broken(Rule::Text))?;
                items.iter().try_for_each(|item| self.value(item.get(), depth + 1))
            }
            Some(b'"') if serde_json::from_str::<String>(text).is_err() => Err(self.broken(Rule::Text)),
            _ => Ok(()),
        }
    }

    fn broken(&self, rule: Rule) -> InvalidPayload {
        InvalidPayload { path: self.path.clone(), rule }
    }
}

fn read<T: DeserializeOwned>(field: &'static str, value: &RawValue) -> Result<T, InvalidOverride> {
    serde_json::from_str(value.get()).map_err(|problem| InvalidOverride::WrongType { field, problem })
}

/// A seq that every client can read as a number.
#[derive(Deserialize)]
#[serde(try_from = "u64")]
struct ExpectedSeq(Seq);

impl TryFrom<u64> for ExpectedSeq {
    type Error = &'static str;

    fn try_from(value: u64) -> Result<Self, Self::Error> {
        if value > MAX_SAFE_INTEGER {
            Err("an integer from 0 to 9007199254740991")
        } else {
            Ok(Self(Seq::new(value)))
        }
    }
}

/// Shortens a name from outside to fit into an error message.
fn shortened(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests;
