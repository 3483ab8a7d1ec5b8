//! Appends overrides to their markets' logs, and says of each what became of it.

use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use backbone::{Append, AppendError, Appended, Backbone, Idempotency};
use protocol::{Position, TraceContext, overrides::Override};
use service::telemetry::traces::{self, Span, SpanKind};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};

use crate::metrics;

/// How long an append may take before its outcome counts as unknown. It is longer than the backbone's own timeouts,
/// whose errors say more.
const APPEND_TIMEOUT: Duration = Duration::from_secs(8);

/// Who sends overrides, and in which request.
#[derive(Clone, Debug)]
pub struct Sender<'a> {
    /// Their token's `sub`.
    pub actor: &'a str,
    /// The HTTP request's id.
    pub request_id: &'a str,
    /// The HTTP request's span, where it is traced.
    pub trace: Option<TraceContext>,
}

impl Sender<'_> {
    /// Returns what the backbone has to do for this sender's override.
    #[must_use]
    pub fn append(&self, wanted: Override, idempotency: Option<Idempotency>) -> Append {
        Append {
            market: wanted.market,
            payload: wanted.payload,
            expected_seq: wanted.expected_seq,
            idempotency,
            actor: self.actor.to_owned(),
            reason: wanted.reason,
            request_id: self.request_id.to_owned(),
            trace: self.trace.clone(),
        }
    }
}

/// A digest of who asks what, so that an idempotency key is good for nothing else.
#[must_use]
pub fn idempotency(key: String, actor: &str, text: &[u8]) -> Idempotency {
    let mut digest = Sha256::new();
    // The length keeps an actor's end and a text's beginning apart.
    digest.update(actor.len().to_be_bytes());
    digest.update(actor);
    digest.update(text);
    Idempotency { key, fingerprint: format!("{:x}", Bytes::copy_from_slice(&digest.finalize())) }
}

/// Appends, in one round trip, and counts what became of each. The answers come in the order of `appends`.
pub async fn submit(backbone: &dyn Backbone, mut appends: Vec<Append>) -> Vec<Result<Appended, NotAppended>> {
    let request = Request::of(&appends);
    let span = request.trace.as_ref().and_then(|context| trace(context, &mut appends));
    let keyed: Vec<bool> = appends.iter().map(|append| append.idempotency.is_some()).collect();
    let started = Instant::now();
    let answer = timeout(APPEND_TIMEOUT, backbone.append(appends)).await;
    ::metrics::histogram!(metrics::APPEND_SECONDS).record(started.elapsed());
    let results: Vec<Result<Appended, NotAppended>> = if let Ok(results) = answer {
        let known = |(result, keyed): (Result<_, _>, bool)| {
            result.map_err(|error| NotAppended::new(error, keyed, &request))
        };
        results.into_iter().zip(keyed).map(known).collect()
    } else {
        tracing::error!(
            request_id = request.id,
            trace_id = request.trace_id(),
            overrides = keyed.len(),
            after_s = APPEND_TIMEOUT.as_secs(),
            "append timed out"
        );
        keyed.into_iter().map(|keyed| Err(NotAppended::Unknown { keyed })).collect()
    };
    for result in &results {
        metrics::count_override(match result {
            Ok(Appended { replayed: false, .. }) => "appended",
            Ok(Appended { replayed: true, .. }) => "replayed",
            Err(not_appended) => not_appended.outcome(),
        });
    }
    if let Some(mut span) = span
        && results.iter().flat_map(Result::as_ref).next().is_none()
    {
        span.fail();
    }
    results
}

/// The request that some appends came in, for the log.
#[derive(Default)]
struct Request {
    id: String,
    trace: Option<TraceContext>,
}

impl Request {
    fn of(appends: &[Append]) -> Self {
        appends.first().map_or_else(Self::default, |append| Self {
            id: append.request_id.clone(),
            trace: append.trace.clone(),
        })
    }

    fn trace_id(&self) -> Option<&str> {
        self.trace.as_ref().map(TraceContext::trace_id)
    }
}

/// The span of these appends, which go on from it.
fn trace(request: &TraceContext, appends: &mut [Append]) -> Option<Span> {
    let mut span = traces::child(request, "append", SpanKind::Client, SystemTime::now())?;
    span.set("kmarket.overrides", i64::try_from(appends.len()).unwrap_or(i64::MAX));
    if let [append] = appends {
        span.set("kmarket.market", append.market.to_string());
    }
    for append in appends {
        append.trace = Some(span.context());
    }
    Some(span)
}

/// Why an override is not, or may not be, in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAppended {
    /// The market is elsewhere.
    #[error("expectedSeq: the market is at seq {}", current.seq)]
    Conflict {
        /// Where it is.
        current: Position,
    },
    /// The key stands for another request.
    #[error("Idempotency-Key: it was used for a different request")]
    KeyReused,
    /// No connection could be had.
    #[error("the log is out of reach; nothing was appended: retry")]
    Unreachable,
    /// No answer came.
    #[error("{}", Self::unknown(*keyed))]
    Unknown {
        /// Whether the request had an idempotency key.
        keyed: bool,
    },
    /// It is in the log, but too few replicas have it.
    #[error(
        "appended as seq {}, but only {replicas} of {wanted} replicas have it, so that a failover may lose it: retry with \
         the same Idempotency-Key to wait for them again", position.seq
    )]
    NotReplicated {
        /// Where it stands.
        position: Position,
        /// How many have it.
        replicas: usize,
        /// How many should.
        wanted: usize,
    },
    /// An earlier part of the same batch had no answer.
    #[error("the log is out of reach; this override was not sent to it: retry")]
    NotSent,
}

impl NotAppended {
    fn new(error: AppendError, keyed: bool, request: &Request) -> Self {
        match error {
            AppendError::Conflict { current } => Self::Conflict { current },
            AppendError::KeyReused => Self::KeyReused,
            AppendError::NotReplicated { position, replicas, wanted } => {
                Self::NotReplicated { position, replicas, wanted }
            }
            AppendError::Backbone(error) => {
                tracing::error!(
                    request_id = request.id,
                    trace_id = request.trace_id(),
                    %error,
                    "append failed"
                );
                if error.certainly_did_nothing() { Self::Unreachable } else { Self::Unknown { keyed } }
            }
        }
    }

    /// Whether the backbone is to blame, not the override.
    #[must_use]
    pub const fn is_unavailable(self) -> bool {
        matches!(self, Self::Unreachable | Self::Unknown { .. } | Self::NotSent)
    }

    /// The value of the label `outcome`.
    const fn outcome(self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::KeyReused => "key_reused",
            Self::NotReplicated { .. } => "not_replicated",
            Self::Unreachable | Self::Unknown { .. } | Self::NotSent => "unavailable",
        }
    }

    const fn unknown(keyed: bool) -> &'static str {
        if keyed {
            "outcome unknown: retry with the same Idempotency-Key; the override may have been appended"
        } else {
            "outcome unknown: the override may have been appended; look into the audit before sending it again, \
             and send an Idempotency-Key to make retries safe"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_tells_actors_and_texts_apart() {
        let fingerprint =
            |actor: &str, text: &str| idempotency("k".into(), actor, text.as_bytes()).fingerprint;
        assert_eq!(fingerprint("a", "b"), fingerprint("a", "b"));
        assert_eq!(fingerprint("a", "b").len(), 64);
        for (actor, text) in [("a", "c"), ("c", "b"), ("ab", ""), ("", "ab")] {
            assert_ne!(fingerprint("a", "b"), fingerprint(actor, text));
        }
    }
}
