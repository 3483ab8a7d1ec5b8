//! RFC 6455 frames, the client's half: server frames are parsed where they lie, client frames are masked.

use thiserror::Error;

/// What a frame carries. Continuation frames have no variant: KMarket never fragments, so one is a violation.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Opcode {
    /// UTF-8 text, one message.
    Text,
    /// Binary, which the contract never sends.
    Binary,
    /// Close, with an optional code and reason.
    Close,
    /// Ping, to be answered with the same payload.
    Ping,
    /// Pong.
    Pong,
}

/// One whole frame inside the buffer it was read into.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// What it carries.
    pub(crate) opcode: Opcode,
    /// The payload, still in the read buffer.
    pub(crate) payload: &'a [u8],
    /// Bytes the frame takes, header included.
    pub(crate) length: usize,
}

/// Why bytes from the server are not a frame this client may accept.
#[derive(Debug, PartialEq, Eq, Clone, Copy, Error)]
pub(crate) enum Violation {
    /// RSV bits without a negotiated extension (RFC 6455, 5.2).
    #[error("a reserved bit is set though no extension was negotiated")]
    ReservedBits,
    /// Reserved opcode.
    #[error("unknown opcode")]
    Opcode,
    /// FIN off, or a continuation frame. The RFC allows it, the contract's server has no reason to.
    #[error("a fragmented message, which this tool does not put together")]
    Fragmented,
    /// Servers must not mask (RFC 6455, 5.1).
    #[error("a masked frame from the server")]
    Masked,
    /// Control frames carry at most 125 bytes (RFC 6455, 5.5).
    #[error("a control frame longer than 125 bytes")]
    LongControl,
    /// Lengths are written in the fewest bytes (RFC 6455, 5.2).
    #[error("a length that is not written in the fewest bytes")]
    Length,
    /// Larger than this tool wants to hold.
    #[error("a frame above 16 MiB")]
    TooBig,
}

/// Frames above this are refused.
pub(crate) const MAX_FRAME_BYTES: usize = 16 << 20;

/// Instead of a length: it follows in two bytes.
const LONG: u8 = 0x7E;

/// Instead of a length: it follows in eight bytes.
const LONGER: u8 = 0x7F;

/// The first frame in `bytes`; `None` while it is not there completely.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Frame<'_>>, Violation> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    let opcode = opcode(first)?;
    if second & 0x80 != 0 {
        return Err(Violation::Masked);
    }
    let (header, length) = match second {
        short @ 0..=125 => (2, u64::from(short)),
        LONG => match rest.first_chunk() {
            Some(&long) => (4, at_least(126, u64::from(u16::from_be_bytes(long)))?),
            None => return Ok(None),
        },
        _ => match rest.first_chunk() {
            Some(&long) => (10, at_least(65_536, u64::from_be_bytes(long))?),
            None => return Ok(None),
        },
    };
    if matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong) && length > 125 {
        return Err(Violation::LongControl);
    }
    let length =
        usize::try_from(length).ok().filter(|&length| length <= MAX_FRAME_BYTES).ok_or(Violation::TooBig)?;
    Ok(bytes.get(header..header + length).map(|payload| Frame { opcode, payload, length: header + length }))
}

