//! Server messages, as far as this tool looks into them.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// One server message (contract, section 3).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// `odds_update`.
    Update(Update),
    /// `snapshot`.
    Snapshot {
        /// Which market's state it is.
        market: u64,
        /// The position it stands for.
        seq: u64,
        /// History was lost or is too old.
        reset: bool,
        /// This client was too slow.
        conflated: bool,
    },
    /// `ack` of the one subscribe or resume each connection sends.
    Ack {
        /// Per market where live delivery starts.
        positions: HashMap<u64, Position>,
        /// Codes of refused markets, with how many each.
        rejected: BTreeMap<String, usize>,
    },
    /// `ping`, the server's heartbeat.
    Ping,
    /// `pong`, with the `ts` this tool had sent.
    Pong {
        /// What came back.
        ts: u64,
    },
    /// `status`.
    Status {
        /// Whether the pod says its prices may be stale.
        stale: bool,
    },
    /// `error`.
    Error {
        /// Its code.
        code: String,
    },
    /// `bye`, just before the close.
    Bye {
        /// Why.
        reason: String,
    },
    /// A type this tool does not know; clients must ignore those.
    Other,
}

/// The three numbers of an update that count here.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) struct Update {
    /// Which market.
    pub(crate) market: u64,
    /// Its place in the market's log.
    pub(crate) seq: u64,
    /// When a swarm wanted to send it, `clock::now_us`; `None` when somebody else published it.
    pub(crate) intended_us: Option<u64>,
}

/// Reads one message.
///
/// # Errors
/// What is wrong with it, when it is not JSON or lacks a field the contract promises.
pub(crate) fn parse(text: &[u8]) -> Result<Message, serde_json::Error> {
    match usual_update(text) {
        Some(update) => Ok(Message::Update(update)),
        None => any(text),
    }
}

/// How long a payload has to be for an update message of at least `update_bytes`.
pub(crate) fn payload_bytes(update_bytes: usize) -> usize {
    /// What an update message has around its payload.
    const ENVELOPE_BYTES: usize = 83;
    update_bytes.saturating_sub(ENVELOPE_BYTES)
}

/// A payload of one line that carries the intended send time, padded to `payload_bytes` if it is shorter.
pub(crate) fn payload(intended_us: u64, payload_bytes: usize) -> String {
    let bare = format!("{LINE_START}{intended_us}{PAD_START}{LINE_END}").len();
    let pad = "x".repeat(payload_bytes.saturating_sub(bare));
    format!("{LINE_START}{intended_us}{PAD_START}{pad}{LINE_END}")
}

/// The intended send time in a payload, if a swarm published it.
pub(crate) fn intended_us(payload: &str) -> Option<u64> {
    Some(serde_json::from_str::<Payload>(payload).ok()?.swarm?.t)
}

const LINE_START: &str = r#"{"swarm":{"t":"#;
const PAD_START: &str = r#","pad":""#;
const LINE_END: &str = r#""}}"#;

