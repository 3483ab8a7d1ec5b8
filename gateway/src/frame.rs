//! Encodes and decodes RFC 6455 frames, over plain bytes.
//!
//! No extension is negotiated, so every reserved bit must be zero.

use std::sync::Arc;

use protocol::close::CloseCode;

/// A server frame, encoded once and shared by all connections that send it.
pub(crate) type Encoded = Arc<[u8]>;

/// The longest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL_BYTES: u8 = 125;
/// A ping frame without payload, which goes with each heartbeat message (`docs/protocol.md#rules`, rule 8).
pub(crate) const PING: [u8; 2] = [FIN | 0x9, 0];

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const MASK_BYTES: usize = 4;

/// Encodes `json` as one text frame.
pub(crate) fn text(json: &str) -> Encoded {
    let mut frame = Vec::with_capacity(json.len() + 4);
    append_text(&mut frame, json);
    frame.into()
}

/// Appends a text frame of `json` to `out`.
pub(crate) fn append_text(out: &mut Vec<u8>, json: &str) {
    append(out, 0x1, json.as_bytes());
}

/// Appends the pong for a ping with this payload.
pub(crate) fn append_pong(out: &mut Vec<u8>, payload: &[u8]) {
    append(out, 0xA, payload);
}

/// Appends a close frame.
pub(crate) fn append_close(out: &mut Vec<u8>, code: CloseCode) {
    let mut payload = code.number().to_be_bytes().to_vec();
    payload.extend_from_slice(code.reason().as_bytes());
    append(out, 0x8, &payload);
}

/// Appends the close frame that answers the peer's. It repeats the peer's code, if there was one.
pub(crate) fn append_close_echo(out: &mut Vec<u8>, code: Option<u16>) {
    match code {
        Some(code) => append(out, 0x8, &code.to_be_bytes()),
        None => append(out, 0x8, &[]),
    }
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

/// Returns the JSON inside an encoded text frame, for a REST response.
pub(crate) fn json(frame: &Encoded) -> &str {
    let header = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.get(header..).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
}

/// What a client sent: a whole message, or a control frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A ping, to be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// A pong. It only shows that the client is alive.
    Pong,
    /// A fragment without payload that does not end its message. It counts as a message, because a client could send
    /// such fragments forever.
    EmptyFragment,
    /// A close frame, with its code if it has one.
    Close(Option<u16>),
}

/// Reads a client's frames and joins them into messages.
///
/// The reader holds the fragments of the current message, at most `max_bytes` in all, and nothing between messages. A
/// frame that breaks the RFC, the order of frames or the limit is refused as soon as its header has come. Bad UTF-8 is
/// refused as soon as the frame that contains it is whole.
#[derive(Debug, Default)]
pub struct Reader {
    fragments: Option<Fragments>,
}