/// Appends one masked client frame to `out`.
pub(crate) fn write(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let code = match opcode {
        Opcode::Text => 0x1,
        Opcode::Binary => 0x2,
        Opcode::Close => 0x8,
        Opcode::Ping => 0x9,
        Opcode::Pong => 0xA,
    };
    out.push(0x80 | code);
    if let Ok(short @ 0..=125) = u8::try_from(payload.len()) {
        out.push(0x80 | short);
    } else if let Ok(long) = u16::try_from(payload.len()) {
        out.push(0x80 | LONG);
        out.extend(long.to_be_bytes());
    } else {
        out.push(0x80 | LONGER);
        out.extend((payload.len() as u64).to_be_bytes());
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

fn opcode(first: u8) -> Result<Opcode, Violation> {
    if first & 0x70 != 0 {
        return Err(Violation::ReservedBits);
    }
    if first & 0x80 == 0 {
        return Err(Violation::Fragmented);
    }
    match first & 0x0F {
        0x0 => Err(Violation::Fragmented),
        0x1 => Ok(Opcode::Text),
        0x2 => Ok(Opcode::Binary),
        0x8 => Ok(Opcode::Close),
        0x9 => Ok(Opcode::Ping),
        0xA => Ok(Opcode::Pong),
        _ => Err(Violation::Opcode),
    }
}

fn at_least(least: u64, length: u64) -> Result<u64, Violation> {
    if length < least { Err(Violation::Length) } else { Ok(length) }
}

/// An unmasked server frame, whose first byte is this.
pub(crate) fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    if let Ok(short @ 0..=125) = u8::try_from(payload.len()) {
        bytes.push(short);
    } else if let Ok(long) = u16::try_from(payload.len()) {
        bytes.push(LONG);
        bytes.extend(long.to_be_bytes());
    } else {
        bytes.push(LONGER);
        bytes.extend((payload.len() as u64).to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_form_parses_at_its_edges() {
        for size in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload = vec![b'x'; size];
            let bytes = server_frame(0x81, &payload);
            let frame = parse(&bytes).unwrap().unwrap();
            assert_eq!(
                (frame.opcode, frame.payload, frame.length),
                (Opcode::Text, &payload[..], bytes.len())
            );
        }
    }

    #[test]
    fn a_frame_cut_anywhere_waits_for_the_rest() {
        for size in [0, 5, 200, 66_000] {
            let bytes = server_frame(0x81, &vec![b'x'; size]);
            for cut in (0..bytes.len()).filter(|cut| *cut < 20 || bytes.len() - cut < 20) {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{size} bytes cut at {cut}");
            }
        }
    }

    #[test]
    fn frames_back_to_back_are_taken_one_by_one() {
        let mut bytes = server_frame(0x81, b"one");
        bytes.extend(server_frame(0x89, b"two"));
        let first = parse(&bytes).unwrap().unwrap();
        let second = parse(&bytes[first.length..]).unwrap().unwrap();
        assert_eq!((first.payload, second.opcode, second.payload), (&b"one"[..], Opcode::Ping, &b"two"[..]));
    }

    #[test]
    fn what_the_rfc_forbids_is_a_violation() {
        for (bytes, violation) in [
            (&[0xC1, 0][..], Violation::ReservedBits),
            (&[0x01, 0], Violation::Fragmented),
            (&[0x80, 0], Violation::Fragmented),
            (&[0x83, 0], Violation::Opcode),
            (&[0x81, 0x80], Violation::Masked),
            (&[0x89, 126, 0, 200], Violation::LongControl),
            (&[0x81, 126, 0, 125], Violation::Length),
            (&[0x81, 127, 0, 0, 0, 0, 0, 0, 255, 255], Violation::Length),
            (&[0x81, 127, 0, 0, 0, 1, 0, 0, 0, 0], Violation::TooBig),
        ] {
            assert_eq!(parse(bytes), Err(violation), "{bytes:?}");
        }
    }

    #[test]
    fn client_frames_are_masked_with_their_key() {
        let mut out = Vec::new();
        write(Opcode::Pong, b"abcde", [1, 2, 3, 4], &mut out);
        assert_eq!(out, [0x8A, 0x85, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3, b'd' ^ 4, b'e' ^ 1]);
        out.clear();
        write(Opcode::Text, &[0; 126], [0; 4], &mut out);
        assert_eq!(out[..4], [0x81, 0xFE, 0, 126]);
        out.clear();
        write(Opcode::Text, &vec![0; 65_536], [0; 4], &mut out);
        assert_eq!(out[..10], [0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
