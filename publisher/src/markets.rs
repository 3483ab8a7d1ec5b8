//! All markets at once: their states for a page that lists them, and suspending and opening them.

use std::{collections::BTreeMap, time::Duration};

use backbone::{Append, Appended, Backbone, BackboneError};
use protocol::{
    Epoch, MarketId, Payload, Seq,
    error::{ErrorCode, json_problem},
    ids::InvalidMarketId,
    overrides::{self, check_reason, members, reason_schema},
    schema::{always, market_id},
    time::unix_ms,
    update::{MarketState, lines_json, quoted},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        Object, RefOr, Schema, Type,
        schema::{AdditionalProperties, Array, OneOf},
    },
};

use crate::{
    append::{self, NotAppended, Sender},
    http::{Answer, Problem, ProblemItem},
};

/// Markets of a page when the query does not say.
pub const DEFAULT_LIMIT: usize = 100;
/// The most markets of a page, and the most that are asked for by their ids.
pub const MAX_LIMIT: usize = 200;
/// The most markets that one request suspends or opens by their ids.
pub const MAX_MARKETS: usize = 1000;
/// The longest request to suspend or open, bytes: [`MAX_MARKETS`] ids and a reason.
pub const MAX_STATUS_BYTES: usize = 64 * 1024;
/// How long the backbone may take.
const READ_TIMEOUT: Duration = Duration::from_secs(8);
/// The line that says whether bets are taken.
const STATUS: &str = "status";
/// How many markets are read, and then changed, at once: other requests get their turn in between.
const PART: usize = 100;
/// How often a market that changed between its read and its append is read again.
const ATTEMPTS: usize = 5;

/// `?search=&after=&limit=` or `?ids=1001,1002`, as it came. An empty value is an absent one.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
pub struct MarketsQuery {
    /// Only markets whose decimal id has this in it.
    #[param(required = false)]
    search: String,
    /// Only markets above this one: the last one of the page before.
    #[param(required = false, value_type = MarketId)]
    after: String,
    /// How many at most.
    #[param(required = false, schema_with = limit_taken)]
    limit: String,
    /// These markets, in this order; not together with the others.
    #[param(required = false, schema_with = ids_taken)]
    ids: String,
}

fn limit_taken() -> RefOr<Schema> {
    protocol::schema::limit(DEFAULT_LIMIT, MAX_LIMIT)
}

fn ids_taken() -> RefOr<Schema> {
    // Commas between them.
    let most = MAX_LIMIT - 1;
    Object::builder()
        .schema_type(Type::String)
        .pattern(Some(format!("^([1-9][0-9]{{0,14}}(,[1-9][0-9]{{0,14}}){{0,{most}}})?$")))
        .description(Some(format!("Market ids with commas between them, at most {MAX_LIMIT}.")))
        .into()
}

/// What a query asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarketsRequest {
    /// Part of all markets, ascending.
    Page {
        /// Only those whose decimal id has this in it.
        search: String,
        /// Only those above this one.
        after: Option<MarketId>,
        /// How many, 1 … [`MAX_LIMIT`].
        limit: usize,
    },
    /// These, in this order.
    These(Vec<MarketId>),
}

impl MarketsQuery {
    /// What it asks.
    ///
    /// # Errors
    /// [`InvalidQuery`] names the parameter.
    pub fn parse(self) -> Result<MarketsRequest, InvalidQuery> {
        if !self.ids.is_empty() {
            if ![self.search, self.after, self.limit].iter().all(String::is_empty) {
                return Err(InvalidQuery::Both);
            }
            let ids: Vec<MarketId> =
                self.ids.split(',').map(str::parse).collect::<Result<_, _>>().map_err(InvalidQuery::Ids)?;
            return if ids.len() > MAX_LIMIT {
                Err(InvalidQuery::TooMany)
            } else {
                Ok(MarketsRequest::These(ids))
            };
        }
        let after = match &*self.after {
            "" => None,
            after => Some(after.parse().map_err(InvalidQuery::After)?),
        };
        let limit = if self.limit.is_empty() { Some(DEFAULT_LIMIT) } else { self.limit.parse().ok() };
        let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or(InvalidQuery::Limit)?;
        Ok(MarketsRequest::Page { search: self.search, after, limit })
    }
}

