//! RFC 6455 frames, both ways, over plain bytes. No extension is negotiated, so that all reserved bits must be zero.

use std::sync::Arc;

use shared::protocol::close::CloseCode;

/// A server frame, encoded once and shared by everyone it is sent to.
pub type Encoded = Arc<[u8]>;

/// The longest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL_BYTES: usize = 125;
/// An unsolicited ping without payload: the RFC's half of the heartbeat.
pub const PING: [u8; 2] = [FIN | 0x9, 0];

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// A whole text frame of `json`.
#[must_use]
pub fn text(json: &str) -> Encoded {
    let mut frame = Vec::with_capacity(json.len() + 4);
    append_text(&mut frame, json);
    frame.into()
}

/// Appends a text frame of `json` to `out`.
pub fn append_text(out: &mut Vec<u8>, json: &str) {
    append(out, 0x1, json.as_bytes());
}

/// Appends the answer to a ping.
pub fn append_pong(out: &mut Vec<u8>, payload: &[u8]) {
    append(out, 0xA, payload);
}

/// Appends a close frame.
pub fn append_close(out: &mut Vec<u8>, code: CloseCode) {
    let mut payload = code.number().to_be_bytes().to_vec();
    payload.extend_from_slice(code.reason().as_bytes());
    append(out, 0x8, &payload);
}

