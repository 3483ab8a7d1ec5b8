//! Reads Betfair's recorded exchange streams, with one market-change message (`op: "mcm"`) per line, as payloads. No I/O.
//!
//! A runner's last traded price (`ltp`) is one selection of the line `win`, named by the runner's id. The market's status
//! is the line `status`. A payload carries whole lines, so the prices last seen are kept here. A line is written only when
//! it changed. A runner that is removed from the market leaves `win`.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    MarketId, Payload,
    overrides::{self, InvalidPayload},
    price::{InvalidOdds, check_decimal_odds},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The markets of a recording as they stand after the lines read so far.
#[derive(Debug, Default)]
pub struct Betfair {
    /// The id under which the recording's only market is replayed.
    instead: Option<MarketId>,
    /// By the recording's own market id.
    markets: BTreeMap<String, Market>,
}

/// One market's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which market.
    pub market: MarketId,
    /// The lines that changed.
    pub payload: Payload,
    /// When the change was published, Unix milliseconds.
    pub published_ms: u64,
}

#[derive(Clone, Debug, Default)]
struct Market {
    prices: BTreeMap<u64, Box<str>>,
    removed: BTreeSet<u64>,
    /// As last written.
    win: String,
    status: String,
}

impl Betfair {
    /// Starts before the first line. The market `1.201000001` becomes 201000001, or `instead` if that is given and the
    /// recording has one market.
    #[must_use]
    pub fn new(instead: Option<MarketId>) -> Self {
        Self { instead, markets: BTreeMap::new() }
    }

    /// Reads a line. Returns at most one change for each of its markets.
    ///
    /// # Errors
    /// [`BadLine`] if the line cannot be read. It has changed nothing then.
    pub fn read(&mut self, line: &str) -> Result<Vec<Change>, BadLine> {
        let message: Message<'_> = serde_json::from_str(line)?;
        if message.op != "mcm" {
            return Ok(Vec::new());
        }
        let mut changes = Vec::new();
        let mut after: BTreeMap<&str, Market> = BTreeMap::new();
        for change in &message.mc {
            let id = change.id.as_str();
            let market_id = self.market_id(id, &after)?;
            let market = match after.remove(id) {
                Some(market) => market,
                None => self.markets.get(id).cloned().unwrap_or_default(),
            };
            let (market, payload) = market.after(change)?;
            after.insert(id, market);
            if let Some(payload) = payload {
                let payload = overrides::payload(&payload)?;
                changes.push(Change { market: market_id, payload, published_ms: message.pt });
            }
        }
        self.markets.extend(after.into_iter().map(|(id, market)| (id.to_owned(), market)));
        Ok(changes)
    }

    fn market_id(&self, id: &str, after: &BTreeMap<&str, Market>) -> Result<MarketId, BadLine> {
        let mut known = self.markets.keys().map(String::as_str).chain(after.keys().copied());
        let own = || id.rsplit('.').next().and_then(|part| part.parse().ok());
        match self.instead {
            None => own().ok_or_else(|| BadLine::MarketId(id.to_owned())),
            Some(_) if known.any(|known| known != id) => Err(BadLine::OtherMarket(id.to_owned())),
            Some(instead) => Ok(instead),
        }
    }
}

/// Why a line cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum BadLine {
    /// The line is not a stream message.
    #[error("not a stream message: {0}")]
    Json(#[from] serde_json::Error),
    /// A market's id has no number that can be a market id.
    #[error("{0:?} is not a market id such as 1.201000001")]
    MarketId(String),
    /// There is a second market, and only one id to replay it under.
    #[error("there is a second market, {0:?}, and --market names only one")]
    OtherMarket(String),
    /// A price is not decimal odds.
    #[error("runner {runner}: ltp {problem}")]
    Price {
        /// The runner's id.
        runner: u64,
        /// What is wrong.
        problem: InvalidOdds,
    },
    /// A status is unknown.
    #[error("{0:?} is not a market status")]
    Status(String),
    /// There are more runners than a payload holds.
    #[error(transparent)]
    Payload(#[from] InvalidPayload),
}

impl Market {
    /// Returns the market after a change, and a payload with the lines that changed, if any did.
    fn after(mut self, change: &MarketChange<'_>) -> Result<(Self, Option<String>), BadLine> {
        if change.img {
            self.prices.clear();
        }
        for runner in &change.rc {
            if let Some(ltp) = runner.ltp {
                check_decimal_odds(ltp.get())
                    .map_err(|problem| BadLine::Price { runner: runner.id, problem })?;
                self.prices.insert(runner.id, ltp.get().into());
            }
        }
        let mut lines = Vec::new();
        if let Some(definition) = &change.market_definition {
            self.removed =
                definition.runners.iter().filter(|r| r.status == "REMOVED").map(|r| r.id).collect();
            let status = definition.line()?;
            if status != self.status {
                lines.push(format!(r#""status":{status}"#));
                self.status = status;
            }
        }
        self.prices.retain(|runner, _| !self.removed.contains(runner));
        let prices: Vec<String> =
            self.prices.iter().map(|(runner, ltp)| format!(r#""{runner}":{ltp}"#)).collect();
        let win = format!("{{{}}}", prices.join(","));
        if win != self.win && !(self.win.is_empty() && prices.is_empty()) {
            lines.insert(0, format!(r#""win":{win}"#));
            self.win = win;
        }
        let payload = (!lines.is_empty()).then(|| format!("{{{}}}", lines.join(",")));
        Ok((self, payload))
    }
}

impl Definition {
    /// Returns the text of the line `status`.
    fn line(&self) -> Result<String, BadLine> {
        let state = match self.status.as_str() {
            "OPEN" => "open",
            // No bets are taken, whatever the reason.
            "SUSPENDED" | "INACTIVE" => "suspended",
            "CLOSED" => "closed",
            _ => return Err(BadLine::Status(self.status.clone())),
        };
        Ok(format!(r#"{{"state":"{state}","inPlay":{}}}"#, self.in_play))
    }
}

/// The members of a stream message that are used. A member that appears twice is refused.
#[derive(Deserialize)]
struct Message<'a> {
    op: String,
    #[serde(default)]
    pt: u64,
    #[serde(borrow, default)]
    mc: Vec<MarketChange<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MarketChange<'a> {
    id: String,
    /// The change is the whole market.
    #[serde(default)]
    img: bool,
    #[serde(borrow, default)]
    rc: Vec<RunnerChange<'a>>,
    market_definition: Option<Definition>,
}

#[derive(Deserialize)]
struct RunnerChange<'a> {
    id: u64,
    #[serde(borrow)]
    ltp: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Definition {
    status: String,
    #[serde(default)]
    in_play: bool,
    #[serde(default)]
    runners: Vec<Runner>,
}

#[derive(Deserialize)]
struct Runner {
    id: u64,
    #[serde(default)]
    status: String,
}

#[cfg(test)]
mod tests;