/// The hot path: an update of a swarm, spelled the way the contract's example is, is compared byte for byte with what
/// was sent, without a JSON parser. Anything else is `None` and takes the slow path.
fn usual_update(text: &[u8]) -> Option<Update> {
    let mut scan = Scan(text.strip_suffix(b"}")?.strip_suffix(LINE_END.as_bytes())?);
    scan.expect(r#"{"type":"odds_update","marketId":"#)?;
    let market = scan.number()?;
    scan.expect(r#","seq":"#)?;
    let seq = scan.number()?;
    scan.expect(r#","ts":"#)?;
    scan.number()?;
    scan.expect(r#","payload":"#)?;
    scan.expect(LINE_START)?;
    let intended_us = scan.number()?;
    scan.expect(PAD_START)?;
    scan.0.iter().all(|&byte| byte == b'x').then_some(Update { market, seq, intended_us: Some(intended_us) })
}

struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    fn expect(&mut self, literal: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(literal.as_bytes())?;
        Some(())
    }

    fn number(&mut self) -> Option<u64> {
        let digits = self
            .0
            .iter()
            .position(|byte| !byte.is_ascii_digit())
            .filter(|digits| (1..20).contains(digits))?;
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        Some(number.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
    }
}

fn any(text: &[u8]) -> Result<Message, serde_json::Error> {
    let wire: Wire = serde_json::from_slice(text)?;
    Ok(match wire.kind.as_str() {
        "odds_update" => {
            let payload = present("payload", wire.payload)?;
            let intended_us = intended_us(payload.get());
            let (market, seq) = (present("marketId", wire.market)?, present("seq", wire.seq)?);
            Message::Update(Update { market, seq, intended_us })
        }
        "snapshot" => Message::Snapshot {
            market: present("marketId", wire.market)?,
            seq: present("seq", wire.seq)?,
            reset: wire.reset,
            conflated: wire.conflated,
        },
        "ack" => {
            let mut rejected = BTreeMap::new();
            wire.rejected.into_iter().for_each(|one| *rejected.entry(one.code).or_default() += 1);
            Message::Ack { positions: wire.positions, rejected }
        }
        "ping" => Message::Ping,
        "pong" => Message::Pong { ts: present("ts", wire.ts)? },
        "status" => Message::Status { stale: present("stale", wire.stale)? },
        "error" => {
            Message::Error { code: wire.code.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned() }
        }
        "bye" => Message::Bye { reason: wire.reason },
        _ => Message::Other,
    })
}

fn present<T>(name: &'static str, field: Option<T>) -> Result<T, serde_json::Error> {
    field.ok_or_else(|| serde::de::Error::missing_field(name))
}

/// The fields of all messages together. Not an enum tagged by `type`: serde reads those through a buffer that knows
/// neither raw values nor numbers as keys.
#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "marketId")]
    market: Option<u64>,
    seq: Option<u64>,
    ts: Option<u64>,
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    reset: bool,
    #[serde(default)]
    conflated: bool,
    #[serde(default)]
    positions: HashMap<u64, Position>,
    #[serde(default)]
    rejected: Vec<Rejected>,
    stale: Option<bool>,
    /// Text in an error, a number in a bye.
    code: Option<Value>,
    #[serde(default)]
    reason: String,
}

/// Where delivery of a market starts.
#[derive(Debug, PartialEq, Eq, Clone, Copy, Deserialize)]
pub(crate) struct Position {
    /// The log's top.
    pub(crate) seq: u64,
    /// Answer to a resume: whether everything after its offset comes first. Else a snapshot does.
    pub(crate) recovered: Option<bool>,
}

#[derive(Deserialize)]
struct Rejected {
    code: String,
}

#[derive(Deserialize)]
struct Payload {
    swarm: Option<Line>,
}

#[derive(Deserialize)]
struct Line {
    t: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(payload: &str) -> String {
        format!(
            r#"{{"type":"odds_update","marketId":1001,"seq":1025,"ts":1710001113000,"payload":{payload}}}"#
        )
    }

    #[test]
    fn an_update_of_ours_takes_the_fast_path() {
        let text = update(&payload(123_456, 60));
        let expected = Update { market: 1001, seq: 1025, intended_us: Some(123_456) };
        assert_eq!(usual_update(text.as_bytes()), Some(expected));
        assert_eq!(any(text.as_bytes()).unwrap(), Message::Update(expected), "and the slow path agrees");
    }

    #[test]
    fn an_update_of_somebody_else_has_no_send_time() {
        let text = update(r#"{"moneyline":{"home":1.85,"away":2.10}}"#);
        let expected = Message::Update(Update { market: 1001, seq: 1025, intended_us: None });
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        assert_eq!(any(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn another_spelling_of_an_update_is_understood() {
        let text = br#"{"seq": 7, "payload": {"a":{"b":1}, "swarm":{"pad":"","t":5}}, "marketId": 9, "type": "odds_update"}"#;
        let expected = Update { market: 9, seq: 7, intended_us: Some(5) };
        assert_eq!(parse(text).unwrap(), Message::Update(expected));
    }

    #[test]
    fn a_cut_update_is_not_taken_for_a_whole_one() {
        for text in [update(&payload(123_456, 60)), update(r#"{"moneyline":{"home":1.85}}"#)] {
            for cut in 0..text.len() {
                assert!(!matches!(parse(&text.as_bytes()[..cut]), Ok(Message::Update(_))), "cut at {cut}");
            }
        }
    }

    #[test]
    fn the_payload_is_padded_to_its_size_and_is_json() {
        for size in [0, 50, 70, 500] {
            let text = payload(1_234_567_890, size);
            assert!(text.len() >= size && serde_json::from_str::<Payload>(&text).is_ok());
            assert!(size < 50 || text.len() == size);
        }
    }

    #[test]
    fn the_other_messages_are_understood() {
        let read = |text: &str| parse(text.as_bytes()).unwrap();
        assert_eq!(
            read(
                r#"{"type":"ack","ok":false,"subscribed":[1001,1004],
                   "positions":{"1001":{"epoch":3,"seq":1030},"1004":{"epoch":3,"seq":7,"recovered":true}},
                   "rejected":[{"marketId":1002,"code":"FORBIDDEN"},{"marketId":1003,"code":"FORBIDDEN"}]}"#
            ),
            Message::Ack {
                positions: HashMap::from([
                    (1001, Position { seq: 1030, recovered: None }),
                    (1004, Position { seq: 7, recovered: Some(true) })
                ]),
                rejected: BTreeMap::from([("FORBIDDEN".into(), 2)])
            }
        );
        assert_eq!(
            read(
                r#"{"type":"snapshot","marketId":1,"seq":3,"ts":1,"payload":{},"epoch":2,"conflated":true}"#
            ),
            Message::Snapshot { market: 1, seq: 3, reset: false, conflated: true }
        );
        assert_eq!(read(r#"{"type":"ping","ts":1}"#), Message::Ping);
        assert_eq!(read(r#"{"type":"pong","ts":12}"#), Message::Pong { ts: 12 });
        assert_eq!(
            read(r#"{"type":"status","stale":true,"reason":"X","since":1}"#),
            Message::Status { stale: true }
        );
        assert_eq!(read(r#"{"type":"error","code":"X","message":"m"}"#), Message::Error { code: "X".into() });
        assert_eq!(
            read(r#"{"type":"bye","code":1012,"reason":"DRAINING","reconnect":true,"afterMs":1}"#),
            Message::Bye { reason: "DRAINING".into() }
        );
        assert_eq!(read(r#"{"type":"news","x":[1]}"#), Message::Other);
        assert!(parse(b"{").is_err());
    }
}
