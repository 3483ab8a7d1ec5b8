//! Errors of a backbone, and what an error of Redis says about the command that failed.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

/// The backbone failed.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// Redis is unreachable, or it rejected the command.
    #[error("redis: {0}")]
    Redis(#[from] RedisError),
    /// A key holds something that this version does not understand.
    #[error("{key}: {problem}")]
    Malformed {
        /// The key in Redis.
        key: String,
        /// What is wrong with its content.
        problem: String,
    },
}

impl BackboneError {
    /// Returns true if other calls would fail as well. Otherwise only this call is affected.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Redis(error) => is_outage(error),
            Self::Malformed { .. } => false,
        }
    }

    /// Returns true if an append that failed this way appended nothing for certain: it is safe to send again.
    #[must_use]
    pub fn certainly_did_nothing(&self) -> bool {
        match self {
            Self::Redis(error) => {
                error.is_connection_refusal()
                    || error.code().is_some_and(|code| REJECTED_BEFORE_WRITING.contains(&code))
            }
            Self::Malformed { .. } => false,
        }
    }
}

/// Codes with which Redis rejects a script before the script's first write.
const REJECTED_BEFORE_WRITING: [&str; 12] = [
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "NOSCRIPT",
    "NOAUTH",
];

/// Returns true if other commands would fail as well. Otherwise Redis rejected only this command, or its reply cannot be
/// understood.
pub(crate) fn is_outage(error: &RedisError) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::ResponseError)
            | ErrorKind::Parse
            | ErrorKind::UnexpectedReturnType
            | ErrorKind::Extension
    )
}

/// Returns true if a node rejected a command without executing it, since another node is responsible now or soon. The
/// command is safe to send again.
pub(crate) fn is_misdirected(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::ClusterDown
        )
    )
}

/// Returns the error for a command of a pipeline that got no reply.
pub(crate) fn missing_reply() -> RedisError {
    (ErrorKind::Client, "Redis sent fewer replies than it got commands").into()
}
