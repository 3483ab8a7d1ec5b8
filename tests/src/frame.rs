//! WebSocket frames (RFC 6455 section 5.2): reads whole frames of either side, writes frames of either side.

use std::borrow::Cow;

use thiserror::Error;

/// Opcodes (RFC 6455 section 5.2).
pub mod opcode {
    /// A further fragment of a message.
    pub const CONTINUATION: u8 = 0;
    /// A text message.
    pub const TEXT: u8 = 1;
    /// A binary message.
    pub const BINARY: u8 = 2;
    /// Close.
    pub const CLOSE: u8 = 8;
    /// Ping.
    pub const PING: u8 = 9;
    /// Pong.
    pub const PONG: u8 = 10;
}

/// Larger frames are refused.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// The bit of a frame's first byte that marks the last frame of its message.
const FIN: u8 = 0x80;
/// The bit of a frame's second byte that marks a masked payload.
const MASKED: u8 = 0x80;
/// These lengths say that the real length follows, in two or in eight bytes.
const LENGTH_IN_2: u8 = 126;
const LENGTH_IN_8: u8 = 127;
/// The longest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL_BYTES: u64 = 125;
/// The mask of every frame that [`frame`] writes. RFC 6455 asks for random masks to protect proxies; here are none.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Which side sent a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Clients mask every frame.
    Client,
    /// Servers mask no frame.
    Server,
}

/// One whole frame inside the bytes it was read from.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// See [`opcode`].
    pub opcode: u8,
    /// The payload, unmasked.
    pub payload: Cow<'a, [u8]>,
    /// Bytes that the frame takes, header included.
    pub length: usize,
}

/// Why bytes are not a frame that the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Violation {
    #[error("a reserved bit is set, but no extension was negotiated")]
    ReservedBits,
    #[error("an unknown opcode")]
    Opcode,
    #[error("a fragmented message, which neither side has a reason to send")]
    Fragmented,
    #[error("a masked frame of a server, or an unmasked frame of a client")]
    Masking,
    #[error("a control frame longer than 125 bytes")]
    LongControl,
    #[error("a length that is not written in the fewest bytes")]
    Length,
    #[error("a frame above 16 MiB")]
    TooBig,
}

/// Reads the first frame in `bytes`; `None` while it is incomplete.
///
/// # Errors
/// [`Violation`], as soon as the header shows it.
pub fn parse(bytes: &[u8], from: Side) -> Result<Option<Parsed<'_>>, Violation> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    let opcode = first & 0x0F;
    if first & 0x70 != 0 {
        return Err(Violation::ReservedBits);
    }
    if first & FIN == 0 || opcode == opcode::CONTINUATION {
        return Err(Violation::Fragmented);
    }
    if !matches!(opcode, opcode::TEXT | opcode::BINARY | opcode::CLOSE | opcode::PING | opcode::PONG) {
        return Err(Violation::Opcode);
    }
    if (second & MASKED != 0) != (from == Side::Client) {
        return Err(Violation::Masking);
    }
    let (header, length, least) = match second & !MASKED {
        LENGTH_IN_2 => match rest.first_chunk() {
            Some(&length) => (4, u64::from(u16::from_be_bytes(length)), 126),
            None => return Ok(None),
        },
        LENGTH_IN_8 => match rest.first_chunk() {
            Some(&length) => (10, u64::from_be_bytes(length), 65_536),
            None => return Ok(None),
        },
        short => (2, u64::from(short), 0),
    };
    if length < least {
        return Err(Violation::Length);
    }
    if opcode >= opcode::CLOSE && length > MAX_CONTROL_BYTES {
        return Err(Violation::LongControl);
    }
    let length = usize::try_from(length).ok().filter(|&length| length <= MAX_FRAME_BYTES);
    let length = length.ok_or(Violation::TooBig)?;
    let start = if from == Side::Client { header + MASK.len() } else { header };
    let Some(payload) = bytes.get(start..start + length) else { return Ok(None) };
    let payload = match bytes[header..start].first_chunk() {
        Some(&mask) => masked(payload, mask).collect(),
        None => Cow::Borrowed(payload),
    };
    Ok(Some(Parsed { opcode, payload, length: start + length }))
}

