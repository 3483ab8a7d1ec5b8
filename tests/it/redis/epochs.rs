//! Rule 5 of `docs/protocol.md#rules`: a log loses history under a live subscription.

use redis::AsyncCommands;
use tests::{
    Admin, FieldClient, Lines, Message, Redis, Rest, Socket, Stack,
    admin::numbered,
    eventually, fresh_market, fresh_user,
    message::{Snapshot, Status},
    tokens,
};

/// How far above all that is remembered a new epoch begins.
const GAP: u64 = 1000;

#[tokio::test]
async fn when_the_log_s_epoch_changes_every_subscriber_gets_a_reset_snapshot() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish_many(market, 0, 3).await;
    let mut sockets = [stack.socket(0).await, stack.socket(1).await, stack.socket(0).await];
    for socket in &mut sockets {
        socket.subscribe(&[market]).await;
    }
    let epoch = Rest::of(stack.gateway(0)).snapshot(market).await.epoch;
    forget(stack.redis(), market).await;

    // This publisher remembers its position, so seq goes on. Clients that know no epochs never see seq
    // go back. The first check runs within the very second in which the log began.
    let accepted = admin.publish(market, r#"{"moneyline":{"home":2.10}}"#).await;
    assert_eq!(accepted.seq, 3 + GAP + 1);
    assert!(accepted.epoch > epoch);
    for socket in &mut sockets {
        let snapshot = socket.snapshot().await;
        expect_reset_to(&snapshot, (market, accepted.epoch, accepted.seq), r#"{"moneyline":{"home":2.10}}"#);
    }
    admin.publish(market, &numbered(5)).await;
    for socket in &mut sockets {
        assert_eq!(socket.update().await.seq, accepted.seq + 1, "and live from there");
        socket.expect_silence().await;
    }
}

#[tokio::test]
async fn whoever_publishes_next_goes_on_above_what_others_had_published() {
    let stack = Stack::shared();
    let publisher = stack.another_publisher(&[]);
    let other = Admin::new(publisher.url(""));
    // A publisher that has just started may not listen yet.
    eventually("the other publisher has heard", async || {
        let market = fresh_market();
        stack.admin().publish_many(market, 0, 3).await;
        forget(stack.redis(), market).await;
        let seq = other.publish(market, &numbered(4)).await.seq;
        assert!(seq == 1 || seq > GAP);
        (seq == 3 + GAP + 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_log_that_begins_again_at_1_resets_its_subscribers_too() {
    let stack = Stack::shared();
    let market = fresh_market();
    stack.admin().publish_many(market, 0, 3).await;
    let mut socket = stack.socket(0).await;
    let epoch = socket.subscribe(&[market]).await.position(market).epoch;
    let mut redis = stack.redis().connection().await;
    eventually("the epoch's second is over", async || {
        let (now_s, _micros): (u64, u64) = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
        (now_s > epoch).then_some(())
    })
    .await;
    forget(stack.redis(), market).await;

    // A publisher that has never seen the market cannot notice the loss.
    let publisher = stack.another_publisher(&[]);
    let accepted = tests::Admin::new(publisher.url("")).publish(market, &numbered(1)).await;
    assert_eq!(accepted.seq, 1);
    let snapshot = socket.snapshot().await;
    expect_reset_to(&snapshot, (market, accepted.epoch, 1), &numbered(1));
    socket.expect_silence().await;

    let mut late = stack.socket(1).await;
    let ack = late.resume(market, 3).await;
    assert_eq!(ack.position(market).recovered, Some(false), "its seq is above the new log's top");
    assert!(late.snapshot().await.reset);
}

#[tokio::test]
async fn while_redis_is_gone_clients_are_told_and_stay_and_afterwards_they_are_whole_again() {
    let mut redis = Redis::start();
    let launch = |settings: &[(&str, &str)]| tests::Launch::gateway(&redis).envs(settings).start();
    let gateway = launch(&[("STALE_AFTER", "500ms"), ("HEARTBEAT_INTERVAL", "1s")]);
    let publisher = tests::Launch::publisher(&redis).start();
    let (admin, market) = (tests::Admin::new(publisher.url("")), fresh_market());
    let mut field = FieldClient::new(tokens::for_user(fresh_user()), market);
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    socket.subscribe(&[market]).await;
    field.connect(gateway.api).await;
    admin.publish_many(market, 0, 3).await;
    for seq in 1..=3 {
        assert_eq!(socket.update().await.seq, seq);
    }
    field.reach(3).await;

    redis.kill();
    let stale = status(&mut socket).await;
    assert!(stale.stale && stale.since.is_some());
    assert_eq!(stale.reason.as_deref(), Some("BACKBONE_UNREACHABLE"));
    socket.expect_silence().await;
    let refused = admin.send(&tests::admin::override_body(market, &numbered(4))).await;
    refused.expect_error(503, "SERVICE_UNAVAILABLE");
    assert!(refused.header("retry-after").is_some());

    // Redis comes back empty. The publisher remembers, so seq goes on under a new epoch.
    redis.restart();
    let accepted = eventually("the publisher is back", async || {
        let answer = admin.send(&tests::admin::override_body(market, &numbered(4))).await;
        (answer.status == 200).then(|| answer.ok::<tests::admin::Accepted>())
    })
    .await;
    let (mut fresh, mut reset) = (false, None);
    while !fresh || reset.is_none() {
        match socket.recv().await {
            Message::Status(status) => fresh = !status.stale,
            Message::Snapshot(snapshot) => reset = Some(snapshot),
            other => panic!("a status and a snapshot, not {other:?}"),
        }
    }
    assert_eq!(accepted.seq, 3 + GAP + 1);
    expect_reset_to(&reset.unwrap(), (market, accepted.epoch, accepted.seq), &numbered(4));
    let mut next = accepted.seq + 1;
    admin.publish(market, &numbered(next)).await;
    assert_eq!(socket.update().await.seq, next);
    next += 1;
    admin.keep_publishing(market, &mut next, field.reach(accepted.seq + 2)).await;
    assert_eq!(field.lines(), &Lines::of(&numbered(field.last())));
}

async fn status(socket: &mut Socket) -> Status {
    match socket.recv().await {
        Message::Status(status) => status,
        other => panic!("a status, not {other:?}"),
    }
}

fn expect_reset_to(snapshot: &Snapshot, (market, epoch, seq): (u64, u64, u64), payload: &str) {
    assert_eq!((snapshot.market_id, snapshot.epoch, snapshot.seq), (market, epoch, seq));
    assert!(snapshot.reset && !snapshot.conflated);
    assert_eq!(snapshot.payload.text(), payload);
}

/// Removes everything Redis knows of a market.
async fn forget(redis: &Redis, market: u64) {
    let keys = ["log", "state", "audit"].map(|kind| format!("odds:{kind}:{{{market}}}"));
    let removed: u64 = redis.connection().await.del(&keys).await.unwrap();
    assert_eq!(removed, 3);
}
