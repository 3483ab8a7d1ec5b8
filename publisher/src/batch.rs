//! Many overrides in one request: each has its own answer, and a bad one fails alone (contract, section 5).
//!
//! ```text
//! [{"marketId":1001,…},{"marketId":"x",…}]   →   [{"ok":true,"marketId":1001,"epoch":…,"seq":…,"ts":…,"auditId":…},
//!                                                 {"ok":false,"code":"BAD_REQUEST","message":"marketId: …"}]
//! ```
//!
//! NDJSON in, NDJSON out. An item replayed by its idempotency key adds `"replayed":true`, a `CONFLICT` adds
//! `"currentSeq"`.

use std::{borrow::Cow, fmt};

use backbone::{Appended, Backbone};
use protocol::{
    error::json_problem,
    overrides::{InvalidOverride, Override},
    schema::always,
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IgnoredAny, SeqAccess},
};
use serde_json::value::RawValue;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema, schema::OneOf},
};

use crate::{
    append::{self, NotAppended, Sender},
    http::{Answer, Problem, ProblemItem},
    metrics,
};

/// The most overrides in a batch (contract, section 5).
pub const MAX_ITEMS: usize = 1000;
/// The longest batch, bytes: [`MAX_ITEMS`] of the largest payloads (16 KiB) with reasons of some KiB each.
pub const MAX_BATCH_BYTES: usize = 20 * 1024 * 1024;
/// How many overrides are asked of the backbone at once: at most 1.6 MiB of payloads in one pipeline, and other
/// requests get their turn in between.
const PART: usize = 100;

/// How a batch is written, and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One array.
    Json,
    /// One override a line; blank lines are skipped.
    Ndjson,
}

impl Format {
    /// By content type: NDJSON for `application/x-ndjson`, else a JSON array.
    #[must_use]
    pub fn of(content_type: Option<&str>) -> Self {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case(Self::Ndjson.content_type()) { Self::Ndjson } else { Self::Json }
    }

    /// What the answer is labelled with.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// The answer's body.
    #[must_use]
    pub fn write(self, results: &[ItemResult]) -> String {
        let texts = results.iter().map(|result| serde_json::to_string(result).unwrap_or_default());
        match self {
            Self::Json => format!("[{}]", texts.collect::<Vec<_>>().join(",")),
            Self::Ndjson => texts.fold(String::new(), |body, text| body + &text + "\n"),
        }
    }
}

/// Takes a batch's body apart into its items' texts. Under NDJSON an item may turn out not to be text at all.
///
/// # Errors
/// [`InvalidBatch`] when the batch as a whole cannot be read.
pub fn split(body: &[u8], format: Format) -> Result<Vec<Result<&str, InvalidOverride>>, InvalidBatch> {
    let items: Vec<_> = match format {
        Format::Json => {
            let text = std::str::from_utf8(body).map_err(|_| InvalidBatch::NotUtf8)?;
            let Array { items, too_many } = serde_json::from_str(text)?;
            if too_many {
                return Err(InvalidBatch::TooManyItems);
            }
            items.into_iter().map(|item| Ok(item.get())).collect()
        }
        Format::Ndjson => body
            .split(|&byte| byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .take(MAX_ITEMS + 1)
            .map(|line| std::str::from_utf8(line).map_err(|_| InvalidOverride::NotUtf8))
            .collect(),
    };
    if items.len() > MAX_ITEMS { Err(InvalidBatch::TooManyItems) } else { Ok(items) }
}

/// Why a batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBatch {
    /// Not UTF-8, and so not JSON.
    #[error("the body is not UTF-8 text")]
    NotUtf8,
    /// Not a JSON array.
    #[error("not a JSON array of overrides (for NDJSON say content-type: application/x-ndjson): {}", json_problem(.0))]
    Json(#[from] serde_json::Error),
    /// More than are taken at once.
    #[error("a batch has at most {MAX_ITEMS} overrides")]
    TooManyItems,
}

/// Appends the items in order and answers for each, in order. With an idempotency key item `i` (from 0) has the key
/// `<key>#<i>`.
pub async fn run(
    backbone: &dyn Backbone,
    sender: &Sender<'_>,
    idempotency_key: Option<&str>,
    items: Vec<Result<&str, InvalidOverride>>,
) -> Vec<ItemResult> {
    let mut results = Vec::with_capacity(items.len());
    let mut items = items.into_iter().enumerate();
    let mut out_of_reach = false;
    while items.len() > 0 {
        let mut appends = Vec::with_capacity(PART);
        let mut refusals = Vec::with_capacity(PART);
        for (index, item) in items.by_ref().take(PART) {
            let append = item.and_then(|text| {
                let parsed = Override::parse(text)?;
                let idempotency = idempotency_key
                    .map(|key| append::idempotency(format!("{key}#{index}"), sender.actor, text.as_bytes()));
                Ok(sender.append(parsed, idempotency))
            });
            refusals.push(append.map(|append| appends.push(append)).err());
        }
        let answers = match appends.len() {
            0 => Vec::new(),
            unsent if out_of_reach => vec![Err(NotAppended::NotSent); unsent],
            _ => append::submit(backbone, appends).await,
        };
        // Where nobody answers, the rest of the batch does not wait for as many time-outs as it has parts.
        let unavailable =
            |answer: &Result<_, NotAppended>| answer.as_ref().is_err_and(|why| why.is_unavailable());
        out_of_reach |= !answers.is_empty() && answers.iter().all(unavailable);
        let mut answers = answers.into_iter();
        results.extend(refusals.into_iter().map(|refusal| {
            ItemResult(match refusal {
                Some(invalid) => {
                    metrics::count_override("invalid");
                    Err(invalid.into())
                }
                None => answers.next().unwrap_or(Err(NotAppended::NotSent)).map_err(Problem::from),
            })
        }));
    }
    results
}

/// What became of one item.
#[derive(Debug)]
pub struct ItemResult(Result<Appended, Problem>);

#[derive(Serialize, ToSchema)]
struct Done {
    #[schema(schema_with = always::<true>)]
    ok: bool,
    #[serde(flatten)]
    answer: Answer,
    /// `true` when it is replayed by its idempotency key; else absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
}

impl PartialSchema for ItemResult {
    fn schema() -> RefOr<Schema> {
        OneOf::builder().item(Done::schema()).item(ProblemItem::schema()).into()
    }
}

impl ToSchema for ItemResult {
    fn name() -> Cow<'static, str> {
        "BatchItem".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Done::schemas(schemas);
        ProblemItem::schemas(schemas);
    }
}

impl Serialize for ItemResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(appended) => {
                Done { ok: true, answer: appended.into(), replayed: appended.replayed }.serialize(serializer)
            }
            Err(problem) => problem.item().serialize(serializer),
        }
    }
}

/// An array's items, unread. Past [`MAX_ITEMS`] they are only skipped over, so that they cost no memory.
struct Array<'a> {
    items: Vec<&'a RawValue>,
    too_many: bool,
}

impl<'de> Deserialize<'de> for Array<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Array<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut array = Array { items: Vec::new(), too_many: false };
                while array.items.len() < MAX_ITEMS {
                    match seq.next_element()? {
                        Some(item) => array.items.push(item),
                        None => return Ok(array),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    array.too_many = true;
                }
                Ok(array)
            }
        }

        deserializer.deserialize_seq(Visitor)
    }
}