/// A masked frame as a client sends it; `first` is the frame's first byte ([`last`]).
#[must_use]
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, payload.len(), MASKED);
    bytes.extend(MASK);
    bytes.extend(masked(payload, MASK));
    bytes
}

/// An unmasked frame as a server sends it. From a client it breaks the protocol.
#[must_use]
pub fn unmasked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&head(first, payload.len(), 0), payload].concat()
}

/// The first byte of a frame that is a whole message.
#[must_use]
pub const fn last(opcode: u8) -> u8 {
    FIN | opcode
}

fn head(first: u8, length: usize, masked: u8) -> Vec<u8> {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..LENGTH_IN_2), _) => vec![first, masked | length],
        (_, Ok(length)) => [&[first, masked | LENGTH_IN_2], &length.to_be_bytes()[..]].concat(),
        _ => [&[first, masked | LENGTH_IN_8], &(length as u64).to_be_bytes()[..]].concat(),
    }
}

/// Masking and unmasking are the same operation.
fn masked(payload: &[u8], mask: [u8; 4]) -> impl Iterator<Item = u8> {
    payload.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u8 = last(opcode::TEXT);

    fn of_server(bytes: &[u8]) -> Result<Option<Parsed<'_>>, Violation> {
        parse(bytes, Side::Server)
    }

    #[test]
    fn every_length_form_parses_at_its_edges() {
        for size in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload = vec![b'x'; size];
            for (bytes, from) in
                [(unmasked_frame(TEXT, &payload), Side::Server), (frame(TEXT, &payload), Side::Client)]
            {
                let parsed = Parsed { opcode: opcode::TEXT, payload: (&payload).into(), length: bytes.len() };
                assert_eq!(parse(&bytes, from), Ok(Some(parsed)));
            }
        }
    }

    #[test]
    fn a_frame_cut_anywhere_waits_for_the_rest() {
        for size in [0, 5, 200, 66_000] {
            let payload = vec![b'x'; size];
            for (bytes, from) in
                [(unmasked_frame(TEXT, &payload), Side::Server), (frame(TEXT, &payload), Side::Client)]
            {
                for cut in (0..bytes.len()).filter(|cut| *cut < 20 || bytes.len() - cut < 20) {
                    assert_eq!(parse(&bytes[..cut], from), Ok(None), "{size} bytes cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn frames_back_to_back_are_taken_one_by_one() {
        let bytes = [unmasked_frame(TEXT, b"one"), unmasked_frame(last(opcode::PING), b"two")].concat();
        let first = of_server(&bytes).unwrap().unwrap();
        let second = of_server(&bytes[first.length..]).unwrap().unwrap();
        assert_eq!(
            (&*first.payload, second.opcode, &*second.payload),
            (&b"one"[..], opcode::PING, &b"two"[..])
        );
    }

    #[test]
    fn what_the_rfc_forbids_is_a_violation() {
        for (bytes, violation) in [
            (&[0xC1, 0][..], Violation::ReservedBits),
            (&[0x01, 0], Violation::Fragmented),
            (&[0x80, 0], Violation::Fragmented),
            (&[0x83, 0], Violation::Opcode),
            (&[0x81, 0x80], Violation::Masking),
            (&[0x89, 126, 0, 200], Violation::LongControl),
            (&[0x81, 126, 0, 125], Violation::Length),
            (&[0x81, 127, 0, 0, 0, 0, 0, 0, 255, 255], Violation::Length),
            (&[0x81, 127, 0, 0, 0, 1, 0, 0, 0, 0], Violation::TooBig),
        ] {
            assert_eq!(of_server(bytes), Err(violation), "{bytes:?}");
        }
        assert_eq!(parse(&[0x81, 0], Side::Client), Err(Violation::Masking));
    }

    #[test]
    fn client_frames_are_masked() {
        let [a, b, c, d] = MASK;
        let pong = frame(last(opcode::PONG), b"abcde");
        assert_eq!(pong, [0x8A, 0x85, a, b, c, d, b'a' ^ a, b'b' ^ b, b'c' ^ c, b'd' ^ d, b'e' ^ a]);
        assert_eq!(frame(TEXT, &[0; 126])[..4], [0x81, 0xFE, 0, 126]);
        assert_eq!(frame(TEXT, &vec![0; 65_536])[..10], [0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
