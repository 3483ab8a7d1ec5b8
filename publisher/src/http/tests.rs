use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{
        Method,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
};
use backbone::{Backbone, MemoryBackbone, Retention};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use service::token::{AdminClaims, Audience, Keyring};
use tower::ServiceExt;

use super::*;

fn mint(keys: &Keyring, sub: &str, role: Role, ttl: Duration) -> String {
    keys.sign(&AdminClaims::new(sub, role, ttl))
}
use backbone::failing::{FailingBackbone, Failure};

/// The admin API on some backbone, and the desk that calls it.
struct Desk {
    service: Router,
    keys: Keyring,
}

struct Answered {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|why| panic!("{}: {why}", self.text))
    }

    /// Its code, having checked that it is an error of the contract's shape.
    fn code(&self) -> String {
        let body = self.json();
        let code = body["code"].as_str().unwrap().to_owned();
        let members = body.as_object().unwrap();
        assert!(!body["message"].as_str().unwrap().is_empty());
        assert_eq!(members.len(), if code == "CONFLICT" { 3 } else { 2 }, "{body}");
        assert_eq!(self.headers[CONTENT_TYPE], "application/json");
        code
    }

    #[track_caller]
    fn expect_error(&self, status: u16, code: &str, message: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text);
        assert!(self.text.contains(message), "{message:?} in {}", self.text);
    }

    fn lines(&self) -> Vec<Value> {
        self.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

const OVERRIDE: &str = "/admin/odds/override";
const BATCH: &str = "/admin/odds/batch";
const SUSPEND: &str = "/admin/markets/suspend";
const OPEN: &str = "/admin/markets/open";
const BODY: &str =
    r#"{"marketId":1001,"payload":{"moneyline":{"home":1.850,"away":2.10}},"reason":"late news"}"#;

impl Desk {
    fn on(backbone: impl Backbone) -> Self {
        let keys = Keyring::random(Audience::Admin);
        Self {
            service: service(Admin { backbone: Arc::new(backbone), copy: None, keys: keys.clone() }),
            keys,
        }
    }

    fn in_memory() -> Self {
        Self::on(MemoryBackbone::new(Retention::default()))
    }

    fn bearer(&self, role: Role) -> String {
        format!("Bearer {}", mint(&self.keys, "desk-1", role, Duration::from_mins(1)))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answered {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.service.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answered { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    /// As a trader.
    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answered {
        let bearer = self.bearer(Role::Trader);
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", bearer.as_str())]).collect();
        self.call(Method::POST, path, &headers, body).await
    }

    /// As a viewer.
    async fn audit(&self, query: &str) -> Answered {
        let bearer = self.bearer(Role::Viewer);
        self.call(Method::GET, &format!("/admin/audit?{query}"), &[("authorization", &bearer)], "").await
    }

    /// As a viewer.
    async fn markets(&self, query: &str) -> Answered {
        let bearer = self.bearer(Role::Viewer);
        self.call(Method::GET, &format!("/admin/markets?{query}"), &[("authorization", &bearer)], "").await
    }

    /// As a trader.
    async fn publish(&self, market: u64, payload: &str) {
        let answered =
            self.post(OVERRIDE, &[], format!(r#"{{"marketId":{market},"payload":{payload}}}"#)).await;
        assert_eq!(answered.status, 200, "{}", answered.text);
    }
}

#[tokio::test]
async fn an_override_is_answered_with_its_place_in_the_log() {
    let desk = Desk::in_memory();
    for seq in 1..=3 {
        let answered = desk.post(OVERRIDE, &[], BODY).await;
        assert_eq!(answered.status, 200, "{}", answered.text);
        assert_eq!(answered.headers[CONTENT_TYPE], "application/json");
        assert!(!answered.headers.contains_key(&IDEMPOTENT_REPLAYED));
        let body = answered.json();
        let members: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["auditId", "durability", "epoch", "marketId", "seq", "ts"]);
        assert_eq!((&body["marketId"], &body["seq"]), (&json!(1001), &json!(seq)));
    }
}

#[tokio::test]
async fn each_role_may_do_its_part() {
    let desk = Desk::in_memory();
    for (method, path, body, needed) in [
        (Method::POST, OVERRIDE, BODY, Role::Trader),
        (Method::POST, BATCH, "[]", Role::Trader),
        (Method::GET, "/admin/audit?marketId=1001", "", Role::Viewer),
        (Method::GET, "/admin/markets", "", Role::Viewer),
        (Method::POST, SUSPEND, r#"{"all":true}"#, Role::Trader),
        (Method::POST, OPEN, r#"{"all":true}"#, Role::Trader),
    ] {
        for role in [Role::Viewer, Role::Trader, Role::Admin] {
            let answered =
                desk.call(method.clone(), path, &[("authorization", &desk.bearer(role))], body).await;
            if role >= needed {
                assert_eq!(answered.status, 200, "{role:?} {path}: {}", answered.text);
            } else {
                answered.expect_error(403, "FORBIDDEN", "trader");
            }
        }
        let stranger =
            format!("Bearer {}", mint(&Keyring::random(Audience::Admin), "x", Role::Admin, Duration::MAX));
        for headers in
            [vec![], vec![("authorization", "Bearer x")], vec![("authorization", stranger.as_str())]]
        {
            let answered = desk.call(method.clone(), path, &headers, body).await;
            answered.expect_error(401, "UNAUTHORIZED", "token");
            assert_eq!(answered.headers[WWW_AUTHENTICATE], "Bearer");
        }
    }
    let ws = Keyring::random(Audience::Ws);
    let desk = Desk { keys: ws.clone(), service: desk.service };
    assert_eq!(desk.post(OVERRIDE, &[], BODY).await.status, 401, "a socket's token is not an admin's");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_shape() {
    let desk = Desk::in_memory();
    for path in ["/", "/admin", "/admin/", "/admin/odds", "/admin/odds/override/", "/nope"] {
        desk.post(path, &[], "").await.expect_error(404, "NOT_FOUND", "path");
    }
    for (method, path, allowed) in [
        (Method::GET, OVERRIDE, "POST"),
        (Method::DELETE, BATCH, "POST"),
        (Method::POST, "/admin/audit", "GET,HEAD"),
        (Method::POST, "/admin/markets", "GET,HEAD"),
        (Method::GET, SUSPEND, "POST"),
        (Method::GET, OPEN, "POST"),
    ] {
        let answered = desk.call(method, path, &[], "").await;
        answered.expect_error(405, "METHOD_NOT_ALLOWED", "method");
        assert_eq!(answered.headers["allow"], allowed);
    }
}

#[tokio::test]
async fn the_router_merges_into_another_listener_s() {
    let admin = Admin {
        copy: None,
        backbone: Arc::new(MemoryBackbone::new(Retention::default())),
        keys: Keyring::random(Audience::Admin),
    };
    let merged =
        Router::new().route("/api", get(async || "api")).fallback(async || "theirs").merge(router(admin));
    let call = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let body = merged.clone().oneshot(request).await.unwrap().into_body();
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    assert_eq!(call("/api").await, "api");
    assert_eq!(call("/elsewhere").await, "theirs");
    assert!(call("/admin/elsewhere").await.contains("NOT_FOUND"));
    assert!(call("/admin/audit").await.contains("UNAUTHORIZED"));
    assert!(call(OVERRIDE).await.contains("METHOD_NOT_ALLOWED"));
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
async fn a_body_has_a_bound() {
    let desk = Desk::in_memory();
    let padded = format!("{BODY}{}", " ".repeat(MAX_OVERRIDE_BYTES - BODY.len()));
    assert_eq!(desk.post(OVERRIDE, &[], padded.clone()).await.status, 200);
    desk.post(OVERRIDE, &[], padded + " ").await.expect_error(413, "PAYLOAD_TOO_LARGE", "65536 bytes");
    // Read to its end, so that a client which writes all of it before it reads sees the answer.
    desk.post(OVERRIDE, &[], "x".repeat(8 << 20)).await.expect_error(413, "PAYLOAD_TOO_LARGE", "65536 bytes");
    let endless =
        Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(1 << 16))));
    desk.post(BATCH, &[], endless).await.expect_error(413, "PAYLOAD_TOO_LARGE", "20971520 bytes");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_given_up() {
    let desk = Desk::in_memory();
    let slow = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    desk.post(OVERRIDE, &[], slow).await.expect_error(400, "BAD_REQUEST", "30 s");
}

#[tokio::test]
async fn an_unexpected_seq_is_a_conflict_that_says_the_current_one() {
    let desk = Desk::in_memory();
    let at = |seq: u64| format!(r#"{{"marketId":7,"payload":{{"a":{{"n":{seq}}}}},"expectedSeq":{seq}}}"#);
    assert_eq!(desk.post(OVERRIDE, &[], at(0)).await.status, 200);
    for expected in [0, 2] {
        let answered = desk.post(OVERRIDE, &[], at(expected)).await;
        answered.expect_error(409, "CONFLICT", "seq 1");
        assert_eq!(answered.json()["currentSeq"], 1);
    }
    assert_eq!(desk.post(OVERRIDE, &[], at(1)).await.status, 200);
}

#[tokio::test]
async fn the_same_key_and_body_are_answered_the_same_again() {
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
async fn an_idempotency_key_is_visible_ascii() {
    let desk = Desk::in_memory();
    let longest = "k".repeat(255);
    assert_eq!(desk.post(OVERRIDE, &[("idempotency-key", &longest)], BODY).await.status, 200);
    for bad in ["", "a b", "é", &"k".repeat(256)] {
        let answered = desk.post(OVERRIDE, &[("idempotency-key", bad)], BODY).await;
        answered.expect_error(400, "BAD_REQUEST", "Idempotency-Key");
    }
    let twice = [("idempotency-key", "a"), ("idempotency-key", "b")];
    desk.post(BATCH, &twice, "[]").await.expect_error(400, "BAD_REQUEST", "Idempotency-Key");
}

#[tokio::test]
async fn a_request_id_is_taken_over_if_sane_and_kept_in_the_audit() {
    let desk = Desk::in_memory();
    let answered = desk.post(OVERRIDE, &[("x-request-id", "req-1")], BODY).await;
    assert_eq!(answered.headers[&X_REQUEST_ID], "req-1");
    for bad in ["", "a b", &"x".repeat(129)] {
        let answered = desk.post(OVERRIDE, &[("x-request-id", bad)], BODY).await;
        let id = answered.headers[&X_REQUEST_ID].to_str().unwrap();
        assert_eq!(id.len(), 32, "{id}");
        assert_eq!(desk.audit("marketId=1001&limit=1").await.json()["entries"][0]["requestId"], id);
    }
    assert_eq!(desk.audit("marketId=1001").await.json()["entries"][3]["requestId"], "req-1");
    assert!(desk.post("/nope", &[], "").await.headers.contains_key(&X_REQUEST_ID));
}

#[tokio::test]
async fn a_backbone_that_is_down_is_503_and_says_what_is_known() {
    for (failure, key, message) in [
        (Failure::ConnectionRefused, None, "nothing was appended"),
        (Failure::ConnectionRefused, Some("k"), "nothing was appended"),
        (Failure::ConnectionLost, None, "outcome unknown: the override may have been appended"),
        (Failure::ConnectionLost, Some("k"), "outcome unknown: retry with the same Idempotency-Key"),
    ] {
        let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
        let answered = Desk::on(FailingBackbone(failure)).post(OVERRIDE, &headers, BODY).await;
        answered.expect_error(503, "SERVICE_UNAVAILABLE", message);
        assert_eq!(answered.headers[RETRY_AFTER], "1");
    }
    let answered = Desk::on(FailingBackbone(Failure::ConnectionRefused)).audit("marketId=1").await;
    answered.expect_error(503, "SERVICE_UNAVAILABLE", "audit");
    assert_eq!(answered.headers[RETRY_AFTER], "1");
}

#[tokio::test(start_paused = true)]
async fn a_backbone_that_is_silent_is_given_up() {
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
    let answered = desk.post(BATCH, &[], format!("[{}]", items.join(" , "))).await;
    assert_eq!(answered.status, 200);
    assert_eq!(answered.headers[CONTENT_TYPE], "application/json");
    let results = answered.json();
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
async fn ndjson_is_answered_in_ndjson() {
    let desk = Desk::in_memory();
    let good = r#"{"marketId":7,"payload":{"a":{"n":1.0}}}"#;
    let body = [good.as_bytes(), b"\r\n\n{\n\xff\n  ", good.as_bytes()].concat();
    let answered = desk.post(BATCH, &[("content-type", "application/x-ndjson; charset=utf-8")], body).await;
    assert_eq!(
        (answered.status, &answered.headers[CONTENT_TYPE]),
        (200, &"application/x-ndjson".parse().unwrap())
    );
    let results = answered.lines();
    assert_eq!(results.len(), 4, "{}", answered.text);
    assert_eq!(results.iter().map(|result| &result["ok"]).collect::<Vec<_>>(), [true, false, false, true]);
    assert_eq!((&results[0]["seq"], &results[3]["seq"]), (&json!(1), &json!(2)));
    assert_eq!(results[2]["code"], "BAD_REQUEST");
    desk.post(BATCH, &[], good).await.expect_error(400, "BAD_REQUEST", "application/x-ndjson");
}

#[tokio::test]
async fn a_batch_keeps_order_and_has_a_bound() {
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

#[tokio::test]
async fn the_audit_says_who_changed_what_from_what() {
    let desk = Desk::in_memory();
    desk.post(OVERRIDE, &[("x-request-id", "r1")], BODY).await;
    let second = r#"{"marketId":"1001","payload":{"moneyline":null, "total":{"over":1.90}}}"#;
    let accepted = desk.post(OVERRIDE, &[("x-request-id", "r2")], second).await.json();
    let answered = desk.audit("marketId=1001&before=&limit=").await;
    assert_eq!(answered.status, 200, "{}", answered.text);
    let expected = [
        r#"{"marketId":1001,"entries":[{"auditId":"#,
        &accepted["auditId"].to_string(),
        r#","marketId":1001,"epoch":"#,
        &accepted["epoch"].to_string(),
        r#","seq":2,"ts":"#,
        &accepted["ts"].to_string(),
        r#","actor":"desk-1","reason":"","before":{"moneyline":{"home":1.850,"away":2.10}}"#,
        r#","after":{"moneyline":null, "total":{"over":1.90}},"requestId":"r2"}"#,
    ]
    .concat();
    assert!(answered.text.starts_with(&expected), "{}\n{expected}", answered.text);
    let first = &answered.json()["entries"][1];
    assert_eq!((&first["reason"], &first["before"]), (&json!("late news"), &json!({})));
    assert_eq!(answered.json()["hasMore"], false);
}

#[tokio::test]
async fn the_audit_is_paged_newest_first() {
    let desk = Desk::in_memory();
    let items: Vec<_> =
        (1..=120).map(|n| format!(r#"{{"marketId":7,"payload":{{"a":{{"n":{n}}}}}}}"#)).collect();
    desk.post(BATCH, &[], format!("[{}]", items.join(","))).await;
    let (mut before, mut seqs, mut pages) = (String::new(), Vec::new(), Vec::new());
    loop {
        let page = desk.audit(&format!("marketId=7&before={before}")).await.json();
        let entries = page["entries"].as_array().unwrap();
        pages.push(entries.len());
        seqs.extend(entries.iter().map(|entry| entry["seq"].as_u64().unwrap()));
        if page["hasMore"] == false {
            break;
        }
        before = entries.last().unwrap()["auditId"].as_str().unwrap().to_owned();
    }
    assert_eq!(pages, [50, 50, 20]);
    assert!(seqs.iter().copied().eq((1..=120).rev()), "{seqs:?}");
    assert_eq!(desk.audit("marketId=7&limit=120").await.json()["hasMore"], false);
    let empty = json!({ "marketId": 8, "entries": [], "hasMore": false });
    assert_eq!(desk.audit("marketId=8").await.json(), empty);
    for bad in [
        "",
        "marketId=x",
        "marketId=7&limit=501",
        "marketId=7&before=x",
        "marketId=7&before=8-1-0",
        "marketId=1&marketId=2",
    ] {
        assert_eq!(desk.audit(bad).await.code(), "BAD_REQUEST", "{bad}");
    }
}

#[tokio::test]
async fn the_audit_can_be_of_one_actor_and_of_a_time() {
    let desk = Desk::in_memory();
    let other = format!("Bearer {}", mint(&desk.keys, "desk-2", Role::Trader, Duration::from_mins(1)));
    for n in 1..=10 {
        let body = format!(r#"{{"marketId":7,"payload":{{"a":{{"n":{n}}}}}}}"#);
        if n % 5 == 0 {
            desk.call(Method::POST, OVERRIDE, &[("authorization", &other)], body).await;
        } else {
            desk.post(OVERRIDE, &[], body).await;
        }
    }
    let all = desk.audit("marketId=7").await.json();
    let ts = |index: usize| all["entries"][index]["ts"].as_u64().unwrap();
    let expected = |keep: &dyn Fn(&Value) -> bool| -> Vec<u64> {
        let entries = all["entries"].as_array().unwrap().iter();
        entries.filter(|entry| keep(entry)).map(|entry| entry["seq"].as_u64().unwrap()).collect()
    };
    let seqs = async |query: &str| -> (Vec<u64>, bool) {
        let page = desk.audit(&format!("marketId=7&{query}")).await.json();
        let seq = |entry: &Value| entry["seq"].as_u64().unwrap();
        (page["entries"].as_array().unwrap().iter().map(seq).collect(), page["hasMore"] == true)
    };
    assert_eq!(seqs("actor=desk-2").await, (vec![10, 5], false));
    assert_eq!(seqs("actor=desk-2&limit=1").await, (vec![10], true));
    assert_eq!(seqs("actor=nobody").await, (vec![], false));
    let (newest, oldest) = (ts(0), ts(9));
    assert_eq!(seqs(&format!("until={}", oldest - 1)).await, (vec![], false));
    assert_eq!(seqs(&format!("since={}", newest + 1)).await, (vec![], false));
    assert_eq!(seqs(&format!("since={oldest}&until={newest}")).await.0, expected(&|_| true));
    let middle = ts(4);
    let since = format!("since={middle}");
    assert_eq!(seqs(&since).await, (expected(&|entry| entry["ts"].as_u64().unwrap() >= middle), false));
    let until = format!("until={middle}");
    assert_eq!(seqs(&until).await, (expected(&|entry| entry["ts"].as_u64().unwrap() <= middle), false));
    for bad in ["since=x", "until=-1", "format=xml"] {
        assert_eq!(desk.audit(&format!("marketId=7&{bad}")).await.code(), "BAD_REQUEST", "{bad}");
    }
}

#[tokio::test]
async fn a_rare_actor_is_looked_for_in_pages_of_a_bound() {
    let desk = Desk::in_memory();
    let rare = format!("Bearer {}", mint(&desk.keys, "rare", Role::Trader, Duration::from_mins(1)));
    let body = r#"{"marketId":7,"payload":{"a":{"n":0}}}"#;
    desk.call(Method::POST, OVERRIDE, &[("authorization", &rare)], body).await;
    for _ in 0..6 {
        desk.post(BATCH, &[], format!("[{}]", vec![body; 1000].join(","))).await;
    }
    let first = desk.audit("marketId=7&actor=rare").await.json();
    assert_eq!((&first["entries"], &first["hasMore"]), (&json!([]), &json!(true)), "5000 were looked at");
    let next = format!("marketId=7&actor=rare&before={}", first["before"].as_str().unwrap());
    let second = desk.audit(&next).await.json();
    assert_eq!((&second["entries"][0]["seq"], &second["hasMore"]), (&json!(1), &json!(false)));
    assert!(second.get("before").is_none());
}

#[tokio::test]
async fn the_audit_is_a_table_for_who_asks_for_one() {
    let desk = Desk::in_memory();
    for reason in ["plain", "=1+1", r#"a \"b\", c"#] {
        let body = format!(r#"{{"marketId":7,"payload":{{"a":{{"n":1.50}}}},"reason":"{reason}"}}"#);
        assert_eq!(desk.post(OVERRIDE, &[("x-request-id", "r")], body).await.status, 200);
    }
    let bearer = desk.bearer(Role::Viewer);
    for (query, accept) in [("&format=csv", "*/*"), ("", "text/csv")] {
        let headers = [("authorization", bearer.as_str()), ("accept", accept)];
        let path = format!("/admin/audit?marketId=7&limit=2{query}");
        let answered = desk.call(Method::GET, &path, &headers, "").await;
        assert_eq!(answered.headers[CONTENT_TYPE], "text/csv; charset=utf-8");
        assert_eq!(answered.headers[CONTENT_DISPOSITION], "attachment; filename=\"audit-7.csv\"");
        let rows: Vec<&str> = answered.text.split("\r\n").collect();
        assert_eq!(rows.len(), 4, "a head, two entries, an end: {}", answered.text);
        assert_eq!(rows[0], "auditId,marketId,epoch,seq,ts,actor,reason,before,after,requestId");
        let cells = r#",desk-1,"a ""b"", c","{""a"":{""n"":1.50}}","{""a"":{""n"":1.50}}",r"#;
        assert!(rows[1].ends_with(cells), "{}", rows[1]);
        assert!(rows[2].contains(",'=1+1,"), "{}", rows[2]);
        assert!(rows[2].starts_with(answered.headers[&X_NEXT_BEFORE].to_str().unwrap()));
    }
}

#[tokio::test]
async fn markets_are_listed_with_their_states_as_they_were_written() {
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
async fn markets_are_suspended_and_opened_and_the_audit_says_so() {
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
async fn a_market_that_is_closed_is_opened_only_by_its_id() {
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
    let failing = Desk::on(FailingBackbone(Failure::ConnectionRefused));
    failing.post(OPEN, &[], r#"{"all":true}"#).await.expect_error(503, "SERVICE_UNAVAILABLE", "markets");
    let ids = (1..=250).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    let results = failing.post(OPEN, &[], format!(r#"{{"marketIds":[{ids}]}}"#)).await.json();
    assert_eq!(results.as_array().unwrap().len(), 250);
    assert_eq!(results[0]["code"], "SERVICE_UNAVAILABLE");
    assert!(results[249]["message"].as_str().unwrap().contains("not sent"), "{}", results[249]);
}
