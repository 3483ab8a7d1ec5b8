//! Many overrides in one request (`docs/protocol.md#post-adminoddsbatch--trader`). Each has its own result, and fails alone.
//!
//! ```text
//! [{"marketId":1001,…},{"marketId":"x",…}]   →   [{"ok":true,"marketId":1001,"epoch":…,"seq":…,"ts":…,"auditId":…},
//!                                                 {"ok":false,"code":"BAD_REQUEST","message":"marketId: …"}]
//! ```
//!
//! A body in NDJSON gets its results in NDJSON.

use std::fmt;

use backbone::{Appended, Backbone};
use protocol::{
    json::json_problem,
    overrides::{InvalidOverride, Override},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IgnoredAny, SeqAccess},
};
use serde_json::value::RawValue;

use crate::{
    append::{self, NotAppended, Sender},
    metrics,
};

/// The most overrides in a batch.
pub const MAX_ITEMS: usize = 1000;
/// The longest batch, bytes: [`MAX_ITEMS`] of the largest payloads (16 KiB) with reasons of some KiB each.
pub(crate) const MAX_BATCH_BYTES: usize = 20 * 1024 * 1024;
/// Overrides that go to the backbone in one pipeline: at most 1.6 MiB of payloads. Other requests get their turn in
/// between.
const CHUNK: usize = 100;

/// The format of a batch and of its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One array.
    Json,
    /// One override per line; blank lines are skipped.
    Ndjson,
}

impl Format {
    /// Returns NDJSON for the content type `application/x-ndjson`, else JSON.
    #[must_use]
    pub(crate) fn of(content_type: Option<&str>) -> Self {
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case(Self::Ndjson.content_type()) { Self::Ndjson } else { Self::Json }
    }

    /// Returns the content type of the response.
    #[must_use]
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// Returns the body of the response.
    #[must_use]
    pub(crate) fn write(self, results: &[impl Serialize]) -> String {
        let texts = results.iter().map(|result| serde_json::to_string(result).unwrap_or_default());
        match self {
            Self::Json => format!("[{}]", texts.collect::<Vec<_>>().join(",")),
            Self::Ndjson => texts.fold(String::new(), |body, text| body + &text + "\n"),
        }
    }
}

/// Splits a batch's body into the texts of its items. A line of NDJSON may be no UTF-8 text and then fails alone.
///
/// # Errors
/// [`InvalidBatch`] if the batch as a whole cannot be read.
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
    /// The body is not UTF-8, and so not JSON.
    #[error("the body is not UTF-8 text")]
    NotUtf8,
    /// The body is not a JSON array.
    #[error("not a JSON array of overrides (for NDJSON say content-type: application/x-ndjson): {}", json_problem(.0))]
    Json(#[from] serde_json::Error),
    /// The batch has more than [`MAX_ITEMS`] overrides.
    #[error("a batch has at most {MAX_ITEMS} overrides")]
    TooManyItems,
}

/// Appends the items in order, and returns one result per item, in order. With an idempotency key, item `i` (from 0) has
/// the key `<key>#<i>`.
pub(crate) async fn run(
    backbone: &dyn Backbone,
    sender: &Sender<'_>,
    idempotency_key: Option<&str>,
    items: Vec<Result<&str, InvalidOverride>>,
) -> Vec<Result<Appended, ItemError>> {
    let mut results = Vec::with_capacity(items.len());
    let mut items = items.into_iter().enumerate();
    let mut is_unavailable = false;
    while items.len() > 0 {
        let mut appends = Vec::with_capacity(CHUNK);
        // One per item: why it is invalid, or nothing if it is among the appends.
        let mut invalid = Vec::with_capacity(CHUNK);
        for (index, item) in items.by_ref().take(CHUNK) {
            let append = item.and_then(|text| {
                let parsed = Override::parse(text)?;
                let idempotency = idempotency_key
                    .map(|key| append::idempotency(format!("{key}#{index}"), sender.actor, text.as_bytes()));
                Ok(sender.append(parsed, idempotency))
            });
            invalid.push(append.map(|append| appends.push(append)).err());
        }
        let appended = match appends.len() {
            0 => Vec::new(),
            unsent if is_unavailable => vec![Err(NotAppended::NotSent); unsent],
            _ => append::submit(backbone, appends).await,
        };
        // Once a whole chunk has failed, the rest of the batch does not wait for one timeout per chunk.
        is_unavailable |= !appended.is_empty()
            && appended.iter().all(|result| result.as_ref().is_err_and(|error| error.is_unavailable()));
        let mut appended = appended.into_iter();
        results.extend(invalid.into_iter().map(|invalid| match invalid {
            Some(error) => {
                metrics::count_override("invalid");
                Err(error.into())
            }
            None => appended.next().unwrap_or(Err(NotAppended::NotSent)).map_err(ItemError::from),
        }));
    }
    results
}

/// Why an item of a batch is not acknowledged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ItemError {
    #[error(transparent)]
    Invalid(#[from] InvalidOverride),
    #[error(transparent)]
    NotAppended(#[from] NotAppended),
}

/// The texts of an array's items. Items past [`MAX_ITEMS`] are skipped, so that they take no memory.
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
