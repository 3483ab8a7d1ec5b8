//! The limits of clients: rates, connections, markets, and sizes of messages and headers.

use std::{net::SocketAddr, time::Instant};

use tests::{
    Event, Http, Message, RawSocket, Rest, Service, Socket, Stack, eventually, fresh_market, fresh_user,
    message::Rejected,
    raw::{frame, last, opcode},
    tokens, within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

#[tokio::test]
async fn more_markets_than_a_connection_may_have_are_rejected_with_limit_exceeded() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("MAX_MARKETS_PER_CONNECTION", "2")]);
    let [a, b, c] = [fresh_market(), fresh_market(), fresh_market()];
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;

    let ack = socket.subscribe(&[a, b, c]).await;
    assert_eq!((ack.ok, ack.subscribed), (false, Some(vec![a, b])));
    let exceeded = vec![Rejected { market_id: c, code: "LIMIT_EXCEEDED".to_owned() }];
    assert_eq!(ack.rejected, exceeded);
    assert_eq!(socket.resume(c, 0).await.rejected, exceeded);
    assert!(socket.subscribe(&[a]).await.ok, "one it has already is not one more");

    socket.send(format_args!(r#"{{"type":"unsubscribe","markets":[{a}]}}"#)).await;
    assert!(socket.ack().await.ok);
    assert!(socket.subscribe(&[c]).await.ok, "there is room again");
}

#[tokio::test]
async fn too_many_messages_are_refused_and_a_client_that_keeps_on_is_closed_with_4429() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("MESSAGE_BURST", "3"), ("MESSAGE_RATE", "1")]);
    let mut socket = RawSocket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    let ping_frame =
        |ts: u64| frame(last(opcode::TEXT), format!(r#"{{"type":"ping","ts":{ts}}}"#).as_bytes());

    socket.send_bytes(&(0..4).flat_map(ping_frame).collect::<Vec<_>>()).await;
    for ts in 0..3 {
        assert!(matches!(socket.recv().await, Some(Message::Pong(pong)) if pong.ts == Some(ts.into())));
    }
    match socket.recv().await {
        Some(Message::Error(error)) => assert_eq!(error.code, "RATE_LIMITED"),
        other => panic!("RATE_LIMITED, not {other:?}"),
    }
    socket.send_bytes(&(0..500).flat_map(ping_frame).collect::<Vec<_>>()).await;
    assert_eq!(socket.close_code().await, 4429);
}

/// Neither an endless message of empty fragments nor pongs that nobody asked for get around the rate.
#[tokio::test]
async fn pings_pongs_and_empty_fragments_count_like_messages() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("MESSAGE_BURST", "3"), ("MESSAGE_RATE", "1")]);
    for (what, first) in [
        ("pings", last(opcode::PING)),
        ("pongs", last(opcode::PONG)),
        ("empty fragments", opcode::CONTINUATION),
    ] {
        let mut socket = RawSocket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
        socket.send_bytes(&frame(opcode::TEXT, b"{")).await;
        socket.send_bytes(&frame(first, b"").repeat(100)).await;
        assert_eq!(socket.close_code().await, 4429, "{what}");
    }
    // The message's length bounds fragments that carry bytes. Such a message counts once.
    let mut socket = RawSocket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    socket.send_bytes(&frame(opcode::TEXT, b"{")).await;
    socket.send_bytes(&frame(opcode::CONTINUATION, b" ").repeat(5000)).await;
    socket.send_bytes(&frame(last(opcode::CONTINUATION), br#""type":"ping","ts":6}"#)).await;
    assert!(matches!(socket.recv().await, Some(Message::Pong(pong)) if pong.ts == Some(6.into())));
}

#[tokio::test]
async fn a_user_s_connections_beyond_the_limit_are_refused_with_429() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("MAX_CONNECTIONS_PER_USER", "2")]);
    let token = tokens::for_user(fresh_user());
    let (first, _second) =
        (Socket::connect(gateway.api, &token).await, Socket::connect(gateway.api, &token).await);
    let url = gateway.url(&format!("/ws/odds?token={token}"));
    Http::default().handshake(&url, &[]).await.expect_error(429, "RATE_LIMITED");
    let _other = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;

    drop(first);
    eventually("room for one more", async || {
        (Http::default().handshake(&url, &[]).await.status == 101).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_full_pod_answers_503_with_retry_after() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("MAX_CONNECTIONS", "1")]);
    let first = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    let url = gateway.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
    let refused = Http::default().handshake(&url, &[]).await;
    refused.expect_error(503, "SERVICE_UNAVAILABLE");
    assert!(refused.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()));

    drop(first);
    eventually("room for one", async || {
        (Http::default().handshake(&url, &[]).await.status == 101).then_some(())
    })
    .await;
}

