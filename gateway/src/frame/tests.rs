//! The Autobahn suite's cases about how a server reads a client's frames, by the suite's numbers, and properties that
//! hold for all frames.
//!
//! This server echoes nothing. Where the suite expects an echo, a test here expects the text to be read. The suite's
//! binary cases end with 1003. `tests/it/client/autobahn.rs` has the cases that need a connection.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The longest message of the suite's section 1.
const MAX_BYTES: usize = 0x1_0000;
/// The default of `MAX_MESSAGE_BYTES`.
const DEFAULT_MAX_BYTES: usize = 16384;

/// κόσμε as the suite spells it, in 11 bytes.
const KOSME: &str = "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}";

/// A [`Message`] that owns its bytes, or the end of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Text(String),
    Ping(Vec<u8>),
    Pong,
    EmptyFragment,
    Close(Option<u16>),
    Refused(CloseCode),
}

use Event::{EmptyFragment, Pong, Refused};

/// One case: the frames that the client sends, and what the reader makes of them.
struct Case {
    number: String,
    max_bytes: usize,
    frames: Vec<Vec<u8>>,
    events: Vec<Event>,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = Vec::new();
    framing(&mut cases);
    pings_and_pongs(&mut cases);
    reserved_bits(&mut cases);
    opcodes(&mut cases);
    fragmentation(&mut cases);
    utf8_handling(&mut cases);
    utf8_sequences(&mut cases);
    close_handling(&mut cases);
    limits(&mut cases);
    auto_fragmentation(&mut cases);
    cases
});

#[test]
fn every_case_ends_as_it_should_sent_in_one_piece() {
    for case in &*CASES {
        assert_events(case, [usize::MAX]);
    }
}

#[test]
fn every_case_ends_as_it_should_sent_frame_by_frame() {
    for case in &*CASES {
        assert_events(case, case.frames.iter().map(Vec::len).chain([usize::MAX]));
    }
}

#[test]
fn every_case_ends_as_it_should_sent_in_single_bytes_and_in_chops() {
    for case in &*CASES {
        for chop in [1, 64, 128, 256, 512, 997, 1024, 2048] {
            assert_events(case, std::iter::repeat(chop));
        }
    }
}

proptest! {
    #[test]
    fn every_case_ends_as_it_should_however_it_is_cut(
        number in 0..CASES.len(),
        cuts in proptest::collection::vec(prop_oneof![1usize..12, 1usize..3000], 1..20),
    ) {
        assert_events(&CASES[number], cuts.into_iter().cycle());
    }

    /// The reader reads the same from the same bytes, in pieces of any size.
    #[test]
    fn cuts_change_nothing(
        bytes in proptest::collection::vec(frame_like(), 0..8),
        cuts in proptest::collection::vec(1usize..30, 1..10),
    ) {
        let bytes = bytes.concat();
        prop_assert_eq!(read(&bytes, 200, cuts.into_iter().cycle()), read(&bytes, 200, [usize::MAX]));
    }

    /// A text in fragments is accepted if the whole is UTF-8, and refused with 1007 if it is not.
    #[test]
    fn fragments_are_judged_like_the_whole(
        characters in proptest::collection::vec(
            prop_oneof![20 => "\\PC".prop_map(String::into_bytes), 1 => any::<[u8; 1]>().prop_map(Vec::from)],
            0..40,
        ),
        cuts in proptest::collection::vec(0usize..6, 0..30),
    ) {
        let payload = characters.concat();
        let mut rest = &payload[..];
        let mut bytes = Vec::new();
        let mut opcode = TEXT;
        for cut in cuts {
            let (head, tail) = rest.split_at(cut.min(rest.len()));
            bytes.extend(fragment(opcode, head));
            (opcode, rest) = (CONTINUATION, tail);
        }
        bytes.extend(last(opcode, rest));
        let mut events = read(&bytes, MAX_BYTES, [usize::MAX]);
        events.retain(|event| *event != EmptyFragment);
        let expected = match String::from_utf8(payload) {
            Ok(text) => Event::Text(text),
            Err(_) => Refused(CloseCode::InvalidUtf8),
        };
        prop_assert_eq!(events, [expected]);
    }

    #[test]
    fn unmasking_is_an_exclusive_or_with_the_mask_in_turn(
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        mask: [u8; 4],
    ) {
        let mut unmasked = payload.clone();
        unmask(&mut unmasked, mask);
        let expected: Vec<u8> = payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
        prop_assert_eq!(unmasked, expected);
    }

    #[test]
    fn the_json_of_a_frame_is_the_text_it_was_made_of(text in ".{0,40}", repeat in 1usize..3000) {
        let text = text.repeat(repeat);
        let frame = super::text(&text);
        prop_assert_eq!(json(&frame), text);
    }
}

