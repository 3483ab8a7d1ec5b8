//! ping, pong, refresh, ids and errors (`docs/protocol.md#websocket`).

use serde_json::{Value, json};
use tests::{
    Socket, Stack, admin::numbered, fresh_market, fresh_user, message::Rejected, socket::Event, tokens,
};

#[tokio::test]
async fn ping_is_answered_with_its_own_ts() {
    let stack = Stack::shared();
    let mut socket = stack.socket(0).await;
    for ts in ["1710001112223", "0", "1710001112223.25"] {
        socket.send(format_args!(r#"{{"type":"ping","ts":{ts}}}"#)).await;
        assert_eq!(socket.pong().await.ts, Some(ts.parse::<Value>().unwrap()));
    }
}

#[tokio::test]
async fn pong_is_activity_only() {
    let stack = Stack::shared();
    let mut socket = stack.socket(0).await;
    socket.send(r#"{"type":"pong"}"#).await;
    socket.expect_silence().await;
}

#[tokio::test]
async fn every_request_may_carry_an_id_that_its_answer_echoes() {
    let stack = Stack::shared();
    let (user, market) = (fresh_user(), fresh_market());
    let token = tokens::for_user(user);
    let mut socket = Socket::connect(stack.gateway(0).api, &token).await;
    for request in [
        format!(r#""type":"subscribe","markets":[{market}]"#),
        format!(r#""type":"unsubscribe","markets":[{market}]"#),
        r#""type":"resume","offsets":{}"#.to_owned(),
        format!(r#""type":"refresh","token":"{token}""#),
    ] {
        for id in [json!("a-1"), json!("é".repeat(64)), json!(""), json!(7), json!(-1)] {
            socket.send(format_args!("{{{request},\"id\":{id}}}")).await;
            assert_eq!(socket.ack().await.id, Some(id), "{request}");
            if request.contains("subscribe") {
                // The client may send twenty messages at once, and no more.
                socket.send(format_args!("{{{request}}}")).await;
                assert_eq!(socket.ack().await.id, None);
            }
        }
        socket = Socket::connect(stack.gateway(0).api, &token).await;
    }
    socket.send(r#"{"type":"ping","ts":1,"id":"p"}"#).await;
    assert_eq!(socket.pong().await.ts, Some(json!(1)));
    socket.send(r#"{"type":"dance","id":"x"}"#).await;
    assert_eq!(socket.error().await.id, Some(json!("x")));
}

#[tokio::test]
async fn a_bad_message_is_an_error_and_the_connection_stays() {
    let stack = Stack::shared();
    let too_long = format!(r#"{{"type":"pong","id":"{}"}}"#, "x".repeat(65));
    let bad = [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"type":"dance"}"#,
        r#"{"type":"subscribe"}"#,
        r#"{"type":"subscribe","markets":"1001"}"#,
        r#"{"type":"subscribe","markets":[0]}"#,
        r#"{"type":"subscribe","markets":[1.5]}"#,
        r#"{"type":"subscribe","markets":["-1"]}"#,
        r#"{"type":"subscribe","markets":["moneyline"]}"#,
        r#"{"type":"subscribe","markets":[9007199254740992]}"#,
        r#"{"type":"resume","offsets":[]}"#,
        r#"{"type":"resume","offsets":{"1001":-1}}"#,
        r#"{"type":"resume","offsets":{"x":1}}"#,
        r#"{"type":"refresh"}"#,
        &too_long,
    ];
    for messages in bad.chunks(10) {
        let mut socket = stack.socket(0).await;
        for message in messages {
            socket.send(message).await;
            let error = socket.error().await;
            assert_eq!((error.code.as_str(), error.message.is_empty()), ("BAD_MESSAGE", false), "{message}");
        }
        socket.expect_silence().await;
    }
}

#[tokio::test]
async fn refresh_replaces_the_token_of_the_same_user() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("HEARTBEAT_INTERVAL", "200ms")]);
    let user = fresh_user();
    // The token expired three seconds ago. Less than two of the five seconds of leeway remain.
    let short = tokens::expiring(user, -3);
    let ends_ms = (tokens::expiry_s(&short) + 5) * 1000;
    let mut socket = Socket::connect(gateway.api, &short).await;
    socket.send(format_args!(r#"{{"type":"refresh","token":"{}"}}"#, tokens::for_user(user))).await;
    let ack = socket.ack().await;
    assert!(ack.ok);
    assert_eq!((ack.positions, ack.unsubscribed), (None, None));
    loop {
        match socket.event().await {
            Event::Message(tests::Message::Ping(ping)) if ping.ts > ends_ms + 500 => break,
            Event::Message(tests::Message::Ping(_)) | Event::PingFrame => {}
            other => panic!("still open past the first token's end, not {other:?}"),
        }
    }
    socket.expect_silence().await;
}

#[tokio::test]
async fn refresh_brings_the_new_token_s_scope() {
    let stack = Stack::shared();
    let (user, market, other) = (fresh_user(), fresh_market(), fresh_market());
    let mut socket = Socket::connect(stack.gateway(0).api, &tokens::scoped(user, &[market])).await;
    assert!(!socket.subscribe(&[other]).await.ok);
    let wider = tokens::scoped(user, &[market, other]);
    socket.send(format_args!(r#"{{"type":"refresh","token":"{wider}"}}"#)).await;
    assert!(socket.ack().await.ok);
    assert!(socket.subscribe(&[other]).await.ok);
    stack.admin().publish(other, &numbered(1)).await;
    assert_eq!(socket.update().await.market_id, other);
}

#[tokio::test]
async fn refresh_ends_what_the_new_token_does_not_allow() {
    let stack = Stack::shared();
    let (admin, user, kept, ended) = (stack.admin(), fresh_user(), fresh_market(), fresh_market());
    let mut socket = Socket::connect(stack.gateway(0).api, &tokens::for_user(user)).await;
    socket.subscribe(&[kept, ended]).await;
    let narrower = tokens::scoped(user, &[kept]);
    socket.send(format_args!(r#"{{"type":"refresh","token":"{narrower}"}}"#)).await;
    let ack = socket.ack().await;
    let forbidden = Rejected { market_id: ended, code: "FORBIDDEN".to_owned() };
    assert_eq!((ack.ok, ack.rejected), (false, vec![forbidden]));
    admin.publish(ended, &numbered(1)).await;
    admin.publish(kept, &numbered(1)).await;
    assert_eq!(socket.update().await.market_id, kept);
    socket.expect_silence().await;
}

#[tokio::test]
async fn refresh_with_another_users_or_a_bad_token_is_refused_and_the_connection_stays() {
    let stack = Stack::shared();
    let user = fresh_user();
    let mut socket = Socket::connect(stack.gateway(0).api, &tokens::for_user(user)).await;
    for token in [tokens::for_user(fresh_user()), tokens::expiring(user, -60), "nonsense".to_owned()] {
        socket.send(format_args!(r#"{{"type":"refresh","token":"{token}","id":5}}"#)).await;
        let error = socket.error().await;
        assert_eq!((error.code.as_str(), error.id), ("UNAUTHORIZED", Some(json!(5))));
    }
    socket.expect_silence().await;
}
