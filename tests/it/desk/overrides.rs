//! `POST /admin/odds/override` (`docs/protocol.md#admin-api`).

use serde_json::Value;
use service::token::Role;
use tests::{
    Admin, Http, Lines, Response, Rest, Stack,
    admin::{Accepted, numbered, override_body},
    fresh_market, fresh_user, tokens,
};

#[tokio::test]
async fn an_override_is_answered_with_its_place_in_the_log() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let first = admin.publish(market, &numbered(1)).await;
    let before_ms = protocol::time::unix_ms();
    let second = admin.publish(market, &numbered(2)).await;
    assert_eq!((first.market_id, first.seq, second.seq), (market, 1, 2));
    assert_eq!(first.epoch, second.epoch);
    assert!(second.ts.abs_diff(before_ms) < 5000, "milliseconds of now: {}", second.ts);
    assert_ne!(first.audit_id, second.audit_id);
    let as_text = format!(r#"{{"marketId":"{market}","payload":{}}}"#, numbered(3));
    assert_eq!(admin.send(&as_text).await.ok::<Accepted>().seq, 3, "an id as text, and no reason");
}

#[tokio::test]
async fn a_trader_or_admin_may_and_nobody_else() {
    let stack = Stack::shared();
    let (market, base) = (fresh_market(), stack.publisher().url(""));
    let body = override_body(market, &numbered(1));
    let url = stack.publisher().url("/admin/odds/override");
    Http::default().post(&url, &body).await.expect_error(401, "UNAUTHORIZED");
    let expired = tokens::admin_expiring(Role::Trader, -60);
    for bad in ["nonsense", &tokens::for_user(fresh_user()), &expired] {
        Admin::with_token(base.clone(), bad).send(&body).await.expect_error(401, "UNAUTHORIZED");
    }
    let viewer = Admin::with_token(base.clone(), &tokens::admin(Role::Viewer));
    viewer.send(&body).await.expect_error(403, "FORBIDDEN");
    for role in [Role::Trader, Role::Admin] {
        assert_eq!(Admin::with_token(base.clone(), &tokens::admin(role)).send(&body).await.status, 200);
    }
    assert_eq!(
        Rest::of(stack.gateway(0)).snapshot(market).await.seq,
        2,
        "what was refused is not in the log"
    );
}

#[tokio::test]
async fn a_token_minted_on_the_command_line_works() {
    let stack = Stack::shared();
    let launch = tests::Launch::publisher(stack.redis());
    let minted = launch.args(&["token", "--sub", "desk-1", "--role", "trader", "--ttl", "8h"]).run();
    let admin = Admin::with_token(stack.publisher().url(""), minted.out.trim());
    admin.publish(fresh_market(), &numbered(1)).await;
}