impl Reader {
    /// Reads the first frame of `bytes`, and unmasks it in place. Returns the frame's length, and the message that the
    /// frame completes, if any. Returns `None` while the frame is incomplete. `joined` receives the bytes of a message
    /// that came in several fragments.
    ///
    /// # Errors
    /// The code to close the connection with.
    pub fn read<'a>(
        &mut self,
        bytes: &'a mut [u8],
        max_bytes: usize,
        joined: &'a mut Vec<u8>,
    ) -> Result<Option<(usize, Option<Message<'a>>)>, CloseCode> {
        let Some(header) = Header::parse(bytes)? else { return Ok(None) };
        let room = match (header.opcode, &self.fragments) {
            (Opcode::Ping | Opcode::Pong | Opcode::Close, _) => usize::from(MAX_CONTROL_BYTES),
            (Opcode::Text, None) => max_bytes,
            (Opcode::Continuation, Some(fragments)) => max_bytes.saturating_sub(fragments.bytes.len()),
            (Opcode::Binary, None) => return Err(CloseCode::Unsupported),
            (Opcode::Text | Opcode::Binary, Some(_)) | (Opcode::Continuation, None) => {
                return Err(CloseCode::ProtocolError);
            }
        };
        let length = usize::try_from(header.length).ok().filter(|&length| length <= room);
        let end = header.mask_at + MASK_BYTES + length.ok_or(CloseCode::TooBig)?;
        let Some((mask, payload)) =
            bytes.get_mut(header.mask_at..end).and_then(<[u8]>::split_first_chunk_mut::<MASK_BYTES>)
        else {
            return Ok(None);
        };
        unmask(payload, *mask);
        Ok(Some((end, self.take(&header, payload, joined)?)))
    }

    fn take<'a>(
        &mut self,
        header: &Header,
        payload: &'a [u8],
        joined: &'a mut Vec<u8>,
    ) -> Result<Option<Message<'a>>, CloseCode> {
        Ok(Some(match header.opcode {
            Opcode::Ping => Message::Ping(payload),
            Opcode::Pong => Message::Pong,
            Opcode::Close => Message::Close(close_code(payload)?),
            Opcode::Text if header.fin => Message::Text(utf8(payload)?),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                let fragments = self.fragments.get_or_insert_default();
                fragments.push(payload)?;
                if header.fin {
                    *joined = self.fragments.take().unwrap_or_default().bytes;
                    Message::Text(utf8(joined)?)
                } else if payload.is_empty() {
                    Message::EmptyFragment
                } else {
                    return Ok(None);
                }
            }
        }))
    }
}

/// The fragments of a text message that have come so far.
#[derive(Debug, Default)]
struct Fragments {
    bytes: Vec<u8>,
    /// How many of `bytes` are known to be whole characters.
    checked: usize,
}

impl Fragments {
    /// Adds a fragment. It may end within a character.
    fn push(&mut self, payload: &[u8]) -> Result<(), CloseCode> {
        self.bytes.extend_from_slice(payload);
        self.checked += match simdutf8::compat::from_utf8(&self.bytes[self.checked..]) {
            Ok(text) => text.len(),
            Err(cut) if cut.error_len().is_none() => cut.valid_up_to(),
            Err(_) => return Err(CloseCode::InvalidUtf8),
        };
        Ok(())
    }
}

/// The opcodes of RFC 6455 section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// The header of a client's frame.
#[derive(Clone, Copy, Debug)]
struct Header {
    /// Whether the frame ends its message.
    fin: bool,
    opcode: Opcode,
    /// Bytes of payload.
    length: u64,
    /// Where the mask begins. The payload follows it.
    mask_at: usize,
}

impl Header {
    /// Reads the header up to the mask. Returns `None` while it is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, CloseCode> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
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
        let short = second & !MASKED;
        let control = matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong);
        if first & RESERVED != 0 || second & MASKED == 0 || (control && (!fin || short > MAX_CONTROL_BYTES)) {
            return Err(CloseCode::ProtocolError);
        }
        // RFC 6455 section 5.2 requires the shortest form of a length.
        let (length, mask_at, lengths) = match short {
            126 => {
                let Some(length) = rest.first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*length)), 4, 126..=0xFFFF)
            }
            127 => {
                let Some(length) = rest.first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*length), 10, 0x1_0000..=u64::MAX >> 1)
            }
            short => (u64::from(short), 2, 0..=125),
        };
        if !lengths.contains(&length) {
            return Err(CloseCode::ProtocolError);
        }
        Ok(Some(Self { fin, opcode, length, mask_at }))
    }
}

/// Removes the mask, eight bytes at a time. The compiler widens this to what the machine can process at once.
fn unmask(payload: &mut [u8], mask: [u8; MASK_BYTES]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, CloseCode> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| CloseCode::InvalidUtf8)
}

/// Parses the payload of a close frame: nothing, or a code that a peer may send and a reason in UTF-8 (RFC 6455
/// section 7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(CloseCode::ProtocolError) };
    };
    match u16::from_be_bytes(*code) {
        code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => utf8(reason).map(|_| Some(code)),
        _ => Err(CloseCode::ProtocolError),
    }
}

#[cfg(test)]
mod tests;