/// Why a query cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuery {
    /// Two ways to say which.
    #[error("ids: not together with search, after or limit")]
    Both,
    /// Not market ids.
    #[error("ids: {0}, and commas between them")]
    Ids(InvalidMarketId),
    /// More ids than may be.
    #[error("ids: at most {MAX_LIMIT}")]
    TooMany,
    /// Not a market id.
    #[error("after: {0}")]
    After(InvalidMarketId),
    /// Not a number in range.
    #[error("limit: an integer from 1 to {MAX_LIMIT}")]
    Limit,
}

/// Why markets cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MarketsError {
    /// The backbone did not answer in time.
    #[error("the markets did not answer in time")]
    TimedOut,
    /// The backbone answered with an error.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// A state that this version did not write.
    #[error("a market's state is not JSON: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// One page as JSON: `{"markets":[…],"hasMore":false,"now":…}`. The next one is asked for with `after` = the last id.
///
/// # Errors
/// [`MarketsError`] when it cannot be read.
pub async fn page(backbone: &dyn Backbone, request: MarketsRequest) -> Result<String, MarketsError> {
    let (ids, has_more) = match request {
        MarketsRequest::These(ids) => (ids, false),
        MarketsRequest::Page { search, after, limit } => {
            let all = in_time(backbone.markets()).await?;
            let asked = |id: &MarketId| after.is_none_or(|after| *id > after);
            let found = |id: &MarketId| search.is_empty() || id.to_string().contains(&search);
            let mut ids: Vec<MarketId> =
                all.into_iter().filter(asked).filter(found).take(limit + 1).collect();
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

/// Each market's state. One that is not understood must not hide the others, nor keep them from being suspended: it is
/// `None`, and in the log.
async fn load(backbone: &dyn Backbone, ids: &[MarketId]) -> Result<Vec<Option<MarketState>>, MarketsError> {
    let is_its_own =
        |error: &MarketsError| matches!(error, MarketsError::Backbone(error) if !error.is_outage());
    match in_time(backbone.load(ids, 0)).await {
        Ok(loaded) => return Ok(loaded.into_iter().map(|loaded| Some(loaded.state)).collect()),
        Err(error) if is_its_own(&error) => {}
        Err(error) => return Err(error),
    }
    let mut states = Vec::with_capacity(ids.len());
    for &id in ids {
        states.push(match in_time(backbone.load(&[id], 0)).await {
            Ok(mut loaded) => loaded.pop().map(|loaded| loaded.state),
            Err(error) if is_its_own(&error) => {
                tracing::error!(market = %id, %error, "a market cannot be read");
                None
            }
            Err(error) => return Err(error),
        });
    }
    Ok(states)
}

async fn in_time<T>(reading: impl Future<Output = Result<T, BackboneError>>) -> Result<T, MarketsError> {
    Ok(timeout(READ_TIMEOUT, reading).await.map_err(|_| MarketsError::TimedOut)??)
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "Markets and their states.")]
pub(crate) struct MarketsPage {
    /// Ascending, or as asked by `ids`.
    markets: Vec<Market>,
    /// Whether there are more behind the last one.
    has_more: bool,
    /// The server's clock, Unix ms, by which a page tells how old a `ts` is.
    now: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Market {
    market_id: MarketId,
    epoch: Epoch,
    /// The last update that is in it; 0 before the first.
    seq: Seq,
    /// Unix milliseconds at which that was accepted; 0 before the first.
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

/// Whether bets are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// They are.
    Open,
    /// They are not, for now.
    Suspended,
}

impl Status {
    /// As the line `status` says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Suspended => "suspended",
        }
    }
}

/// What a market that is over says; nothing that is about all markets changes it.
const CLOSED: &str = "closed";

/// A request to suspend or open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRequest {
    /// Which markets; `None`: all.
    pub markets: Option<Vec<MarketId>>,
    /// Why; empty when not said.
    pub reason: String,
}

impl StatusRequest {
    /// Reads `{"marketIds":[1001,…],"reason":"…"}` or `{"all":true,"reason":"…"}`.
    ///
    /// # Errors
    /// [`InvalidStatus`] says what is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidStatus> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "camelCase")]
        struct Asked {
            market_ids: Option<Vec<MarketId>>,
            #[serde(default)]
            all: bool,
            reason: Option<String>,
        }

