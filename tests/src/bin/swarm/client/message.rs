//! The payload that this tool publishes, and server messages as far as it looks into them.

use ::tests::Message;
use serde::Deserialize;

#[derive(Debug, PartialEq)]
pub(crate) enum Received {
    Update(Update),
    Other(Message),
}

/// The numbers of an update that count here.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) struct Update {
    pub(crate) market: u64,
    pub(crate) seq: u64,
    /// When a swarm was due to send it (`clock::now_us`); `None` for an update of another publisher.
    pub(crate) due_us: Option<u64>,
}

/// Reads one message. Fails if it is not JSON or not in the shape of docs/protocol.md.
pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Received> {
    match usual_update(text) {
        Some(update) => Ok(Received::Update(update)),
        None => any(text),
    }
}

/// How long a payload has to be for an update message of at least `update_bytes`.
pub(crate) fn payload_bytes(update_bytes: usize) -> usize {
    /// What an update message has around its payload.
    const ENVELOPE_BYTES: usize = 83;
    update_bytes.saturating_sub(ENVELOPE_BYTES)
}

/// A payload of one line that carries its due time, padded to `payload_bytes`.
pub(crate) fn payload(due_us: u64, payload_bytes: usize) -> String {
    let bare = format!("{LINE_START}{due_us}{PAD_START}{LINE_END}").len();
    let pad = "x".repeat(payload_bytes.saturating_sub(bare));
    format!("{LINE_START}{due_us}{PAD_START}{pad}{LINE_END}")
}

/// The due time in a payload, if a swarm published it.
pub(crate) fn due_us(payload: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Payload {
        swarm: Line,
    }

    #[derive(Deserialize)]
    struct Line {
        t: u64,
    }

    Some(serde_json::from_str::<Payload>(payload).ok()?.swarm.t)
}

const LINE_START: &str = r#"{"swarm":{"t":"#;
const PAD_START: &str = r#","pad":""#;
const LINE_END: &str = r#""}}"#;

/// The hot path: compares an update of a swarm, spelled as the gateway spells it, byte for byte without a JSON parser.
/// Anything else is `None` and takes the slow path.
fn usual_update(text: &[u8]) -> Option<Update> {
    let mut rest = text.strip_suffix(b"}")?.strip_suffix(LINE_END.as_bytes())?;
    let market = number_after(&mut rest, r#"{"type":"odds_update","marketId":"#)?;
    let seq = number_after(&mut rest, r#","seq":"#)?;
    number_after(&mut rest, r#","ts":"#)?;
    rest = rest.strip_prefix(br#","payload":"#)?;
    let due_us = Some(number_after(&mut rest, LINE_START)?);
    let pad = rest.strip_prefix(PAD_START.as_bytes())?;
    pad.iter().all(|&byte| byte == b'x').then_some(Update { market, seq, due_us })
}

fn number_after(rest: &mut &[u8], literal: &str) -> Option<u64> {
    let text = rest.strip_prefix(literal.as_bytes())?;
    let digits = text.iter().position(|byte| !byte.is_ascii_digit());
    let (number, after) = text.split_at(digits.filter(|digits| (1..20).contains(digits))?);
    *rest = after;
    Some(number.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

fn any(text: &[u8]) -> serde_json::Result<Received> {
    Ok(match Message::read(text)? {
        Message::Update(update) => {
            let due_us = due_us(update.payload.text());
            Received::Update(Update { market: update.market_id, seq: update.seq, due_us })
        }
        other => Received::Other(other),
    })
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
        let expected = Update { market: 1001, seq: 1025, due_us: Some(123_456) };
        assert_eq!(usual_update(text.as_bytes()), Some(expected));
        assert_eq!(any(text.as_bytes()).unwrap(), Received::Update(expected), "and the slow path agrees");
    }

    #[test]
    fn an_update_of_another_publisher_has_no_due_time() {
        let text = update(r#"{"moneyline":{"home":1.85,"away":2.10}}"#);
        let expected = Received::Update(Update { market: 1001, seq: 1025, due_us: None });
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        assert_eq!(any(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn another_spelling_of_an_update_is_understood() {
        let text = br#"{"seq": 7, "payload": {"a":{"b":1}, "swarm":{"pad":"","t":5}}, "ts": 1, "marketId": 9, "type": "odds_update"}"#;
        let expected = Update { market: 9, seq: 7, due_us: Some(5) };
        assert_eq!(parse(text).unwrap(), Received::Update(expected));
    }

    #[test]
    fn a_cut_update_is_not_taken_for_a_whole_one() {
        for text in [update(&payload(123_456, 60)), update(r#"{"moneyline":{"home":1.85}}"#)] {
            for cut in 0..text.len() {
                assert!(!matches!(parse(&text.as_bytes()[..cut]), Ok(Received::Update(_))), "cut at {cut}");
            }
        }
    }

    #[test]
    fn the_payload_is_padded_to_its_size_and_is_json() {
        for size in [0, 50, 70, 500] {
            let text = payload(1_234_567_890, size);
            assert!(text.len() >= size && due_us(&text) == Some(1_234_567_890));
            assert!(size < 50 || text.len() == size);
        }
    }

    #[test]
    fn the_other_messages_are_understood() {
        for (text, kind) in [
            (
                r#"{"type":"ack","ok":true,"positions":{"1001":{"epoch":3,"seq":7,"recovered":true}}}"#,
                "Ack(Ack",
            ),
            (
                r#"{"type":"snapshot","marketId":1,"seq":3,"ts":1,"payload":{},"epoch":2}"#,
                "Snapshot(Snapshot",
            ),
            (r#"{"type":"ping","ts":1}"#, "Ping(Ping"),
            (r#"{"type":"pong","ts":12}"#, "Pong(Pong"),
            (r#"{"type":"status","stale":true,"reason":"X","since":1}"#, "Status(Status"),
            (r#"{"type":"error","code":"X","message":"m"}"#, "Error(ErrorMessage"),
            (r#"{"type":"bye","code":1012,"reason":"DRAINING","reconnect":true,"afterMs":1}"#, "Bye(Bye"),
            (r#"{"type":"news","x":[1]}"#, r#"Unknown("news")"#),
        ] {
            let read = format!("{:?}", parse(text.as_bytes()).unwrap());
            assert!(read.starts_with(&format!("Other({kind}")), "{read}");
        }
        assert!(parse(b"{").is_err());
    }
}
