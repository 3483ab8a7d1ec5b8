//! The cases of the Autobahn suite that need a connection, by the suite's numbers: the order of replies, and how a
//! connection ends. `gateway/src/frame/tests.rs` has the reading of all other cases.
//!
//! Where the suite expects an echo, the gateway replies with a pong or with `BAD_MESSAGE`.

use tests::{
    Message, RawSocket, Stack, fresh_user,
    raw::{Frame, frame, last, opcode},
    tokens,
};

/// How a message is written to the socket: at once, or so many bytes at a time.
const CHOPS: [usize; 3] = [usize::MAX, 1, 997];
/// The default of `MAX_MESSAGE_BYTES`.
const MAX_BYTES: usize = 16384;
const BINARY: u8 = 2;
const HELLO: &[u8] = b"Hello, world!";

/// 1.1, 9.1, 9.5: a text of any length is answered, up to the limit.
#[tokio::test]
async fn texts_of_every_length_are_answered_and_the_connection_stays() {
    let stack = Stack::shared();
    let mut socket = connect(&stack).await;
    for length in [0, 125, 126, 127, 128, MAX_BYTES] {
        socket.send_bytes(&frame(last(opcode::TEXT), &vec![b'*'; length])).await;
        expect_bad_message(&mut socket).await;
    }
    expect_pong_message(&mut socket, 1).await;
    for chop in [64, 256, 997, 2048] {
        send_in(chop, &mut socket, &frame(last(opcode::TEXT), &[b'*'; MAX_BYTES])).await;
        expect_bad_message(&mut socket).await;
    }
    expect_pong_message(&mut socket, 2).await;
    socket.send_bytes(&frame(last(opcode::TEXT), &vec![b'*'; MAX_BYTES + 1])).await;
    assert_eq!(socket.close_code().await, 1009);
}

/// 1.2, 9.2, 9.4, 9.6, 9.8: no binary, whatever its length; not even its first fragment, or its header.
#[tokio::test]
async fn binary_is_closed_with_1003_as_soon_as_it_begins() {
    let stack = Stack::shared();
    let header = frame(last(BINARY), &vec![0xFE; 65536])[..14].to_vec();
    for bytes in
        [frame(last(BINARY), b""), frame(last(BINARY), &[0xFE; 127]), frame(BINARY, b"first"), header]
    {
        let mut socket = connect(&stack).await;
        socket.send_bytes(&bytes).await;
        assert_eq!(socket.close_code().await, 1003);
    }
}