#[tokio::test]
async fn handshakes_of_one_address_beyond_the_rate_get_429_with_retry_after() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("HANDSHAKE_RATE_LIMIT", "1")]);
    let url = gateway.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
    let http = Http::default();
    assert_eq!(http.handshake(&url, &[]).await.status, 101);
    let limited = eventually("a refusal", async || {
        Some(http.handshake(&url, &[]).await).filter(|answer| answer.status != 101)
    })
    .await;
    limited.expect_error(429, "RATE_LIMITED");
    assert!(limited.header("retry-after").is_some());
    assert_eq!(http.get(&gateway.url("/api/ws/health")).await.status, 200, "only handshakes are counted");
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_forwarded_address_is_counted() {
    let stack = Stack::shared();
    let settings = [("HANDSHAKE_RATE_LIMIT", "1"), ("TRUSTED_PROXIES", "127.0.0.0/8")];
    let (trusting, wary) = (stack.another_gateway(&settings), stack.another_gateway(&settings[..1]));
    let http = Http::default();
    let mut refused = 0;
    for client in 1..=5 {
        for (gateway, refusals) in [(&trusting, &mut 0), (&wary, &mut refused)] {
            let url = gateway.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
            let address = format!("192.0.2.{client}");
            let status = http.handshake(&url, &[("x-forwarded-for", &address)]).await.status;
            *refusals += u32::from(status == 429);
            assert_eq!(*refusals > 0, status == 429);
            if std::ptr::eq(gateway, &raw const trusting) {
                assert_eq!(status, 101, "each client has its own budget");
            }
        }
    }
    assert!(refused > 0, "whoever is not a trusted proxy cannot choose its address");
}

/// What a client writes itself stands before what the proxy appends, and changes nothing.
#[tokio::test]
async fn a_client_behind_a_trusted_proxy_cannot_choose_its_address() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("HANDSHAKE_RATE_LIMIT", "1"), ("TRUSTED_PROXIES", "127.0.0.0/8")]);
    let http = Http::default();
    let url = gateway.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
    for own in ["192.0.2.1", "127.0.0.1", "nonsense", "2001:db8::1", ""] {
        let forwarded = format!("{own}, 198.51.100.7, 127.0.0.9");
        eventually("a refusal, however it varies", async || {
            let answer = http.handshake(&url, &[("x-forwarded-for", &forwarded)]).await;
            (answer.status == 429).then_some(())
        })
        .await;
    }
    let networks = ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"];
    let mut statuses = Vec::new();
    for address in networks {
        statuses.push(http.handshake(&url, &[("x-forwarded-for", address)]).await.status);
    }
    assert_eq!(statuses, [101, 429, 101], "an IPv6 client is its /64");
}

