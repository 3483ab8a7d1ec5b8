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
    let line = mcm(&format!(r#"{{"id":"1.7","marketDefinition":{definition},"rc":[{{"id":3,"ltp":4}}]}}"#));
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
fn messages_that_change_no_market_are_ignored() {
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