#[tokio::test]
async fn what_breaks_a_rule_is_422_and_named() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let lines = |count: u32| {
        let lines: Vec<String> = (0..count).map(|line| format!(r#""line{line}":{{"x":1}}"#)).collect();
        format!("{{{}}}", lines.join(","))
    };
    let padded = |bytes: usize| format!(r#"{{"a":{{"x":"{}"}}}}"#, "x".repeat(bytes));
    for (payload, field) in [
        (r#"{"moneyline":{"home":1}}"#, "payload.moneyline.home"),
        (r#"{"moneyline":{"home":1.0000}}"#, "payload.moneyline.home"),
        (r#"{"moneyline":{"away":0.5}}"#, "payload.moneyline.away"),
        (r#"{"moneyline":{"draw":10000.01}}"#, "payload.moneyline.draw"),
        (r#"{"total":{"over":1.85001}}"#, "payload.total.over"),
        (r#"{"total":{"under":"1.85"}}"#, "payload.total.under"),
        (r#"{"q":{"yes":2e1}}"#, "payload.q.yes"),
        (r#"{"q":{"no":-2}}"#, "payload.q.no"),
        (r#"{"q":{"no":null}}"#, "payload.q.no"),
        (r#"{"moneyline":5}"#, "payload.moneyline"),
        (r#"{"moneyline":[]}"#, "payload.moneyline"),
        ("{}", "payload"),
        (r#"{"a":{"b":{"c":{"d":1}}}}"#, "payload.a.b"),
        (&lines(33), "payload"),
        (&padded(16 * 1024), "payload"),
    ] {
        let message = admin.send(&override_body(market, payload)).await.expect_error(422, "UNPROCESSABLE");
        assert!(message.contains(field), "{payload}: {message}");
    }
    for good in [
        r#"{"moneyline":{"home":1.0001,"away":10000,"draw":2.1000}}"#,
        r#"{"total":{"over":1.9,"line":-2.5,"text":"x","open":true,"none":null}}"#,
        r#"{"a":{"b":{"c":1}}}"#,
        &lines(32),
        &padded(16 * 1024 - 20),
    ] {
        admin.publish(market, good).await;
    }
    assert_eq!(
        Rest::of(stack.gateway(0)).snapshot(market).await.seq,
        5,
        "what was refused is not in the log"
    );
}

#[tokio::test]
async fn what_is_no_override_at_all_is_400() {
    let stack = Stack::shared();
    let admin = stack.admin();
    for body in ["", "{", "[]", "null", "{\"marketId\":1001,\"payload\":{\"a\":{}}} x", "\u{0}"] {
        admin.send(body).await.expect_error(400, "BAD_REQUEST");
    }
    for (body, field) in [
        (r#"{"payload":{"a":{"x":1}}}"#, "marketId"),
        (r#"{"marketId":0,"payload":{"a":{"x":1}}}"#, "marketId"),
        (r#"{"marketId":1001}"#, "payload"),
        (r#"{"marketId":1001,"payload":[]}"#, "payload"),
        (r#"{"marketId":1001,"payload":{"a":{"x":1}},"expectedSeq":"now"}"#, "expectedSeq"),
    ] {
        let message = admin.send(body).await.expect_error(400, "BAD_REQUEST");
        assert!(message.contains(field), "{body}: {message}");
    }
    let huge = override_body(1001, &format!(r#"{{"a":{{"x":"{}"}}}}"#, "x".repeat(100_000)));
    admin.send(&huge).await.expect_error(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn expected_seq_other_than_the_current_one_is_409_with_current_seq() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let expecting = |seq: u64| {
        format!(r#"{{"marketId":{market},"payload":{},"reason":"r","expectedSeq":{seq}}}"#, numbered(seq + 1))
    };
    assert_eq!(admin.send(&expecting(0)).await.ok::<Accepted>().seq, 1, "nothing yet is seq 0");
    assert_eq!(admin.send(&expecting(1)).await.ok::<Accepted>().seq, 2);
    for seq in [0, 1, 3] {
        let conflict = admin.send(&expecting(seq)).await;
        conflict.expect_error(409, "CONFLICT");
        assert_eq!(conflict.json::<Value>()["currentSeq"], 2);
    }
    assert_eq!(Rest::of(stack.gateway(0)).snapshot(market).await.payload.text(), numbered(2));
}

#[tokio::test]
async fn of_overrides_that_expect_the_same_seq_one_wins() {
    let stack = Stack::shared();
    let market = fresh_market();
    let body = format!(r#"{{"marketId":{market},"payload":{},"expectedSeq":0}}"#, numbered(1));
    let racers: Vec<_> = (0..10)
        .map(|_| {
            let (admin, body) = (stack.admin(), body.clone());
            tokio::spawn(async move { admin.send(&body).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for racer in racers {
        statuses.push(racer.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200], vec![409; 9]].concat());
}

#[tokio::test]
async fn an_idempotency_key_makes_a_retry_safe() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let body = override_body(market, r#"{"moneyline":{"home":2.10}}"#);
    let replayed = |answer: &Response| answer.header("idempotent-replayed").map(str::to_owned);

    let first = admin.send_with_key("retry-1", &body).await;
    assert_eq!((first.status, replayed(&first)), (200, None));
    admin.publish(market, &numbered(2)).await;
    // The other publisher knows the key as well.
    let other = stack.another_publisher(&[]);
    for admin in [&admin, &Admin::new(other.url(""))] {
        let again = admin.send_with_key("retry-1", &body).await;
        assert_eq!((again.status, replayed(&again)), (200, Some("true".to_owned())));
        assert_eq!(again.ok::<Accepted>(), first.ok::<Accepted>());
    }
    let changed = override_body(market, r#"{"moneyline":{"home":2.11}}"#);
    admin.send_with_key("retry-1", &changed).await.expect_error(422, "UNPROCESSABLE");
    assert_eq!(admin.send_with_key("retry-2", &changed).await.ok::<Accepted>().seq, 3);
    assert_eq!(Rest::of(stack.gateway(0)).snapshot(market).await.seq, 3);
}

#[tokio::test]
async fn at_once_with_one_idempotency_key_only_one_is_appended() {
    let stack = Stack::shared();
    let market = fresh_market();
    let racers: Vec<_> = (0..10)
        .map(|_| {
            let (admin, body) = (stack.admin(), override_body(market, &numbered(1)));
            tokio::spawn(async move { admin.send_with_key("same", &body).await.ok::<Accepted>().seq })
        })
        .collect();
    for racer in racers {
        assert_eq!(racer.await.unwrap(), 1);
    }
    assert_eq!(Rest::of(stack.gateway(0)).snapshot(market).await.seq, 1);
}

#[tokio::test]
async fn null_removes_a_line() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let mut socket = stack.socket(0).await;
    socket.subscribe(&[market]).await;
    admin.publish(market, r#"{"spread":{"home":1.91},"total":{"over":1.90}}"#).await;
    admin.publish(market, r#"{"spread":null,"never there":null}"#).await;
    let mut lines = Lines::default();
    lines.apply(socket.update().await.payload.text());
    lines.apply(socket.update().await.payload.text());
    let snapshot = Rest::of(stack.gateway(1)).snapshot(market).await;
    assert_eq!(snapshot.payload, r#"{"total":{"over":1.90}}"#);
    assert_eq!(lines, Lines::of(snapshot.payload.text()));
}
