//! RFC 6455 frames, both ways, over plain bytes. No extension is negotiated, so that all reserved bits must be zero.

use std::sync::Arc;

use protocol::close::CloseCode;

/// A server frame, encoded once and shared by everyone it is sent to.
pub type Encoded = Arc<[u8]>;

/// The longest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL_BYTES: u8 = 125;
/// An unsolicited ping without payload: the RFC's half of the heartbeat.
pub const PING: [u8; 2] = [FIN | 0x9, 0];

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const MASK_BYTES: usize = 4;

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

/// Appends the answer to the peer's close frame: its own code, if it gave one.
pub fn append_close_answer(out: &mut Vec<u8>, code: Option<u16>) {
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

/// What a client's frames add up to.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A whole text message.
    Text(&'a str),
    /// Wants a pong with this payload.
    Ping(&'a [u8]),
    /// Life.
    Pong,
    /// A fragment that is not its message's last and adds nothing to it. It says nothing, and counts like a message:
    /// else a client could go on with them for ever.
    EmptyFragment,
    /// The peer closes, with this code if it gave one.
    Close(Option<u16>),
}

/// Reads a client's frames and joins them into messages.
///
/// A message's fragments are held here, at most `max_bytes` of them; nothing is held between messages. What breaks the
/// RFC, the order of frames or the limit is refused as soon as the frame's header says it, and bad UTF-8 as soon as the
/// frame that makes it bad is whole.
#[derive(Debug, Default)]
pub struct Reader {
    fragments: Option<Fragments>,
}

impl Reader {
    /// Takes the first frame off `bytes`, which it unmasks in place: how many bytes it took, and the message that it
    /// ends, if any; `None` while the frame is incomplete. `joined` lends room for a message of several fragments.
    ///
    /// # Errors
    /// The code to close with.
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

/// What has come of a text message.
#[derive(Debug, Default)]
struct Fragments {
    bytes: Vec<u8>,
    /// How many of them are whole characters.
    checked: usize,
}

impl Fragments {
    /// Adds a fragment, whose last character may be cut.
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

/// What a frame is (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// A client's frame, as far as its header says.
#[derive(Clone, Copy, Debug)]
struct Header {
    /// Whether it ends its message.
    fin: bool,
    opcode: Opcode,
    /// Of the payload.
    length: u64,
    /// Where the mask begins, which the payload follows.
    mask_at: usize,
}

impl Header {
    /// Reads the header up to the mask; `None` while it is incomplete.
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
        // A length is written in as few bytes as it needs.
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

/// Eight bytes at a time: the compiler makes that as many as the machine takes at once.
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

/// A close frame's payload: nothing, or a code a peer may send and a reason in UTF-8 (RFC 6455 section 7.4).
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
