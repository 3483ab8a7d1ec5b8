//! The listener for operators, and SIGTERM (rule 11 of `docs/protocol.md#rules`).

use tests::{
    Http, Launch, Redis, Socket, Stack, admin::numbered, eventually, fresh_market, fresh_user, tokens,
};

#[tokio::test]
async fn livez_readyz_and_metrics_are_on_their_own_listener() {
    let stack = Stack::shared();
    let http = Http::default();
    stack.admin().publish(fresh_market(), &numbered(1)).await;
    for service in [stack.gateway(0), stack.gateway(1), stack.publisher()] {
        assert_eq!(http.get(&service.ops_url("/livez")).await.status, 200);
        service.expect_readiness(200).await;
        let metrics = http.get(&service.ops_url("/metrics")).await;
        assert_eq!(metrics.status, 200);
        assert!(metrics.text.contains("# TYPE "), "{}", metrics.text);
        http.get(&service.ops_url("/nothing")).await.expect_error(404, "NOT_FOUND");
        for path in ["/livez", "/readyz", "/metrics"] {
            http.get(&service.url(path)).await.expect_error(404, "NOT_FOUND");
        }
    }
}

#[tokio::test]
async fn the_age_of_what_is_delivered_live_is_measured_for_each_delivery_and_that_of_a_replay_is_not() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[]);
    let market = fresh_market();
    stack.admin().publish(market, &numbered(1)).await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
        socket.resume(market, 0).await;
        assert_eq!(socket.update().await.seq, 1);
        sockets.push(socket);
    }
    stack.admin().publish(market, &numbered(2)).await;
    for socket in &mut sockets {
        assert_eq!(socket.update().await.seq, 2);
    }
    let http = Http::default();
    let ages = "gateway_update_age_seconds";
    // The gateway counts a delivery after the write.
    eventually("three deliveries", async || {
        let metrics = http.get(&gateway.ops_url("/metrics")).await.text;
        (metrics.contains(&format!("\n{ages}_count 3\n"))
            && metrics.contains(&format!("\n{ages}_bucket{{le=\"+Inf\"}} 3\n")))
        .then_some(())
    })
    .await;
}

#[tokio::test]
async fn readyz_is_503_with_reasons_while_redis_is_gone_and_livez_is_not() {
    let mut redis = Redis::start();
    let gateway = Launch::gateway(&redis).env("STALE_AFTER", "500ms").start();
    let publisher = Launch::publisher(&redis).start();
    let http = Http::default();
    for service in [&gateway, &publisher] {
        service.expect_readiness(200).await;
    }
    redis.kill();
    for service in [&gateway, &publisher] {
        let answer = eventually("not ready", async || {
            Some(http.get(&service.ops_url("/readyz")).await).filter(|answer| answer.status != 200)
        })
        .await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(
            answer.text.to_lowercase().contains("redis") || answer.text.contains("BACKBONE"),
            "{}",
            answer.text
        );
        assert_eq!(http.get(&service.ops_url("/livez")).await.status, 200);
    }
    redis.restart();
    for service in [&gateway, &publisher] {
        service.expect_readiness(200).await;
    }
}

#[tokio::test]
async fn a_pod_that_has_never_reached_redis_answers_503_with_retry_after() {
    let mut redis = Redis::start();
    redis.kill();
    let gateway = Launch::gateway(&redis).start_unready();
    let http = Http::default();
    let handshake = gateway.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
    let read = gateway.url("/api/markets/1001/odds/snapshot");
    assert_eq!(http.get(&gateway.ops_url("/readyz")).await.status, 503);
    for refused in [http.handshake(&handshake, &[]).await, http.get(&read).await] {
        refused.expect_error(503, "SERVICE_UNAVAILABLE");
        assert!(refused.header("retry-after").is_some());
    }
    redis.restart();
    gateway.expect_readiness(200).await;
    assert_eq!(http.handshake(&handshake, &[]).await.status, 101);
    assert_eq!(http.get(&read).await.status, 200);
}

#[tokio::test]
async fn a_client_whose_request_cannot_be_answered_is_sent_elsewhere() {
    let redis = Redis::start();
    let gateway = Launch::gateway(&redis).start();
    gateway.expect_readiness(200).await;
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    redis.kill();
    socket.send(&format!(r#"{{"type":"resume","offsets":{{"{}":5}}}}"#, fresh_market())).await;
    let bye = socket.closed().await;
    assert_eq!((bye.code, bye.reason.as_str(), bye.reconnect), (1013, "TRY_AGAIN_LATER", true));
    assert_eq!(bye.after_ms, Some(1000));
}

#[tokio::test]
async fn on_sigterm_every_connection_gets_bye_and_1012_and_the_process_exits_0() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("DRAIN_SECONDS", "1")]);
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await);
    }
    gateway.process.terminate();
    for socket in &mut sockets {
        let bye = socket.closed().await;
        assert_eq!((bye.code, bye.reason.as_str(), bye.reconnect), (1012, "DRAINING", true));
        assert!(bye.after_ms.is_some());
    }
    assert!(gateway.process.wait().success());
}

#[tokio::test]
async fn while_draining_readiness_fails_and_handshakes_are_refused() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("DRAIN_SECONDS", "5")]);
    let mut last = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        sockets.push(Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await);
    }
    gateway.process.terminate();
    gateway.expect_readiness(503).await;
    let url = gateway.url(&format!("/ws/odds?token={}", tokens::for_user(fresh_user())));
    let refused = Http::default().handshake(&url, &[]).await;
    refused.expect_error(503, "SERVICE_UNAVAILABLE");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(last.closed().await.code, 1012);
}

#[tokio::test]
async fn a_publisher_stops_on_sigterm() {
    let stack = Stack::shared();
    let publisher = stack.another_publisher(&[]);
    publisher.process.terminate();
    assert!(publisher.process.wait().success());
}