        let Asked { market_ids, all, reason } = serde_json::from_slice(body)?;
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

/// Why a request to suspend or open cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum InvalidStatus {
    /// Not an object of these members.
    #[error("the body must be {{\"marketIds\":[…],\"reason\":\"…\"}}: {}", json_problem(.0))]
    Json(#[from] serde_json::Error),
    /// Not one of the two ways to say which.
    #[error("either marketIds or \"all\":true says which markets")]
    Which,
    /// More than may be.
    #[error("marketIds: at most {MAX_MARKETS}")]
    TooMany,
    /// A reason that is too long to keep or cannot be shown.
    #[error("reason: at most {} characters, without control characters", overrides::MAX_REASON_CHARS)]
    Reason,
}

/// Brings each market to this status, and answers for each, in the order asked. What cannot be read or appended fails
/// alone; where nobody answers, the rest is not tried.
///
/// # Errors
/// [`MarketsError`] when all are asked for and cannot be listed.
pub async fn set_status(
    backbone: &dyn Backbone,
    sender: Sender<'_>,
    status: Status,
    request: StatusRequest,
) -> Result<Vec<StatusResult>, MarketsError> {
    let (markets, all) = match request.markets {
        Some(markets) => (markets, false),
        None => (in_time(backbone.markets()).await?, true),
    };
    let change = Change { sender, status, all, reason: &request.reason };
    let mut results = Vec::with_capacity(markets.len());
    let mut out_of_reach = false;
    for part in markets.chunks(PART) {
        if out_of_reach {
            results.extend(part.iter().map(|_| StatusResult(Err(NotAppended::NotSent.into()))));
            continue;
        }
        let answers = change.run(backbone, part).await;
        out_of_reach = answers.iter().all(|answer| {
            matches!(answer, StatusResult(Err(problem)) if problem.code() == ErrorCode::ServiceUnavailable)
        });
        results.extend(answers);
    }
    Ok(results)
}

/// What became of one market.
#[derive(Debug)]
pub struct StatusResult(Result<Done, Problem>);

#[derive(Debug)]
enum Done {
    Changed(Appended),
    Already { market: MarketId, state: MarketState },
}

#[derive(Serialize, ToSchema)]
struct Changed {
    #[schema(schema_with = always::<true>)]
    ok: bool,
    #[serde(flatten)]
    answer: Answer,
    #[schema(schema_with = always::<true>)]
    changed: bool,
}

/// It is what it was asked to be, or over.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Already {
    #[schema(schema_with = always::<true>)]
    ok: bool,
    market_id: MarketId,
    epoch: Epoch,
    seq: Seq,
    /// Unix milliseconds at which its last update was accepted.
    ts: u64,
    #[schema(schema_with = always::<false>)]
    changed: bool,
}

impl PartialSchema for StatusResult {
    fn schema() -> RefOr<Schema> {
        OneOf::builder().item(Changed::schema()).item(Already::schema()).item(ProblemItem::schema()).into()
    }
}

impl ToSchema for StatusResult {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Changed::schemas(schemas);
        Already::schemas(schemas);
        ProblemItem::schemas(schemas);
    }
}

impl Serialize for StatusResult {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(Done::Changed(appended)) => {
                Changed { ok: true, answer: appended.into(), changed: true }.serialize(serializer)
            }
            Ok(Done::Already { market, state }) => Already {
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

struct Change<'a> {
    sender: Sender<'a>,
    status: Status,
    all: bool,
    reason: &'a str,
}

impl Change<'_> {
    async fn run(&self, backbone: &dyn Backbone, markets: &[MarketId]) -> Vec<StatusResult> {
        let mut results: BTreeMap<usize, Result<Done, Problem>> = BTreeMap::new();
        let mut pending: Vec<usize> = (0..markets.len()).collect();
        for _ in 0..ATTEMPTS {
            let ids: Vec<MarketId> = pending.iter().map(|&index| markets[index]).collect();
            if ids.is_empty() {
                break;
            }
            let states = match load(backbone, &ids).await {
                Ok(states) => states,
                Err(error) => {
                    let problem = Problem::from(error);
                    results.extend(pending.drain(..).map(|index| (index, Err(problem.clone()))));
                    break;
                }
            };
            let (mut appended, mut appends) = (Vec::new(), Vec::new());
            for ((index, market), state) in pending.drain(..).zip(ids).zip(states) {
                let Some(state) = state else {
                    let message = format!("market {market} cannot be read; the log says why");
                    results.insert(index, Err(Problem::new(ErrorCode::Internal, message)));
                    continue;
                };
                match self.append(market, state) {
                    Ok(append) => {
                        appended.push(index);
                        appends.push(append);
                    }
                    Err(settled) => _ = results.insert(index, settled.map_err(|unknown| *unknown)),
                }
            }
            if appends.is_empty() {
                break;
            }
            let answers = append::submit(backbone, appends).await;
            for (index, answer) in appended.into_iter().zip(answers) {
                if matches!(answer, Err(NotAppended::Conflict { .. })) {
                    pending.push(index);
                }
                results.insert(index, answer.map(Done::Changed).map_err(Problem::from));
            }
        }
        results.into_values().map(StatusResult).collect()
    }

