//! The admin API on backbones in memory, without sockets. This file has the desk that calls it, and what all routes share.

mod audit;
mod batch;
mod markets;
mod overrides;

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{
        Method,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
};
use backbone::{
    Backbone, MemoryBackbone, Retention,
    failing::{FailingBackbone, Failure},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use service::token::{AdminClaims, Audience, Keyring};
use tower::ServiceExt;

use super::*;
use crate::request::X_REQUEST_ID;

/// A trading desk, and the admin API that it calls.
struct Desk {
    service: Router,
    keys: Keyring,
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|why| panic!("{}: {why}", self.text))
    }

    /// Checks that this is an error in the protocol's shape, and returns its code.
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
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.service.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Reply { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    /// Posts as a trader.
    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
        let bearer = self.bearer(Role::Trader);
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", bearer.as_str())]).collect();
        self.call(Method::POST, path, &headers, body).await
    }

    /// Reads the audit as a viewer.
    async fn audit(&self, query: &str) -> Reply {
        let bearer = self.bearer(Role::Viewer);
        self.call(Method::GET, &format!("/admin/audit?{query}"), &[("authorization", &bearer)], "").await
    }

    /// Lists markets as a viewer.
    async fn markets(&self, query: &str) -> Reply {
        let bearer = self.bearer(Role::Viewer);
        self.call(Method::GET, &format!("/admin/markets?{query}"), &[("authorization", &bearer)], "").await
    }

    /// Overrides a market's odds as a trader.
    async fn publish(&self, market: u64, payload: &str) {
        let reply = self.post(OVERRIDE, &[], format!(r#"{{"marketId":{market},"payload":{payload}}}"#)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
}

fn mint(keys: &Keyring, sub: &str, role: Role, ttl: Duration) -> String {
    keys.sign(&AdminClaims::new(sub, role, ttl))
}

#[tokio::test]
async fn each_route_needs_a_token_of_its_role_or_a_higher_one() {
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
            let reply = desk.call(method.clone(), path, &[("authorization", &desk.bearer(role))], body).await;
            if role >= needed {
                assert_eq!(reply.status, 200, "{role:?} {path}: {}", reply.text);
            } else {
                reply.expect_error(403, "FORBIDDEN", "trader");
            }
        }
        let stranger =
            format!("Bearer {}", mint(&Keyring::random(Audience::Admin), "x", Role::Admin, Duration::MAX));
        for headers in
            [vec![], vec![("authorization", "Bearer x")], vec![("authorization", stranger.as_str())]]
        {
            let reply = desk.call(method.clone(), path, &headers, body).await;
            reply.expect_error(401, "UNAUTHORIZED", "token");
            assert_eq!(reply.headers[WWW_AUTHENTICATE], "Bearer");
        }
    }
    let ws = Keyring::random(Audience::Ws);
    let desk = Desk { keys: ws.clone(), service: desk.service };
    assert_eq!(desk.post(OVERRIDE, &[], BODY).await.status, 401, "a socket's token is not an admin's");
}

#[tokio::test]
async fn unknown_paths_are_404_and_unknown_methods_405() {
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
        let reply = desk.call(method, path, &[], "").await;
        reply.expect_error(405, "METHOD_NOT_ALLOWED", "method");
        assert_eq!(reply.headers["allow"], allowed);
    }
}

#[tokio::test]
async fn the_router_merges_into_another_listener() {
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
async fn a_body_that_is_too_long_is_413() {
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
async fn a_body_that_does_not_arrive_in_time_is_400() {
    let desk = Desk::in_memory();
    let slow = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    desk.post(OVERRIDE, &[], slow).await.expect_error(400, "BAD_REQUEST", "30 s");
}

#[tokio::test]
async fn a_valid_request_id_is_repeated_and_kept_in_the_audit() {
    let desk = Desk::in_memory();
    let reply = desk.post(OVERRIDE, &[("x-request-id", "req-1")], BODY).await;
    assert_eq!(reply.headers[&X_REQUEST_ID], "req-1");
    for bad in ["", "a b", &"x".repeat(129)] {
        let reply = desk.post(OVERRIDE, &[("x-request-id", bad)], BODY).await;
        let id = reply.headers[&X_REQUEST_ID].to_str().unwrap();
        assert_eq!(id.len(), 32, "{id}");
        assert_eq!(desk.audit("marketId=1001&limit=1").await.json()["entries"][0]["requestId"], id);
    }
    assert_eq!(desk.audit("marketId=1001").await.json()["entries"][3]["requestId"], "req-1");
    assert!(desk.post("/nope", &[], "").await.headers.contains_key(&X_REQUEST_ID));
}
