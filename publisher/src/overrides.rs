//! An override: from JSON text, by the rules of the contract's section 5, into a market's log.
//!
//! Prices are decimal text: every check looks at the text, and the text goes on unchanged. Nothing here recurses
//! deeper than [`MAX_NESTING`]: serde_json skips over a `RawValue` without recursion, and what lies deeper is refused
//! before it is looked into.

use std::{
    collections::HashSet,
    fmt,
    time::{Duration, SystemTime},
};

use axum::body::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, MapAccess},
};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use shared::{
    MarketId, Payload, Position, Seq,
    backbone::{Append, AppendError, Appended, Backbone, BackboneError, Idempotency},
    http::openapi::{nullable, text},
    ids::{MAX_SAFE_INTEGER, market_id_taken},
    price::{InvalidOdds, MAX_DECIMALS, MAX_ODDS, check_decimal_odds},
    protocol::error::json_problem,
    telemetry::traces::{self, Parent, Span, SpanKind},
};
use tokio::time::{Instant, timeout};
use tracing::field::{self, DisplayValue};
use utoipa::{
    ToSchema,
    openapi::{
        Object, RefOr, Schema, Type,
        schema::{AnyOf, Array, SchemaType},
    },
};

use crate::metrics;

/// The longest override, bytes: the largest payload, a reason of escaped characters, and room to spare.
pub const MAX_OVERRIDE_BYTES: usize = 64 * 1024;
/// The most lines in a payload (contract, section 5).
pub const MAX_LINES: usize = 32;
/// The longest payload, bytes of JSON text (contract, section 5).
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;
/// How many objects and arrays may stand in each other, the payload being the first (contract, section 5).
pub const MAX_NESTING: usize = 3;
/// The longest name in a payload, characters.
pub const MAX_NAME_CHARS: usize = 64;
/// The longest reason, characters.
pub const MAX_REASON_CHARS: usize = 500;
/// Members of a line that must be decimal odds (contract, section 5).
pub const PRICED: [&str; 7] = ["home", "away", "draw", "over", "under", "yes", "no"];
/// Codes with which Redis refuses a script before its first write.
const REFUSED_WHOLE: [&str; 12] = [
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "NOSCRIPT",
    "NOAUTH",
];
/// How long an append may take before its outcome is given up as unknown. Longer than the backbone's own time-outs,
/// whose errors say more.
const APPEND_TIMEOUT: Duration = Duration::from_secs(8);

/// What an override asks.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Override {
    /// Which market.
    #[schema(rename = "marketId", schema_with = market_id_taken, required)]
    pub market: MarketId,
    /// The lines it sets and removes.
    #[schema(schema_with = payload_taken, required)]
    pub payload: Payload,
    /// Why; empty when not said.
    #[schema(schema_with = reason_taken, required = false)]
    pub reason: String,
    /// The seq that the market must be at.
    #[schema(schema_with = expected_seq_taken, required = false)]
    pub expected_seq: Option<Seq>,
}

impl Override {
    /// Reads `{"marketId":1001,"payload":{…},"reason":"…","expectedSeq":1024}`; the last two are optional.
    ///
    /// # Errors
    /// [`InvalidOverride`] names the field and the rule.
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

    /// What the backbone is asked to do for `sender`.
    #[must_use]
    pub fn into_append(self, sender: &Sender<'_>, idempotency: Option<Idempotency>) -> Append {
        Append {
            market: self.market,
            payload: self.payload,
            expected_seq: self.expected_seq,
            idempotency,
            actor: sender.actor.to_owned(),
            reason: self.reason,
            request_id: sender.request_id.to_owned(),
            trace: sender.trace,
        }
    }
}

/// Who sends overrides, and in which request.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Their token's `sub`.
    pub actor: &'a str,
    /// The HTTP request's id.
    pub request_id: &'a str,
    /// The HTTP request's span, where it is traced.
    pub trace: Option<Parent>,
}

