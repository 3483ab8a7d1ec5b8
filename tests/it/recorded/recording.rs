//! The recording in `tests/feeds`: equal to what `tests/src/recording.rs` generates, and with the documented events.

use std::{collections::BTreeSet, env, fs};

use serde_json::Value;
use tests::{launch::feed, recording};

#[test]
fn the_committed_recording_is_what_the_generator_writes() {
    let (file, generated) = (feed(recording::FILE), recording::generate());
    if env::var_os("UPDATE_RECORDING").is_some() {
        fs::write(&file, &generated).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    let renew = "UPDATE_RECORDING=1 cargo test -p tests recording";
    assert!(committed == generated, "{file} is not what is generated: {renew}");
}

#[test]
fn the_recorded_race_is_suspended_loses_a_runner_goes_in_play_and_is_settled() {
    let messages = messages();
    assert_eq!(messages.len() as u64, recording::LINES);
    let phases: Vec<_> = definitions(&messages)
        .map(|definition| {
            (
                definition["status"].as_str().unwrap(),
                definition["inPlay"].as_bool().unwrap(),
                definition["numberOfActiveRunners"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        phases,
        [
            ("OPEN", false, 14),
            ("SUSPENDED", false, 14),
            ("OPEN", false, 13),
            ("OPEN", false, 13),
            ("SUSPENDED", false, 13),
            ("SUSPENDED", false, 13),
            ("OPEN", true, 13),
            ("SUSPENDED", true, 13),
            ("CLOSED", true, 0),
        ]
    );
    let last = definitions(&messages).last().unwrap();
    let ended = |status| last["runners"].as_array().unwrap().iter().filter(|r| r["status"] == status).count();
    assert_eq!(["WINNER", "LOSER", "REMOVED"].map(ended), [1, 12, 1]);
}

#[test]
fn recorded_prices_span_the_ladder_and_time_goes_on_for_32_hours() {
    let messages = messages();
    let times: Vec<u64> = messages.iter().map(|message| message["pt"].as_u64().unwrap()).collect();
    assert!(times.is_sorted());
    assert_eq!((times.last().unwrap() - times[0]) / 3_600_000, 32);
    let prices: BTreeSet<String> = messages
        .iter()
        .flat_map(|message| message["mc"][0]["rc"].as_array().into_iter().flatten())
        .map(|change| change["ltp"].to_string())
        .collect();
    assert!(prices.len() > 100, "{prices:?}");
    assert!(prices.contains("1.01") && prices.contains("1000.0"), "{prices:?}");
}

fn messages() -> Vec<Value> {
    recording::generate().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn definitions(messages: &[Value]) -> impl Iterator<Item = &Value> {
    messages.iter().filter_map(|message| message["mc"][0].get("marketDefinition"))
}
