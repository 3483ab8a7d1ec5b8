//! resume (rules 1 to 4 of `docs/protocol.md#rules`).

use redis::AsyncCommands;
use tests::{
    Lines, Message, Rest, Socket, Stack, admin::numbered, fresh_market, fresh_user, message::AckPosition,
    tokens,
};

#[tokio::test]
async fn resume_on_the_other_pod_while_updates_flow_has_no_hole_and_no_duplicate() {
    const UPDATES: u64 = 400;
    /// Updates that the client takes from one pod before it changes to the other.
    const STAY: u64 = 17;
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let publishing = tokio::spawn(async move {
        for seq in 1..=UPDATES {
            admin.publish(market, &numbered(seq)).await;
        }
    });
    let user = tokens::for_user(fresh_user());
    let (mut last, mut visits) = (0, 0);
    while last < UPDATES {
        let mut socket = Socket::connect(stack.gateway(visits % 2).api, &user).await;
        visits += 1;
        let ack = socket.resume(market, last).await;
        let position = ack.position(market);
        assert_eq!(position.recovered, Some(true), "after {last}: {ack:?}");
        assert!(position.seq >= last);
        for _ in 0..STAY.min(UPDATES - last) {
            let update = socket.update().await;
            assert_eq!(update.seq, last + 1);
            assert_eq!(update.payload.text(), numbered(update.seq));
            last = update.seq;
        }
    }
    assert!(visits >= 20);
    publishing.await.unwrap();
}

