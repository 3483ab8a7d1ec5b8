//! A request to suspend or open markets, as JSON.

use protocol::{
    MarketId,
    json::json_problem,
    overrides::{self, check_reason, reason_schema},
    schema::{always, market_id},
};
use serde::Deserialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Object, RefOr, Schema, Type,
        schema::{AdditionalProperties, Array, OneOf},
    },
};

/// The most ids of a request.
const MAX_MARKETS: usize = 1000;
/// The longest request, bytes: [`MAX_MARKETS`] ids and a reason.
pub(crate) const MAX_STATUS_BYTES: usize = 64 * 1024;

/// Whether bets are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Open,
    /// Bets are not taken for now.
    Suspended,
}

impl Status {
    /// Returns the `state` member of the line `status`.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Suspended => "suspended",
        }
    }
}

/// Which markets to suspend or open, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusRequest {
    /// `None`: all markets.
    pub(crate) markets: Option<Vec<MarketId>>,
    /// Empty if the request gives none.
    pub(crate) reason: String,
}

impl StatusRequest {
    /// Reads `{"marketIds":[1001,…],"reason":"…"}` or `{"all":true,"reason":"…"}`.
    ///
    /// # Errors
    /// [`InvalidStatus`].
    pub(crate) fn parse(body: &[u8]) -> Result<Self, InvalidStatus> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        struct Body {
            market_ids: Option<Vec<MarketId>>,
            #[serde(default)]
            all: bool,
            reason: Option<String>,
        }

        let Body { market_ids, all, reason } = serde_json::from_slice(body)?;
        let reason = reason.unwrap_or_default();
        if !check_reason(&reason) {
            return Err(InvalidStatus::Reason);
        }
        match (market_ids, all) {
            (Some(ids), false) if ids.len() > MAX_MARKETS => Err(InvalidStatus::TooMany),
            (Some(ids), false) => Ok(Self { markets: Some(ids), reason }),
            (None, true) => Ok(Self { markets: None, reason }),
            _ => Err(InvalidStatus::Which),
        }
    }
}

impl PartialSchema for StatusRequest {
    fn schema() -> RefOr<Schema> {
        let ids = Array::builder().items(market_id()).max_items(Some(MAX_MARKETS));
        let nothing = || Object::with_type(Type::Null);
        let request = |ids: RefOr<Schema>, all: RefOr<Schema>| {
            Object::builder()
                .property("marketIds", ids)
                .property("all", all)
                .property("reason", reason_schema())
                .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        };
        OneOf::builder()
            .item(request(ids.into(), always::<false>()).required("marketIds"))
            .item(request(nothing().into(), always::<true>()).required("all"))
            .description(Some("Which markets, and why."))
            .into()
    }
}

impl ToSchema for StatusRequest {}

/// Why a request to suspend or open markets is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidStatus {
    /// The body is not an object of the known members.
    #[error("the body must be {{\"marketIds\":[…],\"reason\":\"…\"}}: {}", json_problem(.0))]
    Json(#[from] serde_json::Error),
    /// The body has both `marketIds` and `all`, or neither.
    #[error("either marketIds or \"all\":true says which markets")]
    Which,
    #[error("marketIds: at most {MAX_MARKETS}")]
    TooMany,
    /// The reason is too long to keep, or cannot be shown.
    #[error("reason: at most {} characters, without control characters", overrides::MAX_REASON_CHARS)]
    Reason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_either_ids_or_all() {
        let parse = |body: &str| StatusRequest::parse(body.as_bytes());
        let all = parse(r#"{"all":true,"reason":"storm"}"#).unwrap();
        assert_eq!(all, StatusRequest { markets: None, reason: "storm".into() });
        assert_eq!(parse(r#"{"marketIds":[7,"8"]}"#).unwrap().markets.unwrap().len(), 2);
        for body in ["{}", r#"{"all":false}"#, r#"{"all":true,"marketIds":[1]}"#] {
            assert!(matches!(parse(body), Err(InvalidStatus::Which)), "{body}");
        }
        for body in ["", "[]", r#"{"marketIds":1}"#, r#"{"marketIds":[0]}"#, r#"{"all":true,"x":1}"#] {
            assert!(matches!(parse(body), Err(InvalidStatus::Json(_))), "{body}");
        }
        assert!(matches!(parse("{\"all\":true,\"reason\":\"\\u0000\"}"), Err(InvalidStatus::Reason)));
        let many = format!(r#"{{"marketIds":[{}]}}"#, ["7"; 1001].join(","));
        assert!(matches!(parse(&many), Err(InvalidStatus::TooMany)));
    }
}