#[test]
fn a_bad_header_is_refused_before_its_payload_has_come() {
    let fragment = || fragment(TEXT, &[b'x'; 10_000]);
    for (what, bytes, code) in [
        ("a reserved opcode", vec![0x83, 0xFF], CloseCode::ProtocolError),
        ("a reserved bit", vec![0xC1, 0xFF], CloseCode::ProtocolError),
        ("no mask", vec![0x81, 0x7F], CloseCode::ProtocolError),
        ("a long ping", vec![0x89, 0xFE], CloseCode::ProtocolError),
        ("binary", vec![0x82, 0xFE, 0xFF, 0xFF], CloseCode::Unsupported),
        ("a continuation of nothing", vec![0x80, 0x85], CloseCode::ProtocolError),
        ("text within a text", [fragment(), vec![0x81, 0x85]].concat(), CloseCode::ProtocolError),
        ("binary within a text", [fragment(), vec![0x82, 0x85]].concat(), CloseCode::ProtocolError),
        ("2^40 bytes", vec![0x81, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0], CloseCode::TooBig),
        ("one byte too many", vec![0x81, 0xFE, 0x40, 0x01], CloseCode::TooBig),
        ("too much with what came", [fragment(), vec![0x00, 0xFE, 0x18, 0xF1]].concat(), CloseCode::TooBig),
        ("a long form of 125", vec![0x81, 0xFE, 0, 125], CloseCode::ProtocolError),
        ("a long form of 65535", vec![0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], CloseCode::ProtocolError),
        ("a length of 64 bits", vec![0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], CloseCode::ProtocolError),
    ] {
        assert_eq!(read(&bytes, DEFAULT_MAX_BYTES, [usize::MAX]), [Refused(code)], "{what}");
    }
    let just_fits = [fragment(), vec![0x00, 0xFE, 0x18, 0xF0]].concat();
    assert_eq!(read(&just_fits, DEFAULT_MAX_BYTES, [usize::MAX]), []);
}

#[test]
fn an_incomplete_message_holds_no_more_than_twice_the_limit_and_a_complete_one_nothing() {
    let mut reader = Reader::default();
    let mut opcode = TEXT;
    let mut held = 0;
    loop {
        let mut joined = Vec::new();
        match reader.read(&mut fragment(opcode, b"seven b"), DEFAULT_MAX_BYTES, &mut joined) {
            Ok(read) => assert_eq!(read, Some((6 + 7, None))),
            Err(code) => break assert_eq!(code, CloseCode::TooBig),
        }
        opcode = CONTINUATION;
        held += 7;
        let fragments = reader.fragments.as_ref().unwrap();
        assert_eq!(fragments.bytes.len(), held);
        // A vector doubles when it grows.
        assert!(fragments.bytes.capacity() <= 2 * DEFAULT_MAX_BYTES);
    }
    assert_eq!(held, DEFAULT_MAX_BYTES - DEFAULT_MAX_BYTES % 7);
    let mut joined = Vec::new();
    reader.read(&mut last(CONTINUATION, b""), DEFAULT_MAX_BYTES, &mut joined).unwrap();
    assert!(reader.fragments.is_none());
}

#[test]
fn a_close_frame_is_answered_with_its_own_code() {
    for (code, expected) in
        [(None, &[0x88, 0][..]), (Some(1000), &[0x88, 2, 3, 232]), (Some(4001), &[0x88, 2, 15, 161])]
    {
        let mut out = Vec::new();
        append_close_echo(&mut out, code);
        assert_eq!(out, expected);
    }
}

// The sections of the suite.

/// Section 1: text and binary messages, with each form of length.
fn framing(cases: &mut Vec<Case>) {
    for (number, length) in (1..).zip([0, 125, 126, 127, 128, 65535, 65536, 65536]) {
        let payload = "*".repeat(length);
        cases.push(Case::new(format!("1.1.{number}"), [last(TEXT, payload.as_bytes())], [text(&payload)]));
        let binary = [last(BINARY, &vec![0xFE; length])];
        cases.push(Case::new(format!("1.2.{number}"), binary, [Refused(CloseCode::Unsupported)]));
    }
}