#[tokio::test]
async fn resume_replays_exactly_what_was_missed_and_then_goes_on_live() {
    let stack = Stack::shared();
    let (admin, market, other) = (stack.admin(), fresh_market(), fresh_market());
    admin.publish_many(market, 0, 10).await;
    admin.publish_many(other, 0, 1).await;
    let epoch = Rest::of(stack.gateway(0)).snapshot(market).await.epoch;

    for (gateway, offset) in [
        (0, "4".to_owned()),
        (1, r#""4""#.to_owned()),
        (0, format!(r#"{{"epoch":{epoch},"seq":4}}"#)),
        (1, r#"{"seq":4}"#.to_owned()),
    ] {
        let mut socket = stack.socket(gateway).await;
        socket
            .send(format_args!(r#"{{"type":"resume","offsets":{{"{market}":{offset},"{other}":1}}}}"#))
            .await;
        let ack = socket.ack().await;
        assert!(ack.ok);
        let mut subscribed = ack.subscribed.clone().unwrap();
        subscribed.sort_unstable();
        assert_eq!(subscribed, [market, other]);
        assert_eq!(ack.position(market), AckPosition { epoch, seq: 10, recovered: Some(true) });
        assert_eq!((ack.position(other).seq, ack.position(other).recovered), (1, Some(true)));
        for seq in 5..=10 {
            let update = socket.update().await;
            assert_eq!((update.market_id, update.seq), (market, seq));
            assert_eq!(update.payload.text(), numbered(seq));
        }
        socket.expect_silence().await;
    }

    let mut socket = stack.socket(1).await;
    assert_eq!(socket.resume(market, 10).await.position(market).recovered, Some(true), "nothing was missed");
    admin.publish(market, &numbered(11)).await;
    assert_eq!(socket.update().await.seq, 11);
}

#[tokio::test]
async fn resume_with_no_offsets_is_acknowledged() {
    let stack = Stack::shared();
    let mut socket = stack.socket(0).await;
    socket.send(r#"{"type":"resume","offsets":{}}"#).await;
    let ack = socket.ack().await;
    assert_eq!((ack.ok, ack.subscribed), (true, Some(vec![])));
    assert!(ack.positions.unwrap().is_empty());
    socket.expect_silence().await;
}

#[tokio::test]
async fn resume_of_an_unpublished_market_at_seq_0_recovers() {
    let stack = Stack::shared();
    let market = fresh_market();
    let mut socket = stack.socket(0).await;
    let position = socket.resume(market, 0).await.position(market);
    assert_eq!((position.seq, position.recovered), (0, Some(true)));
    stack.admin().publish(market, &numbered(1)).await;
    assert_eq!(socket.update().await.seq, 1);
}

#[tokio::test]
async fn resume_above_the_logs_top_gets_a_reset_snapshot() {
    let stack = Stack::shared();
    let (admin, market, unpublished) = (stack.admin(), fresh_market(), fresh_market());
    admin.publish_many(market, 0, 3).await;
    let mut socket = stack.socket(0).await;
    expect_reset(&mut socket, market, "4", 3).await;
    expect_reset(&mut socket, unpublished, "1", 0).await;
    admin.publish(market, &numbered(4)).await;
    assert_eq!(socket.update().await.seq, 4);
    admin.publish(unpublished, &numbered(1)).await;
    assert_eq!(socket.update().await.seq, 1);
}

#[tokio::test]
async fn resume_with_another_epoch_gets_a_reset_snapshot() {
    let stack = Stack::shared();
    let market = fresh_market();
    stack.admin().publish_many(market, 0, 3).await;
    let epoch = Rest::of(stack.gateway(0)).snapshot(market).await.epoch;
    for (gateway, other) in [(0, epoch - 1), (1, epoch + 1)] {
        let mut socket = stack.socket(gateway).await;
        expect_reset(&mut socket, market, &format!(r#"{{"epoch":{other},"seq":2}}"#), 3).await;
    }
}

#[tokio::test]
async fn resume_beyond_resume_max_gets_a_reset_snapshot() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("RESUME_MAX", "5")]);
    let market = fresh_market();
    stack.admin().publish_many(market, 0, 20).await;

    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    assert_eq!(
        socket.resume(market, 15).await.position(market).recovered,
        Some(true),
        "five are not too many"
    );
    for seq in 16..=20 {
        assert_eq!(socket.update().await.seq, seq);
    }
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    expect_reset(&mut socket, market, "14", 20).await;
}

#[tokio::test]
async fn resume_beyond_history_gets_a_reset_snapshot() {
    let stack = Stack::shared();
    let market = fresh_market();
    stack.admin().publish_many(market, 0, 20).await;
    let mut redis = stack.redis().connection().await;
    let log = format!("odds:log:{{{market}}}");
    let trimmed: u64 = redis.xtrim(log, redis::streams::StreamMaxlen::Equals(8)).await.unwrap();
    assert_eq!(trimmed, 12);

    // These gateways never looked at the market before the trim.
    let mut socket = stack.socket(0).await;
    assert_eq!(
        socket.resume(market, 12).await.position(market).recovered,
        Some(true),
        "all after 12 are kept"
    );
    for seq in 13..=20 {
        assert_eq!(socket.update().await.seq, seq);
    }
    let mut socket = stack.socket(1).await;
    expect_reset(&mut socket, market, "11", 20).await;
}

#[tokio::test]
async fn resume_past_what_the_pod_has_in_memory_is_replayed_from_redis() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish_many(market, 0, 30).await;
    // This pod has followed the market since update 30. No client has asked it for earlier updates.
    let mut witness = stack.socket(0).await;
    witness.subscribe(&[market]).await;
    for seq in 31..=40 {
        admin.publish(market, &numbered(seq)).await;
        assert_eq!(witness.update().await.seq, seq);
    }
    let mut socket = stack.socket(0).await;
    assert_eq!(socket.resume(market, 3).await.position(market).recovered, Some(true));
    for seq in 4..=40 {
        assert_eq!(socket.update().await.payload.text(), numbered(seq));
    }
    socket.expect_silence().await;
    witness.expect_silence().await;
}

/// Rule 2 for many at once: concurrent resumes of one market share their reads and stay exact.
#[tokio::test]
async fn many_clients_resume_one_market_at_once() {
    const CLIENTS: u64 = 60;
    const UPDATES: u64 = 300;
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish_many(market, 0, UPDATES / 2).await;
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let mut socket = stack.socket((client % 2) as usize).await;
        let from = client * 2;
        socket.send(format_args!(r#"{{"type":"resume","offsets":{{"{market}":{from}}}}}"#)).await;
        clients.push((socket, from));
    }
    for seq in UPDATES / 2 + 1..=UPDATES {
        admin.publish(market, &numbered(seq)).await;
    }
    for (mut socket, from) in clients {
        assert_eq!(socket.ack().await.position(market).recovered, Some(true));
        for seq in from + 1..=UPDATES {
            assert_eq!(socket.update().await.seq, seq);
        }
    }
}

/// Resumes and expects `recovered:false` and the state at `top` instead of a replay.
async fn expect_reset(socket: &mut Socket, market: u64, offset: &str, top: u64) {
    socket.send(format_args!(r#"{{"type":"resume","offsets":{{"{market}":{offset}}}}}"#)).await;
    let ack = socket.ack().await;
    assert_eq!((ack.ok, &ack.subscribed), (true, &Some(vec![market])), "it is subscribed all the same");
    let position = ack.position(market);
    assert_eq!((position.seq, position.recovered), (top, Some(false)), "offset {offset}");
    let snapshot = match socket.recv().await {
        Message::Snapshot(snapshot) => snapshot,
        other => panic!("a snapshot, not {other:?}"),
    };
    assert_eq!((snapshot.market_id, snapshot.seq, snapshot.epoch), (market, top, position.epoch));
    assert!(snapshot.reset && !snapshot.conflated);
    let state = if top == 0 { Lines::default() } else { Lines::of(&numbered(top)) };
    assert_eq!(Lines::of(snapshot.payload.text()), state);
    socket.expect_silence().await;
}
