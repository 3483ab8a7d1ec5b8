//! `GET /ws/odds` (`docs/protocol.md#handshake`): where the token may be, and refusals before the upgrade.

use tests::{Http, Socket, Stack, fresh_user, tokens};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

#[tokio::test]
async fn the_token_may_be_in_the_query_the_authorization_header_or_a_subprotocol() {
    let stack = Stack::shared();
    let gateway = stack.gateway(0).api;
    let token = tokens::for_user(fresh_user());
    let request = |query: &str, header: Option<(&'static str, String)>| {
        let mut request = format!("ws://{gateway}/ws/odds{query}").into_client_request().unwrap();
        if let Some((name, value)) = header {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request
    };
    for (request, protocol) in [
        (request(&format!("?token={token}"), None), None),
        (request(&format!("?a=b&token={token}&c"), None), None),
        (request("", Some(("authorization", format!("Bearer {token}")))), None),
        (
            request("", Some(("sec-websocket-protocol", format!("kmarket.v1, token.{token}")))),
            Some("kmarket.v1"),
        ),
        (request(&format!("?token={token}"), Some(("authorization", "Bearer nonsense".into()))), None),
    ] {
        let (mut socket, response) = Socket::open(gateway, request).await;
        let answered = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
        assert_eq!(answered, protocol);
        assert!(response.headers().get("sec-websocket-extensions").is_none());
        socket.expect_silence().await;
    }
}

#[tokio::test]
async fn a_missing_bad_or_expired_token_is_401_before_the_upgrade() {
    let stack = Stack::shared();
    let http = Http::default();
    let url = stack.gateway(0).url("/ws/odds");
    let good = tokens::for_user(fresh_user());
    let (head, signature) = good.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    let for_admins = tokens::admin(service::token::Role::Admin);

    http.handshake(&url, &[]).await.expect_error(401, "UNAUTHORIZED");
    for token in ["nonsense", &forged, head, &tokens::expiring(fresh_user(), -60), &for_admins] {
        let in_query = http.handshake(&format!("{url}?token={token}"), &[]).await;
        in_query.expect_error(401, "UNAUTHORIZED");
        let bearer = format!("Bearer {token}");
        http.handshake(&url, &[("authorization", &bearer)]).await.expect_error(401, "UNAUTHORIZED");
        let protocols = format!("kmarket.v1, token.{token}");
        let in_protocol = http.handshake(&url, &[("sec-websocket-protocol", &protocols)]).await;
        in_protocol.expect_error(401, "UNAUTHORIZED");
    }
}

#[tokio::test]
async fn a_request_that_is_no_websocket_handshake_is_a_client_error() {
    let stack = Stack::shared();
    let token = tokens::for_user(fresh_user());
    let url = stack.gateway(0).url(&format!("/ws/odds?token={token}"));
    let answer = Http::default().get(&url).await;
    assert!((400..500).contains(&answer.status), "{}", answer.status);
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_where_origins_are_named() {
    let stack = Stack::shared();
    let origins = "https://odds.example, http://localhost:8080,capacitor://localhost,app.odds://-";
    let gateway = stack.another_gateway(&[("ALLOWED_ORIGINS", origins)]);
    let any = stack.gateway(0);
    let path = format!("/ws/odds?token={}", tokens::for_user(fresh_user()));
    let http = Http::default();
    for origin in ["https://odds.example", "http://localhost:8080", "capacitor://localhost", "app.odds://-"] {
        assert_eq!(http.handshake(&gateway.url(&path), &[("origin", origin)]).await.status, 101, "{origin}");
    }
    assert_eq!(http.handshake(&gateway.url(&path), &[]).await.status, 101, "no browser, no origin");
    for origin in [
        "https://evil.example",
        "http://odds.example",
        "https://odds.example:444",
        "https://odds.example/",
        "https://odds.example.evil.example",
        "https://evil-odds.example",
        "https://www.odds.example",
        "HTTPS://ODDS.EXAMPLE",
        "odds.example",
        "http://localhost",
        "capacitor://",
        "null",
        "*",
        "",
    ] {
        let refused = http.handshake(&gateway.url(&path), &[("origin", origin)]).await;
        refused.expect_error(403, "FORBIDDEN");
        assert_eq!(http.handshake(&any.url(&path), &[("origin", origin)]).await.status, 101, "{origin}");
    }
    let both = [("origin", "https://odds.example"), ("origin", "https://evil.example")];
    http.handshake(&gateway.url(&path), &both).await.expect_error(403, "FORBIDDEN");
}
