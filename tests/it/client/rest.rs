//! Reads over REST (`docs/protocol.md#rest`).

use redis::AsyncCommands;
use tests::{Http, Lines, Rest, Stack, admin::numbered, fresh_market, fresh_user, tokens};

#[tokio::test]
async fn the_snapshot_has_every_line_as_last_set() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish(market, r#"{"total":{"over":1.90,"under":1.90},"moneyline":{"home":1.850}}"#).await;
    admin.publish(market, r#"{"moneyline":{"home":2.10},"spread":{"line":-1.50}}"#).await;
    let accepted = admin.publish(market, r#"{"total":null}"#).await;
    for gateway in [0, 1] {
        let snapshot = Rest::of(stack.gateway(gateway)).snapshot(market).await;
        assert_eq!((snapshot.market_id, snapshot.seq, snapshot.ts), (market, 3, accepted.ts));
        assert_eq!(snapshot.epoch, accepted.epoch);
        let lines = r#"{"moneyline":{"home":2.10},"spread":{"line":-1.50}}"#;
        assert_eq!(Lines::of(snapshot.payload.text()), Lines::of(lines));
    }
}

#[tokio::test]
async fn the_snapshot_of_a_market_nobody_has_published_is_empty_at_seq_0() {
    let stack = Stack::shared();
    let market = fresh_market();
    let snapshot = Rest::of(stack.gateway(0)).snapshot(market).await;
    assert_eq!((snapshot.market_id, snapshot.seq), (market, 0));
    assert_eq!(snapshot.payload, "{}");
    let updates = Rest::of(stack.gateway(0)).updates(market, "since_seq=0").await;
    assert_eq!((updates.from_seq, updates.to_seq, updates.latest_seq), (0, 0, 0));
    assert!(updates.updates.is_empty() && !updates.has_more && updates.complete);
}

#[tokio::test]
async fn updates_after_since_seq_come_oldest_first() {
    let stack = Stack::shared();
    let market = fresh_market();
    stack.admin().publish_many(market, 0, 250).await;
    let mut socket = stack.socket(0).await;
    socket.resume(market, 0).await;
    let mut delivered = Vec::new();
    for _ in 0..250 {
        delivered.push(socket.update().await);
    }
    let above = Rest::of(stack.gateway(1)).updates(market, "since_seq=9999").await;
    assert_eq!((above.to_seq, above.latest_seq, above.has_more), (9999, 250, false));
    assert!(!above.complete, "who is above the top has something that was lost");
    // One gateway now has the market in memory. The other must ask Redis.
    for gateway in [0, 1] {
        let rest = Rest::of(stack.gateway(gateway));
        for (query, from, to) in [
            ("since_seq=240", 240, 250),
            ("since_seq=10&limit=200", 10, 210),
            ("since_seq=10", 10, 210),
            ("since_seq=0&limit=1", 0, 1),
            ("since_seq=0&limit=1000", 0, 250),
            ("since_seq=249&limit=1", 249, 250),
            ("since_seq=250", 250, 250),
        ] {
            let page = rest.updates(market, query).await;
            assert_eq!((page.market_id, page.from_seq, page.to_seq), (market, from, to), "{query}");
            assert_eq!((page.latest_seq, page.complete), (250, true), "{query}");
            assert_eq!(page.has_more, to < 250, "{query}");
            let index = |seq| usize::try_from(seq).unwrap().min(250);
            assert_eq!(
                page.updates,
                delivered[index(from)..index(to)],
                "the very odds_update objects: {query}"
            );
        }
    }
}

#[tokio::test]
async fn updates_that_are_no_longer_kept_make_the_answer_incomplete() {
    let stack = Stack::shared();
    let market = fresh_market();
    stack.admin().publish_many(market, 0, 20).await;
    let mut redis = stack.redis().connection().await;
    let log = format!("odds:log:{{{market}}}");
    let _: u64 = redis.xtrim(log, redis::streams::StreamMaxlen::Equals(5)).await.unwrap();

    let rest = Rest::of(stack.gateway(1));
    let incomplete = rest.updates(market, "since_seq=3").await;
    assert_eq!((incomplete.from_seq, incomplete.to_seq, incomplete.complete), (3, 20, false));
    assert_eq!(incomplete.updates.first().unwrap().seq, 16);
    let complete = rest.updates(market, "since_seq=15").await;
    assert_eq!((complete.updates.len(), complete.complete), (5, true));
}

#[tokio::test]
async fn a_bad_parameter_is_400_and_named() {
    let stack = Stack::shared();
    let rest = Rest::of(stack.gateway(0));
    for (query, field) in [
        ("since_seq=-1", "since_seq"),
        ("since_seq=x", "since_seq"),
        ("since_seq=1.5", "since_seq"),
        ("", "since_seq"),
        ("since_seq=0&limit=0", "limit"),
        ("since_seq=0&limit=1001", "limit"),
        ("since_seq=0&limit=many", "limit"),
    ] {
        let answer = rest.get(&format!("/api/markets/1001/odds/updates?{query}")).await;
        let message = answer.expect_error(400, "BAD_REQUEST");
        assert!(message.contains(field), "{query}: {message}");
    }
    for id in ["0", "x", "-1", "9007199254740992", "1.0", "01"] {
        for kind in ["snapshot", "updates?since_seq=0"] {
            let message =
                rest.get(&format!("/api/markets/{id}/odds/{kind}")).await.expect_error(400, "BAD_REQUEST");
            assert!(message.to_lowercase().contains("market"), "{message}");
        }
    }
}

#[tokio::test]
async fn an_unknown_route_is_404_with_the_error_body() {
    let stack = Stack::shared();
    for path in ["/", "/api", "/api/markets/1001", "/admin/audit?marketId=1", "/metrics"] {
        Rest::of(stack.gateway(0)).get(path).await.expect_error(404, "NOT_FOUND");
    }
    let wrong_method = Http::default().post(&stack.gateway(0).url("/api/ws/health"), "{}").await;
    assert_eq!(wrong_method.status, 405);
    assert!(!wrong_method.json::<serde_json::Value>()["code"].is_null());
}

#[tokio::test]
async fn read_auth_asks_for_the_token_and_scope_of_the_socket() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("READ_AUTH", "token")]);
    let (http, mine, other) = (Http::default(), fresh_market(), fresh_market());
    let bearer = format!("Bearer {}", tokens::scoped(fresh_user(), &[mine]));
    let expired = format!("Bearer {}", tokens::expiring(fresh_user(), -60));
    for kind in ["snapshot", "updates?since_seq=0"] {
        let url = |market| gateway.url(&format!("/api/markets/{market}/odds/{kind}"));
        http.get(&url(mine)).await.expect_error(401, "UNAUTHORIZED");
        http.get_with(&url(mine), &[("authorization", &expired)]).await.expect_error(401, "UNAUTHORIZED");
        assert_eq!(http.get_with(&url(mine), &[("authorization", &bearer)]).await.status, 200);
        http.get_with(&url(other), &[("authorization", &bearer)]).await.expect_error(403, "FORBIDDEN");
    }
    assert_eq!(http.get(&gateway.url("/api/ws/health")).await.status, 200, "health is for load balancers");
}

