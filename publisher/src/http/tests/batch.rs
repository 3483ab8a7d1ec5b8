//! Batches: `docs/protocol.md#post-adminoddsbatch--trader`.

use super::*;

#[tokio::test]
async fn in_a_batch_one_bad_item_fails_alone() {
    let desk = Desk::in_memory();
    let items = [
        r#"{"marketId":7,"payload":{"a":{"n":1.0}}}"#.to_owned(),
        r#"{"marketId":7,"payload":{"a":{"home":1}}}"#.to_owned(),
        r#"{"marketId":7,"payload":{"a":{"n":2.0}},"expectedSeq":1}"#.to_owned(),
        r#"{"marketId":7,"payload":{"a":{"n":3.0}},"expectedSeq":1}"#.to_owned(),
        "7".to_owned(),
        format!(r#"{{"marketId":7,"reason":"{}"}}"#, "x".repeat(MAX_OVERRIDE_BYTES)),
        r#"{"marketId":8,"payload":{"a":{"n":1.0}}}"#.to_owned(),
    ];
    let reply = desk.post(BATCH, &[], format!("[{}]", items.join(" , "))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers[CONTENT_TYPE], "application/json");
    let results = reply.json();
    let outcome = |at: usize| {
        let result = &results[at];
        if result["ok"] == true {
            result["seq"].to_string()
        } else {
            result["code"].as_str().unwrap().to_owned()
        }
    };
    let outcomes: Vec<_> = (0..items.len()).map(outcome).collect();
    let expected = ["1", "UNPROCESSABLE", "2", "CONFLICT", "BAD_REQUEST", "PAYLOAD_TOO_LARGE", "1"];
    assert_eq!(outcomes, expected);
    assert_eq!(results[3]["currentSeq"], 2);
    let members: Vec<_> = results[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["auditId", "durability", "epoch", "marketId", "ok", "seq", "ts"]);
    let members: Vec<_> = results[1].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["code", "message", "ok"]);
}

#[tokio::test]
async fn an_ndjson_batch_gets_ndjson_results() {
    let desk = Desk::in_memory();
    let good = r#"{"marketId":7,"payload":{"a":{"n":1.0}}}"#;
    let body = [good.as_bytes(), b"\r\n\n{\n\xff\n  ", good.as_bytes()].concat();
    let reply = desk.post(BATCH, &[("content-type", "application/x-ndjson; charset=utf-8")], body).await;
    assert_eq!((reply.status, &reply.headers[CONTENT_TYPE]), (200, &"application/x-ndjson".parse().unwrap()));
    let results = reply.lines();
    assert_eq!(results.len(), 4, "{}", reply.text);
    assert_eq!(results.iter().map(|result| &result["ok"]).collect::<Vec<_>>(), [true, false, false, true]);
    assert_eq!((&results[0]["seq"], &results[3]["seq"]), (&json!(1), &json!(2)));
    assert_eq!(results[2]["code"], "BAD_REQUEST");
    desk.post(BATCH, &[], good).await.expect_error(400, "BAD_REQUEST", "application/x-ndjson");
}

#[tokio::test]
async fn a_batch_is_appended_in_order_and_has_at_most_1000_items() {
    let desk = Desk::in_memory();
    let batch = |count: u64| {
        let items: Vec<_> = (1..=count)
            .map(|n| format!(r#"{{"marketId":7,"payload":{{"a":{{"n":{n}.0}}}},"expectedSeq":{}}}"#, n - 1))
            .collect();
        items
    };
    let results = desk.post(BATCH, &[], format!("[{}]", batch(1000).join(","))).await.json();
    let seqs: Vec<_> =
        results.as_array().unwrap().iter().map(|result| result["seq"].as_u64().unwrap()).collect();
    assert!(seqs.iter().copied().eq(1..=1000), "{seqs:?}");
    let too_many = format!("[{}]", batch(1001).join(","));
    desk.post(BATCH, &[], too_many).await.expect_error(413, "PAYLOAD_TOO_LARGE", "1000 overrides");
    let ndjson = [("content-type", "application/x-ndjson")];
    desk.post(BATCH, &ndjson, batch(1001).join("\n")).await.expect_error(
        413,
        "PAYLOAD_TOO_LARGE",
        "1000 overrides",
    );
    assert_eq!(desk.post(BATCH, &[], "[]").await.text, "[]");
    for bad in ["{}", "[", "", "[1,]"] {
        desk.post(BATCH, &[], bad).await.expect_error(400, "BAD_REQUEST", "array");
    }
}

#[tokio::test]
async fn a_batch_sent_again_with_its_key_is_replayed_item_by_item() {
    let desk = Desk::in_memory();
    let items = |middle: &str| {
        format!(
            r#"[{{"marketId":7,"payload":{{"a":{{"n":1}}}}}},{{"marketId":8,"payload":{{"a":{{"n":{middle}}}}}}},{{"bad":1}}]"#
        )
    };
    let key = [("idempotency-key", "batch")];
    let first = desk.post(BATCH, &key, items("1.0")).await.json();
    let again = desk.post(BATCH, &key, items("1.00")).await.json();
    assert!(first[0].get("replayed").is_none());
    assert_eq!((&again[0]["replayed"], &again[0]["auditId"]), (&json!(true), &first[0]["auditId"]));
    assert_eq!(again[1]["code"], "UNPROCESSABLE");
    assert_eq!(again[2], first[2]);
    assert_eq!(desk.audit("marketId=7").await.json()["entries"].as_array().unwrap().len(), 1);
}
