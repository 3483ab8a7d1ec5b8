//! The codes of everything that is refused, over HTTP and in the socket.

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, RefOr, Schema, Type},
};

/// Why an HTTP request is refused (contract, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// Wrong shape.
    BadRequest,
    /// No good token.
    Unauthorized,
    /// A good token that does not allow this.
    Forbidden,
    /// No such route.
    NotFound,
    /// The route has no such method.
    MethodNotAllowed,
    /// Not what the caller believed it was.
    Conflict,
    /// More than is read.
    PayloadTooLarge,
    /// Right shape, wrong content.
    Unprocessable,
    /// An upgrade of another kind is needed.
    UpgradeRequired,
    /// Too often.
    RateLimited,
    /// A longer request line and headers than are read.
    HeaderTooLarge,
    /// Our fault.
    Internal,
    /// Not now.
    ServiceUnavailable,
}

impl ErrorCode {
    /// All of them.
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

    /// Code, HTTP status, and what it means.
    const fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::BadRequest => ("BAD_REQUEST", 400, "wrong shape"),
            Self::Unauthorized => ("UNAUTHORIZED", 401, "no good token"),
            Self::Forbidden => ("FORBIDDEN", 403, "a good token that does not allow this"),
            Self::NotFound => ("NOT_FOUND", 404, "no such path"),
            Self::MethodNotAllowed => ("METHOD_NOT_ALLOWED", 405, "the path has no such method"),
            Self::Conflict => ("CONFLICT", 409, "the market is not at `expectedSeq`"),
            Self::PayloadTooLarge => ("PAYLOAD_TOO_LARGE", 413, "more than is read"),
            Self::Unprocessable => ("UNPROCESSABLE", 422, "right shape, wrong content"),
            Self::UpgradeRequired => ("UPGRADE_REQUIRED", 426, "no WebSocket handshake"),
            Self::RateLimited => ("RATE_LIMITED", 429, "too often"),
            Self::HeaderTooLarge => ("HEADER_TOO_LARGE", 431, "the request's head is longer than is read"),
            Self::Internal => ("INTERNAL", 500, "our fault"),
            Self::ServiceUnavailable => ("SERVICE_UNAVAILABLE", 503, "not now"),
        }
    }

    /// The code as clients read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.row().1
    }

    /// What it means, in a few words.
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

/// What is wrong with a JSON text, without the strings that serde shows of it: there may be a token in the wrong place.
#[must_use]
pub fn json_problem(error: &serde_json::Error) -> String {
    let problem = error.to_string();
    match (problem.find('"'), problem.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &problem[..first], &problem[last + 1..])
        }
        _ => problem,
    }
}

/// Why a message in the socket, or one market of it, is refused (contract, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a message of the contract.
    BadMessage,
    /// Outside the token's scope.
    Forbidden,
    /// More than `MAX_MARKETS_PER_CONNECTION`.
    LimitExceeded,
    /// More often than `MESSAGE_RATE`.
    RateLimited,
    /// The new token is not good, or somebody else's.
    Unauthorized,
}

impl Refusal {
    /// The code as clients read it.
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
    fn all_codes_are_all_of_them() {
        assert!(ErrorCode::ALL.iter().enumerate().all(|(index, code)| *code as usize == index));
        assert_eq!(ErrorCode::ALL.len(), ErrorCode::ServiceUnavailable as usize + 1);
    }

    #[test]
    fn a_json_problem_shows_no_string_of_the_text() {
        for (text, problem) in [
            (r#""hush, \" hush""#, "invalid type: string …, expected u64 at line 1 column 15"),
            ("[]", "invalid type: sequence, expected u64 at line 1 column 0"),
            ("{", "invalid type: map, expected u64 at line 1 column 0"),
        ] {
            let error = serde_json::from_str::<u64>(text).unwrap_err();
            assert_eq!(json_problem(&error), problem);
        }
    }
}
