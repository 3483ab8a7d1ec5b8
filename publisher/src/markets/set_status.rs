//! Suspends and opens markets: an override of each market's line `status`, based on the state that was read.

use std::collections::BTreeMap;

use backbone::{Append, Appended, Backbone};
use protocol::{
    MarketId, Payload, Seq,
    json::{members, quoted},
    update::{InvalidPayload, MarketState, lines_json},
};

use super::{
    MarketsError, in_time, load,
    status_request::{Status, StatusRequest},
};
use crate::append::{self, NotAppended, Sender};

/// The line that says whether bets are taken.
const STATUS: &str = "status";
/// The state of a market that is over. Only a request that names the market changes it.
const CLOSED: &str = "closed";
/// Markets that are read, and then changed, at once. Other requests get their turn in between.
const CHUNK: usize = 100;
/// How often a market is read when it changes between the read and the append.
const ATTEMPTS: usize = 5;

/// Sets the status of each market, and returns one result per market, in the order of the request. A market that cannot
/// be read or appended to fails alone. Once a whole chunk is unavailable, the rest is not tried.
///
/// # Errors
/// [`MarketsError`] if the request is for all markets and they cannot be listed.
pub(crate) async fn set_status(
    backbone: &dyn Backbone,
    sender: Sender<'_>,
    status: Status,
    request: StatusRequest,
) -> Result<Vec<Result<StatusSet, StatusNotSet>>, MarketsError> {
    let (markets, all) = match request.markets {
        Some(markets) => (markets, false),
        None => (in_time(backbone.markets()).await?, true),
    };
    let change = Change { backbone, sender, status, all, reason: &request.reason };
    let mut results = Vec::with_capacity(markets.len());
    let mut is_unavailable = false;
    for chunk in markets.chunks(CHUNK) {
        if is_unavailable {
            results.extend(chunk.iter().map(|_| Err(NotAppended::NotSent.into())));
            continue;
        }
        let of_chunk = change.run(chunk).await;
        is_unavailable =
            of_chunk.iter().all(|result| result.as_ref().is_err_and(StatusNotSet::is_unavailable));
        results.extend(of_chunk);
    }
    Ok(results)
}

/// How a market came to its status.
#[derive(Debug)]
pub(crate) enum StatusSet {
    Changed(Appended),
    /// The market had this status already, or is closed and was not named.
    Unchanged {
        market: MarketId,
        state: MarketState,
    },
}

/// Why a change of a market's status is not acknowledged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusNotSet {
    #[error("nothing was published to this market")]
    NotPublished,
    /// The backbone holds something else than a state. The log has the details.
    #[error("market {0} cannot be read; the log says why")]
    Unreadable(MarketId),
    /// The backbone cannot be read. The log has the details.
    #[error("the markets cannot be read now: retry")]
    Unavailable,
    #[error(transparent)]
    Payload(InvalidPayload),
    #[error(transparent)]
    NotAppended(#[from] NotAppended),
}

impl StatusNotSet {
    /// Returns true if the backbone is the cause, not this market.
    const fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable | Self::NotAppended(NotAppended::NotReplicated { .. }) => true,
            Self::NotAppended(error) => error.is_unavailable(),
            Self::NotPublished | Self::Unreadable(_) | Self::Payload(_) => false,
        }
    }
}

/// A request that is being carried out.
struct Change<'a> {
    backbone: &'a dyn Backbone,
    sender: Sender<'a>,
    status: Status,
    /// The request is for all markets.
    all: bool,
    reason: &'a str,
}

impl Change<'_> {
    async fn run(&self, markets: &[MarketId]) -> Vec<Result<StatusSet, StatusNotSet>> {
        let mut results = BTreeMap::new();
        let mut pending: Vec<usize> = (0..markets.len()).collect();
        for _ in 0..ATTEMPTS {
            let ids: Vec<MarketId> = pending.iter().map(|&index| markets[index]).collect();
            if ids.is_empty() {
                break;
            }
            let states = match load(self.backbone, &ids).await {
                Ok(states) => states,
                Err(error) => {
                    tracing::error!(%error, "markets cannot be read");
                    results.extend(pending.drain(..).map(|index| (index, Err(StatusNotSet::Unavailable))));
                    break;
                }
            };
            let (mut to_append, mut appends) = (Vec::new(), Vec::new());
            for ((index, market), state) in pending.drain(..).zip(ids).zip(states) {
                match self.plan(market, state) {
                    Ok(Plan::Append(append)) => {
                        to_append.push(index);
                        appends.push(*append);
                    }
                    Ok(Plan::Leave(state)) => {
                        results.insert(index, Ok(StatusSet::Unchanged { market, state }));
                    }
                    Err(error) => _ = results.insert(index, Err(error)),
                }
            }
            if appends.is_empty() {
                break;
            }
            let appended = append::submit(self.backbone, appends).await;
            for (index, result) in to_append.into_iter().zip(appended) {
                if matches!(result, Err(NotAppended::Conflict { .. })) {
                    pending.push(index);
                }
                results.insert(index, result.map(StatusSet::Changed).map_err(StatusNotSet::from));
            }
        }
        results.into_values().collect()
    }

    /// Decides what to do with a market in this state.
    fn plan(&self, market: MarketId, state: Option<MarketState>) -> Result<Plan, StatusNotSet> {
        let state = state.ok_or(StatusNotSet::Unreadable(market))?;
        if state.position.seq == Seq::ZERO {
            return Err(StatusNotSet::NotPublished);
        }
        let former = state.lines.get(STATUS).map(|line| &**line);
        let current = former.and_then(state_of);
        let current = current.as_deref();
        if current == Some(self.status.as_str()) || (self.all && current == Some(CLOSED)) {
            return Ok(Plan::Leave(state));
        }
        let line = with_state(former.unwrap_or("{}"), self.status.as_str());
        let payload =
            Payload::parse(&lines_json([(STATUS, &*line)].into_iter())).map_err(StatusNotSet::Payload)?;
        Ok(Plan::Append(Box::new(Append {
            market,
            payload,
            expected_seq: Some(state.position.seq),
            idempotency: None,
            actor: self.sender.actor.to_owned(),
            reason: self.reason.to_owned(),
            request_id: self.sender.request_id.to_owned(),
            trace: self.sender.trace.clone(),
        })))
    }
}

/// What to do with a market.
enum Plan {
    Append(Box<Append>),
    Leave(MarketState),
}

/// Returns the text of a `status` line's `state`, if it is a text.
fn state_of(line: &str) -> Option<String> {
    let (_, value) = members(line).ok()?.into_iter().find(|(name, _)| name == "state")?;
    serde_json::from_str(value.get()).ok()
}

/// Returns the line with this `state`, and its other members as they are.
fn with_state(line: &str, state: &str) -> String {
    let state = quoted(state);
    let others = members(line).unwrap_or_default();
    let others = others.iter().filter(|(name, _)| name != "state");
    lines_json([("state", &*state)].into_iter().chain(others.map(|(name, value)| (&**name, value.get()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_status_keeps_the_line_s_other_members_as_they_were_written() {
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
