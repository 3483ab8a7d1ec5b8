//! `GET /ws/odds`: the handshake, after which a shard gets the bare socket (docs/protocol.md#handshake).

use std::sync::{Arc, atomic::Ordering};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{
            AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_VERSION, UPGRADE,
        },
    },
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use protocol::error::ErrorCode;
use service::{
    http::{refusal, serve::Peer},
    token::{WsClaims, bearer},
};
use sha1::{Digest, Sha1};
use tokio::net::TcpStream;

use crate::{
    limits::{ConnectionPermit, Full},
    metrics as names,
    shard::Accepted,
    state::Gateway,
};

/// The subprotocol that a client may offer.
const SUBPROTOCOL: &str = "kmarket.v1";
/// The prefix of a token that is offered as a subprotocol.
const TOKEN_SUBPROTOCOL: &str = "token.";

/// Answers a handshake. An accepted connection goes to a shard once the 101 is out.
pub(super) async fn upgrade(State(gateway): State<Arc<Gateway>>, mut request: Request) -> Response {
    let (outcome, response) = match admit(&gateway, &request) {
        Ok((claims, permit, mut response)) => {
            if offered_protocols(request.headers()).any(|protocol| protocol == SUBPROTOCOL) {
                response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
            }
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(hand_over(gateway, upgrade, claims, permit));
            ("accepted", response)
        }
        Err(Refused { outcome, response }) => {
            tracing::debug!(outcome, status = response.status().as_u16(), "a handshake is refused");
            (outcome, *response)
        }
    };
    metrics::counter!(names::HANDSHAKES, "outcome" => outcome).increment(1);
    response
}

/// A refused handshake.
struct Refused {
    /// The value of the metric's label.
    outcome: &'static str,
    response: Box<Response>,
}

fn refused(outcome: &'static str, code: ErrorCode, message: &str) -> Refused {
    Refused { outcome, response: Box::new(refusal(code, message)) }
}

/// Checks a handshake in the order of docs/protocol.md#handshake. Returns the client's claims and permit, and the 101.
fn admit(
    gateway: &Arc<Gateway>,
    request: &Request,
) -> Result<(WsClaims, ConnectionPermit, Response), Refused> {
    let headers = request.headers();
    if gateway.draining.load(Ordering::Relaxed) {
        return Err(refused(
            "draining",
            ErrorCode::ServiceUnavailable,
            "this pod is draining: connect again, another takes you",
        ));
    }
    if !gateway.health.is_ready() {
        return Err(refused(
            "not_ready",
            ErrorCode::ServiceUnavailable,
            "this pod cannot reach its prices now: retry",
        ));
    }
    if let Some(peer) = request.extensions().get::<Peer>()
        && !gateway.access.allows_handshake(*peer, headers)
    {
        return Err(refused(
            "limited",
            ErrorCode::RateLimited,
            "too many handshakes from this address: retry later",
        ));
    }
    let token = find_token(request.uri(), headers);
    let claims = gateway
        .tokens
        .verify(token.unwrap_or_default())
        .map_err(|error| refused("unauthorized", ErrorCode::Unauthorized, &error.to_string()))?;
    if !gateway.access.allows_origin(headers) {
        return Err(refused(
            "forbidden",
            ErrorCode::Forbidden,
            "Origin: pages from there may not connect here",
        ));
    }
    let response = switching_protocols(headers)?;
    let permit = gateway.permits.take(&claims.sub).map_err(|full| match full {
        Full::Pod => refused("full", ErrorCode::ServiceUnavailable, &full.to_string()),
        Full::User => refused("limited", ErrorCode::RateLimited, &full.to_string()),
    })?;
    Ok((claims, permit, response))
}

/// Returns the response to a WebSocket handshake (RFC 6455 section 4.2.2).
fn switching_protocols(headers: &HeaderMap) -> Result<Response, Refused> {
    let has = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    let is_upgrade = has(CONNECTION, "upgrade") && has(UPGRADE, "websocket");
    if !is_upgrade || headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let message = "this path speaks WebSocket only: Connection: Upgrade, Upgrade: websocket, Sec-WebSocket-Version: 13";
        let mut refused = refused("bad_request", ErrorCode::UpgradeRequired, message);
        refused.response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        refused.response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        return Err(refused);
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16));
    let key = key.ok_or_else(|| {
        refused("bad_request", ErrorCode::BadRequest, "Sec-WebSocket-Key: 16 bytes in base64")
    })?;
    let mut digest = Sha1::new();
    digest.update(key.as_bytes());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept =
        HeaderValue::from_str(&STANDARD.encode(digest.finalize())).unwrap_or(HeaderValue::from_static(""));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// Finds the token in the query, else in `Authorization`, else in the subprotocols.
fn find_token<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    // A JWT has no character that a query escapes.
    let in_query =
        uri.query().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("token=")));
    let in_header = || headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let in_protocols =
        || offered_protocols(headers).find_map(|protocol| protocol.strip_prefix(TOKEN_SUBPROTOCOL));
    in_query.or_else(in_header).or_else(in_protocols)
}

fn offered_protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Takes the socket out of hyper and tokio once the 101 is out, with the bytes that the client sent already.
async fn hand_over(gateway: Arc<Gateway>, upgrade: OnUpgrade, claims: WsClaims, permit: ConnectionPermit) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "a client left during its handshake"),
    };
    let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
        return tracing::error!("an upgraded connection is not a TCP socket");
    };
    match parts.io.into_inner().into_std() {
        Ok(socket) => {
            let leftover = parts.read_buf.to_vec();
            gateway.pick_shard().adopt(Accepted { socket, leftover, claims, permit });
        }
        Err(error) => tracing::warn!(%error, "a socket could not be taken out of its reactor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_as_in_the_example_of_rfc_6455() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let response = switching_protocols(&headers).unwrap_or_else(|refused| *refused.response);
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        headers.insert("sec-websocket-key", HeaderValue::from_static("short"));
        let response = switching_protocols(&headers).unwrap_or_else(|refused| *refused.response);
        assert_eq!(response.status(), 400);
        headers.remove("upgrade");
        let response = switching_protocols(&headers).unwrap_or_else(|refused| *refused.response);
        assert_eq!(
            (response.status().as_u16(), &response.headers()[SEC_WEBSOCKET_VERSION]),
            (426, &HeaderValue::from_static("13"))
        );
    }

    #[test]
    fn a_token_in_the_query_comes_first_then_the_header_then_the_subprotocols() {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("kmarket.v1, token.c"));
        let (plain, with_query) = (Uri::from_static("/ws/odds"), Uri::from_static("/ws/odds?x=1&token=a"));
        assert_eq!(find_token(&plain, &headers), Some("c"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert_eq!(find_token(&plain, &headers), Some("b"));
        assert_eq!(find_token(&with_query, &headers), Some("a"));
        assert_eq!(find_token(&plain, &HeaderMap::new()), None);
    }
}
