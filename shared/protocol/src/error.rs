//! The tables of error codes: over HTTP (`docs/protocol.md#errors`) and on a socket (`docs/protocol.md#error-messages`).

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, RefOr, Schema, Type},
};

/// Why an HTTP request is refused (`docs/protocol.md#errors`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The request has the wrong shape.
    BadRequest,
    /// There is no valid token.
    Unauthorized,
    /// The token is valid, but does not allow this.
    Forbidden,
    /// There is no such path.
    NotFound,
    /// The path has no such method.
    MethodNotAllowed,
    /// The market is not at the expected seq.
    Conflict,
    /// The body is too long.
    PayloadTooLarge,
    /// The shape is right, but the content breaks a rule.
    Unprocessable,
    /// The request is not a WebSocket handshake.
    UpgradeRequired,
    /// There were too many requests.
    RateLimited,
    /// The request line and headers are too long.
    HeaderTooLarge,
    /// The server has a bug.
    Internal,
    /// The server cannot do this now.
    ServiceUnavailable,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 13] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PayloadTooLarge,
        Self::Unprocessable,
        Self::UpgradeRequired,
        Self::RateLimited,
        Self::HeaderTooLarge,
        Self::Internal,
        Self::ServiceUnavailable,
    ];

    /// Returns the code, the HTTP status, and the meaning.
    const fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::BadRequest => ("BAD_REQUEST", 400, "wrong shape"),
            Self::Unauthorized => ("UNAUTHORIZED", 401, "no valid token"),
            Self::Forbidden => ("FORBIDDEN", 403, "a valid token that does not allow this"),
            Self::NotFound => ("NOT_FOUND", 404, "no such path"),
            Self::MethodNotAllowed => ("METHOD_NOT_ALLOWED", 405, "the path has no such method"),
            Self::Conflict => ("CONFLICT", 409, "the market is not at `expectedSeq`"),
            Self::PayloadTooLarge => ("PAYLOAD_TOO_LARGE", 413, "the body exceeds the limit"),
            Self::Unprocessable => ("UNPROCESSABLE", 422, "right shape, wrong content"),
            Self::UpgradeRequired => ("UPGRADE_REQUIRED", 426, "no WebSocket handshake"),
            Self::RateLimited => ("RATE_LIMITED", 429, "too many requests"),
            Self::HeaderTooLarge => {
                ("HEADER_TOO_LARGE", 431, "the request line and header fields exceed the limit")
            }
            Self::Internal => ("INTERNAL", 500, "a bug in the server"),
            Self::ServiceUnavailable => ("SERVICE_UNAVAILABLE", 503, "not now"),
        }
    }

    /// Returns the code as clients read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// Returns the HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.row().1
    }

    /// Returns the meaning in a few words.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        self.row().2
    }
}

impl PartialSchema for ErrorCode {
    fn schema() -> RefOr<Schema> {
        let codes = Self::ALL.map(Self::as_str);
        Object::builder().schema_type(Type::String).enum_values(Some(codes)).into()
    }
}

impl ToSchema for ErrorCode {}

/// The body of every HTTP error.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    /// For programs.
    #[schema(value_type = ErrorCode)]
    pub code: &'static str,
    /// For people: what is wrong, naming the field, and what to do.
    pub message: &'a str,
}

/// Why a message on a socket, or one market of it, is refused (`docs/protocol.md#error-messages`, `docs/protocol.md#ack`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The text is not a message of the protocol.
    BadMessage,
    /// The market is outside the token's scope.
    Forbidden,
    /// The connection would have more than `MAX_MARKETS_PER_CONNECTION`.
    LimitExceeded,
    /// The client sends more than `MESSAGE_RATE` allows.
    RateLimited,
    /// The new token is not valid, or belongs to another user.
    Unauthorized,
}

impl Refusal {
    /// Returns the code as clients read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadMessage => "BAD_MESSAGE",
            Self::Forbidden => "FORBIDDEN",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::RateLimited => "RATE_LIMITED",
            Self::Unauthorized => "UNAUTHORIZED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_codes_is_complete() {
        assert!(ErrorCode::ALL.iter().enumerate().all(|(index, code)| *code as usize == index));
        assert_eq!(ErrorCode::ALL.len(), ErrorCode::ServiceUnavailable as usize + 1);
    }
}
