//! The shapes of the responses to overrides, batches, and requests that suspend or open markets.
//!
//! A batch, and a request for several markets, gets one result per item: each succeeds or fails alone.

use std::borrow::Cow;

use backbone::{Appended, Durability};
use protocol::{Epoch, MarketId, Seq, schema::always};
use serde::{Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema, schema::OneOf},
};

use crate::{
    batch::ItemError,
    markets::{StatusNotSet, StatusSet},
    problem::{Problem, ProblemItem},
};

/// The response to an override that is in the log.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Appended, description = "An update that is in the log, the state and the audit.")]
pub(crate) struct AppendedBody {
    /// The market of the update.
    market_id: MarketId,
    /// The epoch of the market's log.
    epoch: Epoch,
    /// The update's number in the log.
    seq: Seq,
    /// Unix milliseconds at which the override was accepted.
    ts: u64,
    /// The audit entry's id, `<market>-<Unix ms>-<n>`, unique over all markets.
    #[schema(example = "1001-1710001113000-0")]
    audit_id: String,
    /// `replicated` when `PUBLISH_MIN_REPLICAS` replicas have the update as well.
    #[schema(value_type = Durability)]
    durability: &'static str,
}

impl From<&Appended> for AppendedBody {
    fn from(appended: &Appended) -> Self {
        Self {
            market_id: appended.audit_id.market,
            epoch: appended.position.epoch,
            seq: appended.position.seq,
            ts: appended.ts,
            audit_id: appended.audit_id.to_string(),
            durability: appended.durability.as_str(),
        }
    }
}

/// The result of one item of a batch.
pub(crate) struct BatchItem(Result<Appended, Problem>);

impl From<Result<Appended, ItemError>> for BatchItem {
    fn from(result: Result<Appended, ItemError>) -> Self {
        Self(result.map_err(Problem::from))
    }
}

impl Serialize for BatchItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(appended) => {
                let (body, replayed) = (appended.into(), appended.replayed);
                AppendedItem { ok: true, body, replayed }.serialize(serializer)
            }
            Err(problem) => problem.item().serialize(serializer),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct AppendedItem {
    #[schema(schema_with = always::<true>)]
    ok: bool,
    #[serde(flatten)]
    body: AppendedBody,
    /// `true` if an earlier request with the same `Idempotency-Key` had appended it; otherwise absent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
}

impl PartialSchema for BatchItem {
    fn schema() -> RefOr<Schema> {
        OneOf::builder().item(AppendedItem::schema()).item(ProblemItem::schema()).into()
    }
}

impl ToSchema for BatchItem {
    fn name() -> Cow<'static, str> {
        "BatchItem".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        AppendedItem::schemas(schemas);
        ProblemItem::schemas(schemas);
    }
}

/// The result of one market that a request suspends or opens.
pub(crate) struct StatusResult(Result<StatusSet, Problem>);

impl From<Result<StatusSet, StatusNotSet>> for StatusResult {
    fn from(result: Result<StatusSet, StatusNotSet>) -> Self {
        Self(result.map_err(Problem::from))
    }
}

impl Serialize for StatusResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(StatusSet::Changed(appended)) => {
                ChangedItem { ok: true, body: appended.into(), changed: true }.serialize(serializer)
            }
            Ok(StatusSet::Unchanged { market, state }) => UnchangedItem {
                ok: true,
                market_id: *market,
                epoch: state.position.epoch,
                seq: state.position.seq,
                ts: state.ts,
                changed: false,
            }
            .serialize(serializer),
            Err(problem) => problem.item().serialize(serializer),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct ChangedItem {
    #[schema(schema_with = always::<true>)]
    ok: bool,
    #[serde(flatten)]
    body: AppendedBody,
    #[schema(schema_with = always::<true>)]
    changed: bool,
}

/// The market has this status already, or it is closed and was not named.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct UnchangedItem {
    #[schema(schema_with = always::<true>)]
    ok: bool,
    market_id: MarketId,
    epoch: Epoch,
    seq: Seq,
    /// Unix milliseconds at which the market's last update was accepted.
    ts: u64,
    #[schema(schema_with = always::<false>)]
    changed: bool,
}

impl PartialSchema for StatusResult {
    fn schema() -> RefOr<Schema> {
        OneOf::builder()
            .item(ChangedItem::schema())
            .item(UnchangedItem::schema())
            .item(ProblemItem::schema())
            .into()
    }
}

impl ToSchema for StatusResult {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ChangedItem::schemas(schemas);
        UnchangedItem::schemas(schemas);
        ProblemItem::schemas(schemas);
    }
}
