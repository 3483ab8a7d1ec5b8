//! `POST /admin/odds/batch` (`docs/protocol.md#admin-api`).

use serde_json::Value;
use service::token::Role;
use tests::{
    Admin, Rest, Stack,
    admin::{numbered, override_body},
    fresh_market, tokens,
};

#[tokio::test]
async fn a_batch_is_an_array_or_ndjson_and_answers_in_order() {
    let stack = Stack::shared();
    let (admin, a, b) = (stack.admin(), fresh_market(), fresh_market());
    let items =
        [override_body(a, &numbered(1)), override_body(b, &numbered(1)), override_body(a, &numbered(2))];
    let array: Vec<Value> = admin.batch(&format!("[{}]", items.join(","))).await.ok();
    let lines: Vec<Value> = ndjson(&admin, &items.join("\n")).await;
    for (results, seqs) in [(array, [1, 1, 2]), (lines, [3, 2, 4])] {
        let places: Vec<_> =
            results.iter().map(|result| (result["marketId"].as_u64(), result["seq"].as_u64())).collect();
        assert_eq!(
            places,
            [(a, seqs[0]), (b, seqs[1]), (a, seqs[2])].map(|(market, seq)| (Some(market), Some(seq)))
        );
        assert!(results.iter().all(|result| result["auditId"].is_string() && result["ts"].is_u64()));
    }
    assert_eq!(Rest::of(stack.gateway(0)).snapshot(a).await.payload.text(), numbered(2));
}

#[tokio::test]
async fn one_bad_item_fails_alone() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish(market, &numbered(1)).await;
    let stale = format!(r#"{{"marketId":{market},"payload":{},"expectedSeq":0}}"#, numbered(9));
    let items = [
        override_body(market, &numbered(2)),
        override_body(market, r#"{"moneyline":{"home":0.5}}"#),
        stale,
        r#"{"marketId":0}"#.to_owned(),
        "7".to_owned(),
        override_body(market, &numbered(3)),
    ];
    let results: Vec<Value> = admin.batch(&format!("[{}]", items.join(","))).await.ok();
    assert_eq!(results.len(), items.len());
    assert_eq!((&results[0]["seq"], &results[5]["seq"]), (&2.into(), &3.into()));
    let codes: Vec<_> = results[1..5].iter().map(|result| result["code"].as_str().unwrap()).collect();
    assert_eq!(codes[..2], ["UNPROCESSABLE", "CONFLICT"]);
    assert!(results[1]["message"].as_str().unwrap().contains("payload.moneyline.home"));
    assert_eq!(results[2]["currentSeq"].as_u64(), Some(2), "{}", results[2]);

    let lines =
        format!("{}\nnot json\n{}", override_body(market, &numbered(4)), override_body(market, &numbered(5)));
    let results = ndjson(&admin, &lines).await;
    assert_eq!((&results[0]["seq"], &results[2]["seq"]), (&4.into(), &5.into()));
    assert_eq!(results[1]["code"], "BAD_REQUEST");
}

#[tokio::test]
async fn a_thousand_overrides_are_taken_and_one_more_is_not() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish_many(market, 0, 1000).await;
    let items = vec![override_body(market, &numbered(1)); 1001];
    let refused = admin.batch(&format!("[{}]", items.join(","))).await;
    refused.expect_error(413, "PAYLOAD_TOO_LARGE");
    assert_eq!(Rest::of(stack.gateway(0)).snapshot(market).await.seq, 1000, "none of them");
}

#[tokio::test]
async fn a_batch_needs_a_trader_and_json() {
    let stack = Stack::shared();
    let viewer = Admin::with_token(stack.publisher().url(""), &tokens::admin(Role::Viewer));
    viewer.batch("[]").await.expect_error(403, "FORBIDDEN");
    for body in ["", "{", "{}", "[1,"] {
        stack.admin().batch(body).await.expect_error(400, "BAD_REQUEST");
    }
}

/// Sends lines and reads the answer's lines.
async fn ndjson(admin: &Admin, lines: &str) -> Vec<Value> {
    let answer = admin.post("/admin/odds/batch", &[("content-type", "application/x-ndjson")], lines).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    answer.text.lines().map(|line| line.parse().unwrap()).collect()
}
