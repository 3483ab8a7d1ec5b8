//! Rule 7 of `docs/protocol.md#rules`: a slow client costs bounded memory and delays no other client.

use tests::{
    Admin, Lines, Message, RawSocket, Rest, Socket, Stack, eventually, fresh_market, fresh_user, tokens,
};

/// Small, so that the kernel soon takes no more for a client that does not read.
const RECEIVE_BUFFER_BYTES: u32 = 4096;

/// A pod that keeps few updates.
const KEEPS_LITTLE: [(&str, &str); 2] = [("HISTORY_LEN", "20"), ("RESUME_MAX", "20")];

/// Far more than both kernels' buffers hold, with [`big`] payloads.
const UPDATES: u64 = 500;

#[tokio::test]
async fn a_client_behind_by_more_than_the_pod_keeps_gets_a_conflated_snapshot_then_live() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&KEEPS_LITTLE);
    let (admin, market) = (stack.admin(), fresh_market());
    let token = tokens::for_user(fresh_user());
    let mut slow = RawSocket::connect_with_small_buffer(gateway.api, &token, RECEIVE_BUFFER_BYTES).await;
    let mut fast = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    slow.send(&format!(r#"{{"type":"subscribe","markets":[{market}]}}"#)).await;
    assert!(matches!(slow.recv().await, Some(Message::Ack(ack)) if ack.ok));
    fast.subscribe(&[market]).await;
    publish_in_step(&admin, market, 1..=UPDATES, &mut fast).await;

    // Now the client reads: one update after the other, then a snapshot, then updates from there.
    let (mut last, mut snapshots, mut lines) = (0, 0, Lines::default());
    while last < UPDATES {
        match slow.recv().await.expect("slow, not gone") {
            Message::Update(update) => {
                assert_eq!(update.seq, last + 1);
                last = update.seq;
                lines.apply(update.payload.text());
            }
            Message::Snapshot(snapshot) => {
                assert!(snapshot.conflated && !snapshot.reset);
                assert!(snapshot.seq > last, "{} after {last}", snapshot.seq);
                last = snapshot.seq;
                lines = Lines::of(snapshot.payload.text());
                snapshots += 1;
            }
            other => panic!("updates and snapshots only, not {other:?}"),
        }
    }
    assert!(snapshots > 0, "all {UPDATES} updates fitted into the buffers of the kernels");
    assert_eq!(lines, Lines::of(Rest::of(&gateway).snapshot(market).await.payload.text()));

    publish_in_step(&admin, market, UPDATES + 1..=UPDATES + 2, &mut fast).await;
    for seq in UPDATES + 1..=UPDATES + 2 {
        assert!(matches!(slow.recv().await, Some(Message::Update(update)) if update.seq == seq));
    }
}

#[tokio::test]
async fn a_client_unwritable_for_slow_after_is_closed_with_4409_and_the_others_notice_nothing() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[KEEPS_LITTLE[0], KEEPS_LITTLE[1], ("SLOW_AFTER", "1s")]);
    let (admin, market) = (stack.admin(), fresh_market());
    let token = tokens::for_user(fresh_user());
    let mut slow = RawSocket::connect_with_small_buffer(gateway.api, &token, RECEIVE_BUFFER_BYTES).await;
    let mut fast = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    slow.send(&format!(r#"{{"type":"subscribe","markets":[{market}]}}"#)).await;
    assert!(matches!(slow.recv().await, Some(Message::Ack(ack)) if ack.ok));
    fast.subscribe(&[market]).await;
    publish_in_step(&admin, market, 1..=UPDATES, &mut fast).await;

    let rest = Rest::of(&gateway);
    eventually("the slow one is gone", async || (rest.health().await.connections == 1).then_some(())).await;
    let metrics = tests::Http::default().get(&gateway.ops_url("/metrics")).await.text;
    assert!(metrics.lines().any(|line| line.contains("4409") && line.ends_with(" 1")), "{metrics}");

    // Bytes under way still arrive, whole and in order, and then the end.
    let mut last = 0;
    while let Some(message) = slow.recv().await {
        match message {
            Message::Update(update) => {
                assert_eq!(update.seq, last + 1);
                last = update.seq;
            }
            Message::Snapshot(snapshot) => last = snapshot.seq,
            Message::Bye(bye) => assert_eq!((bye.code, bye.reconnect), (4409, true)),
            other => panic!("updates only, not {other:?}"),
        }
    }
    assert!(last < UPDATES);
    publish_in_step(&admin, market, UPDATES + 1..=UPDATES + 2, &mut fast).await;
}

/// Publishes one update after the other, each once `reader` has the one before.
async fn publish_in_step(admin: &Admin, market: u64, seqs: impl Iterator<Item = u64>, reader: &mut Socket) {
    for seq in seqs {
        assert_eq!(admin.publish(market, &big(seq)).await.seq, seq);
        assert_eq!(reader.update().await.seq, seq);
    }
}

/// A payload of about 15 KB.
fn big(seq: u64) -> String {
    format!(r#"{{"line {}":{{"n":{seq},"pad":"{}"}}}}"#, seq % 3, "x".repeat(15_000))
}
