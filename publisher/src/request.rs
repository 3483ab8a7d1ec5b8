//! Reads what surrounds an admin request's content: its query and the headers that name it and make retries safe.

use axum::{
    extract::Query,
    http::{HeaderMap, HeaderName, HeaderValue, Uri, request::Parts},
};
use serde::de::DeserializeOwned;

use crate::append::Sender;

/// The longest idempotency key, visible ASCII characters.
pub(crate) const MAX_IDEMPOTENCY_KEY: usize = 255;
/// The longest request id that the publisher takes over from a client, visible ASCII characters.
pub(crate) const MAX_REQUEST_ID: usize = 128;

pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Reads the parameters of a query.
///
/// # Errors
/// [`InvalidRequest::Query`] if the query has a parameter twice.
pub(crate) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, InvalidRequest> {
    Query::try_from_uri(uri).map(|Query(query)| query).map_err(|_| InvalidRequest::Query)
}

/// Returns the key that makes a retry safe (`docs/protocol.md#retries`), if the request has one.
///
/// # Errors
/// [`InvalidRequest::IdempotencyKey`].
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, InvalidRequest> {
    let mut keys = headers.get_all(&IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) if is_visible_ascii(key, MAX_IDEMPOTENCY_KEY) => {
            key.to_str().map(Some).map_err(|_| InvalidRequest::IdempotencyKey)
        }
        _ => Err(InvalidRequest::IdempotencyKey),
    }
}

/// Returns the request's own id if it is valid, else a new random one.
pub(crate) fn own_or_new_id(headers: &HeaderMap) -> HeaderValue {
    headers.get(&X_REQUEST_ID).filter(|id| is_visible_ascii(id, MAX_REQUEST_ID)).cloned().unwrap_or_else(
        || {
            let id = format!("{:032x}", rand::random::<u128>());
            HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
        },
    )
}

/// Returns the request's id, which is valid by the time a handler runs.
pub(crate) fn request_id(parts: &Parts) -> &str {
    parts.headers.get(&X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default()
}

/// Returns the sender of the overrides in this request.
pub(crate) fn sender<'a>(actor: &'a str, parts: &'a Parts) -> Sender<'a> {
    Sender { actor, request_id: request_id(parts), trace: parts.extensions.get().cloned() }
}

/// Why a request is invalid, whatever its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("Idempotency-Key: one header of 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters")]
    IdempotencyKey,
    #[error("the query cannot be read: a parameter is given twice")]
    Query,
}

fn is_visible_ascii(value: &HeaderValue, max: usize) -> bool {
    (1..=max).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}
