//! An OpenTelemetry collector that keeps the traces that it receives over HTTP.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::wait::eventually;

/// A collector on a port of its own. Dropping it stops it.
#[derive(Debug)]
pub struct Collector {
    port: u16,
    received: Arc<Mutex<Received>>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    bodies: Vec<Bytes>,
}

/// A span, as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The service that sent it.
    pub service: String,
    /// The id of its trace, in hexadecimal.
    pub trace: String,
    /// Its own id, in hexadecimal.
    pub id: String,
    /// The id of its parent span; empty without a parent.
    pub parent: String,
    /// The span's name.
    pub name: String,
    /// The span's attributes.
    pub attributes: BTreeMap<String, String>,
    /// When it began and when it ended, in Unix nanoseconds.
    pub time_ns: (u64, u64),
    /// Whether its status is an error.
    pub failed: bool,
}

impl Collector {
    /// Starts a collector on a free port.
    pub async fn start() -> Self {
        Self::at(0).await
    }

    /// Starts a collector on this port.
    pub async fn at(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port to collect traces on");
        let port = listener.local_addr().expect("it is bound").port();
        let received = Arc::<Mutex<Received>>::default();
        let routes = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&received));
        let serving = tokio::spawn(async move {
            axum::serve(listener, routes).await.expect("serving does not fail");
        });
        Self { port, received, serving }
    }

    /// The value of `OTLP_ENDPOINT` for this collector.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every span received so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.received).spans.clone()
    }

    /// Waits until the trace has a span for each of these names, and returns them in this order.
    pub async fn trace<const N: usize>(&self, trace: &str, names: [&str; N]) -> [Span; N] {
        eventually(&format!("the spans {names:?} of {trace}"), async || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace == trace);
            let take = |name: &str| {
                let index = spans.iter().position(|span| span.name == name)?;
                Some(spans.remove(index))
            };
            let taken: Vec<Span> = names.into_iter().map_while(take).collect();
            taken.try_into().ok()
        })
        .await
    }

    /// Everything received so far, as text.
    #[must_use]
    pub fn said(&self) -> String {
        lock(&self.received).bodies.iter().map(|body| String::from_utf8_lossy(body).into_owned()).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(State(received): State<Arc<Mutex<Received>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("OTLP");
    let mut received = lock(&received);
    received.bodies.push(body);
    for of_resource in request.resource_spans {
        let resource =
            attributes(of_resource.resource.expect("a resource with the service's name").attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.spans.push(read(resource["service.name"].clone(), span));
        }
    }
    StatusCode::OK
}

fn read(service: String, span: v1::Span) -> Span {
    Span {
        service,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        attributes: attributes(span.attributes),
        time_ns: (span.start_time_unix_nano, span.end_time_unix_nano),
        failed: span.status.is_some_and(|status| status.code() == v1::status::StatusCode::Error),
    }
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("an attribute is text or a number: {other:?}"),
    };
    let value = |pair: KeyValue| Some((pair.key, text(pair.value?.value?)));
    pairs.into_iter().filter_map(value).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}
