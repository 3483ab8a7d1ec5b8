//! `POST /api/ws/token` (`docs/protocol.md#tokens`).

use protocol::time::unix_ms;
use serde::Deserialize;
use tests::{Http, Response, Service, Socket, Stack, fresh_market, fresh_user, tokens};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Issued {
    token: String,
    expires_at: u64,
}

#[tokio::test]
async fn a_token_for_a_user_id_sees_all_markets_for_ten_minutes() {
    let stack = Stack::shared();
    let user = fresh_user();
    for body in [format!(r#"{{"userId":{user}}}"#), format!(r#"{{"userId":"{user}"}}"#)] {
        let before_ms = unix_ms();
        let issued: Issued = ask(stack.gateway(0), &body).await.ok();
        let claims = tokens::claims(&issued.token);
        assert_eq!((claims.sub, claims.markets), (user.to_string(), None));
        assert_eq!(claims.exp - claims.iat, 600);
        let lifetime_ms = issued.expires_at - before_ms;
        assert!((598_000..=602_000).contains(&lifetime_ms), "milliseconds: {lifetime_ms}");
        // Any pod accepts the token.
        Socket::connect(stack.gateway(1).api, &issued.token).await.expect_silence().await;
    }
}

#[tokio::test]
async fn scope_and_lifetime_are_as_asked() {
    let stack = Stack::shared();
    let (user, mine, other) = (fresh_user(), fresh_market(), fresh_market());
    let body = format!(r#"{{"userId":{user},"scopeMarkets":[{mine},"{mine}"],"ttlSeconds":60}}"#);
    let issued: Issued = ask(stack.gateway(0), &body).await.ok();
    let claims = tokens::claims(&issued.token);
    assert_eq!(claims.exp - claims.iat, 60);
    assert!(claims.markets.unwrap().iter().all(|market| market.get() == mine));
    let mut socket = Socket::connect(stack.gateway(0).api, &issued.token).await;
    let ack = socket.subscribe(&[mine, other]).await;
    assert_eq!((ack.ok, ack.subscribed), (false, Some(vec![mine])));
    let none: Issued = ask(stack.gateway(0), r#"{"userId":1,"scopeMarkets":[]}"#).await.ok();
    assert_eq!(tokens::claims(&none.token).markets, Some(vec![]), "an empty scope is not no scope");
    for ttl in [1, 3600] {
        let issued: Issued =
            ask(stack.gateway(0), &format!(r#"{{"userId":1,"ttlSeconds":{ttl}}}"#)).await.ok();
        let claims = tokens::claims(&issued.token);
        assert_eq!(claims.exp - claims.iat, ttl);
    }
}

#[tokio::test]
async fn a_bad_request_is_400_and_names_the_field() {
    let stack = Stack::shared();
    for (body, field) in [
        ("", ""),
        ("{", ""),
        ("[]", ""),
        ("{}", "userId"),
        (r#"{"userId":null}"#, "userId"),
        (r#"{"userId":1.5}"#, "userId"),
        (r#"{"userId":""}"#, "userId"),
        (r#"{"userId":{}}"#, "userId"),
        (r#"{"userId":1,"ttlSeconds":0}"#, "ttlSeconds"),
        (r#"{"userId":1,"ttlSeconds":3601}"#, "ttlSeconds"),
        (r#"{"userId":1,"ttlSeconds":"soon"}"#, "ttlSeconds"),
        (r#"{"userId":1,"scopeMarkets":7}"#, "scopeMarkets"),
        (r#"{"userId":1,"scopeMarkets":[0]}"#, "scopeMarkets"),
    ] {
        let message = ask(stack.gateway(0), body).await.expect_error(400, "BAD_REQUEST");
        assert!(message.contains(field), "{body}: {message}");
    }
}

#[tokio::test]
async fn with_an_api_key_only_its_bearer_may_ask() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("TOKEN_API_KEY", "the application's key")]);
    let http = Http::default();
    let url = gateway.url("/api/ws/token");
    let json = ("content-type", "application/json");
    for headers in [
        vec![json],
        vec![json, ("authorization", "Bearer wrong")],
        vec![json, ("authorization", "Basic eA==")],
    ] {
        http.post_with(&url, &headers, r#"{"userId":1}"#).await.expect_error(401, "UNAUTHORIZED");
    }
    let headers = [json, ("authorization", "Bearer the application's key")];
    let issued: Issued = http.post_with(&url, &headers, r#"{"userId":1}"#).await.ok();
    assert_eq!(tokens::claims(&issued.token).sub, "1");
}

#[tokio::test]
async fn a_user_s_tokens_are_limited_to_token_rate_limit_a_minute() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("TOKEN_RATE_LIMIT", "2")]);
    let (user, other) = (fresh_user(), fresh_user());
    let body = |user| format!(r#"{{"userId":{user}}}"#);
    for _ in 0..2 {
        assert_eq!(ask(&gateway, &body(user)).await.status, 200);
    }
    let refused = ask(&gateway, &body(user)).await;
    refused.expect_error(429, "RATE_LIMITED");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(ask(&gateway, &body(other)).await.status, 200);
}

#[tokio::test]
async fn keys_may_be_named_and_the_first_signs() {
    let stack = Stack::shared();
    let (old, new) = ("o".repeat(32), "n".repeat(32));
    let before = stack.another_gateway(&[("JWT_SECRET", &format!("old:{old}"))]);
    let after = stack.another_gateway(&[("JWT_SECRET", &format!("new:{new},old:{old}"))]);
    let body = format!(r#"{{"userId":{}}}"#, fresh_user());
    let from_old: Issued = ask(&before, &body).await.ok();
    let from_new: Issued = ask(&after, &body).await.ok();
    for (gateway, token) in [(&before, &from_old.token), (&after, &from_old.token), (&after, &from_new.token)]
    {
        Socket::connect(gateway.api, token).await.expect_silence().await;
    }
    let url = before.url(&format!("/ws/odds?token={}", from_new.token));
    Http::default().handshake(&url, &[]).await.expect_error(401, "UNAUTHORIZED");
}

async fn ask(gateway: &Service, body: &str) -> Response {
    Http::default().post(&gateway.url("/api/ws/token"), body).await
}
