use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use backbone::{
    MemoryBackbone, Retention,
    failing::{FailingBackbone, Failure},
};
use protocol::{MarketId, Position, Seq};
use tokio::sync::oneshot;

use super::*;

/// A recording in a file, which is removed when this is dropped.
struct Recording(PathBuf);

impl Recording {
    fn of(bytes: &[u8]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("kmarket-replay-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(bytes).unwrap();
        Self(path)
    }

    fn options(&self, speed: Speed) -> Options {
        Options { file: self.0.clone(), speed, market: None, from: 1 }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `count` changes of the market 7, `every_ms` apart; the runner 1 has the price n + 1 in line n.
fn lines(count: u64, every_ms: u64) -> String {
    let line = |n: u64| {
        let pt = 1_000_000 + n * every_ms;
        format!(
            "{{\"op\":\"mcm\",\"pt\":{pt},\"mc\":[{{\"id\":\"1.7\",\"rc\":[{{\"id\":1,\"ltp\":{}.0}}]}}]}}\n",
            n + 1
        )
    };
    (1..=count).map(line).collect()
}

fn memory() -> MemoryBackbone {
    MemoryBackbone::new(Retention::default())
}

async fn payloads(backbone: &MemoryBackbone, market: u64) -> Vec<String> {
    let page = backbone.read_after(MarketId::new(market).unwrap(), Seq::ZERO, 10_000).await.unwrap();
    page.updates.iter().map(|update| update.payload.to_string()).collect()
}

fn win(price: u64) -> String {
    format!(r#"{{"win":{{"1":{price}.0}}}}"#)
}

fn never() -> impl Future<Output = ()> {
    std::future::pending()
}

#[tokio::test]
async fn the_recorded_market_arrives_whole_and_in_order() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/feeds/horse-race-1.201000001.ndjson");
    let (backbone, again) = (memory(), memory());
    let options = Options { file: file.into(), speed: Speed::Max, market: None, from: 1 };
    let summary = replay(&backbone, &options, never()).await.unwrap();
    assert_eq!(summary, Summary { lines: 480, updates: 478, skipped: 0, stopped_before: None });
    let updates = payloads(&backbone, 201_000_001).await;
    assert_eq!(updates.len(), 478);
    assert!(updates[0].contains("\"open\"") && updates.last().unwrap().contains("\"closed\""));

    let mut feed = Betfair::default();
    let expected: Vec<_> = std::fs::read_to_string(file)
        .unwrap()
        .lines()
        .flat_map(|line| feed.read(line).unwrap())
        .map(|change| change.payload.text().to_owned())
        .collect();
    assert_eq!(updates, expected);

    let options = Options { market: MarketId::new(1001).ok(), ..options };
    replay(&again, &options, never()).await.unwrap();
    assert_eq!(payloads(&again, 1001).await, expected);
    let audit = again.audit(MarketId::new(1001).unwrap(), None, 1).await.unwrap();
    assert_eq!(
        (audit[0].actor.as_str(), audit[0].reason.as_str()),
        ("replay", "horse-race-1.201000001.ndjson")
    );
}

#[tokio::test]
async fn a_bad_line_is_skipped_and_the_rest_is_appended() {
    let mut bytes = lines(1, 0).into_bytes();
    bytes.extend(b"not json\n\xff\xfe\n");
    bytes.extend(vec![b'x'; 3 << 20]);
    bytes.push(b'\n');
    bytes.extend(lines(2, 0).lines().nth(1).unwrap().bytes());
    let recording = Recording::of(&bytes);
    let backbone = memory();
    let summary = replay(&backbone, &recording.options(Speed::Max), never()).await.unwrap();
    assert_eq!(summary, Summary { lines: 5, updates: 2, skipped: 3, stopped_before: None });
    assert_eq!(payloads(&backbone, 7).await, [win(2), win(3)]);
}

#[tokio::test]
async fn from_a_line_on_earlier_ones_are_read_but_not_appended() {
    let other = r#"{"op":"mcm","pt":1,"mc":[{"id":"1.7","rc":[{"id":9,"ltp":9.0}]}]}"#;
    let recording = Recording::of(format!("{other}\n{}", lines(3, 0)).as_bytes());
    let backbone = memory();
    let options = Options { from: 3, ..recording.options(Speed::Max) };
    let summary = replay(&backbone, &options, never()).await.unwrap();
    assert_eq!(summary.updates, 2);
    assert_eq!(payloads(&backbone, 7).await[0], r#"{"win":{"1":3.0,"9":9.0}}"#);
}

#[tokio::test(start_paused = true)]
async fn recorded_time_is_divided_by_the_speed() {
    let recording = Recording::of(lines(5, 60_000).as_bytes());
    let backbone = memory();
    let started = Instant::now();
    replay(&backbone, &recording.options(Speed::Times(60.0)), never()).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 4);
    assert_eq!(payloads(&backbone, 7).await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_replay_names_the_line_to_continue_from() {
    let recording = Recording::of(lines(10, 60_000).as_bytes());
    let backbone = memory();
    // The clock is paused: it moves only while every task waits for it.
    let stop = async {
        while payloads(&backbone, 7).await.len() < 3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let summary = replay(&backbone, &recording.options(Speed::Times(1.0)), stop).await.unwrap();
    assert_eq!((summary.updates, summary.stopped_before), (3, Some(4)));
    let rest = Options { from: 4, ..recording.options(Speed::Max) };
    replay(&backbone, &rest, never()).await.unwrap();
    assert_eq!(payloads(&backbone, 7).await, (2..=11).map(win).collect::<Vec<_>>());
}

#[tokio::test]
async fn at_full_speed_a_stop_waits_for_the_batch_in_flight() {
    let recording = Recording::of(lines(5_000, 0).as_bytes());
    let backbone = memory();
    let summary = replay(&backbone, &recording.options(Speed::Max), std::future::ready(())).await.unwrap();
    let next = summary.stopped_before.unwrap();
    assert_eq!(summary.updates, next - 1);
    assert!(next <= 101, "{next}");
    let rest = Options { from: next, ..recording.options(Speed::Max) };
    replay(&backbone, &rest, never()).await.unwrap();
    let latest = backbone.read_after(MarketId::new(7).unwrap(), Seq::ZERO, 1).await.unwrap().latest;
    assert_eq!(latest, Position { epoch: latest.epoch, seq: Seq::new(5_000) });
}

#[tokio::test]
async fn a_failed_append_stops_at_its_line() {
    let recording = Recording::of(format!("bad\n{}", lines(3, 0)).as_bytes());
    for (failure, outcome) in
        [(Failure::ConnectionRefused, "nothing was appended"), (Failure::ConnectionLost, "outcome unknown")]
    {
        let failed = replay(&FailingBackbone(failure), &recording.options(Speed::Max), never())
            .await
            .unwrap_err()
            .to_string();
        assert!(failed.contains(outcome) && failed.contains("--from 2"), "{failed}");
    }
}

#[tokio::test]
async fn a_recording_that_is_not_there_is_an_error() {
    let options = Options { file: "/nonexistent/feed".into(), speed: Speed::Max, market: None, from: 1 };
    assert!(matches!(replay(&memory(), &options, never()).await, Err(ReplayError::Read(_))));
}

#[tokio::test(start_paused = true)]
async fn a_speed_beyond_any_clock_waits_without_a_panic() {
    let text = [0, u64::MAX].map(|pt| {
        lines(1, 0).replace("1000000", &pt.to_string()).replace("2.0", &format!("{}.0", pt % 7 + 2))
    });
    let recording = Recording::of(text.concat().as_bytes());
    let (stop, stopped) = oneshot::channel::<()>();
    let backbone = memory();
    let options = recording.options(Speed::Times(f64::MIN_POSITIVE));
    let (summary, ()) = tokio::join!(replay(&backbone, &options, async { _ = stopped.await }), async {
        while payloads(&backbone, 7).await.is_empty() {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
    });
    assert_eq!(summary.unwrap().stopped_before, Some(2));
}
