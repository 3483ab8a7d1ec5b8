//! An HTTP request that is refused.

use axum::response::{IntoResponse, Response};
use protocol::error::ErrorCode;
use service::http::{body::BodyError, refusal};

/// The code, and what is wrong, naming the field.
#[derive(Debug)]
pub(super) struct Problem(pub(super) ErrorCode, pub(super) String);

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
