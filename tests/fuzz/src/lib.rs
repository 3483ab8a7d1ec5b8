//! Properties that must hold for any bytes from outside: one function per fuzz target.
//!
//! `cargo fuzz` calls the functions with generated input. `cargo test` calls them with the corpus
//! (`tests/fuzz/corpus.rs`).

use std::collections::{BTreeMap, HashSet};

use commands::replay::betfair::Betfair;
use gateway::frame::{Message, Reader};
use protocol::{
    client_message::{ClientMessage, ClientRequest, MAX_ID_CHARS, MessageId},
    close::CloseCode,
    error::Refusal,
    overrides::{self, MAX_NESTING, Override, PRICED},
    server_message,
};
use publisher::batch::{self, Format};
use serde_json::value::RawValue;

/// The longest message that [`frames`] allows. It is short, so that the input often exceeds it.
const MAX_MESSAGE_BYTES: usize = 100;

/// Reads bytes as frames. The messages and the end are the same whether the bytes come at once, one by one, or in
/// pieces. The first eight bytes are the lengths of the pieces. No message exceeds the limit.
pub fn frames(data: &[u8]) {
    let Some((cuts, bytes)) = data.split_first_chunk::<8>() else { return };
    let whole = read_frames(bytes, [usize::MAX].into_iter().cycle());
    let cut = read_frames(bytes, cuts.iter().map(|&cut| usize::from(cut).max(1)).cycle());
    assert_eq!(whole, cut);
    let singly = read_frames(bytes, [1].into_iter().cycle());
    assert_eq!(whole, singly);
}

/// Reads a client's text message. Its `id` and `ts` give valid JSON in the reply, and a refusal says why.
pub fn client_message(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let id = match ClientMessage::parse(text) {
        Ok(ClientMessage { id, request }) => {
            match request {
                ClientRequest::Ping { ts } => assert_json(&server_message::pong(id.as_ref(), ts.as_deref())),
                ClientRequest::Subscribe { markets, .. } | ClientRequest::Unsubscribe { markets } => {
                    assert_distinct(markets.iter());
                }
                ClientRequest::Resume { offsets } => {
                    assert_distinct(offsets.iter().map(|(market, _)| market));
                }
                ClientRequest::Pong | ClientRequest::Refresh { .. } => {}
            }
            id
        }
        Err(bad) => {
            assert!(!bad.message.is_empty());
            assert_json(&server_message::error(bad.id.as_ref(), Refusal::BadMessage, &bad.message));
            bad.id
        }
    };
    if let Some(MessageId::Text(id)) = id {
        assert!(id.chars().count() <= MAX_ID_CHARS);
    }
}

/// Reads a body as an override, and as a batch in both formats. An accepted override keeps the rules of
/// `docs/protocol.md#rules-of-an-override`, with its prices unchanged.
pub fn override_body(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(accepted) = Override::parse(text)
    {
        let payload = accepted.payload.text();
        assert!(text.contains(payload), "as it was written");
        assert!(overrides::payload(payload).is_ok_and(|again| again == accepted.payload));
        assert!(nesting(payload) <= MAX_NESTING);
        for line in accepted.payload.lines() {
            let Some(line) = line.text.as_deref() else { continue };
            for (name, price) in serde_json::from_str::<BTreeMap<String, &RawValue>>(line).expect("a line") {
                if PRICED.contains(&name.as_str()) {
                    let price: f64 = price.get().parse().expect("odds are a number");
                    assert!(price > 1.0 && price <= 10_000.0, "{price}");
                }
            }
        }
    }
    for format in [Format::Json, Format::Ndjson] {
        let Ok(items) = batch::split(data, format) else { continue };
        assert!(items.len() <= batch::MAX_ITEMS);
        for item in items.into_iter().flatten() {
            let _ = Override::parse(item);
        }
    }
}

/// Reads lines of a recorded feed. The publisher accepts every resulting change, and a line that cannot be read has no
/// effect.
pub fn replay_lines(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (mut feed, mut without_bad_lines) = (Betfair::default(), Betfair::default());
    for line in text.lines() {
        let Ok(changes) = feed.read(line) else { continue };
        for change in &changes {
            assert!(overrides::payload(change.payload.text()).is_ok_and(|payload| payload == change.payload));
        }
        let again = without_bad_lines.read(line).expect("it was read a moment ago");
        assert_eq!(changes, again);
    }
}

fn read_frames(bytes: &[u8], mut cuts: impl Iterator<Item = usize>) -> (Vec<String>, Option<CloseCode>) {
    let mut messages = Vec::new();
    let mut reader = Reader::default();
    let (mut unread, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (come, later) = rest.split_at(cuts.next().expect("cuts go on").min(rest.len()));
        unread.extend_from_slice(come);
        rest = later;
        let mut taken = 0;
        loop {
            let (mut joined, left) = (Vec::new(), unread.len() - taken);
            match reader.read(&mut unread[taken..], MAX_MESSAGE_BYTES, &mut joined) {
                Ok(None) => break,
                Err(code) => return (messages, Some(code)),
                Ok(Some((count, message))) => {
                    assert!(count > 0 && count <= left);
                    taken += count;
                    if let Some(Message::Text(text)) = message {
                        assert!(text.len() <= MAX_MESSAGE_BYTES);
                    }
                    messages.extend(message.map(|message| format!("{message:?}")));
                }
            }
        }
        unread.drain(..taken);
    }
    (messages, None)
}

fn assert_json(text: &str) {
    assert!(serde_json::from_str::<BTreeMap<String, &RawValue>>(text).is_ok(), "{text}");
}

fn assert_distinct<T: std::hash::Hash + Eq>(mut items: impl Iterator<Item = T>) {
    let mut seen = HashSet::new();
    assert!(items.all(|item| seen.insert(item)));
}

/// Returns how deeply objects and arrays are nested in a JSON text.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
