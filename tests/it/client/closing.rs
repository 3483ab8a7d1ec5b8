//! Heartbeats, and the table of `docs/protocol.md#close-codes`.

use protocol::time::unix_ms;
use tests::{
    Event, Message, RawSocket, Socket, Stack, fresh_user,
    raw::{Frame, frame, last, opcode, unmasked_frame},
    tokens,
};
use tokio_tungstenite::tungstenite;

#[tokio::test]
async fn a_binary_frame_closes_with_1003() {
    let stack = Stack::shared();
    let mut socket = stack.socket(0).await;
    socket.send_frame(tungstenite::Message::binary(vec![1, 2, 3])).await;
    let bye = socket.closed().await;
    assert_eq!((bye.code, bye.reconnect), (1003, false));
}

#[tokio::test]
async fn a_message_beyond_max_message_bytes_closes_with_1009() {
    let stack = Stack::shared();
    let fits = format!("{:<16384}", r#"{"type":"ping","ts":1}"#);
    assert_eq!(fits.len(), 16384);
    let mut socket = stack.socket(0).await;
    socket.send(&fits).await;
    assert_eq!(socket.pong().await.ts, Some(1.into()));
    socket.send("x".repeat(16385)).await;
    assert_eq!(socket.closed().await.code, 1009);

    // The length in the header is enough. The server does not wait for 2^40 bytes.
    let mut socket = RawSocket::connect(stack.gateway(0).api, &tokens::for_user(fresh_user())).await;
    socket.send_bytes(&[last(opcode::TEXT), 0x80 | 127, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4]).await;
    assert_eq!(socket.close_code().await, 1009);

    // Fragments do not get around the limit.
    let mut socket = RawSocket::connect(stack.gateway(0).api, &tokens::for_user(fresh_user())).await;
    for first in [opcode::TEXT, opcode::CONTINUATION, opcode::CONTINUATION] {
        socket.send_bytes(&frame(first, &[b'x'; 8000])).await;
    }
    assert_eq!(socket.close_code().await, 1009);
}

#[tokio::test]
async fn frames_that_break_rfc_6455_close_with_1002() {
    let stack = Stack::shared();
    let ping = br#"{"type":"ping","ts":1}"#;
    for (what, bytes) in [
        ("unmasked", unmasked_frame(last(opcode::TEXT), ping)),
        ("reserved bit", frame(last(opcode::TEXT) | 0x40, ping)),
        ("reserved opcode", frame(last(3), ping)),
        ("reserved control opcode", frame(last(11), b"")),
        ("fragmented control frame", frame(opcode::PING, b"")),
        ("long control frame", frame(last(opcode::PING), &[0; 126])),
        ("continuation of nothing", frame(last(opcode::CONTINUATION), ping)),
        ("text inside a text", [frame(opcode::TEXT, b"{"), frame(last(opcode::TEXT), b"}")].concat()),
        ("close frame of one byte", frame(last(opcode::CLOSE), &[3])),
    ] {
        let mut socket = RawSocket::connect(stack.gateway(0).api, &tokens::for_user(fresh_user())).await;
        socket.send_bytes(&bytes).await;
        assert_eq!(socket.close_code().await, 1002, "{what}");
    }
}

#[tokio::test]
async fn text_that_is_not_utf_8_closes_with_1007() {
    let stack = Stack::shared();
    for text in [&b"\xff\xfe"[..], b"{\"type\":\"\xc3\x28\"}", b"\xed\xa0\x80"] {
        let mut socket = RawSocket::connect(stack.gateway(0).api, &tokens::for_user(fresh_user())).await;
        socket.send_bytes(&frame(last(opcode::TEXT), text)).await;
        assert_eq!(socket.close_code().await, 1007);
    }
}

#[tokio::test]
async fn a_message_may_come_in_fragments_and_in_single_bytes() {
    let stack = Stack::shared();
    let mut socket = RawSocket::connect(stack.gateway(0).api, &tokens::for_user(fresh_user())).await;
    let message = r#"{"type":"ping","ts":77,"note":"é"}"#;
    // The cut goes through a character of two bytes.
    let cut = message.find('é').unwrap() + 1;
    let (head, tail) = message.as_bytes().split_at(cut);
    let frames = [
        frame(opcode::TEXT, head),
        frame(last(opcode::PING), b"in between"),
        frame(opcode::CONTINUATION, b""),
        frame(last(opcode::CONTINUATION), tail),
    ];
    for byte in frames.concat() {
        socket.send_bytes(&[byte]).await;
    }
    let pong = Frame { opcode: opcode::PONG, payload: b"in between".to_vec() };
    assert_eq!(socket.frame().await, Some(pong));
    assert!(matches!(socket.recv().await, Some(Message::Pong(pong)) if pong.ts == Some(77.into())));
}

/// Rule 8.
#[tokio::test]
async fn heartbeats_come_as_a_message_and_as_a_frame_and_answering_either_keeps_the_connection() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("HEARTBEAT_INTERVAL", "200ms"), ("HEARTBEAT_TIMEOUT", "1s")]);
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    let (mut first_ts, mut frames) = (None, 0);
    // The client only replies to ping frames, as every WebSocket library does by itself.
    loop {
        match socket.event().await {
            Event::PingFrame => frames += 1,
            Event::Message(Message::Ping(ping)) => {
                if ping.ts > *first_ts.get_or_insert(ping.ts) + 2500 {
                    break;
                }
            }
            other => panic!("only heartbeats come, not {other:?}"),
        }
    }
    assert!((5..=15).contains(&frames), "about every 200 ms for 2.5 s: {frames}");
}

#[tokio::test]
async fn a_client_silent_for_heartbeat_timeout_is_closed_with_4408() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("HEARTBEAT_INTERVAL", "200ms"), ("HEARTBEAT_TIMEOUT", "1s")]);
    let mut silent = RawSocket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    let mut half_a_frame = RawSocket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    half_a_frame.send_bytes(&frame(last(opcode::TEXT), b"{}")[..3]).await;
    assert_eq!(silent.close_code().await, 4408);
    assert_eq!(half_a_frame.close_code().await, 4408);
}

/// Rule 9.
#[tokio::test]
async fn an_expired_token_closes_with_4401() {
    let stack = Stack::shared();
    let token = tokens::expiring(fresh_user(), -3);
    let due_ms = (tokens::expiry_s(&token) + 5) * 1000;
    let mut socket = Socket::connect(stack.gateway(0).api, &token).await;
    let bye = socket.closed().await;
    let late_ms = i128::from(unix_ms()) - i128::from(due_ms);
    assert_eq!((bye.code, bye.reason.as_str(), bye.reconnect), (4401, "TOKEN_EXPIRED", true));
    assert!((-100..2000).contains(&late_ms), "at exp + 5 s, not {late_ms} ms after it");
}
