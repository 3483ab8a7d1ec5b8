//! HTTP in both services: the listener, bodies, JSON and error responses, pages, the operators' routes, and a client.

pub mod body;
pub mod client;
pub mod openapi;
pub mod ops;
pub mod pages;
pub mod serve;

use axum::{
    body::Body,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use protocol::error::{ErrorBody, ErrorCode};
use serde::Serialize;

/// The value of `Retry-After` in a 429 or 503, seconds.
const RETRY_AFTER_S: u64 = 1;

/// Makes an error response with the code's status. `body` is an [`ErrorBody`], or has the members of one.
pub fn refuse(code: ErrorCode, body: &impl Serialize) -> Response {
    let mut response = json(body);
    *response.status_mut() = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match code {
        ErrorCode::Unauthorized => {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        ErrorCode::ServiceUnavailable | ErrorCode::RateLimited => {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S.into());
        }
        _ => {}
    }
    response
}

/// Makes an error response with only a code and a message.
#[must_use]
pub fn refusal(code: ErrorCode, message: &str) -> Response {
    refuse(code, &ErrorBody { code: code.as_str(), message })
}

/// Makes a 200 with `body` as JSON.
pub fn json(body: &impl Serialize) -> Response {
    json_text(serde_json::to_string(body).unwrap_or_default())
}

/// Makes a 200 with JSON that is already text.
#[must_use]
pub fn json_text(text: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, "application/json")], text.into()).into_response()
}
