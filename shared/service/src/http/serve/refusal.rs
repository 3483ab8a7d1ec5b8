//! Requests that the listener refuses in the router's place.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, header::CONNECTION},
    response::Response,
};
use protocol::error::ErrorCode;

use crate::http::{body, refusal};

/// The longest header of a request, bytes: its first line, each field as `name: value`, and all line ends. A token may
/// have 16 KiB.
pub(super) const MAX_HEADER_BYTES: usize = 32 * 1024;

/// Why the router does not get a request.
pub(super) enum Refusal {
    /// The listener has as many connections as it may have.
    Full,
    /// The process is about to end.
    Draining,
    /// The header is longer than [`MAX_HEADER_BYTES`].
    HeaderTooLarge,
}

impl Refusal {
    /// Responds with the error, and closes the connection.
    pub(super) async fn respond(self, request: Request) -> Response {
        // Drains the body, so that a client that writes all of it before it reads still gets the response.
        let _ = body::read(request.into_body(), 0).await;
        let (code, message) = self.code_and_message();
        let mut response = refusal(code, &message);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    fn code_and_message(self) -> (ErrorCode, String) {
        match self {
            Self::Full => {
                let message = "too many connections: try again, another process may have room";
                (ErrorCode::ServiceUnavailable, message.to_owned())
            }
            Self::Draining => {
                let message = "this process is about to end, and did nothing: try again at another";
                (ErrorCode::ServiceUnavailable, message.to_owned())
            }
            Self::HeaderTooLarge => {
                let message = format!("a request's header has at most {MAX_HEADER_BYTES} bytes here");
                (ErrorCode::HeaderTooLarge, message)
            }
        }
    }
}

/// Returns the length of a request's header, written without needless bytes.
pub(super) fn header_bytes(request: &Request) -> usize {
    let uri = request.uri();
    let target = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len())
        + uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    let first_line = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    let field =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    first_line + request.headers().iter().map(field).sum::<usize>() + "\r\n".len()
}
