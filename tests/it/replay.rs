//! `publisher replay`: what goes wrong with a recording (the good case is `recorded_market`).

use std::{fmt::Write, path::PathBuf};

use tempfile::TempDir;
use tests::{Launch, Rest, Stack, eventually, fresh_market, launch::Finished, process::Stream};

#[tokio::test]
async fn a_bad_line_is_reported_with_its_number_and_skipped() {
    let stack = Stack::shared();
    let market = fresh_market();
    let file = Recording::of(&[
        &price(market, 0, "2.10"),
        "not json",
        &price(market, 1, "0.5"),
        r#"{"op":"mcm","mc":[{"rc":[]}]}"#,
        &price(market, 2, "2.20"),
    ]);
    let finished = replay(&stack, &file, &[]).run();
    assert!(finished.status.success(), "{}", finished.err);
    let said = output(&finished);
    for number in ["2", "3", "4"] {
        assert!(
            said.lines().any(|line| line.contains(&format!(r#""line":{number}"#))),
            "line {number}: {said}"
        );
    }
    let updates = Rest::of(stack.gateway(0)).updates(market, "since_seq=0").await.updates;
    let payloads: Vec<&str> = updates.iter().map(|update| update.payload.text()).collect();
    assert_eq!(payloads, [r#"{"win":{"7":2.10}}"#, r#"{"win":{"7":2.20}}"#]);
}

#[tokio::test]
async fn ctrl_c_stops_it_cleanly_and_it_says_where_to_go_on() {
    let stack = Stack::shared();
    let market = fresh_market();
    // Three changes at once, and the next an hour later.
    let lines: Vec<String> = [0, 1, 2, 3_600_000, 3_600_001, 3_600_002]
        .iter()
        .zip(1..)
        .map(|(at_ms, cents)| price(market, *at_ms, &format!("2.{cents}0")))
        .collect();
    let file = Recording::of(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let process = replay(&stack, &file, &["--speed", "1"]).spawn();
    let rest = Rest::of(stack.gateway(0));
    eventually("the first three", async || (rest.snapshot(market).await.seq == 3).then_some(())).await;
    process.interrupt();
    assert!(process.wait().success());
    let said = format!("{}{}", process.said(Stream::Out), process.said(Stream::Err));
    assert!(said.contains("--from 4"), "{said}");

    let finished = replay(&stack, &file, &["--from", "4", "--speed", "max"]).run();
    assert!(finished.status.success(), "{}", finished.err);
    let page = rest.updates(market, "since_seq=0").await;
    let payloads: Vec<String> = page.updates.iter().map(|update| update.payload.text().to_owned()).collect();
    let expected: Vec<String> = (1..=6).map(|cents| format!(r#"{{"win":{{"7":2.{cents}0}}}}"#)).collect();
    assert_eq!(payloads, expected);
}

#[test]
fn a_recording_that_is_not_there_is_an_error() {
    let stack = Stack::shared();
    let finished =
        Launch::publisher(stack.redis()).args(&["replay", "/nowhere.ndjson", "--format", "betfair"]).run();
    assert!(!finished.status.success());
    assert!(output(&finished).contains("/nowhere.ndjson"), "{}", output(&finished));
}

/// A recording of the test's own.
struct Recording {
    path: PathBuf,
    _dir: TempDir,
}

impl Recording {
    fn of(lines: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording.ndjson");
        let text = lines.iter().fold(String::new(), |mut text, line| {
            writeln!(text, "{line}").unwrap();
            text
        });
        std::fs::write(&path, text).unwrap();
        Self { path, _dir: dir }
    }
}

/// One message: runner 7 traded at `ltp`, some time after the recording began.
fn price(market: u64, at_ms: u64, ltp: &str) -> String {
    let pt = 1_497_351_220_318 + at_ms;
    format!(
        r#"{{"op":"mcm","clk":"1","pt":{pt},"mc":[{{"id":"1.{market}","rc":[{{"ltp":{ltp},"id":7}}]}}]}}"#
    )
}

fn replay(stack: &Stack, file: &Recording, more: &[&str]) -> Launch {
    let launch = Launch::publisher(stack.redis());
    launch.args(&[&["replay", file.path.to_str().unwrap(), "--format", "betfair"], more].concat())
}

fn output(finished: &Finished) -> String {
    format!("{}{}", finished.out, finished.err)
}
