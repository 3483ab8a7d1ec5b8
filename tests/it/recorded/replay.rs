//! `publisher replay`: faults of a recording, and recordings of real markets. `recorded_market` has the good case.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use tempfile::TempDir;
use tests::{
    Launch, Lines, Rest, Stack, eventually, fresh_market, launch::Finished, message::Snapshot,
    process::Stream,
};

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
    // Three changes come at once, and the next one an hour later.
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

/// Recordings that the publisher cannot replay yet: runners differ by handicap only, or a price is 0.
const NOT_YET: [&str; 2] = ["1.242971311.bz2", "streaming_mcm_SUB_IMAGE.bz2"];

/// The project ships no recordings of real markets. Where some lie beside the checkout, they are replayed.
#[tokio::test]
async fn real_recordings_beside_the_checkout_end_as_another_implementation_says() {
    let feeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/feeds");
    if !feeds.is_dir() {
        println!("nothing to read: {} is not there", feeds.display());
        return;
    }
    let ends: BTreeMap<String, BTreeMap<String, End>> =
        serde_json::from_str(&fs::read_to_string(feeds.join("expected.json")).unwrap()).unwrap();
    let stack = Stack::with(&[], &[]);
    for entry in fs::read_dir(&feeds).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(file) = plain(&path).filter(|_| !NOT_YET.contains(&name)) else { continue };
        let finished = replay(&stack, &file, &["--speed", "max"]).run();
        assert!(finished.status.success(), "{name}: {}", finished.err);
        let said = output(&finished);
        assert!(said.contains(" 0 lines skipped"), "{name}: {said}");
        // `expected.json` has no end for the plain-text recording.
        for (id, end) in ends.get(name).into_iter().flatten() {
            let market = id.rsplit('.').next().unwrap().parse().unwrap();
            let snapshot: Snapshot = Rest::of(stack.gateway(0)).snapshot(market).await;
            end.expect(&Lines::of(snapshot.payload.text()), &format!("{name}, market {id}"));
        }
    }
}

/// How a market ends, as `expected.json` has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    status: String,
    in_play: bool,
    /// Runner, handicap, last traded price.
    prices: Vec<(u64, f64, f64)>,
}

impl End {
    fn expect(&self, lines: &Lines, what: &str) {
        let state = self.status.to_lowercase();
        let status = format!(r#"{{"state":"{state}","inPlay":{}}}"#, self.in_play);
        assert_eq!(lines.get("status"), Some(&*status), "{what}");
        let win: BTreeMap<u64, f64> = serde_json::from_str(lines.get("win").unwrap_or("{}")).unwrap();
        let prices = self.prices.iter().map(|(runner, _handicap, price)| (*runner, *price));
        assert_eq!(win, prices.collect(), "{what}");
    }
}

/// Returns the recording as plain text, which is all that the publisher reads, or `None` if the file is none.
fn plain(path: &Path) -> Option<Recording> {
    let text = match path.extension()?.to_str()? {
        "ndjson" => fs::read(path).unwrap(),
        "bz2" => {
            let script = "import bz2, sys; sys.stdout.buffer.write(bz2.open(sys.argv[1]).read())";
            let output = Command::new("python3").args(["-c", script]).arg(path).output().unwrap();
            assert!(output.status.success(), "{}: {output:?}", path.display());
            output.stdout
        }
        _ => return None,
    };
    Some(Recording::with(&text))
}

/// A recording of the test's own.
struct Recording {
    path: PathBuf,
    _dir: TempDir,
}

impl Recording {
    fn of(lines: &[&str]) -> Self {
        let text = lines.iter().fold(String::new(), |mut text, line| {
            writeln!(text, "{line}").unwrap();
            text
        });
        Self::with(text.as_bytes())
    }

    fn with(text: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording.ndjson");
        fs::write(&path, text).unwrap();
        Self { path, _dir: dir }
    }
}

/// One message: runner 7 traded at `ltp`, some time after the recording began.
fn price(market: u64, at_ms: u64, ltp: &str) -> String {
    let pt = 1_778_827_200_000 + at_ms;
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