    /// What to append, or what is to be answered without it.
    fn append(&self, market: MarketId, state: MarketState) -> Result<Append, Result<Done, Box<Problem>>> {
        if state.position.seq == Seq::ZERO {
            let problem =
                Problem::new(ErrorCode::NotFound, "nothing was published to this market".to_owned());
            return Err(Err(Box::new(problem)));
        }
        let former = state.lines.get(STATUS).map(|line| &**line);
        let current = former.and_then(state_of);
        let current = current.as_deref();
        if current == Some(self.status.as_str()) || (self.all && current == Some(CLOSED)) {
            return Err(Ok(Done::Already { market, state }));
        }
        let line = with_state(former.unwrap_or("{}"), self.status.as_str());
        let payload = Payload::parse(&lines_json([(STATUS, &*line)].into_iter()))
            .map_err(|error| Err(Box::new(Problem::new(ErrorCode::Internal, error.to_string()))))?;
        Ok(Append {
            market,
            payload,
            expected_seq: Some(state.position.seq),
            idempotency: None,
            actor: self.sender.actor.to_owned(),
            reason: self.reason.to_owned(),
            request_id: self.sender.request_id.to_owned(),
            trace: self.sender.trace.clone(),
        })
    }
}

/// What a `status` line says, if it says it as text.
fn state_of(line: &str) -> Option<String> {
    let (_, value) = members(line).ok()?.into_iter().find(|(name, _)| name == "state")?;
    serde_json::from_str(value.get()).ok()
}

/// A line with this `state`, and its other members as they are.
fn with_state(line: &str, state: &str) -> String {
    let state = quoted(state);
    let others = members(line).unwrap_or_default();
    let others = others.iter().filter(|(name, _)| name != "state");
    lines_json([("state", &*state)].into_iter().chain(others.map(|(name, value)| (&**name, value.get()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(search: &str, after: &str, limit: &str, ids: &str) -> Result<MarketsRequest, InvalidQuery> {
        let [search, after, limit, ids] = [search, after, limit, ids].map(str::to_owned);
        MarketsQuery { search, after, limit, ids }.parse()
    }

    #[test]
    fn a_query_says_what_is_wrong_with_it() {
        for (after, limit, ids, wrong) in [
            ("0", "", "", InvalidQuery::After(InvalidMarketId)),
            ("", "0", "", InvalidQuery::Limit),
            ("", "201", "", InvalidQuery::Limit),
            ("", "x", "", InvalidQuery::Limit),
            ("", "", "1,x", InvalidQuery::Ids(InvalidMarketId)),
            ("", "", "1,", InvalidQuery::Ids(InvalidMarketId)),
            ("", "5", "1", InvalidQuery::Both),
            ("", "", &["7"; 201].join(","), InvalidQuery::TooMany),
        ] {
            assert_eq!(query("", after, limit, ids), Err(wrong), "{after:?} {limit:?} {ids:?}");
        }
        let one = MarketId::new(1).unwrap();
        assert_eq!(query("", "", "", "1,1"), Ok(MarketsRequest::These(vec![one, one])));
        let page = MarketsRequest::Page { search: "10".into(), after: Some(one), limit: 200 };
        assert_eq!(query("10", "1", "200", ""), Ok(page));
    }

    #[test]
    fn a_request_says_which_markets_in_one_way() {
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

    #[test]
    fn a_status_keeps_what_else_the_line_says_as_it_was_written() {
        for (line, with) in [
            ("{}", r#"{"state":"open"}"#),
            (r#"{"state":"suspended","inPlay":true}"#, r#"{"state":"open","inPlay":true}"#),
            (r#"{"n":1.50, "state":7,"a \"é":[ 1 ]}"#, r#"{"state":"open","n":1.50,"a \"é":[ 1 ]}"#),
        ] {
            assert_eq!(with_state(line, "open"), with);
            assert_eq!(state_of(with).as_deref(), Some("open"));
        }
        assert_eq!(state_of(r#"{"state":7}"#), None);
    }
}
