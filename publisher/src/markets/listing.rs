//! The list of markets and their states (`GET /admin/markets`).

use backbone::Backbone;
use protocol::{
    Epoch, MarketId, Payload, Seq, ids::InvalidMarketId, schema, time::unix_ms, update::MarketState,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{Object, RefOr, Schema, Type},
};

use super::{MarketsError, in_time, load};

/// Markets of a page when the query has no limit.
const DEFAULT_LIMIT: usize = 100;
/// The most markets of a page, and the most ids of a query.
const MAX_LIMIT: usize = 200;

/// Returns a page as JSON: `{"markets":[…],"hasMore":false,"now":…}`. The next page is `after` its last id.
///
/// # Errors
/// [`MarketsError`] if the markets cannot be read.
pub(crate) async fn list(backbone: &dyn Backbone, request: MarketsRequest) -> Result<String, MarketsError> {
    let (ids, has_more) = match request {
        MarketsRequest::These(ids) => (ids, false),
        MarketsRequest::Page { search, after, limit } => {
            let all = in_time(backbone.markets()).await?;
            let follows = |id: &MarketId| after.is_none_or(|after| *id > after);
            let matches = |id: &MarketId| search.is_empty() || id.to_string().contains(&search);
            let mut ids: Vec<MarketId> =
                all.into_iter().filter(follows).filter(matches).take(limit + 1).collect();
            let has_more = ids.len() > limit;
            ids.truncate(limit);
            (ids, has_more)
        }
    };
    let states = load(backbone, &ids).await?;
    let now = unix_ms();
    let markets = ids.iter().zip(states).filter_map(|(id, state)| Some(Market::new(*id, &state?)));
    let markets = markets.collect::<Result<_, _>>()?;
    Ok(serde_json::to_string(&MarketsPage { markets, has_more, now })?)
}

/// `?search=&after=&limit=` or `?ids=1001,1002`, as received. An empty parameter counts as absent.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
pub(crate) struct MarketsQuery {
    /// Only markets whose id contains this text in decimal.
    #[param(required = false)]
    search: String,
    /// Only markets above this id: the last id of the page before.
    #[param(required = false, value_type = MarketId)]
    after: String,
    /// The most markets of the page.
    #[param(required = false, schema_with = limit_schema)]
    limit: String,
    /// These markets, in this order. Cannot be combined with the other parameters.
    #[param(required = false, schema_with = ids_schema)]
    ids: String,
}

fn limit_schema() -> RefOr<Schema> {
    schema::limit(DEFAULT_LIMIT, MAX_LIMIT)
}

fn ids_schema() -> RefOr<Schema> {
    let most_commas = MAX_LIMIT - 1;
    Object::builder()
        .schema_type(Type::String)
        .pattern(Some(format!("^([1-9][0-9]{{0,14}}(,[1-9][0-9]{{0,14}}){{0,{most_commas}}})?$")))
        .description(Some(format!("At most {MAX_LIMIT} market ids, separated by commas.")))
        .into()
}

/// The markets that a query selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MarketsRequest {
    /// Part of all markets, ascending.
    Page {
        /// Only markets whose id contains this text in decimal.
        search: String,
        /// Only markets above this id.
        after: Option<MarketId>,
        /// The most markets, 1 … [`MAX_LIMIT`].
        limit: usize,
    },
    /// These markets, in this order.
    These(Vec<MarketId>),
}

impl MarketsQuery {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`InvalidMarketsQuery`] names the parameter.
    pub(crate) fn parse(self) -> Result<MarketsRequest, InvalidMarketsQuery> {
        if !self.ids.is_empty() {
            if ![self.search, self.after, self.limit].iter().all(String::is_empty) {
                return Err(InvalidMarketsQuery::Both);
            }
            let ids: Vec<MarketId> = self
                .ids
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(InvalidMarketsQuery::Ids)?;
            return if ids.len() > MAX_LIMIT {
                Err(InvalidMarketsQuery::TooMany)
            } else {
                Ok(MarketsRequest::These(ids))
            };
        }
        let after = match &*self.after {
            "" => None,
            after => Some(after.parse().map_err(InvalidMarketsQuery::After)?),
        };
        let limit = if self.limit.is_empty() { Some(DEFAULT_LIMIT) } else { self.limit.parse().ok() };
        let limit =
            limit.filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or(InvalidMarketsQuery::Limit)?;
        Ok(MarketsRequest::Page { search: self.search, after, limit })
    }
}

/// Why a query is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidMarketsQuery {
    #[error("ids: not together with search, after or limit")]
    Both,
    #[error("ids: {0}, and commas between them")]
    Ids(InvalidMarketId),
    #[error("ids: at most {MAX_LIMIT}")]
    TooMany,
    #[error("after: {0}")]
    After(InvalidMarketId),
    #[error("limit: an integer from 1 to {MAX_LIMIT}")]
    Limit,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "Markets and their states.")]
pub(crate) struct MarketsPage {
    /// Ascending, or in the order of `ids`.
    markets: Vec<Market>,
    /// Whether more markets follow the last one.
    has_more: bool,
    /// The server's clock in Unix milliseconds, to compare `ts` with.
    now: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Market {
    market_id: MarketId,
    epoch: Epoch,
    /// The market's last update; 0 before the first.
    seq: Seq,
    /// Unix milliseconds at which the last update was accepted; 0 before the first.
    ts: u64,
    /// All lines.
    #[schema(value_type = Payload)]
    payload: Box<RawValue>,
}

impl Market {
    fn new(market_id: MarketId, state: &MarketState) -> Result<Self, serde_json::Error> {
        let payload = RawValue::from_string(state.payload_json())?;
        Ok(Self { market_id, epoch: state.position.epoch, seq: state.position.seq, ts: state.ts, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(
        search: &str,
        after: &str,
        limit: &str,
        ids: &str,
    ) -> Result<MarketsRequest, InvalidMarketsQuery> {
        let [search, after, limit, ids] = [search, after, limit, ids].map(str::to_owned);
        MarketsQuery { search, after, limit, ids }.parse()
    }

    #[test]
    fn an_invalid_query_names_the_parameter() {
        for (after, limit, ids, wrong) in [
            ("0", "", "", InvalidMarketsQuery::After(InvalidMarketId)),
            ("", "0", "", InvalidMarketsQuery::Limit),
            ("", "201", "", InvalidMarketsQuery::Limit),
            ("", "x", "", InvalidMarketsQuery::Limit),
            ("", "", "1,x", InvalidMarketsQuery::Ids(InvalidMarketId)),
            ("", "", "1,", InvalidMarketsQuery::Ids(InvalidMarketId)),
            ("", "5", "1", InvalidMarketsQuery::Both),
            ("", "", &["7"; 201].join(","), InvalidMarketsQuery::TooMany),
        ] {
            assert_eq!(query("", after, limit, ids), Err(wrong), "{after:?} {limit:?} {ids:?}");
        }
        let one = MarketId::new(1).unwrap();
        assert_eq!(query("", "", "", "1,1"), Ok(MarketsRequest::These(vec![one, one])));
        let page = MarketsRequest::Page { search: "10".into(), after: Some(one), limit: 200 };
        assert_eq!(query("10", "1", "200", ""), Ok(page));
    }
}
