//! Betfair's recorded exchange streams: one market-change message (`op: "mcm"`) a line, into payloads. No I/O.
//!
//! A runner's last traded price (`ltp`) is one selection of the line `win`, named by the runner's id; the market's
//! status is the line `status`. A line is the unit of change, so `win` is always written whole: the prices last seen
//! are kept here. A line is written only when it changed. A runner that is removed from the market leaves `win`.

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
    /// The market that the recording's only one is replayed as.
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
    /// When it was published, Unix milliseconds.
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
    /// Before the first line. The market `1.201000001` becomes 201000001; or `instead`, if given, in a recording of
    /// one market.
    #[must_use]
    pub fn new(instead: Option<MarketId>) -> Self {
        Self { instead, markets: BTreeMap::new() }
    }

    /// What a line changes: for each of its markets at most one payload.
    ///
    /// # Errors
    /// [`BadLine`] when the line cannot be read; it has then changed nothing.
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
    /// Not a stream message.
    #[error("not a stream message: {0}")]
    Json(#[from] serde_json::Error),
    /// A market whose id is not one of ours.
    #[error("{0:?} is not a market id such as 1.201000001")]
    MarketId(String),
    /// A second market, when all is to be replayed as one.
    #[error("the market {0:?} is another one than before, and --market names only one")]
    OtherMarket(String),
    /// A price that is none.
    #[error("runner {runner}: ltp {problem}")]
    Price {
        /// The runner's id.
        runner: u64,
        /// What is wrong.
        problem: InvalidOdds,
    },
    /// A status that the line `status` has no word for.
    #[error("{0:?} is not a market status")]
    Status(String),
    /// More runners than a payload holds.
    #[error(transparent)]
    Payload(#[from] InvalidPayload),
}

impl Market {
    /// The market after a change, and the payload that says what is new, if anything is.
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
    /// The text of the line `status`.
    fn line(&self) -> Result<String, BadLine> {
        let state = match self.status.as_str() {
            "OPEN" => "open",
            // Not yet open, or not any more: nobody can bet.
            "SUSPENDED" | "INACTIVE" => "suspended",
            "CLOSED" => "closed",
            _ => return Err(BadLine::Status(self.status.clone())),
        };
        Ok(format!(r#"{{"state":"{state}","inPlay":{}}}"#, self.in_play))
    }
}

/// A stream message, as far as it is used. Members that stand twice are refused.
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
    /// The whole market, not a change of it.
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
mod tests {
    use proptest::prelude::*;
    use protocol::{MarketState, Position};

    use super::*;

    /// The recorded market, from the workspace's tests.
    fn recording() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/feeds/horse-race-1.201000001.ndjson");
        std::fs::read_to_string(path).unwrap()
    }

    fn payloads(feed: &mut Betfair, line: &str) -> Vec<String> {
        feed.read(line).unwrap().iter().map(|change| change.payload.text().to_owned()).collect()
    }

    fn mcm(changes: &str) -> String {
        format!(r#"{{"op":"mcm","pt":1778827200000,"mc":[{changes}]}}"#)
    }

    #[test]
    fn a_price_is_written_with_all_others_of_its_market() {
        let mut feed = Betfair::default();
        let line = mcm(r#"{"id":"1.7","rc":[{"ltp":15.0,"id":20},{"ltp":3.90,"id":3}]}"#);
        assert_eq!(payloads(&mut feed, &line), [r#"{"win":{"3":3.90,"20":15.0}}"#]);
        let line = mcm(r#"{"id":"1.7","rc":[{"ltp":16,"id":20}]}"#);
        assert_eq!(payloads(&mut feed, &line), [r#"{"win":{"3":3.90,"20":16}}"#]);
        assert!(feed.read(&line).unwrap().is_empty(), "nothing changed");
        let change = &feed.read(&mcm(r#"{"id":"1.8","rc":[{"ltp":2,"id":1}]}"#)).unwrap()[0];
        assert_eq!((change.market.get(), change.published_ms), (8, 1_778_827_200_000));
    }

    #[test]
    fn a_status_is_written_when_it_changed() {
        let mut feed = Betfair::default();
        let line = |status: &str, in_play: bool| {
            mcm(&format!(r#"{{"id":"1.7","marketDefinition":{{"status":"{status}","inPlay":{in_play}}}}}"#))
        };
        for (status, in_play, expected) in [
            ("OPEN", false, Some(r#"{"status":{"state":"open","inPlay":false}}"#)),
            ("OPEN", false, None),
            ("OPEN", true, Some(r#"{"status":{"state":"open","inPlay":true}}"#)),
            ("SUSPENDED", true, Some(r#"{"status":{"state":"suspended","inPlay":true}}"#)),
            ("INACTIVE", true, None),
            ("CLOSED", true, Some(r#"{"status":{"state":"closed","inPlay":true}}"#)),
        ] {
            assert_eq!(
                payloads(&mut feed, &line(status, in_play)).first().map(String::as_str),
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn a_removed_runner_leaves_the_line() {
        let mut feed = Betfair::default();
        feed.read(&mcm(r#"{"id":"1.7","rc":[{"ltp":15.0,"id":20},{"ltp":3.9,"id":3}]}"#)).unwrap();
        let definition =
            r#"{"status":"OPEN","runners":[{"id":3,"status":"REMOVED"},{"id":20,"status":"ACTIVE"}]}"#;
        let line =
            mcm(&format!(r#"{{"id":"1.7","marketDefinition":{definition},"rc":[{{"id":3,"ltp":4}}]}}"#));
        let expected = r#"{"win":{"20":15.0},"status":{"state":"open","inPlay":false}}"#;
        assert_eq!(payloads(&mut feed, &line), [expected]);
        assert!(feed.read(&mcm(r#"{"id":"1.7","rc":[{"ltp":9,"id":3}]}"#)).unwrap().is_empty());
        let image = mcm(r#"{"id":"1.7","img":true,"rc":[{"ltp":5,"id":6}]}"#);
        assert_eq!(payloads(&mut feed, &image), [r#"{"win":{"6":5}}"#]);
    }

    #[test]
    fn a_bad_line_changes_nothing() {
        let mut feed = Betfair::default();
        feed.read(&mcm(r#"{"id":"1.7","rc":[{"ltp":2.0,"id":1}]}"#)).unwrap();
        for bad in [
            String::new(),
            "null".into(),
            "[".repeat(10_000),
            r#"{"op":"mcm","op":"mcm"}"#.into(),
            mcm(r#"{"rc":[]}"#),
            mcm(r#"{"id":"1.x","rc":[{"ltp":3.0,"id":1}]}"#),
            mcm(r#"{"id":"1.0","rc":[{"ltp":3.0,"id":1}]}"#),
            mcm(r#"{"id":"1.7","rc":[{"ltp":3.0,"id":1},{"ltp":"x","id":2}]}"#),
            mcm(r#"{"id":"1.7","rc":[{"ltp":3.0,"id":1},{"ltp":1.0,"id":2}]}"#),
            mcm(r#"{"id":"1.7","rc":[{"ltp":3.0,"id":1},{"ltp":2,"id":-2}]}"#),
            mcm(r#"{"id":"1.7","rc":[{"ltp":3.0,"ltp":3.0,"id":1}]}"#),
            mcm(r#"{"id":"1.7","rc":[{"ltp":3.0,"id":1}]},{"id":"1.8","marketDefinition":{"status":"ODD"}}"#),
        ] {
            assert!(feed.read(&bad).is_err(), "{bad}");
        }
        let line = mcm(r#"{"id":"1.7","rc":[{"ltp":4.0,"id":2}]}"#);
        assert_eq!(payloads(&mut feed, &line), [r#"{"win":{"1":2.0,"2":4.0}}"#]);
    }

    #[test]
    fn what_is_no_market_change_is_passed_over() {
        let mut feed = Betfair::default();
        for line in [
            r#"{"op":"connection","connectionId":"x"}"#,
            r#"{"op":"mcm","pt":1,"ct":"HEARTBEAT"}"#,
            &mcm(r#"{"id":"1.7"}"#),
            &mcm(r#"{"id":"1.7","rc":[{"id":1,"tv":12.5},{"id":2,"ltp":null}]}"#),
        ] {
            assert!(feed.read(line).unwrap().is_empty(), "{line}");
        }
    }

    #[test]
    fn one_market_can_be_replayed_as_another() {
        let mut feed = Betfair::new(Some(MarketId::new(1001).unwrap()));
        let line = mcm(r#"{"id":"no number","rc":[{"ltp":2.0,"id":1}]}"#);
        assert_eq!(feed.read(&line).unwrap()[0].market.get(), 1001);
        let other = feed.read(&mcm(r#"{"id":"1.8","rc":[{"ltp":2.0,"id":1}]}"#));
        assert!(matches!(other, Err(BadLine::OtherMarket(id)) if id == "1.8"));
        let both = mcm(r#"{"id":"1.7","rc":[{"ltp":2,"id":1}]},{"id":"1.8","rc":[{"ltp":2,"id":1}]}"#);
        assert!(Betfair::new(MarketId::new(1001).ok()).read(&both).is_err());
    }

    #[test]
    fn the_recorded_market_ends_closed_with_thirteen_prices() {
        let mut feed = Betfair::default();
        let mut state = MarketState::default();
        for (number, line) in (1..).zip(recording().lines()) {
            for change in feed.read(line).unwrap_or_else(|bad| panic!("line {number}: {bad}")) {
                assert_eq!(change.market.get(), 201_000_001);
                state.apply(Position::new(1, number), change.published_ms, &change.payload);
            }
        }
        assert_eq!(&*state.lines["status"], r#"{"state":"closed","inPlay":true}"#);
        let win: BTreeMap<u64, &RawValue> = serde_json::from_str(&state.lines["win"]).unwrap();
        assert_eq!(win.len(), 13, "14 runners, of which 1 was removed");
        for (runner, price) in win {
            let last = recording().lines().rev().find_map(|line| {
                let message: Message<'_> = serde_json::from_str(line).unwrap();
                let mut runners = message.mc.iter().flat_map(|change| &change.rc);
                runners.find_map(|change| (change.id == runner).then(|| change.ltp.unwrap().get().to_owned()))
            });
            assert_eq!(last.as_deref(), Some(price.get()), "runner {runner}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_a_panic(line in ".*", at in 0usize..200, byte: u8) {
            let mut feed = Betfair::default();
            let _ = feed.read(&line);
            let mut damaged = mcm(r#"{"id":"1.7","rc":[{"ltp":15.0,"id":20}],"marketDefinition":{"status":"OPEN"}}"#).into_bytes();
            let at = at % damaged.len();
            damaged[at] = byte;
            if let Ok(damaged) = std::str::from_utf8(&damaged) {
                let _ = feed.read(damaged);
            }
        }
    }
}
