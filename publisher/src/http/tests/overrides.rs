//! Single overrides: `docs/protocol.md#post-adminoddsoverride-field--trader`.

use super::*;

#[tokio::test]
async fn an_override_returns_its_position_in_the_log() {
    let desk = Desk::in_memory();
    for seq in 1..=3 {
        let reply = desk.post(OVERRIDE, &[], BODY).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.headers[CONTENT_TYPE], "application/json");
        assert!(!reply.headers.contains_key(&IDEMPOTENT_REPLAYED));
        let body = reply.json();
        let members: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["auditId", "durability", "epoch", "marketId", "seq", "ts"]);
        assert_eq!((&body["marketId"], &body["seq"]), (&json!(1001), &json!(seq)));
    }
}

#[tokio::test]
async fn wrong_shapes_are_400_and_broken_rules_422() {
    let desk = Desk::in_memory();
    for (body, message) in [
        ("", "not a JSON object"),
        (r#"{"marketId":1001}"#, "payload: missing"),
        (r#"{"marketId":"x","payload":{"a":null}}"#, "marketId: "),
        (r#"{"marketId":1,"payload":{"a":null},"price":1}"#, "price: unknown field"),
    ] {
        desk.post(OVERRIDE, &[], body).await.expect_error(400, "BAD_REQUEST", message);
    }
    desk.post(OVERRIDE, &[], &b"{\"reason\":\"\xff\"}"[..]).await.expect_error(400, "BAD_REQUEST", "UTF-8");
    for (body, message) in [
        (r#"{"marketId":1,"payload":{}}"#.to_owned(), "payload: must have 1 to 32 lines"),
        (
            r#"{"marketId":1,"payload":{"moneyline":{"home":0.5}}}"#.to_owned(),
            "payload.moneyline.home: must be decimal odds",
        ),
        (
            format!(r#"{{"marketId":1,"payload":{{"a":null}},"reason":"{}"}}"#, "x".repeat(501)),
            "reason: at most 500",
        ),
    ] {
        desk.post(OVERRIDE, &[], body).await.expect_error(422, "UNPROCESSABLE", message);
    }
    assert_eq!(desk.audit("marketId=1").await.json()["entries"], json!([]), "nothing of it was appended");
}

#[tokio::test]
async fn an_unexpected_seq_is_409_with_the_current_seq() {
    let desk = Desk::in_memory();
    let at = |seq: u64| format!(r#"{{"marketId":7,"payload":{{"a":{{"n":{seq}}}}},"expectedSeq":{seq}}}"#);
    assert_eq!(desk.post(OVERRIDE, &[], at(0)).await.status, 200);
    for expected in [0, 2] {
        let reply = desk.post(OVERRIDE, &[], at(expected)).await;
        reply.expect_error(409, "CONFLICT", "seq 1");
        assert_eq!(reply.json()["currentSeq"], 1);
    }
    assert_eq!(desk.post(OVERRIDE, &[], at(1)).await.status, 200);
}

#[tokio::test]
async fn the_same_key_and_body_get_the_first_response_again() {
    let desk = Desk::in_memory();
    let key = [("idempotency-key", "one#1")];
    let first = desk.post(OVERRIDE, &key, BODY).await;
    let again = desk.post(OVERRIDE, &key, BODY).await;
    assert_eq!((first.status, again.status), (200, 200));
    assert_eq!(first.text, again.text);
    assert!(!first.headers.contains_key(&IDEMPOTENT_REPLAYED));
    assert_eq!(again.headers[&IDEMPOTENT_REPLAYED], "true");
    let other = BODY.replace("1.850", "1.86");
    desk.post(OVERRIDE, &key, other).await.expect_error(422, "UNPROCESSABLE", "Idempotency-Key");
    let another = format!("Bearer {}", mint(&desk.keys, "desk-2", Role::Trader, Duration::from_mins(1)));
    let headers = [("authorization", another.as_str()), key[0]];
    desk.call(Method::POST, OVERRIDE, &headers, BODY).await.expect_error(
        422,
        "UNPROCESSABLE",
        "Idempotency-Key",
    );
    assert_eq!(desk.post(OVERRIDE, &[], BODY).await.json()["seq"], 2);
}

#[tokio::test]
async fn an_idempotency_key_is_1_to_255_visible_ascii_characters() {
    let desk = Desk::in_memory();
    let longest = "k".repeat(255);
    assert_eq!(desk.post(OVERRIDE, &[("idempotency-key", &longest)], BODY).await.status, 200);
    for bad in ["", "a b", "é", &"k".repeat(256)] {
        let reply = desk.post(OVERRIDE, &[("idempotency-key", bad)], BODY).await;
        reply.expect_error(400, "BAD_REQUEST", "Idempotency-Key");
    }
    let twice = [("idempotency-key", "a"), ("idempotency-key", "b")];
    desk.post(BATCH, &twice, "[]").await.expect_error(400, "BAD_REQUEST", "Idempotency-Key");
}

#[tokio::test]
async fn a_503_says_whether_the_override_was_appended() {
    for (way, key, message) in [
        (Failure::ConnectionRefused, None, "nothing was appended"),
        (Failure::ConnectionRefused, Some("k"), "nothing was appended"),
        (Failure::ConnectionLost, None, "outcome unknown: the override may have been appended"),
        (Failure::ConnectionLost, Some("k"), "outcome unknown: retry with the same Idempotency-Key"),
    ] {
        let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
        let reply = Desk::on(FailingBackbone(way)).post(OVERRIDE, &headers, BODY).await;
        reply.expect_error(503, "SERVICE_UNAVAILABLE", message);
        assert_eq!(reply.headers[RETRY_AFTER], "1");
    }
    let reply = Desk::on(FailingBackbone(Failure::ConnectionRefused)).audit("marketId=1").await;
    reply.expect_error(503, "SERVICE_UNAVAILABLE", "audit");
    assert_eq!(reply.headers[RETRY_AFTER], "1");
}

#[tokio::test(start_paused = true)]
async fn a_backbone_that_is_silent_is_503_after_one_timeout() {
    let desk = Desk::on(FailingBackbone(Failure::NoReply));
    desk.post(OVERRIDE, &[], BODY).await.expect_error(503, "SERVICE_UNAVAILABLE", "outcome unknown");
    desk.audit("marketId=1").await.expect_error(503, "SERVICE_UNAVAILABLE", "audit");
    let items = vec![BODY; 250].join(",");
    let started = tokio::time::Instant::now();
    let results = desk.post(BATCH, &[], format!("[{items}]")).await.json();
    assert!(started.elapsed() < Duration::from_secs(10), "only the first part waits");
    assert!(results[0]["message"].as_str().unwrap().starts_with("outcome unknown"), "{}", results[0]);
    assert!(results[249]["message"].as_str().unwrap().contains("not sent"), "{}", results[249]);
}
