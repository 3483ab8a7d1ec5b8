//! Slow and hostile peers. None of them stops a pod, leaves anything behind in it, or costs other clients an update.

use std::{cell::Cell, net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tests::{
    Desk, Follower, RawSocket, Rest, Socket, Stack,
    admin::override_body,
    eventually, fresh_market, fresh_user,
    raw::{frame, last, opcode, unmasked_frame},
    tokens, within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{MissedTickBehavior, interval},
};

/// How often an attack is made: what one leaves behind, several leave several times.
const ROUNDS: usize = 5;
/// Rounds after which the allocator has about what it needs for one.
const WARM: usize = 3;
/// Files of a gateway's own that it opens when it needs them: connections to Redis.
const OWN_FILES: usize = 11;
/// What memory may grow by in the rounds after that, bytes: half of what it is when a thousand connections leave a read
/// buffer each.
const GROWTH: usize = 8 << 20;
/// The pace of who sends a request byte by byte: all of it would take many times the time that is given.
const A_BYTE_EVERY: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_thousand_sockets_that_send_nothing() {
    withstand(&[("HANDSHAKE_TIMEOUT", "1s")], async |gateway| {
        let attackers = (0..1000).map(async |_| {
            // Some connections wait in the kernel's queue meanwhile.
            let mut stream = TcpStream::connect(gateway).await.unwrap();
            expect_end(&mut stream).await;
        });
        join_all(attackers).await;
    })
    .await;
}

#[tokio::test]
async fn requests_that_come_byte_by_byte() {
    withstand(&[("HANDSHAKE_TIMEOUT", "500ms")], async |gateway| {
        let token = tokens::for_user(fresh_user());
        let request = format!("GET /ws/odds?token={token} HTTP/1.1\r\nHost: x\r\n");
        let attackers = (0..100).map(async |_| {
            let stream = TcpStream::connect(gateway).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let mut ticks = interval(A_BYTE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let trickle = async {
                for byte in request.as_bytes() {
                    ticks.tick().await;
                    if writer.write_all(&[*byte]).await.is_err() {
                        // The reader sees the end of the connection as well.
                        return std::future::pending().await;
                    }
                }
                panic!("all of the request was taken");
            };
            let mut answer = Vec::new();
            tokio::select! {
                () = trickle => {}
                _ = within("the end", reader.read_to_end(&mut answer)) => {}
            }
            assert!(!answer.starts_with(b"HTTP/1.1 1"), "{}", String::from_utf8_lossy(&answer));
        });
        join_all(attackers).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_no_http_at_all() {
    let client_hello: Vec<u8> = [
        &b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"[..],
        &[7; 32],
        b"\x00\x00\x02\x13\x01\x01\x00\x00\x99",
        &[0; 153],
    ]
    .concat();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("a request line of 1 MB", [b"GET /", &vec![b'a'; 1 << 20][..], b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat()),
        ("a header of 1 MB", [b"GET / HTTP/1.1\r\nx: ", &vec![b'a'; 1 << 20][..], b"\r\n\r\n"].concat()),
        ("100 000 headers", [b"GET / HTTP/1.1\r\n", &b"a: b\r\n".repeat(100_000)[..], b"\r\n"].concat()),
        ("a TLS ClientHello", client_hello),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("garbage behind a good request", [&b"GET /api/ws/health HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 5000]].concat()),
        ("NUL bytes", vec![0; 100_000]),
        ("two lengths", b"POST /api/ws/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec()),
        ("a length that overflows", b"POST /api/ws/token HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec()),
        ("a chunk that overflows", b"POST /api/ws/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n".to_vec()),
        ("a newline in a header's name", b"GET / HTTP/1.1\r\nHo\nst: x\r\n\r\n".to_vec()),
    ];
    withstand(&[("HANDSHAKE_TIMEOUT", "1s")], async |gateway| {
        for (what, bytes) in &attacks {
            let attackers = (0..10).map(async |_| {
                let mut stream = TcpStream::connect(gateway).await.unwrap();
                // Bytes that the server does not read may be cut off.
                let _ = within(what, stream.write_all(bytes)).await;
                expect_end(&mut stream).await;
            });
            join_all(attackers).await;
        }
    })
    .await;
}

#[tokio::test]
async fn answers_that_nobody_reads() {
    withstand(&[("HANDSHAKE_TIMEOUT", "500ms")], async |gateway| {
        // The kernel's buffers have room for the requests, and not for the responses.
        let requests = b"GET /api/ws/health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1500);
        let attackers = (0..20).map(async |_| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(gateway).await.unwrap();
            within("all are asked", stream.write_all(&requests)).await.unwrap();
            within("the first answer", stream.peek(&mut [0])).await.unwrap();
        });
        join_all(attackers).await;
    })
    .await;
}

/// 16 MB each, of which 128 MiB may be on their way.
#[tokio::test]
async fn long_answers_that_nobody_reads_are_bounded_and_short_ones_are_given_meanwhile() {
    const MOST: usize = 8;
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[]);
    let (rest, market) = (Rest::of(&gateway), fresh_market());
    let text = "x".repeat(16_000);
    let item = override_body(market, &format!(r#"{{"line":{{"text":"{text}"}}}}"#));
    assert_eq!(stack.admin().batch(&format!("[{}]", vec![item; 1000].join(","))).await.status, 200);

    let long = format!("/api/markets/{market}/odds/updates?since_seq=0&limit=1000");
    let before = gateway.process.memory_bytes();
    let mut unread = Vec::new();
    let refused = loop {
        assert!(unread.len() <= MOST, "one more is given");
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(gateway.api).await.unwrap();
        stream.write_all(format!("GET {long} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut status = [0; b"HTTP/1.1 200".len()];
        within("an answer", stream.read_exact(&mut status)).await.unwrap();
        if status != *b"HTTP/1.1 200" {
            break rest.get(&long).await;
        }
        unread.push(stream);
    };
    refused.expect_error(503, "SERVICE_UNAVAILABLE");
    assert!(refused.header("retry-after").is_some());
    // The memory that encoding the responses needed is returned a moment later.
    let memory = async || (gateway.process.memory_bytes() - before < 256 << 20).then_some(());
    eventually("memory for eight answers", memory).await;
    assert_eq!(rest.updates(market, "since_seq=0&limit=3").await.updates.len(), 3);
    assert_eq!(rest.snapshot(market).await.seq, 1000);

    unread.pop();
    eventually("room for one", async || (rest.get(&long).await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn floods_and_frames_that_break_rfc_6455() {
    let ping = br#"{"type":"ping","ts":1}"#;
    let market = fresh_market();
    let churn = |kind: &str| {
        frame(last(opcode::TEXT), format!(r#"{{"type":"{kind}","markets":[{market}]}}"#).as_bytes())
    };
    let attacks: Vec<(&str, Vec<u8>, u16)> = vec![
        ("ping frames", frame(last(opcode::PING), &[0; 125]).repeat(5_000), 4429),
        ("pong frames", frame(last(opcode::PONG), b"").repeat(5_000), 4429),
        ("ping messages", frame(last(opcode::TEXT), ping).repeat(5_000), 4429),
        ("churn", [churn("subscribe"), churn("unsubscribe")].concat().repeat(1_000), 4429),
        ("nonsense", frame(last(opcode::TEXT), b"{").repeat(5_000), 4429),
        ("a frame that is not masked", unmasked_frame(last(opcode::TEXT), ping), 1002),
        (
            "one behind a good one",
            [frame(last(opcode::TEXT), ping), unmasked_frame(last(opcode::TEXT), ping)].concat(),
            1002,
        ),
        (
            "a fragment that never ends",
            [frame(opcode::TEXT, &[b'x'; 8000]), frame(opcode::CONTINUATION, &[b'x'; 8000]).repeat(100)]
                .concat(),
            1009,
        ),
        (
            "empty fragments",
            [frame(opcode::TEXT, b""), frame(opcode::CONTINUATION, b"").repeat(50_000)].concat(),
            4429,
        ),
    ];
    withstand(&[], async |gateway| {
        for (what, bytes, code) in &attacks {
            let attackers = (0..5).map(async |_| {
                let mut socket = RawSocket::connect(gateway, &tokens::for_user(fresh_user())).await;
                socket.send_bytes(bytes).await;
                assert_eq!(socket.close_code().await, *code, "{what}");
            });
            join_all(attackers).await;
        }
    })
    .await;
}

#[tokio::test]
async fn clients_that_never_read_or_never_leave() {
    withstand(
        &[("SLOW_AFTER", "1s"), ("HEARTBEAT_INTERVAL", "1s"), ("HEARTBEAT_TIMEOUT", "2s")],
        async |gateway| {
            let market = fresh_market();
            let flood = frame(
                last(opcode::TEXT),
                format!(
                    r#"{{"type":"subscribe","markets":[{market}],"snapshot":true,"id":"{}"}}"#,
                    "x".repeat(64)
                )
                .as_bytes(),
            );
            let attackers = (0..50).map(async |_| {
                let token = tokens::for_user(fresh_user());
                let mut socket = RawSocket::connect_with_small_buffer(gateway, &token, 4096).await;
                socket.send_bytes(&flood.repeat(15)).await;
                socket
            });
            let mut kept = join_all(attackers).await;
            for _ in 0..2 * OWN_FILES {
                let mut stays = RawSocket::connect(gateway, &tokens::for_user(fresh_user())).await;
                stays.send_bytes(&unmasked_frame(last(opcode::TEXT), b"{}")).await;
                assert_eq!(stays.close_code().await, 1002);
                kept.push(stays);
            }
            kept
        },
    )
    .await;
}

/// What each message is answered with; none of them is worth more than that.
#[tokio::test]
async fn messages_that_are_made_to_break_parsers() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let ids = |of: &str| format!(r#"{{"type":"subscribe","markets":[{of}]}}"#);
    let many = (1..=10_000).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    let refused: Vec<String> = vec![
        deep("[", "]"),
        ids(&deep("[", "]")),
        deep(r#"{"type":"#, "}"),
        format!(r#"{{"type":"subscribe","markets":{}}}"#, deep(r#"{"a":"#, "}")),
        "[".repeat(60_000),
        r#"{"type":"ping","type":"pong"}"#.to_owned(),
        r#"{"type":"subscribe","markets":[1],"markets":[2]}"#.to_owned(),
        r#"{"type":"resume","offsets":{"1":1,"1":2}}"#.to_owned(),
        r#"{"type":"ping","id":"\ud800"}"#.to_owned(),
        r#"{"type":"ping","id":"\udc00\ud800"}"#.to_owned(),
        "{\"type\":\"ping\",\"id\":\"\0\"}".to_owned(),
        "{\"type\":\"ping\"\0}".to_owned(),
        "\0".to_owned(),
        "\u{feff}{\"type\":\"ping\"}".to_owned(),
        r#"{"type":"ping"} {"type":"ping"}"#.to_owned(),
        ids("9007199254740992"),
        ids("\"9007199254740992\""),
        ids("18446744073709551617"),
        ids("0"),
        ids("-1"),
        ids("-0"),
        ids("1e3"),
        ids("1.0"),
        ids("\"0001\""),
        ids("\"+1\""),
        ids("\" 1\""),
        ids("\"1e3\""),
        ids("\"\""),
        ids("NaN"),
        ids("null"),
        ids("true"),
        r#"{"type":"resume","offsets":{"0001":1}}"#.to_owned(),
        r#"{"type":"resume","offsets":{"1":9007199254740992}}"#.to_owned(),
        r#"{"type":"resume","offsets":{"1":1e3}}"#.to_owned(),
        r#"{"type":"resume","offsets":{"1":{"epoch":-1,"seq":1}}}"#.to_owned(),
        format!(r#"{{"type":"refresh","token":"{}"}}"#, "a.".repeat(10_000)),
    ];
    let limits = [("MAX_MESSAGE_BYTES", "131072"), ("MESSAGE_BURST", "1000")];
    withstand(&limits, async |gateway| {
        let mut socket = Socket::connect(gateway, &tokens::for_user(fresh_user())).await;
        for message in &refused {
            socket.send(message).await;
            let error = socket.error().await;
            let shown: String = message.chars().take(100).collect();
            assert!(matches!(error.code.as_str(), "BAD_MESSAGE" | "UNAUTHORIZED"), "{shown}: {error:?}");
            assert!(error.message.len() < 1_000, "it is not sent back: {shown}");
        }
        // These are unusual, and valid.
        for unusual in [
            format!(r#"{{"type":"ping","ts":42,"x":{}}}"#, deep("[", "]")),
            r#"{"type":"ping","ts":42,"id":"\u0000"}"#.to_owned(),
            r#"{"type":"ping","ts":42,"id":"\ud83d\ude00"}"#.to_owned(),
        ] {
            socket.send(unusual).await;
            assert_eq!(socket.pong().await.ts, Some(42.into()));
        }
        assert_eq!(
            socket.subscribe(&[9_007_199_254_740_991]).await.subscribed,
            Some(vec![9_007_199_254_740_991])
        );
        socket.send(ids(&many)).await;
        let ack = socket.ack().await;
        assert_eq!(ack.subscribed.map(|markets| markets.len()), Some(199));
        assert_eq!(ack.rejected.len(), 10_000 - 199);
        assert!(ack.rejected.iter().all(|rejected| rejected.code == "LIMIT_EXCEEDED"));
        socket.expect_silence().await;
    })
    .await;
}

/// Makes an attack on a pod several times, while its healthy clients get every update in order, until nothing is left of
/// it: also while the attackers keep what the attack gives back.
async fn withstand<T>(settings: &[(&str, &str)], attack: impl AsyncFn(SocketAddr) -> T) {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(settings);
    let rest = Rest::of(&gateway);
    let markets = [fresh_market(), fresh_market()];
    let mut desk = Desk::new(stack.admin());
    let mut healthy =
        [Follower::start(gateway.api, &markets).await, Follower::start(gateway.api, &markets).await];
    let healthy_ones = healthy.len() as u64;
    let (files, threads) = gateway.process.files_and_threads();
    let mut memory = Vec::new();
    for _ in 0..ROUNDS {
        let over = Cell::new(false);
        let attacking = async {
            let _kept = attack(gateway.api).await;
            eventually("nothing is left of it", async || {
                let (files_now, threads_now) = gateway.process.files_and_threads();
                let is_over = rest.health().await.connections == healthy_ones;
                (is_over && files_now <= files + OWN_FILES && threads_now <= threads).then_some(())
            })
            .await;
            over.set(true);
        };
        let publishing = async {
            while !over.get() {
                for market in markets {
                    desk.publish(market).await;
                }
                for follower in &mut healthy {
                    follower.reach_all_of(&desk).await;
                }
            }
        };
        tokio::join!(attacking, publishing);
        memory.push(gateway.process.memory_bytes());
    }
    // The value goes up and down: another request may take what one returned.
    let warm = memory[..WARM].iter().max();
    assert!(
        warm.is_some_and(|warm| memory[ROUNDS - 1] < warm + GROWTH),
        "bytes after each round: {memory:?}"
    );
    for follower in &mut healthy {
        desk.publish(markets[0]).await;
        follower.reach_all_of(&desk).await;
        assert!(markets.iter().all(|market| follower.known(*market).resets == 0));
    }
}

/// Reads until the server ends the connection, in whatever way.
async fn expect_end(stream: &mut TcpStream) {
    let mut answers = Vec::new();
    let _ = within("the connection's end", stream.read_to_end(&mut answers)).await;
    assert!(!answers.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answers));
}