#[tokio::test]
async fn requests_for_tokens_from_one_address_are_limited_unless_the_api_key_vouches_for_them() {
    const KEY: &str = "the application's key";
    let stack = Stack::shared();
    let settings = [("HANDSHAKE_RATE_LIMIT", "2"), ("TRUSTED_PROXIES", "127.0.0.0/8")];
    let open = stack.another_gateway(&settings);
    let keyed = stack.another_gateway(&[settings[0], settings[1], ("TOKEN_API_KEY", KEY)]);
    let http = Http::default();
    let (right, wrong) = (format!("Bearer {KEY}"), "Bearer a guess".to_owned());
    let ask = async |gateway: &Service, authorization: &str, from: &str| {
        let body = format!(r#"{{"userId":{}}}"#, fresh_user());
        let headers = [("authorization", authorization), ("x-forwarded-for", from)];
        http.post_with(&gateway.url("/api/ws/token"), &headers, &body).await
    };
    for (gateway, authorization, granted) in [(&open, "", 200), (&keyed, &wrong, 401)] {
        let refused = eventually("a refusal", async || {
            let answer = ask(gateway, authorization, "192.0.2.1").await;
            (answer.status != granted).then_some(answer)
        })
        .await;
        refused.expect_error(429, "RATE_LIMITED");
        assert!(refused.header("retry-after").is_some());
        assert_eq!(ask(gateway, authorization, "192.0.2.2").await.status, granted, "another has its own");
    }
    for _ in 0..20 {
        assert_eq!(ask(&keyed, &right, "192.0.2.1").await.status, 200);
    }
    let url = open.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
    let handshake = http.handshake(&url, &[("x-forwarded-for", "192.0.2.1")]).await;
    assert_eq!(handshake.status, 101, "handshakes are counted on their own");
}

/// A handshake is under way from accept to 101.
#[tokio::test]
async fn handshakes_beyond_those_that_may_be_under_way_get_503_with_retry_after() {
    let stack = Stack::shared();
    let settings = [("MAX_HTTP_CONNECTIONS", "4"), ("HANDSHAKE_TIMEOUT", "60s")];
    let gateway = stack.another_gateway(&settings);
    let token = tokens::for_user(fresh_user());
    let mut open = Vec::new();
    for _ in 0..8 {
        // A connection that is through its handshake does not count here.
        open.push(RawSocket::connect(gateway.api, &token).await);
    }
    let mut under_way = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(gateway.api).await.unwrap();
        stream.write_all(b"GET /ws/odds HTTP/1.1\r\n").await.unwrap();
        under_way.push(stream);
    }
    let refused =
        eventually("a refusal", async || RawSocket::try_connect(gateway.api, &token).await.err()).await;
    let refused = refused.to_lowercase();
    assert!(refused.starts_with("http/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
    for socket in &mut open {
        socket.send(r#"{"type":"ping","ts":1}"#).await;
        assert!(matches!(socket.recv().await, Some(Message::Pong(_))), "who is in stays in");
    }
    under_way.pop();
    eventually("room for one more", async || RawSocket::try_connect(gateway.api, &token).await.ok()).await;
}

#[tokio::test]
async fn a_request_s_header_of_more_than_32_kib_is_answered_431_by_both_services() {
    const MAX: usize = 32 * 1024;
    let stack = Stack::shared();
    let gateway = stack.gateway(0);
    let url = gateway.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
    let websocket = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Pad: \r\n\r\n",
        &url[gateway.url("").len()..]
    );
    // Where the padding goes, and what else the request contains.
    for (address, head, status) in [
        (
            gateway.api,
            "GET /api/ws/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Pad: \r\n\r\n",
            "200",
        ),
        (gateway.api, "GET /api/ws/health?pad= HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200"),
        (gateway.api, &websocket, "101"),
        (gateway.ops, "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Pad: \r\n\r\n", "200"),
        (
            stack.publisher().api,
            "POST /admin/odds/override HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Pad: \r\n\r\n",
            "401",
        ),
    ] {
        let padded = |length: usize| {
            let (before, after) = ["?pad=", "X-Pad: "]
                .iter()
                .find_map(|pad| head.find(pad).map(|at| head.split_at(at + pad.len())))
                .unwrap();
            format!("{before}{}{after}", "x".repeat(length - head.len()))
        };
        let answer = exchange(address, &padded(MAX)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        for length in [MAX + 1, 2 * MAX] {
            let answer = exchange(address, &padded(length)).await.to_lowercase();
            assert!(answer.starts_with("http/1.1 431 "), "{length} of {head}: {answer}");
            let body = format!(
                r#"{{"code":"header_too_large","message":"a request's header has at most {MAX} bytes"#
            );
            assert!(answer.contains(&body) && answer.contains("connection: close"), "{answer}");
        }
        // The server does not read the end of a longer header. Its response may get lost, and has no body.
        for length in [2 * MAX + 1, 200_000] {
            let answer = exchange(address, &padded(length)).await;
            assert!(!answer.contains("HEADER_TOO_LARGE"), "{length} of {head}: {answer}");
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{length} of {head}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_request_of_more_than_100_header_fields_is_answered_431() {
    let stack = Stack::shared();
    for address in [stack.gateway(0).api, stack.publisher().api] {
        for (fields, status) in [(100, "404"), (101, "431")] {
            let more = "X: y\r\n".repeat(fields - 2);
            let head = format!("GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
            let answer = exchange(address, &head).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{fields}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_token_request_s_body_may_be_as_long_as_the_limit() {
    let stack = Stack::shared();
    let post = async |length: usize| {
        let body = format!(r#"{{"userId":{}}}"#, fresh_user());
        let padded = format!("{body}{}", " ".repeat(length - body.len()));
        Http::default().post(&stack.gateway(0).url("/api/ws/token"), &padded).await
    };
    assert_eq!(post(65_536).await.status, 200);
    post(65_537).await.expect_error(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_closed() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("HANDSHAKE_TIMEOUT", "300ms")]);
    for said in ["", "GET /ws/odds HTTP/1.1\r\nHost: x\r\n"] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(gateway.api).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let end = within("the gateway hangs up", stream.read_to_end(&mut answer)).await;
        assert!(begun.elapsed().as_millis() >= 250, "not at once: {end:?}, {answer:?}");
        assert!(!answer.starts_with(b"HTTP/1.1 1"));
    }
}

#[tokio::test]
async fn what_follows_the_handshake_in_the_same_packet_is_read() {
    let stack = Stack::shared();
    let first = frame(last(opcode::TEXT), br#"{"type":"ping","ts":8}"#);
    let token = tokens::for_user(fresh_user());
    let socket = TcpSocket::new_v4().unwrap();
    let mut socket = RawSocket::connect_with(socket, stack.gateway(0).api, &token, &first).await;
    assert!(matches!(socket.recv().await, Some(Message::Pong(pong)) if pong.ts == Some(8.into())));
}

#[tokio::test]
async fn a_connection_that_goes_away_gives_back_its_place_and_its_markets() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[]);
    let rest = Rest::of(&gateway);
    let before = rest.health().await;
    assert_eq!((before.connections, before.topics, before.messages_sent), (0, 0, 0));

    let (a, b) = (fresh_market(), fresh_market());
    let mut one = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    let mut two = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    one.subscribe(&[a, b]).await;
    two.subscribe(&[b]).await;
    stack.admin().publish_many(b, 0, 3).await;
    for socket in [&mut one, &mut two] {
        for seq in 1..=3 {
            assert_eq!(socket.update().await.seq, seq);
        }
    }
    // The gateway counts a message right after it sent it.
    let all_counted = async || Some(rest.health().await).filter(|health| health.messages_sent >= 6);
    let health = eventually("all are counted", all_counted).await;
    assert_eq!((health.connections, health.topics), (2, 2));

    // One client closes as RFC 6455 says, the other vanishes.
    one.send_frame(tokio_tungstenite::tungstenite::Message::Close(None)).await;
    while !matches!(one.event().await, Event::Close(_) | Event::End) {}
    drop(two);
    eventually("no connection and no market left", async || {
        let health = rest.health().await;
        (health.connections == 0 && health.topics == 0).then_some(())
    })
    .await;
}

/// What comes back until the server closes the connection, or for a WebSocket with the first bytes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    within("the answer", async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Unread bytes may be cut off.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        while !answer.starts_with(b"HTTP/1.1 101 ") && matches!(stream.read_buf(&mut answer).await, Ok(1..)) {
        }
        String::from_utf8(answer).unwrap()
    })
    .await
}
