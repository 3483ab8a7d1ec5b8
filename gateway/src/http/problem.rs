//! The error response of a refused HTTP request.

use axum::response::{IntoResponse, Response};
use protocol::error::ErrorCode;
use service::http::{body::BodyError, refusal};

/// A refused request: the code, and a message that names the field that is wrong.
#[derive(Debug)]
pub(super) struct Problem(ErrorCode, String);

impl Problem {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(code, message.into())
    }

    /// Returns a 503: `what` cannot be read now.
    pub(super) fn unreadable(what: &str) -> Self {
        Self(ErrorCode::ServiceUnavailable, format!("{what} cannot be read now: retry"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        refusal(self.0, &self.1)
    }
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let code = match error {
            BodyError::TooLarge { .. } => ErrorCode::PayloadTooLarge,
            BodyError::Broken | BodyError::TooSlow => ErrorCode::BadRequest,
        };
        Self(code, error.to_string())
    }
}
