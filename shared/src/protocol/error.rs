//! The codes of everything that is refused, over HTTP and in the socket.

use serde::Serialize;

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
    /// Code and HTTP status.
    const fn row(self) -> (&'static str, u16) {
        match self {
            Self::BadRequest => ("BAD_REQUEST", 400),
            Self::Unauthorized => ("UNAUTHORIZED", 401),
            Self::Forbidden => ("FORBIDDEN", 403),
            Self::NotFound => ("NOT_FOUND", 404),
            Self::MethodNotAllowed => ("METHOD_NOT_ALLOWED", 405),
            Self::Conflict => ("CONFLICT", 409),
            Self::PayloadTooLarge => ("PAYLOAD_TOO_LARGE", 413),
            Self::Unprocessable => ("UNPROCESSABLE", 422),
            Self::UpgradeRequired => ("UPGRADE_REQUIRED", 426),
            Self::RateLimited => ("RATE_LIMITED", 429),
            Self::HeaderTooLarge => ("HEADER_TOO_LARGE", 431),
            Self::Internal => ("INTERNAL", 500),
            Self::ServiceUnavailable => ("SERVICE_UNAVAILABLE", 503),
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
}

/// The body of every HTTP error.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody<'a> {
    /// An [`ErrorCode`].
    pub code: &'static str,
    /// What is wrong, naming the field, and what to do.
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
