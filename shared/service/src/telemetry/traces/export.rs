//! The way of spans to the collector: a bounded queue, batches, OTLP over HTTP.
//!
//! `opentelemetry-proto` encodes a batch, and [`Collector`] posts it over the client that commands use. A batch that cannot
//! be sent is lost, and the next batch is another attempt.
//!
//! Rejected: `opentelemetry-otlp`. It takes headers and a compression from `OTEL_EXPORTER_OTLP_*` in the environment, which
//! no setting of ours can turn off, and it needs as many lines here.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        Request,
        header::{CONTENT_TYPE, HOST},
    },
};
use opentelemetry::Context;
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{
        common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use prost::Message;
use tokio::{net::TcpStream, time::timeout};

use super::settings::Endpoint;
use crate::http::client::Connection;

/// Spans that may wait for the collector. Further ones are lost.
pub(super) const MAX_QUEUED: usize = 4096;
/// Spans in one request to the collector.
const MAX_BATCH: usize = 512;
/// How long a span waits for others that are sent with it.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take to accept a connection, and then to respond.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest response of the collector, bytes. It says little beyond its status.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The outcomes of a span: the values of the label `outcome`.
pub const SPAN_OUTCOMES: [&str; 2] = ["exported", "lost"];

/// Returns a processor that sends ended spans to `endpoint`, and counts them as `counter` by outcome.
pub(super) fn processor(endpoint: &Endpoint, counter: &'static str) -> impl SpanProcessor + 'static {
    let queued = Arc::new(AtomicUsize::new(0));
    let collector = Collector {
        endpoint: endpoint.clone(),
        resource: ResourceAttributesWithSchema::default(),
        counter,
        queued: Arc::clone(&queued),
        is_away: AtomicBool::new(false),
    };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(MAX_QUEUED)
        .with_max_export_batch_size(MAX_BATCH)
        .with_scheduled_delay(BATCH_EVERY)
        .build();
    let batches = BatchSpanProcessor::builder(collector).with_batch_config(config).build();
    Bounded { batches, counter, queued }
}

/// A queue that counts the spans it loses. The processor behind it has a queue of the same size, and does not count.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    counter: &'static str,
    queued: Arc<AtomicUsize>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let room = |queued| (queued < MAX_QUEUED).then_some(queued + 1);
        if self.queued.try_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
            self.batches.on_end(span);
        } else {
            count(self.counter, "lost", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Sends batches, and counts what became of their spans. It logs trouble when it begins and when it ends, not at every
/// batch.
#[derive(Debug)]
struct Collector {
    endpoint: Endpoint,
    resource: ResourceAttributesWithSchema,
    counter: &'static str,
    queued: Arc<AtomicUsize>,
    is_away: AtomicBool,
}

impl SpanExporter for Collector {
    /// Blocks the processor's thread, which runs no other task and is in no runtime.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let sent = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .and_then(|runtime| runtime.block_on(post(&self.endpoint, body)));
        self.queued.fetch_sub(spans, Ordering::Relaxed);
        count(self.counter, if sent.is_ok() { "exported" } else { "lost" }, spans);
        match (&sent, self.is_away.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(%error, "traces are lost: their collector does not take them");
            }
            (Ok(()), true) => tracing::info!("the collector takes traces again"),
            _ => {}
        }
        sent.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

fn count(counter: &'static str, outcome: &'static str, spans: usize) {
    metrics::counter!(counter, "outcome" => outcome).increment(spans as u64);
}

/// Posts one batch on a connection of its own. The name is resolved for each: a collector may move.
async fn post(endpoint: &Endpoint, body: Vec<u8>) -> io::Result<()> {
    let (host, port) = (endpoint.host(), endpoint.port());
    let request = Request::post(endpoint.traces_path())
        .header(HOST, format!("{host}:{port}"))
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(Body::from(body))
        .map_err(io::Error::other)?;
    let address = (host.trim_matches(['[', ']']), port);
    let stream = timeout(COLLECTOR_TIMEOUT, TcpStream::connect(address)).await??;
    let exchange = async { Connection::open(stream).await?.send(request, MAX_RESPONSE_BYTES).await };
    let status = timeout(COLLECTOR_TIMEOUT, exchange).await??.status();
    if status.is_success() { Ok(()) } else { Err(io::Error::other(format!("it responds with {status}"))) }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::settings::FromSetting;

    #[tokio::test]
    async fn a_request_has_these_headers_and_no_others() {
        let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = collector.local_addr().unwrap();
        let endpoint = Endpoint::parse(&format!("http://{address}")).unwrap();
        let received = async {
            let (mut stream, _) = collector.accept().await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"spans") {
                assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(text).unwrap()
        };
        let (sent, text) = tokio::join!(post(&endpoint, b"spans".to_vec()), received);
        sent.unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.remove(0), "POST /v1/traces HTTP/1.1");
        lines.sort_unstable();
        let host = format!("host: {address}");
        assert_eq!(lines, ["", "content-length: 5", "content-type: application/x-protobuf", &host, "spans"]);
    }
}
