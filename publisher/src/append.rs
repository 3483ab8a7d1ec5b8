//! Appends overrides to their markets' logs. Single overrides, batches and changes of a market's status all come here.

use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use backbone::{Append, AppendError, Appended, Backbone, Idempotency};
use protocol::{Position, TraceContext, overrides::Override};
use service::{
    settings::Setting,
    telemetry::traces::{self, Span, SpanKind},
};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};

use crate::metrics;

/// Redis replicas that must have an override before it is acknowledged.
pub(crate) const PUBLISH_MIN_REPLICAS: Setting<usize> = Setting::new(
    "PUBLISH_MIN_REPLICAS",
    "0",
    "Redis replicas that must have an override before it is acknowledged",
);
/// How long an append may take before its outcome counts as unknown. The backbone's own timeouts are shorter, and their
/// errors say more.
const APPEND_TIMEOUT: Duration = Duration::from_secs(8);

/// The actor and the request behind some overrides.
#[derive(Clone, Debug)]
pub(crate) struct Sender<'a> {
    /// The `sub` of the request's token.
    pub(crate) actor: &'a str,
    pub(crate) request_id: &'a str,
    /// The span of the HTTP request, if the request is traced.
    pub(crate) trace: Option<TraceContext>,
}

impl Sender<'_> {
    /// Returns the command that appends this sender's override.
    #[must_use]
    pub(crate) fn append(&self, parsed: Override, idempotency: Option<Idempotency>) -> Append {
        Append {
            market: parsed.market,
            payload: parsed.payload,
            expected_seq: parsed.expected_seq,
            idempotency,
            actor: self.actor.to_owned(),
            reason: parsed.reason,
            request_id: self.request_id.to_owned(),
            trace: self.trace.clone(),
        }
    }
}

/// Returns the key with a digest of actor and text. The backbone refuses the key for any other actor or text.
#[must_use]
pub(crate) fn idempotency(key: String, actor: &str, text: &[u8]) -> Idempotency {
    let mut digest = Sha256::new();
    // The length separates the actor from the text.
    digest.update(actor.len().to_be_bytes());
    digest.update(actor);
    digest.update(text);
    Idempotency { key, fingerprint: format!("{:x}", Bytes::copy_from_slice(&digest.finalize())) }
}

/// Appends in one round trip. Returns one result per append, in order, and counts each by its outcome.
pub(crate) async fn submit(
    backbone: &dyn Backbone,
    mut appends: Vec<Append>,
) -> Vec<Result<Appended, NotAppended>> {
    let request = Request::of(&appends);
    let span = request.trace.as_ref().and_then(|context| begin_span(context, &mut appends));
    let keyed: Vec<bool> = appends.iter().map(|append| append.idempotency.is_some()).collect();
    let started = Instant::now();
    let replied = timeout(APPEND_TIMEOUT, backbone.append(appends)).await;
    ::metrics::histogram!(metrics::APPEND_SECONDS).record(started.elapsed());
    let results: Vec<Result<Appended, NotAppended>> = if let Ok(results) = replied {
        let explained = |(result, keyed): (Result<_, _>, bool)| {
            result.map_err(|error| NotAppended::new(error, keyed, &request))
        };
        results.into_iter().zip(keyed).map(explained).collect()
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

/// The request that contained some appends, for log messages.
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

/// Begins a span for these appends if their request is traced, and makes it their parent.
fn begin_span(request: &TraceContext, appends: &mut [Append]) -> Option<Span> {
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

/// Why an override is not acknowledged. It may be in the log all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAppended {
    /// The market is not at the expected seq.
    #[error("expectedSeq: the market is at seq {}", current.seq)]
    Conflict { current: Position },
    /// The idempotency key belongs to another request.
    #[error("Idempotency-Key: it was used for a different request")]
    KeyReused,
    /// The backbone certainly did nothing.
    #[error("the log is out of reach; nothing was appended: retry")]
    Unreachable,
    /// The backbone did not reply, or the connection broke meanwhile.
    #[error("{}", Self::unknown(*keyed))]
    Unknown {
        /// Whether the request had an idempotency key.
        keyed: bool,
    },
    /// The override is in the log, but too few replicas have it.
    #[error(
        "appended as seq {}, but only {replicas} of {wanted} replicas have it, so that a failover may lose it: retry with \
         the same Idempotency-Key to wait for them again", position.seq
    )]
    NotReplicated {
        position: Position,
        /// How many replicas have it.
        replicas: usize,
        /// [`PUBLISH_MIN_REPLICAS`].
        wanted: usize,
    },
    /// An earlier chunk of the same request found the backbone unavailable.
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

    /// Returns true if the backbone is the cause, not the override.
    #[must_use]
    pub(crate) const fn is_unavailable(self) -> bool {
        matches!(self, Self::Unreachable | Self::Unknown { .. } | Self::NotSent)
    }

    /// Returns the value of the label `outcome`.
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
    fn a_fingerprint_differs_by_actor_and_by_text() {
        let fingerprint =
            |actor: &str, text: &str| idempotency("k".into(), actor, text.as_bytes()).fingerprint;
        assert_eq!(fingerprint("a", "b"), fingerprint("a", "b"));
        assert_eq!(fingerprint("a", "b").len(), 64);
        for (actor, text) in [("a", "c"), ("c", "b"), ("ab", ""), ("", "ab")] {
            assert_ne!(fingerprint("a", "b"), fingerprint(actor, text));
        }
    }
}
