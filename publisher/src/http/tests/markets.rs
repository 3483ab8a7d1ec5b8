//! Listing, suspending and opening markets: `docs/protocol.md#get-adminmarketssearch10after1001limit100--viewer`.

use super::*;

#[tokio::test]
async fn markets_are_listed_with_their_prices_as_they_were_written() {
    let desk = Desk::in_memory();
    assert_eq!(desk.markets("").await.json()["markets"], json!([]));
    for market in [1001, 2, 1010] {
        desk.publish(market, r#"{"win":{"home":1.850,"note":"<b>"},"gone":{"x":1}}"#).await;
        desk.publish(market, r#"{"gone":null}"#).await;
    }
    let page = desk.markets("").await;
    let expected = r#""payload":{"win":{"home":1.850,"note":"<b>"}}}"#;
    assert_eq!(page.text.matches(expected).count(), 3, "{}", page.text);
    let page = page.json();
    assert!(page["now"].as_u64().unwrap() >= page["markets"][0]["ts"].as_u64().unwrap());
    let members: Vec<_> = page["markets"][0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["epoch", "marketId", "payload", "seq", "ts"]);
    for (query, ids, has_more) in [
        ("", vec![2, 1001, 1010], false),
        ("limit=2", vec![2, 1001], true),
        ("limit=2&after=1001", vec![1010], false),
        ("after=1010", vec![], false),
        ("search=10", vec![1001, 1010], false),
        ("search=10&limit=1", vec![1001], true),
        ("search=1.0", vec![], false),
        ("ids=1010,2,1010", vec![1010, 2, 1010], false),
        ("ids=77", vec![77], false),
    ] {
        let page = desk.markets(query).await.json();
        let listed: Vec<u64> = page["markets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|market| market["marketId"].as_u64().unwrap())
            .collect();
        assert_eq!((listed, page["hasMore"] == true), (ids, has_more), "{query}");
    }
    let unknown = json!({ "marketId": 77, "epoch": 0, "seq": 0, "ts": 0, "payload": {} });
    assert_eq!(desk.markets("ids=77").await.json()["markets"][0], unknown);
    for (query, message) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("after=x", "after"),
        ("ids=1,x", "ids"),
        ("ids=1&limit=5", "ids"),
        ("limit=1&limit=2", "twice"),
    ] {
        desk.markets(query).await.expect_error(400, "BAD_REQUEST", message);
    }
    Desk::on(FailingBackbone(Failure::ConnectionRefused)).markets("").await.expect_error(
        503,
        "SERVICE_UNAVAILABLE",
        "markets",
    );
}

#[tokio::test]
async fn suspending_and_opening_markets_is_in_the_audit() {
    let desk = Desk::in_memory();
    desk.publish(7, r#"{"win":{"home":1.850},"status":{"inPlay":true,"state":"open","n":1.50}}"#).await;
    desk.publish(8, r#"{"win":{"home":1.850}}"#).await;
    let body = r#"{"marketIds":[8,7,99,8],"reason":"storm"}"#;
    let results = desk.post(SUSPEND, &[("x-request-id", "r1")], body).await.json();
    let outcome = |at: usize| (results[at]["ok"] == true, results[at]["changed"].clone());
    assert_eq!([outcome(0), outcome(1)], [(true, json!(true)), (true, json!(true))]);
    assert_eq!(results[2]["code"], "NOT_FOUND", "nothing was published there");
    assert_eq!(outcome(3), (true, json!(false)), "it is by then");
    assert_eq!((&results[0]["marketId"], &results[1]["marketId"]), (&json!(8), &json!(7)));
    let members: Vec<_> = results[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["auditId", "changed", "durability", "epoch", "marketId", "ok", "seq", "ts"]);
    let state = desk.markets("ids=7,8").await.text;
    assert!(state.contains(r#""status":{"state":"suspended","inPlay":true,"n":1.50}"#), "{state}");
    assert!(state.contains(r#"{"status":{"state":"suspended"},"win":{"home":1.850}}"#), "{state}");
    let entry = &desk.audit("marketId=7").await.json()["entries"][0];
    assert_eq!(
        (&entry["actor"], &entry["reason"], &entry["requestId"]),
        (&json!("desk-1"), &json!("storm"), &json!("r1"))
    );
    assert_eq!(entry["before"]["status"]["state"], "open");

    let again = desk.post(SUSPEND, &[], r#"{"all":true}"#).await.json();
    assert_eq!(again.as_array().unwrap().len(), 2);
    assert!(
        again.as_array().unwrap().iter().all(|result| result["ok"] == true && result["changed"] == false)
    );
    assert_eq!(
        desk.audit("marketId=7").await.json()["entries"].as_array().unwrap().len(),
        2,
        "nothing was appended"
    );
    assert_eq!(desk.post(OPEN, &[], body).await.json()[0]["changed"], true);
    assert!(desk.markets("ids=8").await.text.contains(r#""status":{"state":"open"}"#));
}

#[tokio::test]
async fn a_closed_market_is_opened_only_by_its_id() {
    let desk = Desk::in_memory();
    desk.publish(7, r#"{"status":{"state":"closed"}}"#).await;
    for path in [SUSPEND, OPEN] {
        assert_eq!(desk.post(path, &[], r#"{"all":true}"#).await.json()[0]["changed"], false);
    }
    assert!(desk.markets("ids=7").await.text.contains("closed"));
    assert_eq!(desk.post(OPEN, &[], r#"{"marketIds":[7]}"#).await.json()[0]["changed"], true);
}

#[tokio::test]
async fn a_request_to_suspend_that_cannot_be_carried_out_says_why() {
    let desk = Desk::in_memory();
    let many = format!(r#"{{"marketIds":[{}]}}"#, vec!["7"; 1001].join(","));
    let long = format!(r#"{{"all":true,"reason":"{}"}}"#, "x".repeat(501));
    for (body, status, code, message) in [
        ("", 400, "BAD_REQUEST", "marketIds"),
        (r#"{"reason":"x"}"#, 400, "BAD_REQUEST", "either"),
        (r#"{"all":true,"state":"open"}"#, 400, "BAD_REQUEST", "unknown field"),
        (&many, 413, "PAYLOAD_TOO_LARGE", "1000"),
        (&long, 422, "UNPROCESSABLE", "reason"),
    ] {
        desk.post(SUSPEND, &[], body.to_owned()).await.expect_error(status, code, message);
    }
    assert_eq!(desk.post(SUSPEND, &[], r#"{"marketIds":[]}"#).await.text, "[]");
    let stuck = Desk::on(FailingBackbone(Failure::ConnectionRefused));
    stuck.post(OPEN, &[], r#"{"all":true}"#).await.expect_error(503, "SERVICE_UNAVAILABLE", "markets");
    let ids = (1..=250).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    let results = stuck.post(OPEN, &[], format!(r#"{{"marketIds":[{ids}]}}"#)).await.json();
    assert_eq!(results.as_array().unwrap().len(), 250);
    assert_eq!(results[0]["code"], "SERVICE_UNAVAILABLE");
    assert!(results[249]["message"].as_str().unwrap().contains("not sent"), "{}", results[249]);
}
