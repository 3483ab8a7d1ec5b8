//! Error responses, and the one table from each operation's errors to their codes (`docs/protocol.md#errors`).

use axum::response::{IntoResponse, Response};
use protocol::{
    Seq,
    error::{ErrorBody, ErrorCode},
    overrides::InvalidOverride,
    schema::always,
};
use serde::Serialize;
use service::http::{body::BodyError, refuse};
use utoipa::ToSchema;

use crate::{
    append::NotAppended,
    audit::InvalidAuditQuery,
    audit_reader::AuditError,
    auth::Refused,
    batch::{InvalidBatch, ItemError},
    markets::{InvalidMarketsQuery, InvalidStatus, MarketsError, StatusNotSet},
    request::InvalidRequest,
    revoke::{InvalidRevocation, NotRevoked},
};

/// Any response but a 200.
#[derive(Debug)]
pub(crate) struct Problem {
    code: ErrorCode,
    message: String,
    current_seq: Option<Seq>,
}

impl Problem {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), current_seq: None }
    }

    /// Returns the result of an item that failed alone.
    pub(crate) fn item(&self) -> ProblemItem<'_> {
        ProblemItem { ok: false, problem: self.body() }
    }

    fn body(&self) -> ProblemBody<'_> {
        let error = ErrorBody { code: self.code.as_str(), message: &self.message };
        ProblemBody { error, current_seq: self.current_seq }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        refuse(self.code, &self.body())
    }
}

/// `{"code":"…","message":"…"}`; a `CONFLICT` adds `currentSeq`.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, description = "An error.")]
pub(crate) struct ProblemBody<'a> {
    #[serde(flatten)]
    error: ErrorBody<'a>,
    /// With `CONFLICT` only: the market's current seq.
    #[serde(rename = "currentSeq", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    current_seq: Option<Seq>,
}

/// `{"ok":false,"code":"…","message":"…"}`.
#[derive(Serialize, ToSchema)]
#[schema(description = "An item that failed alone.")]
pub(crate) struct ProblemItem<'a> {
    #[schema(schema_with = always::<false>)]
    ok: bool,
    #[serde(flatten)]
    problem: ProblemBody<'a>,
}

/// The table for errors whose message is the response's.
macro_rules! problems {
    ($($error:ty: { $($pattern:pat => $code:ident),+ $(,)? })+) => {$(
        impl From<$error> for Problem {
            fn from(error: $error) -> Self {
                use ErrorCode::*;

                let code = match &error { $($pattern => $code),+ };
                Self::new(code, error.to_string())
            }
        }
    )+};
}

problems! {
    Refused: {
        Refused::Token(_) => Unauthorized,
        Refused::Role { .. } => Forbidden,
    }
    BodyError: {
        BodyError::TooLarge { .. } => PayloadTooLarge,
        BodyError::Broken | BodyError::TooSlow => BadRequest,
    }
    InvalidRequest: { _ => BadRequest }
    InvalidOverride: {
        InvalidOverride::TooLarge => PayloadTooLarge,
        InvalidOverride::Reason | InvalidOverride::Payload(_) => Unprocessable,
        _ => BadRequest,
    }
    InvalidBatch: {
        InvalidBatch::NotUtf8 | InvalidBatch::Json(_) => BadRequest,
        InvalidBatch::TooManyItems => PayloadTooLarge,
    }
    InvalidAuditQuery: { _ => BadRequest }
    InvalidMarketsQuery: { _ => BadRequest }
    InvalidStatus: {
        InvalidStatus::Reason => Unprocessable,
        InvalidStatus::TooMany => PayloadTooLarge,
        InvalidStatus::Json(_) | InvalidStatus::Which => BadRequest,
    }
    InvalidRevocation: { _ => BadRequest }
    NotRevoked: { _ => ServiceUnavailable }
}

impl From<NotAppended> for Problem {
    fn from(error: NotAppended) -> Self {
        let code = match error {
            NotAppended::Conflict { .. } => ErrorCode::Conflict,
            NotAppended::KeyReused => ErrorCode::Unprocessable,
            NotAppended::Unreachable
            | NotAppended::Unknown { .. }
            | NotAppended::NotReplicated { .. }
            | NotAppended::NotSent => ErrorCode::ServiceUnavailable,
        };
        let current_seq =
            if let NotAppended::Conflict { current } = error { Some(current.seq) } else { None };
        Self { current_seq, ..Self::new(code, error.to_string()) }
    }
}

impl From<ItemError> for Problem {
    fn from(error: ItemError) -> Self {
        match error {
            ItemError::Invalid(error) => error.into(),
            ItemError::NotAppended(error) => error.into(),
        }
    }
}

impl From<StatusNotSet> for Problem {
    fn from(error: StatusNotSet) -> Self {
        let code = match error {
            StatusNotSet::NotAppended(error) => return error.into(),
            StatusNotSet::NotPublished => ErrorCode::NotFound,
            StatusNotSet::Unavailable => ErrorCode::ServiceUnavailable,
            StatusNotSet::Unreadable(_) | StatusNotSet::Payload(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// Logs the error. The response does not show what the backbone or Postgres reported.
impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        tracing::error!(%error, "audit cannot be read");
        match error {
            AuditError::Copy(_) => Self::new(
                ErrorCode::ServiceUnavailable,
                "the audit of all markets cannot be read now: retry, or ask for one market's with marketId",
            ),
            AuditError::TimedOut | AuditError::Backbone(_) => {
                Self::new(ErrorCode::ServiceUnavailable, "the audit cannot be read now: retry")
            }
            AuditError::Malformed(_) => {
                Self::new(ErrorCode::Internal, "an audit entry cannot be read; the log says why")
            }
        }
    }
}

/// Logs the error. The response does not show what the backbone reported.
impl From<MarketsError> for Problem {
    fn from(error: MarketsError) -> Self {
        tracing::error!(%error, "markets cannot be read");
        match error {
            MarketsError::TimedOut | MarketsError::Backbone(_) => StatusNotSet::Unavailable.into(),
            MarketsError::Malformed(_) => {
                Self::new(ErrorCode::Internal, "a market cannot be read; the log says why")
            }
        }
    }
}