/// 2.1 to 2.4, 2.6 to 2.11.
#[tokio::test]
async fn each_ping_is_answered_with_its_own_payload_in_order_and_pongs_with_nothing() {
    let stack = Stack::shared();
    let payloads: [&[u8]; 5] = [b"", HELLO, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", &[0xFE; 125], b"payload-9"];
    for chop in CHOPS {
        let mut socket = connect(&stack).await;
        let frames = payloads.map(|payload| {
            [frame(last(opcode::PONG), b"unsolicited pong payload"), frame(last(opcode::PING), payload)]
                .concat()
        });
        send_in(chop, &mut socket, &frames.concat()).await;
        for payload in payloads {
            assert_eq!(socket.frame().await, Some(pong(payload)));
        }
        expect_pong_message(&mut socket, 3).await;
    }
}

/// 3.2 to 3.4, 4.1.3 to 4.1.5, 4.2.3 to 4.2.5, 5.15: what came before is answered, and what follows is not.
#[tokio::test]
async fn a_broken_frame_ends_the_connection_behind_the_answers_to_what_came_before() {
    let stack = Stack::shared();
    let hello = frame(last(opcode::TEXT), HELLO);
    let ping = frame(last(opcode::PING), b"too late");
    for (what, broken) in [
        ("3.2", frame(last(opcode::TEXT) | 0x20, HELLO)),
        ("3.4", frame(last(opcode::TEXT) | 0x40, HELLO)),
        ("4.1.3", frame(last(5), b"")),
        ("4.2.3", frame(last(13), b"")),
        ("5.15", frame(opcode::CONTINUATION, b"fragment3")),
    ] {
        for chop in CHOPS {
            let mut socket = connect(&stack).await;
            send_in(chop, &mut socket, &[&hello[..], &broken, &ping].concat()).await;
            expect_bad_message(&mut socket).await;
            assert!(matches!(socket.recv().await, Some(Message::Bye(bye)) if bye.code == 1002), "{what}");
            assert_eq!(socket.frame().await, Some(close(1002, "PROTOCOL_ERROR")), "{what}");
            assert_eq!(socket.frame().await, None, "{what}");
        }
    }
}

/// 5.3 to 5.8, 5.19, 5.20, 9.3, 10.1.1.
#[tokio::test]
async fn a_message_in_fragments_is_answered_once_and_pings_between_them_at_once() {
    let stack = Stack::shared();
    let message = format!(r#"{{"type":"ping","ts":5,"note":"{}"}}"#, "κόσμε".repeat(200));
    for (size, chop) in [(message.len() / 2 + 1, 1), (1300, 997), (64, usize::MAX), (1, usize::MAX)] {
        let mut socket = connect(&stack).await;
        let mut fragments = message.as_bytes().chunks(size).enumerate().map(|(index, fragment)| {
            let first = if index == 0 { opcode::TEXT } else { opcode::CONTINUATION };
            let ends = (index + 1) * size >= message.len();
            frame(if ends { last(first) } else { first }, fragment)
        });
        send_in(chop, &mut socket, &fragments.next().unwrap()).await;
        socket.send_bytes(&frame(last(opcode::PING), b"pongme")).await;
        assert_eq!(socket.frame().await, Some(pong(b"pongme")), "while the message is incomplete");
        send_in(chop, &mut socket, &fragments.collect::<Vec<_>>().concat()).await;
        assert!(matches!(socket.recv().await, Some(Message::Pong(pong)) if pong.ts == Some(5.into())));
    }
}

/// 6.4.1, 6.4.2: the rest of the message is never sent.
#[tokio::test]
async fn text_that_cannot_become_utf_8_any_more_is_closed_at_that_fragment() {
    let stack = Stack::shared();
    for bad in [&b"\xf4\x90\x80\x80"[..], b"\x90"] {
        let mut socket = connect(&stack).await;
        let good = if bad.len() == 1 { &b"good\xf4"[..] } else { b"good" };
        socket.send_bytes(&frame(opcode::TEXT, good)).await;
        socket.send_bytes(&frame(last(opcode::PING), b"")).await;
        assert_eq!(socket.frame().await, Some(pong(b"")), "so far it may become some");
        socket.send_bytes(&frame(opcode::CONTINUATION, bad)).await;
        assert_eq!(socket.close_code().await, 1007);
    }
}

/// 7.1.1 to 7.1.6: what came before the close frame is answered, then the close frame; what comes behind it is ignored,
/// and the server ends the connection.
#[tokio::test]
async fn nothing_behind_a_close_frame_is_read() {
    let stack = Stack::shared();
    let normal = frame(last(opcode::CLOSE), &1000_u16.to_be_bytes());
    for behind in [
        vec![],
        normal.clone(),
        frame(last(opcode::PING), b""),
        frame(last(opcode::TEXT), HELLO),
        frame(last(opcode::CONTINUATION), b"fragment2"),
        b"no frame at all".to_vec(),
    ] {
        for chop in CHOPS {
            let mut socket = connect(&stack).await;
            let before = [frame(last(opcode::TEXT), HELLO), frame(opcode::TEXT, b"fragment1")].concat();
            send_in(chop, &mut socket, &[&before[..], &normal, &behind].concat()).await;
            expect_bad_message(&mut socket).await;
            assert_eq!(socket.frame().await, Some(close(1000, "")), "no bye: the client closes");
            assert_eq!(socket.frame().await, None);
        }
    }
}

/// 7.3.1, 7.3.3 to 7.3.5, 7.7.
#[tokio::test]
async fn a_close_frame_is_answered_with_its_own_code() {
    let stack = Stack::shared();
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999_u16] {
        let reasons = if code == 1000 { vec![vec![], HELLO.to_vec(), vec![b'*'; 123]] } else { vec![vec![]] };
        for reason in reasons {
            let mut socket = connect(&stack).await;
            let payload = [&code.to_be_bytes()[..], &reason].concat();
            socket.send_bytes(&frame(last(opcode::CLOSE), &payload)).await;
            assert_eq!(socket.frame().await, Some(close(code, "")));
            assert_eq!(socket.frame().await, None);
        }
    }
    let mut socket = connect(&stack).await;
    socket.send_bytes(&frame(last(opcode::CLOSE), b"")).await;
    assert_eq!(socket.frame().await, Some(Frame { opcode: opcode::CLOSE, payload: Vec::new() }));
    assert_eq!(socket.frame().await, None);
}

/// 7.3.2, 7.3.6, 7.5.1, 7.9, 7.13.
#[tokio::test]
async fn a_close_frame_that_breaks_the_rfc_is_answered_with_what_is_wrong_with_it() {
    let stack = Stack::shared();
    let code = |code: u16| code.to_be_bytes().to_vec();
    let invalid = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535].map(code);
    let broken = [vec![3], [&code(1000)[..], &[b'*'; 124]].concat()];
    let not_utf8 = [&code(1000)[..], b"\xce\xba\xed\xa0\x80"].concat();
    let cases = invalid.into_iter().chain(broken).map(|payload| (payload, 1002)).chain([(not_utf8, 1007)]);
    for (payload, expected) in cases {
        let mut socket = connect(&stack).await;
        socket.send_bytes(&frame(last(opcode::CLOSE), &payload)).await;
        assert_eq!(socket.close_code().await, expected, "{payload:?}");
    }
}

async fn connect(stack: &Stack) -> RawSocket {
    RawSocket::connect(stack.gateway(0).api, &tokens::for_user(fresh_user())).await
}

/// Sends `bytes` in pieces of `chop`.
async fn send_in(chop: usize, socket: &mut RawSocket, bytes: &[u8]) {
    for piece in bytes.chunks(chop) {
        socket.send_bytes(piece).await;
    }
}

/// Asks for a pong message; it is the next that comes.
async fn expect_pong_message(socket: &mut RawSocket, ts: u64) {
    socket.send(&format!(r#"{{"type":"ping","ts":{ts}}}"#)).await;
    assert!(matches!(socket.recv().await, Some(Message::Pong(pong)) if pong.ts == Some(ts.into())));
}

async fn expect_bad_message(socket: &mut RawSocket) {
    let message = socket.recv().await;
    assert!(matches!(&message, Some(Message::Error(error)) if error.code == "BAD_MESSAGE"), "{message:?}");
}

fn pong(payload: &[u8]) -> Frame {
    Frame { opcode: opcode::PONG, payload: payload.to_vec() }
}

fn close(code: u16, reason: &str) -> Frame {
    Frame { opcode: opcode::CLOSE, payload: [&code.to_be_bytes()[..], reason.as_bytes()].concat() }
}