#[tokio::test]
async fn cors_lets_the_named_origins_read() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("CORS_ORIGINS", "https://odds.example")]);
    let url = gateway.url("/api/markets/1001/odds/snapshot");
    let http = Http::default();
    let allowed = http.get_with(&url, &[("origin", "https://odds.example")]).await;
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://odds.example"));
    let other = http.get_with(&url, &[("origin", "https://evil.example")]).await;
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
}

#[tokio::test]
async fn a_preflight_request_is_answered_for_the_named_origins() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("CORS_ORIGINS", "https://odds.example,capacitor://localhost")]);
    let http = Http::default();
    let ask = async |path: &str, origin: &str, method: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        http.options_with(&gateway.url(path), &headers).await
    };
    for (path, method) in [("/api/ws/token", "POST"), ("/api/markets/1001/odds/updates", "GET")] {
        for origin in ["https://odds.example", "capacitor://localhost"] {
            let answer = ask(path, origin, method).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
            let listed = |name: &str| answer.header(name).unwrap_or_default().to_lowercase();
            assert!(listed("access-control-allow-methods").contains(&method.to_lowercase()));
            assert!(listed("access-control-allow-headers").contains("authorization"));
            assert_eq!(answer.header("access-control-allow-credentials"), None, "no cookies");
            assert!(listed("vary").contains("origin"), "caches keep them apart");
        }
        for origin in ["https://evil.example", "null", "https://odds.example.evil.example"] {
            assert_eq!(
                ask(path, origin, method).await.header("access-control-allow-origin"),
                None,
                "{origin}"
            );
        }
    }
}

/// Reads see an update no later than its subscribers do.
#[tokio::test]
async fn what_a_subscriber_has_seen_a_reader_sees_too() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let rest = Rest::of(stack.gateway(0));
    let mut socket = stack.socket(0).await;
    socket.subscribe(&[market]).await;
    for seq in 1..=20 {
        admin.publish(market, &numbered(seq)).await;
        assert_eq!(socket.update().await.seq, seq);
        let snapshot = rest.snapshot(market).await;
        assert_eq!((snapshot.seq, snapshot.payload.text()), (seq, numbered(seq).as_str()));
        assert_eq!(rest.updates(market, &format!("since_seq={}", seq - 1)).await.to_seq, seq);
    }
}
