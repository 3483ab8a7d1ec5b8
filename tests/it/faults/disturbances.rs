//! Failures between the services do not show at the clients: no hole, no duplicate.

use tests::{
    Admin, Message, RawSocket, Rest, Socket, Stack,
    admin::{Accepted, numbered, override_body},
    eventually, fresh_market, fresh_user, tokens,
};

#[tokio::test]
async fn connections_to_redis_that_break_again_and_again_lose_nothing() {
    const UPDATES: u64 = 120;
    let stack = Stack::with(&[("STALE_AFTER", "60s")], &[]);
    let (admin, market) = (stack.admin(), fresh_market());
    let mut sockets = [stack.socket(0).await, stack.socket(1).await];
    for socket in &mut sockets {
        socket.subscribe(&[market]).await;
    }
    let publishing = async {
        let mut redis = stack.redis().connection().await;
        for seq in 1..=UPDATES {
            if seq % 10 == 0 {
                let mut kill = redis::cmd("CLIENT");
                let kill = kill.arg("KILL").arg("TYPE").arg(if seq % 20 == 0 { "pubsub" } else { "normal" });
                let _: u64 = kill.arg("SKIPME").arg("yes").query_async(&mut redis).await.unwrap();
            }
            // A response may be lost with its connection. The key makes a retry safe.
            let accepted = eventually("an accepted override", async || {
                let answer =
                    admin.send_with_key(&seq.to_string(), &override_body(market, &numbered(seq))).await;
                (answer.status == 200).then(|| answer.ok::<Accepted>())
            })
            .await;
            assert_eq!(accepted.seq, seq);
        }
    };
    let receiving = async {
        for seq in 1..=UPDATES {
            for socket in &mut sockets {
                let update = socket.update().await;
                assert_eq!((update.seq, update.payload.text()), (seq, numbered(seq).as_str()));
            }
        }
    };
    tokio::join!(publishing, receiving);
}

/// A machine that hangs while more is published than the log keeps.
#[tokio::test]
async fn a_pod_that_hung_past_the_end_of_the_log_gives_its_clients_a_snapshot_and_goes_on() {
    const MISSED: u64 = 500;
    let stack = Stack::with(&[], &[("HISTORY_LEN", "20")]);
    let (admin, market) = (stack.admin(), fresh_market());
    let mut socket = stack.socket(0).await;
    socket.subscribe(&[market]).await;
    admin.publish(market, &numbered(1)).await;
    assert_eq!(socket.update().await.seq, 1);

    stack.gateway(0).process.pause();
    admin.publish_many(market, 1, MISSED).await;
    stack.gateway(0).process.unpause();
    let snapshot = socket.snapshot().await;
    assert!(snapshot.reset || snapshot.conflated, "a jump is through a snapshot that says why");
    assert_eq!((snapshot.seq, snapshot.payload.text()), (1 + MISSED, numbered(1 + MISSED).as_str()));
    admin.publish(market, &numbered(2 + MISSED)).await;
    assert_eq!(socket.update().await.seq, 2 + MISSED);
}

/// The same, with everything still in the log.
#[tokio::test]
async fn a_pod_that_hung_for_a_while_delivers_all_that_it_missed() {
    const MISSED: u64 = 500;
    let stack = Stack::with(&[], &[]);
    let (admin, market) = (stack.admin(), fresh_market());
    let mut socket = stack.socket(0).await;
    socket.subscribe(&[market]).await;
    stack.gateway(0).process.pause();
    admin.publish_many(market, 0, MISSED).await;
    stack.gateway(0).process.unpause();
    for seq in 1..=MISSED {
        assert_eq!(socket.update().await.seq, seq);
    }
    socket.expect_silence().await;
}

#[tokio::test]
async fn latency_that_is_traded_for_fewer_writes_costs_no_update() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("FLUSH_INTERVAL", "30ms"), ("TAIL_LINGER", "20ms")]);
    let (admin, market) = (stack.admin(), fresh_market());
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    socket.subscribe(&[market]).await;
    let publishing = tokio::spawn(async move {
        for seq in 1..=100 {
            admin.publish(market, &numbered(seq)).await;
        }
    });
    for seq in 1..=100 {
        assert_eq!(socket.update().await.seq, seq);
    }
    publishing.await.unwrap();
}

/// Clients that come, go, and vanish in the middle of a frame while updates flow: the ones that stay notice nothing,
/// and nothing is left of the others.
#[tokio::test]
async fn clients_that_vanish_at_any_moment_leave_no_trace() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[]);
    let market = fresh_market();
    let mut stays = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    stays.subscribe(&[market]).await;
    let (admin, mut next) = (stack.admin(), 1);
    let coming_and_going = async {
        for client in 0..60_usize {
            let mut socket = RawSocket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
            let request = tests::raw::frame(
                tests::raw::last(tests::raw::opcode::TEXT),
                format!(r#"{{"type":"resume","offsets":{{"{market}":0}}}}"#).as_bytes(),
            );
            // The proxy cuts some requests in the middle, some before their response, some after it.
            socket.send_bytes(&request[..request.len().min(client * 2)]).await;
            if client * 2 >= request.len() {
                assert!(matches!(socket.recv().await, Some(Message::Ack(_))));
            }
        }
    };
    admin.keep_publishing(market, &mut next, coming_and_going).await;
    for seq in 1..next {
        assert_eq!(stays.update().await.seq, seq);
    }
    let rest = Rest::of(&gateway);
    eventually("only one is left", async || (rest.health().await.connections == 1).then_some(())).await;
    assert_eq!(rest.health().await.topics, 1);
}

/// A publisher that is killed has appended all that it acknowledged, and another goes on where it was.
#[tokio::test]
async fn a_killed_publisher_takes_nothing_with_it() {
    let stack = Stack::shared();
    let market = fresh_market();
    let mut socket = stack.socket(0).await;
    socket.subscribe(&[market]).await;
    let doomed = stack.another_publisher(&[]);
    let admin = Admin::new(doomed.url(""));
    let publishing = tokio::spawn(async move {
        let mut acknowledged = 0;
        // A broken connection ends the task. Everything acknowledged before must be there.
        while let Some(accepted) = admin.try_publish(market, &numbered(acknowledged + 1)).await {
            acknowledged = accepted.seq;
        }
        acknowledged
    });
    for seq in 1..=50 {
        assert_eq!(socket.update().await.seq, seq);
    }
    doomed.process.kill();
    let acknowledged = tests::within("the publishing task ends", publishing).await.unwrap();
    let next = stack.admin().publish(market, &numbered(0)).await.seq;
    assert!(next == acknowledged + 1 || next == acknowledged + 2, "{next} after {acknowledged}");
    for seq in 51..=next {
        assert_eq!(socket.update().await.seq, seq);
    }
}