/// Section 2: pings and pongs.
fn pings_and_pongs(cases: &mut Vec<Case>) {
    let payloads = [&b""[..], b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", &[0xFE; 125]];
    for (number, payload) in (1..).zip(payloads) {
        cases.push(Case::new(format!("2.{number}"), [last(PING, payload)], [ping(payload)]));
    }
    cases.push(Case::new("2.5", [last(PING, &[0xFE; 126])], [broken()]));
    cases.push(Case::new("2.6", [last(PING, &[0xFE; 125])], [ping(&[0xFE; 125])]));
    cases.push(Case::new("2.7", [last(PONG, b"")], [Pong]));
    cases.push(Case::new("2.8", [last(PONG, b"unsolicited pong payload")], [Pong]));
    let answered = [last(PONG, b"unsolicited pong payload"), last(PING, b"ping payload")];
    cases.push(Case::new("2.9", answered, [Pong, ping(b"ping payload")]));
    for number in ["2.10", "2.11"] {
        let payloads: Vec<String> = (0..10).map(|index| format!("payload-{index}")).collect();
        let frames = payloads.iter().map(|payload| last(PING, payload.as_bytes()));
        cases.push(Case::new(number, frames, payloads.iter().map(|payload| ping(payload.as_bytes()))));
    }
}

/// Section 3: bits that only an extension may set.
fn reserved_bits(cases: &mut Vec<Case>) {
    let hello = || last(TEXT, b"Hello, world!");
    let with = |opcode, bits: u8| frame(FIN | bits << 4 | opcode, b"Hello, world!");
    cases.push(Case::new("3.1", [with(TEXT, 1)], [broken()]));
    for (number, bits) in [("3.2", 2), ("3.3", 3), ("3.4", 4)] {
        let frames = [hello(), with(TEXT, bits), last(PING, b"")];
        cases.push(Case::new(number, frames, [text("Hello, world!"), broken()]));
    }
    cases.push(Case::new("3.5", [with(BINARY, 5)], [broken()]));
    cases.push(Case::new("3.6", [with(PING, 6)], [broken()]));
    cases.push(Case::new("3.7", [with(CLOSE, 7)], [broken()]));
}

/// Section 4: reserved opcodes.
fn opcodes(cases: &mut Vec<Case>) {
    for (section, opcodes) in [("4.1", 3..=7), ("4.2", 11..=15)] {
        for (number, opcode) in (1..).zip(opcodes) {
            let payload = if number % 2 == 1 { &b""[..] } else { b"reserved opcode payload" };
            let alone = number <= 2;
            let hello = (!alone).then(|| last(TEXT, b"Hello, world!"));
            let frames = hello.into_iter().chain([last(opcode, payload), last(PING, b"")]);
            let events = (!alone).then(|| text("Hello, world!")).into_iter().chain([broken()]);
            cases.push(Case::new(format!("{section}.{number}"), frames, events));
        }
    }
}

/// Section 5: messages in fragments, with control frames between them.
fn fragmentation(cases: &mut Vec<Case>) {
    cases.push(Case::new(
        "5.1",
        [fragment(PING, b"fragment1"), last(CONTINUATION, b"fragment2")],
        [broken()],
    ));
    cases.push(Case::new(
        "5.2",
        [fragment(PONG, b"fragment1"), last(CONTINUATION, b"fragment2")],
        [broken()],
    ));
    let halves = || [fragment(TEXT, b"fragment1"), last(CONTINUATION, b"fragment2")];
    let whole = || text("fragment1fragment2");
    for number in ["5.3", "5.4", "5.5"] {
        cases.push(Case::new(number, halves(), [whole()]));
    }
    for number in ["5.6", "5.7", "5.8"] {
        let [head, tail] = halves();
        cases.push(Case::new(
            number,
            [head, last(PING, b"ping payload"), tail],
            [ping(b"ping payload"), whole()],
        ));
    }
    let hello = || last(TEXT, b"Hello, world!");
    for number in ["5.9", "5.10", "5.11"] {
        let frames = [last(CONTINUATION, b"non-continuation payload"), hello()];
        cases.push(Case::new(number, frames, [broken()]));
    }
    for number in ["5.12", "5.13", "5.14"] {
        let frames = [fragment(CONTINUATION, b"non-continuation payload"), hello()];
        cases.push(Case::new(number, frames, [broken()]));
    }
    let [head, tail] = halves();
    let frames = [head, tail, fragment(CONTINUATION, b"fragment3"), last(TEXT, b"fragment4")];
    cases.push(Case::new("5.15", frames, [whole(), broken()]));
    for (number, nothing_to_continue) in
        [("5.16", fragment(CONTINUATION, b"f1")), ("5.17", last(CONTINUATION, b"f1"))]
    {
        let frames = [nothing_to_continue, fragment(TEXT, b"f2"), last(CONTINUATION, b"f3")];
        cases.push(Case::new(number, frames, [broken()]));
    }
    cases.push(Case::new("5.18", [fragment(TEXT, b"fragment1"), last(TEXT, b"fragment2")], [broken()]));
    for number in ["5.19", "5.20"] {
        let frames = [
            fragment(TEXT, b"f1"),
            fragment(CONTINUATION, b"f2"),
            last(PING, b"pongme 1!"),
            fragment(CONTINUATION, b"f3"),
            fragment(CONTINUATION, b"f4"),
            last(PING, b"pongme 2!"),
            last(CONTINUATION, b"f5"),
        ];
        let events = [ping(b"pongme 1!"), ping(b"pongme 2!"), text("f1f2f3f4f5")];
        cases.push(Case::new(number, frames, events));
    }
}

/// Sections 6.1 to 6.4: empty fragments, characters in two fragments, and how soon bad UTF-8 is refused.
fn utf8_handling(cases: &mut Vec<Case>) {
    cases.push(Case::new("6.1.1", [last(TEXT, b"")], [text("")]));
    let frames = [fragment(TEXT, b""), fragment(CONTINUATION, b""), last(CONTINUATION, b"")];
    cases.push(Case::new("6.1.2", frames, [EmptyFragment, EmptyFragment, text("")]));
    let frames =
        [fragment(TEXT, b""), fragment(CONTINUATION, b"middle frame payload"), last(CONTINUATION, b"")];
    cases.push(Case::new("6.1.3", frames, [EmptyFragment, text("middle frame payload")]));

    let good = "Hello-µ@ßöäüàá-UTF-8!!";
    cases.push(Case::new("6.2.1", [last(TEXT, good.as_bytes())], [text(good)]));
    let (head, tail) = good.split_at("Hello-µ@ßöä".len());
    let frames = [fragment(TEXT, head.as_bytes()), last(CONTINUATION, tail.as_bytes())];
    cases.push(Case::new("6.2.2", frames, [text(good)]));
    cases.push(Case::new("6.2.3", octets(good.as_bytes()), [text(good)]));
    cases.push(Case::new("6.2.4", octets(KOSME.as_bytes()), [text(KOSME)]));

    let bad = [KOSME.as_bytes(), b"\xed\xa0\x80", b"edited"].concat();
    cases.push(Case::new("6.3.1", [last(TEXT, &bad)], [not_utf8()]));
    cases.push(Case::new("6.3.2", octets(&bad), [not_utf8()]));

    // The reader fails fast: at the fragment that contains the bad character, before the rest is sent. Within a frame
    // (6.4.3, 6.4.4) it fails once the frame is whole, which the suite calls non-strict.
    let too_high = [KOSME.as_bytes(), b"\xf4\x90\x80\x80", b"edited"].concat();
    let frames = [fragment(TEXT, &too_high[..11]), fragment(CONTINUATION, &too_high[11..15])];
    cases.push(Case::new("6.4.1", frames, [not_utf8()]));
    let frames = [fragment(TEXT, &too_high[..12]), fragment(CONTINUATION, &too_high[12..13])];
    cases.push(Case::new("6.4.2", frames, [not_utf8()]));
    for number in ["6.4.3", "6.4.4"] {
        cases.push(Case::new(number, [last(TEXT, &too_high)], [not_utf8()]));
    }
}

/// Sections 6.5 to 6.21, after Markus Kuhn's UTF-8 stress test: the sequences in hex. A + marks those that are UTF-8.
const SEQUENCES: [(u32, &str); 16] = [
    (
        5,
        "+68656c6c6f24776f726c64 +68656c6c6fc2a2776f726c64 +68656c6c6fe282ac776f726c64 \
         +68656c6c6ff0a4ada2776f726c64 +cebae1bdb9cf83cebcceb5",
    ),
    (
        6,
        "-ce +ceba -cebae1 -cebae1bd +cebae1bdb9 -cebae1bdb9cf +cebae1bdb9cf83 -cebae1bdb9cf83ce \
         +cebae1bdb9cf83cebc -cebae1bdb9cf83cebcce +cebae1bdb9cf83cebcceb5",
    ),
    (7, "+00 +c280 +e0a080 +f0908080"),
    (8, "-f888808080 -fc8480808080"),
    (9, "+7f +dfbf +efbfbf +f48fbfbf"),
    (10, "-f7bfbfbf -fbbfbfbfbf -fdbfbfbfbfbf"),
    (11, "+ed9fbf +ee8080 +efbfbd +f48fbfbf -f4908080"),
    (12, "-80 -bf -80bf -80bf80 -80bf80bf -80bf80bf80 -80bf80bf80bf"),
    (14, "-c0 -e080 -f08080 -f8808080 -fc80808080 -df -efbf -f7bfbf -fbbfbfbf -fdbfbfbfbf"),
    (15, "-c0e080f08080f8808080fc80808080dfefbff7bfbffbbfbfbffdbfbfbfbf"),
    (16, "-fe -ff -fefeffff"),
    (17, "-c0af -e080af -f08080af -f8808080af -fc80808080af"),
    (18, "-c1bf -e09fbf -f08fbfbf -f887bfbfbf -fc83bfbfbfbf"),
    (19, "-c080 -e08080 -f0808080 -f880808080 -fc8080808080"),
    (20, "-eda080 -edadbf -edae80 -edafbf -edb080 -edbe80 -edbfbf"),
    (
        21,
        "-eda080edb080 -eda080edbfbf -edadbfedb080 -edadbfedbfbf -edae80edb080 -edae80edbfbf \
         -edafbfedb080 -edafbfedbfbf",
    ),
];

/// Sections 6.5 to 6.23: sequences that are UTF-8 or not.
fn utf8_sequences(cases: &mut Vec<Case>) {
    for (section, sequences) in SEQUENCES {
        for (number, sequence) in (1..).zip(sequences.split(' ')) {
            let (sign, hex) = sequence.split_at(1);
            let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
            cases.push(sequence_case(section, number, bytes.collect(), sign == "+"));
        }
    }
    // Continuation bytes alone, and start bytes that are each followed by a space.
    cases.push(sequence_case(12, 8, (0x80..0xBF).collect(), false));
    for (number, starts) in (1..).zip([0xC0..0xDF, 0xE0..0xEF, 0xF0..0xF7, 0xF8..0xFB, 0xFC..0xFD]) {
        cases.push(sequence_case(13, number, starts.flat_map(|start| [start, b' ']).collect(), false));
    }
    // Noncharacters, which are UTF-8 all the same, and the specials.
    let non_characters = (0..=16).flat_map(|plane| [plane << 16 | 0xFFFE, plane << 16 | 0xFFFF]);
    for (section, points) in [(22, non_characters.collect::<Vec<u32>>()), (23, (0xFFF9..=0xFFFF).collect())] {
        for (number, point) in (1..).zip(points) {
            let character = char::from_u32(point).unwrap();
            cases.push(sequence_case(section, number, character.to_string().into_bytes(), true));
        }
    }
}

fn sequence_case(section: u32, number: u32, bytes: Vec<u8>, good: bool) -> Case {
    let frames = [last(TEXT, &bytes)];
    let events = if good { Event::Text(String::from_utf8(bytes).unwrap()) } else { not_utf8() };
    Case::new(format!("6.{section}.{number}"), frames, [events])
}

/// Section 7: the close frame. Nothing after it is read.
fn close_handling(cases: &mut Vec<Case>) {
    let normal = || last(CLOSE, &1000_u16.to_be_bytes());
    let closes = || Event::Close(Some(1000));
    cases.push(Case::new("7.1.1", [last(TEXT, b"Hello World!"), normal()], [text("Hello World!"), closes()]));
    cases.push(Case::new("7.1.2", [normal(), normal()], [closes()]));
    cases.push(Case::new("7.1.3", [normal(), last(PING, b"")], [closes()]));
    cases.push(Case::new("7.1.4", [normal(), last(TEXT, b"Hello World!")], [closes()]));
    let frames = [fragment(TEXT, b"fragment1"), normal(), last(CONTINUATION, b"fragment2")];
    cases.push(Case::new("7.1.5", frames, [closes()]));
    let big = "BAsd7&jh23".repeat(6000);
    let frames = [last(TEXT, big.as_bytes()), normal(), last(PING, b"")];
    cases.push(Case::new("7.1.6", frames, [text(&big), closes()]));

    let with_reason = |reason: &[u8]| last(CLOSE, &[&1000_u16.to_be_bytes(), reason].concat());
    cases.push(Case::new("7.3.1", [last(CLOSE, b"")], [Event::Close(None)]));
    cases.push(Case::new("7.3.2", [last(CLOSE, b"a")], [broken()]));
    cases.push(Case::new("7.3.3", [normal()], [closes()]));
    cases.push(Case::new("7.3.4", [with_reason("Hello World!".as_bytes())], [closes()]));
    cases.push(Case::new("7.3.5", [with_reason(&[b'*'; 123])], [closes()]));
    cases.push(Case::new("7.3.6", [with_reason(&[b'*'; 124])], [broken()]));
    let reason = [KOSME.as_bytes(), b"\xed\xa0\x80edited"].concat();
    cases.push(Case::new("7.5.1", [with_reason(&reason)], [not_utf8()]));

    let good = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    for (number, code) in (1..).zip(good) {
        let frames = [last(CLOSE, &u16::to_be_bytes(code))];
        cases.push(Case::new(format!("7.7.{number}"), frames, [Event::Close(Some(code))]));
    }
    let bad =
        (1..).map(|number| format!("7.9.{number}")).zip([0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999]);
    let beyond = [("7.13.1".to_owned(), 5000), ("7.13.2".to_owned(), 65535), ("1015".to_owned(), 1015)];
    for (number, code) in bad.chain(beyond) {
        cases.push(Case::new(number, [last(CLOSE, &u16::to_be_bytes(code))], [broken()]));
    }
}

/// Section 9: large messages, fragments of many sizes, and many messages. The suite goes up to 16 MiB, this function
/// to 256 KiB.
fn limits(cases: &mut Vec<Case>) {
    let too_big = || Refused(CloseCode::TooBig);
    for (number, length) in (1..).zip([64, 256, 1024, 4096, DEFAULT_MAX_BYTES - 1, DEFAULT_MAX_BYTES]) {
        let payload = "*".repeat(length);
        cases.push(
            Case::new(format!("9.1.{number}"), [last(TEXT, payload.as_bytes())], [text(&payload)]).limited(),
        );
    }
    for length in [DEFAULT_MAX_BYTES + 1, 65535, 65536, 256 * 1024] {
        cases.push(
            Case::new(format!("9.1, {length}"), [last(TEXT, &vec![b'*'; length])], [too_big()]).limited(),
        );
    }
    for length in [64, DEFAULT_MAX_BYTES, DEFAULT_MAX_BYTES + 1, 64 * 1024] {
        let binary = [last(BINARY, &vec![0xFE; length])];
        cases.push(Case::new(format!("9.2, {length}"), binary, [Refused(CloseCode::Unsupported)]).limited());
    }
    for (number, size) in (1..).zip([64, 256, 1024, 4096, DEFAULT_MAX_BYTES]) {
        let fits = "*".repeat(DEFAULT_MAX_BYTES);
        let frames = in_fragments(fits.as_bytes(), size);
        cases.push(Case::new(format!("9.3.{number}"), frames, [text(&fits)]).limited());
        let frames = in_fragments(&vec![b'*'; DEFAULT_MAX_BYTES + 1], size);
        cases.push(Case::new(format!("9.3.{number}, one more"), frames, [too_big()]).limited());
        let frames = [fragment(BINARY, &vec![0xFE; size])];
        cases.push(Case::new(format!("9.4.{number}"), frames, [Refused(CloseCode::Unsupported)]).limited());
    }
    // Sections 9.5 and 9.6 are 9.1 and 9.2 in small chunks, which other tests here send.
    for (number, length) in (1..).zip([0, 16, 64, 256, 1024, 4096]) {
        let payload = "*".repeat(length);
        let frames = std::iter::repeat_n(last(TEXT, payload.as_bytes()), 1000);
        let events = std::iter::repeat_n(text(&payload), 1000);
        cases.push(Case::new(format!("9.7.{number}"), frames, events).limited());
        let binary = [last(BINARY, &vec![0xFE; length])];
        cases.push(Case::new(format!("9.8.{number}"), binary, [Refused(CloseCode::Unsupported)]).limited());
    }
}

/// Section 10: a client that fragments on its own.
fn auto_fragmentation(cases: &mut Vec<Case>) {
    let payload = "*".repeat(65536);
    cases.push(Case::new("10.1.1", in_fragments(payload.as_bytes(), 1300), [text(&payload)]));
}

// Helpers for cases.

impl Case {
    fn new(
        number: impl Into<String>,
        frames: impl IntoIterator<Item = Vec<u8>>,
        events: impl IntoIterator<Item = Event>,
    ) -> Self {
        let (frames, events) = (frames.into_iter().collect(), events.into_iter().collect());
        Self { number: number.into(), max_bytes: MAX_BYTES, frames, events }
    }

    /// Applies the default limit to the case.
    fn limited(self) -> Self {
        Self { max_bytes: DEFAULT_MAX_BYTES, ..self }
    }
}

fn assert_events(case: &Case, cuts: impl IntoIterator<Item = usize>) {
    let events = read(&case.frames.concat(), case.max_bytes, cuts);
    assert!(events == case.events, "case {}: {}", case.number, shortened(&events));
}

fn shortened(events: &[Event]) -> String {
    format!("{events:?}").chars().take(500).collect()
}

fn text(payload: &str) -> Event {
    Event::Text(payload.to_owned())
}

fn ping(payload: &[u8]) -> Event {
    Event::Ping(payload.to_vec())
}

const fn broken() -> Event {
    Refused(CloseCode::ProtocolError)
}

const fn not_utf8() -> Event {
    Refused(CloseCode::InvalidUtf8)
}

/// Returns the only frame of a message, or its last.
fn last(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(FIN | opcode, payload)
}

/// Returns a frame that other frames of the same message follow.
fn fragment(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame(opcode, payload)
}

/// Returns a text message with one fragment per byte.
fn octets(payload: &[u8]) -> Vec<Vec<u8>> {
    in_fragments(payload, 1)
}

fn in_fragments(payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    let fragments = payload.chunks(size).enumerate();
    fragments
        .map(|(index, chunk)| {
            let opcode = if index == 0 { TEXT } else { CONTINUATION };
            frame(if index + 1 == count { FIN | opcode } else { opcode }, chunk)
        })
        .collect()
}

/// Returns a masked frame whose first byte is `first`.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
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

/// Generates mostly valid frames, and some arbitrary bytes.
fn frame_like() -> impl Strategy<Value = Vec<u8>> {
    let payload = || proptest::collection::vec(any::<u8>(), 0..130);
    let text = || "\\PC{0,20}".prop_map(String::into_bytes);
    let first = proptest::sample::select(vec![0x00, 0x01, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A]);
    prop_oneof![
        6 => (first.clone(), text()).prop_map(|(first, payload)| frame(first, &payload)),
        2 => (first, payload()).prop_map(|(first, payload)| frame(first, &payload)),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

/// Feeds `bytes` in pieces of `cuts` bytes, as a socket would, and reads until the connection would end.
fn read(bytes: &[u8], max_bytes: usize, cuts: impl IntoIterator<Item = usize>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut reader = Reader::default();
    let mut unread = Vec::new();
    let mut rest = bytes;
    let mut cuts = cuts.into_iter();
    while let Some(cut) = cuts.next().filter(|_| !rest.is_empty()) {
        let (come, later) = rest.split_at(cut.min(rest.len()));
        unread.extend_from_slice(come);
        rest = later;
        let mut taken = 0;
        loop {
            let mut joined = Vec::new();
            match reader.read(&mut unread[taken..], max_bytes, &mut joined) {
                Ok(None) => break,
                Err(code) => {
                    events.push(Refused(code));
                    return events;
                }
                Ok(Some((count, message))) => {
                    taken += count;
                    match message {
                        None => {}
                        Some(Message::Text(text)) => events.push(Event::Text(text.to_owned())),
                        Some(Message::Ping(payload)) => events.push(Event::Ping(payload.to_vec())),
                        Some(Message::Pong) => events.push(Pong),
                        Some(Message::EmptyFragment) => events.push(EmptyFragment),
                        Some(Message::Close(code)) => {
                            events.push(Event::Close(code));
                            return events;
                        }
                    }
                }
            }
        }
        unread.drain(..taken);
    }
    events
}