fn append(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(FIN | opcode);
    #[expect(clippy::cast_possible_truncation, reason = "each arm's range fits its type")]
    match payload.len() {
        short @ 0..126 => out.push(short as u8),
        medium @ 126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// The JSON inside an encoded text frame: what REST answers with.
#[must_use]
pub fn json(frame: &Encoded) -> &str {
    let header = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.get(header..).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of a fragmented message.
    Continuation,
    /// Text, or the start of it.
    Text,
    /// Binary, or the start of it.
    Binary,
    /// The peer closes.
    Close,
    /// Wants a pong.
    Ping,
    /// Life.
    Pong,
}

/// One frame of a client, unmasked in place.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Whether it ends its message.
    pub fin: bool,
    /// What it is.
    pub opcode: Opcode,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Takes the first frame off `bytes` and says how many bytes it took; `None` while it is incomplete.
///
/// # Errors
/// The code to close with: a broken frame, or one whose payload is above `max_payload`, which is refused from its
/// header alone.
pub fn decode(bytes: &mut [u8], max_payload: usize) -> Result<Option<(Frame<'_>, usize)>, CloseCode> {
    let Some((&[first, second], _)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    let opcode = match first & 0x0F {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xA => Opcode::Pong,
        _ => return Err(CloseCode::ProtocolError),
    };
    let fin = first & FIN != 0;
    let control = matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong);
    let short = usize::from(second & !MASKED);
    if first & RESERVED != 0 || second & MASKED == 0 || (control && (!fin || short > MAX_CONTROL_BYTES)) {
        return Err(CloseCode::ProtocolError);
    }
    let (length, mask_at) = match short {
        126 => match bytes.get(2..4) {
            Some(&[a, b]) => (u64::from(u16::from_be_bytes([a, b])), 4),
            _ => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|length| <[u8; 8]>::try_from(length).ok()) {
            Some(length) => (u64::from_be_bytes(length), 10),
            None => return Ok(None),
        },
        short => (short as u64, 2),
    };
    let minimal = match mask_at {
        4 => length >= 126,
        10 => length > 0xFFFF && length >> 63 == 0,
        _ => true,
    };
    if !minimal {
        return Err(CloseCode::ProtocolError);
    }
    let length = usize::try_from(length).ok().filter(|&length| length <= max_payload.max(MAX_CONTROL_BYTES));
    let length = length.ok_or(CloseCode::TooBig)?;
    let payload_at = mask_at + 4;
    let end = payload_at + length;
    if bytes.len() < end {
        return Ok(None);
    }
    let (head, payload) = bytes[..end].split_at_mut(payload_at);
    for (byte, mask) in payload.iter_mut().zip(head[mask_at..].iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some((Frame { fin, opcode, payload }, end)))
}

/// What the frames of a connection add up to.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A whole text message.
    Text(&'a str),
    /// Wants a pong with this payload.
    Ping(&'a [u8]),
    /// Life.
    Pong,
    /// The peer closes.
    Close,
}

/// Joins fragments into messages. Holds memory only while a message is incomplete.
#[derive(Debug, Default)]
pub struct Assembler {
    fragments: Option<Vec<u8>>,
}

impl Assembler {
    /// Takes one frame; answers with the message it completes. `buffer` lends room for a joined message.
    ///
    /// # Errors
    /// The code to close with: binary, bad UTF-8, a message above `max_bytes`, or frames out of order.
    pub fn push<'a>(
        &mut self,
        frame: &Frame<'a>,
        max_bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Option<Message<'a>>, CloseCode> {
        match (frame.opcode, &mut self.fragments) {
            (Opcode::Ping, _) => Ok(Some(Message::Ping(frame.payload))),
            (Opcode::Pong, _) => Ok(Some(Message::Pong)),
            (Opcode::Close, _) => check_close(frame.payload).map(|()| Some(Message::Close)),
            (Opcode::Binary, None) => Err(CloseCode::Unsupported),
            (Opcode::Continuation, None) | (Opcode::Text | Opcode::Binary, Some(_)) => {
                Err(CloseCode::ProtocolError)
            }
            (Opcode::Text, None) if frame.fin => utf8(frame.payload).map(|text| Some(Message::Text(text))),
            (Opcode::Text, None) => {
                self.fragments = Some(frame.payload.to_vec());
                Ok(None)
            }
            (Opcode::Continuation, Some(fragments)) => {
                if fragments.len() + frame.payload.len() > max_bytes {
                    return Err(CloseCode::TooBig);
                }
                fragments.extend_from_slice(frame.payload);
                if !frame.fin {
                    return Ok(None);
                }
                *buffer = self.fragments.take().unwrap_or_default();
                utf8(buffer).map(|text| Some(Message::Text(text)))
            }
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, CloseCode> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| CloseCode::InvalidUtf8)
}

/// A close frame's payload: nothing, or a code a peer may send and a reason in UTF-8 (RFC 6455 section 7.4).
fn check_close(payload: &[u8]) -> Result<(), CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(()) } else { Err(CloseCode::ProtocolError) };
    };
    match u16::from_be_bytes(*code) {
        1000..=1003 | 1007..=1014 | 3000..=4999 => utf8(reason).map(|_| ()),
        _ => Err(CloseCode::ProtocolError),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        append(&mut frame, 0, payload);
        frame[0] = first;
        frame[1] |= MASKED;
        let mask_at = frame.len() - payload.len();
        let mask = [1, 2, 3, 250];
        for (byte, mask) in frame[mask_at..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        frame.splice(mask_at..mask_at, mask);
        frame
    }

    /// Feeds whole frames; answers with each message's text or the close code.
    fn feed(frames: &[Vec<u8>]) -> Result<Vec<String>, CloseCode> {
        let mut assembler = Assembler::default();
        let mut messages = Vec::new();
        for frame in frames {
            let mut bytes = frame.clone();
            let (frame, taken) = decode(&mut bytes, 1000)?.expect("a whole frame");
            let mut buffer = Vec::new();
            if let Some(message) = assembler.push(&frame, 1000, &mut buffer)? {
                messages.push(format!("{message:?}"));
            }
            assert_eq!(taken, bytes.len());
        }
        Ok(messages)
    }

    #[test]
    fn control_frames_may_stand_between_fragments() {
        let frames = [
            client_frame(0x01, b"he"),
            client_frame(0x89, b"p"),
            client_frame(0x00, b"l"),
            client_frame(0x8A, b""),
            client_frame(0x80, b"lo"),
            client_frame(0x88, b""),
        ];
        assert_eq!(feed(&frames).unwrap(), ["Ping([112])", "Pong", "Text(\"hello\")", "Close"]);
    }

    #[test]
    fn what_breaks_the_rfc_closes_with_its_code() {
        use CloseCode::{InvalidUtf8, ProtocolError, TooBig, Unsupported};
        let unmasked = {
            let mut frame = Vec::new();
            append_text(&mut frame, "x");
            frame
        };
        let mut long_form = client_frame(0x81, &[b'x'; 126]);
        long_form[3] = 5;
        for (frames, code) in [
            (vec![unmasked], ProtocolError),
            (vec![client_frame(0xC1, b"x")], ProtocolError),
            (vec![client_frame(0x83, b"x")], ProtocolError),
            (vec![client_frame(0x8B, b"x")], ProtocolError),
            (vec![client_frame(0x09, b"")], ProtocolError),
            (vec![client_frame(0x89, &[0; 126])], ProtocolError),
            (vec![client_frame(0x80, b"x")], ProtocolError),
            (vec![client_frame(0x01, b"x"), client_frame(0x81, b"y")], ProtocolError),
            (vec![client_frame(0x88, b"x")], ProtocolError),
            (vec![client_frame(0x88, &1005_u16.to_be_bytes())], ProtocolError),
            (vec![client_frame(0x88, &999_u16.to_be_bytes())], ProtocolError),
            (vec![client_frame(0x88, &[3, 232, 0xFF])], InvalidUtf8),
            (vec![client_frame(0x82, b"x")], Unsupported),
            (vec![client_frame(0x02, b"x")], Unsupported),
            (vec![client_frame(0x81, &[0xFF])], InvalidUtf8),
            (vec![client_frame(0x81, &[0xED, 0xA0, 0x80])], InvalidUtf8),
            (vec![client_frame(0x81, &[b'x'; 1001])], TooBig),
            (vec![client_frame(0x01, &[b'x'; 600]), client_frame(0x80, &[b'x'; 401])], TooBig),
            (vec![long_form], ProtocolError),
        ] {
            assert_eq!(feed(&frames), Err(code), "{:02x?}", &frames[0][..2]);
        }
    }

    #[test]
    fn too_big_is_known_from_the_header_alone() {
        let mut header = [0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(decode(&mut header, 1000).map(|_| ()), Err(CloseCode::TooBig));
    }

    proptest! {
        #[test]
        fn a_text_comes_through_whole_however_it_is_cut(text in "\\PC{0,300}", cut in 0usize..400) {
            let mut whole = client_frame(0x81, text.as_bytes());
            let cut = cut.min(whole.len() - 1);
            prop_assert!(decode(&mut whole[..cut].to_vec(), 2000).unwrap().is_none());
            let length = whole.len();
            let (frame, taken) = decode(&mut whole, 2000).unwrap().unwrap();
            prop_assert_eq!(taken, length);
            prop_assert_eq!(frame.payload, text.as_bytes());
        }

        #[test]
        fn the_json_of_a_frame_is_the_text_it_was_made_of(text in ".{0,40}", repeat in 1usize..3000) {
            let text = text.repeat(repeat);
            let frame = super::text(&text);
            prop_assert_eq!(json(&frame), text);
        }

        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = Vec::new();
            if let Ok(Some((frame, _))) = decode(&mut bytes, 100) {
                let _ = Assembler::default().push(&frame, 100, &mut buffer);
            }
        }
    }
}
