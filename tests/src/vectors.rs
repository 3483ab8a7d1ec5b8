//! The test vectors in docs/vectors, and how a client's lines are compared with them.

use std::{collections::BTreeMap, fs, path::Path};

use protocol::{MarketId, client::Lines};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

/// A file of `docs/vectors/messages`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Messages {
    /// What it shows.
    pub title: String,
    /// The optional members that a client must support to run the file.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The markets that the client wants.
    pub markets: Vec<u64>,
    /// The steps, in order.
    pub steps: Vec<MessageStep>,
}

/// What happens to a client, or what must hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
#[expect(missing_docs, reason = "docs/vectors/README.md describes them")]
pub enum MessageStep {
    Open { open: Vec<Value> },
    Say { say: String, sends: Option<Vec<Value>> },
    Get { get: String, answer: String },
    Close { close: u16, then: Then },
    Expect { expect: BTreeMap<MarketId, Option<Expected>>, stale: Option<bool> },
}

/// What a client does after a close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(missing_docs, reason = "docs/vectors/README.md describes them")]
pub struct Then {
    pub reconnect: bool,
    #[serde(default)]
    pub least_wait_ms: u64,
    #[serde(default)]
    pub new_token: bool,
}

/// What the client must know of a market; an absent member may be anything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "docs/vectors/README.md describes them")]
pub struct Expected {
    pub epoch: Option<u64>,
    pub seq: Option<u64>,
    pub lines: Option<Value>,
    pub fresh: Option<bool>,
    /// `null`: the market must not be rejected.
    #[serde(default, deserialize_with = "present")]
    pub rejected: Option<Value>,
}

/// A file of `docs/vectors/scenarios`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Scenario {
    /// What it shows.
    pub title: String,
    /// Settings of both gateways.
    #[serde(default)]
    pub gateway: BTreeMap<String, String>,
    /// The markets, by their names in this file.
    pub markets: Vec<String>,
    /// The markets of the first tokens; all by default.
    pub scope: Option<Vec<String>>,
    /// The lifetime of each token.
    #[serde(default = "ten_minutes")]
    pub ttl_seconds: u64,
    /// The steps, in order.
    pub steps: Vec<ScenarioStep>,
    /// What clients must know in the end, by market.
    pub expect: BTreeMap<String, End>,
    /// What every client must have seen at least once.
    #[serde(default)]
    pub saw: Vec<String>,
}

/// What happens to the system.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields, rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "docs/vectors/README.md describes them")]
pub enum ScenarioStep {
    Publish { publish: String, payload: String },
    PublishMany { publish_many: String, count: usize, bytes: usize },
    Follow { follow: usize },
    CatchUp { catch_up: bool },
    Cut { cut: bool },
    Kill { kill: usize },
    Drain { drain: usize, new_to: usize },
    Trim { trim: String, keep: usize },
    Lose { lose: String },
    Slow { slow: bool },
    Narrow { narrow: Vec<String> },
}

/// What clients must know of a market in the end.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
#[expect(missing_docs, reason = "docs/vectors/README.md describes them")]
pub enum End {
    Known { history: usize, seq: u64, lines: Value },
    Rejected { rejected: String },
}

fn ten_minutes() -> u64 {
    600
}

/// The `needs` that the client in Rust supports. Files that need more are skipped.
const SUPPORTED: &[&str] = &[];

/// The member of a file that says what it needs.
#[derive(Deserialize)]
struct Needs {
    #[serde(default)]
    needs: Vec<String>,
}

/// Reads every file of a directory in `docs/vectors` that needs no more than `SUPPORTED`, in the order of names.
#[must_use]
pub fn all<T: DeserializeOwned>(kind: &str) -> Vec<(String, T)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vectors").join(kind);
    let mut files: Vec<(String, T)> = fs::read_dir(&dir)
        .expect("docs/vectors is there")
        .filter_map(|entry| {
            let path = entry.expect("a file").path();
            let text = fs::read_to_string(&path).expect("a vector is UTF-8");
            let fail = |error| -> ! { panic!("{}: {error}", path.display()) };
            let Needs { needs } = serde_json::from_str(&text).unwrap_or_else(|error| fail(error));
            if needs.iter().any(|need| !SUPPORTED.contains(&need.as_str())) {
                return None;
            }
            let vector = serde_json::from_str(&text).unwrap_or_else(|error| fail(error));
            Some((path.display().to_string(), vector))
        })
        .collect();
    files.sort_by(|(left, _), (right, _)| left.cmp(right));
    assert!(!files.is_empty(), "{} has vectors", dir.display());
    files
}

/// Returns lines as vectors write them, with every number as text.
#[must_use]
pub fn written(lines: &Lines) -> Value {
    lines.iter().map(|(name, line)| (name.clone(), in_text(line))).collect()
}

/// Returns JSON with every number as the text that it was.
#[must_use]
pub fn in_text(json: &str) -> Value {
    let parts = "a part of good JSON";
    match json.as_bytes()[0] {
        b'{' => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).expect(parts);
            members.into_iter().map(|(name, value)| (name, in_text(value.get()))).collect()
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(json).expect(parts);
            items.into_iter().map(|item| in_text(item.get())).collect()
        }
        b'-' | b'0'..=b'9' => json.into(),
        _ => serde_json::from_str(json).expect(parts),
    }
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}