/// The schema of a payload that keeps the rules of [`payload`], but for its length and the decimals of a price.
fn payload_taken() -> RefOr<Schema> {
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

/// The schema of a reason that [`check_reason`] lets through.
pub(crate) fn reason_taken() -> RefOr<Schema> {
    let reason = text(0, MAX_REASON_CHARS).pattern(Some(r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$"));
    nullable(reason, "For the audit.")
}

fn expected_seq_taken() -> RefOr<Schema> {
    let seq =
        Object::builder().schema_type(Type::Integer).minimum(Some(0_u64)).maximum(Some(MAX_SAFE_INTEGER));
    nullable(seq, "The seq that the market must be at.")
}

/// Whether a reason can be kept and shown.
pub(crate) fn check_reason(reason: &str) -> bool {
    let unprintable = |c: char| c.is_control() && c != '\n' && c != '\t';
    reason.chars().count() <= MAX_REASON_CHARS && !reason.contains(unprintable)
}

/// Why a text is not an override.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOverride {
    /// More than is read.
    #[error("an override has at most {MAX_OVERRIDE_BYTES} bytes")]
    TooLarge,
    /// Not UTF-8, and so not JSON.
    #[error("the body is not UTF-8 text")]
    NotUtf8,
    /// Not a JSON object.
    #[error("not a JSON object: {}", json_problem(.0))]
    Json(serde_json::Error),
    /// A field that an override has not.
    #[error("{0}: unknown field; an override has marketId, payload, reason and expectedSeq")]
    UnknownField(String),
    /// The same field again.
    #[error("{0}: stands twice")]
    FieldTwice(String),
    /// A field that every override has.
    #[error("{0}: missing")]
    Missing(&'static str),
    /// A field of another type.
    #[error("{field}: {}", json_problem(problem))]
    WrongType {
        /// Which field.
        field: &'static str,
        /// What was expected instead.
        problem: serde_json::Error,
    },
    /// A payload that is no object at all.
    #[error("payload: must be an object of lines")]
    PayloadNotAnObject,
    /// A reason that is too long to keep or cannot be shown.
    #[error("reason: at most {MAX_REASON_CHARS} characters, without control characters")]
    Reason,
    /// A payload that breaks a rule.
    #[error(transparent)]
    Payload(#[from] InvalidPayload),
}

/// Checks a payload's JSON text against every rule of the contract's section 5.
///
/// # Errors
/// [`InvalidPayload`] says where it breaks which rule.
pub fn payload(text: &str) -> Result<Payload, InvalidPayload> {
    let mut check = PayloadCheck { path: String::from("payload") };
    if text.len() > MAX_PAYLOAD_BYTES {
        return Err(check.broken(Rule::TooLarge));
    }
    check.object(text, 1)?;
    Payload::parse(text).map_err(|_| check.broken(Rule::NotLines))
}

/// A payload breaks a rule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {rule}")]
pub struct InvalidPayload {
    /// Where, such as `payload.moneyline.home`.
    pub path: String,
    /// Which.
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

/// Walks a payload, knowing where it is.
struct PayloadCheck {
    path: String,
}

impl PayloadCheck {
    /// `depth`: 1 for the payload, 2 for a line, 3 for what a selection may hold.
    fn object(&mut self, text: &str, depth: usize) -> Result<(), InvalidPayload> {
        // The text is known to be JSON: what can still be wrong in it is a name.
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

    /// `depth`: the one that `text` is at if it is an object or an array.
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

/// A digest of who asks what, so that an idempotency key is good for nothing else.
#[must_use]
pub fn idempotency(key: String, actor: &str, text: &[u8]) -> Idempotency {
    let mut digest = Sha256::new();
    // The length keeps an actor's end and a text's beginning apart.
    digest.update(actor.len().to_be_bytes());
    digest.update(actor);
    digest.update(text);
    Idempotency { key, fingerprint: format!("{:x}", Bytes::copy_from_slice(&digest.finalize())) }
}

/// Appends, in one round trip, and counts what became of each. The answers come in the order of `appends`.
pub async fn submit(backbone: &dyn Backbone, mut appends: Vec<Append>) -> Vec<Result<Appended, NotAppended>> {
    let request = Request::of(&appends);
    let span = request.trace.and_then(|parent| trace(parent, &mut appends));
    let keyed: Vec<bool> = appends.iter().map(|append| append.idempotency.is_some()).collect();
    let started = Instant::now();
    let answer = timeout(APPEND_TIMEOUT, backbone.append(appends)).await;
    ::metrics::histogram!(metrics::APPEND_SECONDS).record(started.elapsed());
    let results: Vec<Result<Appended, NotAppended>> = if let Ok(results) = answer {
        let known = |(result, keyed): (Result<_, _>, bool)| {
            result.map_err(|error| NotAppended::new(error, keyed, &request))
        };
        results.into_iter().zip(keyed).map(known).collect()
    } else {
        tracing::error!(
            request_id = request.id,
            trace_id = request.trace_id(),
            overrides = keyed.len(),
            after_s = APPEND_TIMEOUT.as_secs(),
            "append timed out"
        );
        keyed.into_iter().map(|keyed| Err(NotAppended::Unknown { keyed })).collect()
    };
    for result in &results {
        metrics::count_override(match result {
            Ok(Appended { replayed: false, .. }) => "appended",
            Ok(Appended { replayed: true, .. }) => "replayed",
            Err(not_appended) => not_appended.outcome(),
        });
    }
    if let Some(mut span) = span
        && results.iter().flat_map(Result::as_ref).next().is_none()
    {
        span.fail();
    }
    results
}

/// The request that some appends came in, for the log.
#[derive(Default)]
struct Request {
    id: String,
    trace: Option<Parent>,
}

impl Request {
    fn of(appends: &[Append]) -> Self {
        appends
            .first()
            .map_or_else(Self::default, |append| Self { id: append.request_id.clone(), trace: append.trace })
    }

    fn trace_id(&self) -> Option<DisplayValue<impl fmt::Display>> {
        self.trace.map(|span| field::display(span.trace_id()))
    }
}

/// The span of these appends, which go on from it.
fn trace(request: Parent, appends: &mut [Append]) -> Option<Span> {
    let mut span = traces::child(request, "append", SpanKind::Client, SystemTime::now())?;
    span.set("kmarket.overrides", i64::try_from(appends.len()).unwrap_or(i64::MAX));
    if let [append] = appends {
        span.set("kmarket.market", append.market.to_string());
    }
    for append in appends {
        append.trace = Some(span.parent());
    }
    Some(span)
}

/// Why an override is not, or may not be, in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAppended {
    /// The market is elsewhere.
    #[error("expectedSeq: the market is at seq {}", current.seq)]
    Conflict {
        /// Where it is.
        current: Position,
    },
    /// The key stands for another request.
    #[error("Idempotency-Key: it was used for a different request")]
    KeyReused,
    /// No connection could be had.
    #[error("the log is out of reach; nothing was appended: retry")]
    Unreachable,
    /// No answer came.
    #[error("{}", Self::unknown(*keyed))]
    Unknown {
        /// Whether the request had an idempotency key.
        keyed: bool,
    },
    /// It is in the log, but too few replicas have it.
    #[error(
        "appended as seq {}, but only {replicas} of {wanted} replicas have it, so that a failover may lose it: retry with \
         the same Idempotency-Key to wait for them again", position.seq
    )]
    NotReplicated {
        /// Where it stands.
        position: Position,
        /// How many have it.
        replicas: usize,
        /// How many should.
        wanted: usize,
    },
    /// An earlier part of the same batch had no answer.
    #[error("the log is out of reach; this override was not sent to it: retry")]
    NotSent,
}

impl NotAppended {
    fn new(error: AppendError, keyed: bool, request: &Request) -> Self {
        match error {
            AppendError::Conflict { current } => Self::Conflict { current },
            AppendError::KeyReused => Self::KeyReused,
            AppendError::NotReplicated { position, replicas, wanted } => {
                Self::NotReplicated { position, replicas, wanted }
            }
            AppendError::Backbone(error) => {
                tracing::error!(
                    request_id = request.id,
                    trace_id = request.trace_id(),
                    %error,
                    "append failed"
                );
                let never_sent = match &error {
                    BackboneError::Redis(error) => {
                        error.is_connection_refusal()
                            || error.code().is_some_and(|code| REFUSED_WHOLE.contains(&code))
                    }
                    BackboneError::Malformed { .. } => false,
                };
                if never_sent { Self::Unreachable } else { Self::Unknown { keyed } }
            }
        }
    }

    /// Whether the backbone is to blame, not the override.
    #[must_use]
    pub const fn is_unavailable(self) -> bool {
        matches!(self, Self::Unreachable | Self::Unknown { .. } | Self::NotSent)
    }

    /// The value of the label `outcome`.
    const fn outcome(self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::KeyReused => "key_reused",
            Self::NotReplicated { .. } => "not_replicated",
            Self::Unreachable | Self::Unknown { .. } | Self::NotSent => "unavailable",
        }
    }

    const fn unknown(keyed: bool) -> &'static str {
        if keyed {
            "outcome unknown: retry with the same Idempotency-Key; the override may have been appended"
        } else {
            "outcome unknown: the override may have been appended; look into the audit before sending it again, \
             and send an Idempotency-Key to make retries safe"
        }
    }
}

/// A JSON object's members as they stand, a name that stands twice included.
pub(crate) fn members(text: &str) -> Result<Vec<(String, &RawValue)>, serde_json::Error> {
    struct Members<'a>(Vec<(String, &'a RawValue)>);

    impl<'de> Deserialize<'de> for Members<'de> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;

            impl<'de> de::Visitor<'de> for Visitor {
                type Value = Members<'de>;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut members = Vec::new();
                    while let Some(member) = map.next_entry()? {
                        members.push(member);
                    }
                    Ok(Members(members))
                }
            }

            deserializer.deserialize_map(Visitor)
        }
    }

    serde_json::from_str(text).map(|Members(members)| members)
}

fn read<T: DeserializeOwned>(field: &'static str, value: &RawValue) -> Result<T, InvalidOverride> {
    serde_json::from_str(value.get()).map_err(|problem| InvalidOverride::WrongType { field, problem })
}

/// A seq that every client's number type holds.
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

/// A name from outside, short enough for a message.
fn shortened(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests;
