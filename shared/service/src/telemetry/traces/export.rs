//! The way of spans to the collector: a bounded queue, batches, OTLP over HTTP.
//!
//! `opentelemetry-otlp` encodes a batch and makes the request. [`Collector`] sends it over the client that commands use,
//! since the exporter's own clients are reqwest and one with HTTP/2. So the exporter costs two crates and less than 200 KB
//! of a binary: no TLS, no gRPC.
//!
//! The exporter's retries are off: a batch that cannot be sent is lost, and the next batch is another attempt. The
//! environment variables that it reads by itself, `OTEL_EXPORTER_OTLP_*`, have no effect.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    body::{Body, Bytes},
    http::{
        HeaderValue, Request, Response,
        header::{CONTENT_TYPE, HOST},
    },
};
use opentelemetry::Context;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
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
///
/// # Errors
/// If the exporter cannot be built.
pub(super) fn processor(
    endpoint: &Endpoint,
    counter: &'static str,
) -> Result<impl SpanProcessor + 'static, ExporterBuildError> {
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_http_client(Collector::default())
        .with_endpoint(endpoint.traces_url())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(2 * COLLECTOR_TIMEOUT)
        .with_retry_policy(RetryPolicy::disabled())
        .build()?;
    let queued = Arc::new(AtomicUsize::new(0));
    let exporter = Counted { exporter, counter, queued: Arc::clone(&queued) };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(MAX_QUEUED)
        .with_max_export_batch_size(MAX_BATCH)
        .with_scheduled_delay(BATCH_EVERY)
        .build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Ok(Bounded { batches, counter, queued })
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

/// Exports batches, and counts what became of their spans. The processor calls it on a thread of its own.
#[derive(Debug)]
struct Counted {
    exporter: OtlpExporter,
    counter: &'static str,
    queued: Arc<AtomicUsize>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        self.queued.fetch_sub(spans, Ordering::Relaxed);
        count(self.counter, if exported.is_ok() { "exported" } else { "lost" }, spans);
        exported
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

fn count(counter: &'static str, outcome: &'static str, spans: usize) {
    metrics::counter!(counter, "outcome" => outcome).increment(spans as u64);
}

/// Sends requests to the collector. It logs trouble when it begins and when it ends, not at every request.
#[derive(Debug, Default)]
struct Collector {
    is_away: AtomicBool,
}

#[async_trait]
impl HttpClient for Collector {
    /// Blocks the processor's thread, which runs no other task and is in no runtime.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sent = runtime.block_on(send(request));
        let trouble = match &sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it responds with {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        match (&trouble, self.is_away.swap(trouble.is_some(), Ordering::Relaxed)) {
            (Some(error), false) => {
                tracing::warn!(%error, "traces are lost: their collector does not take them");
            }
            (None, true) => tracing::info!("the collector takes traces again"),
            _ => {}
        }
        Ok(sent?)
    }
}

/// Sends one request on a connection of its own. The name is resolved for each: a collector may move.
async fn send(request: Request<Bytes>) -> io::Result<Response<Bytes>> {
    let (mut head, body) = request.into_parts();
    let authority = head.uri.authority().cloned().ok_or(io::ErrorKind::InvalidInput)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(io::Error::other)?;
    // Other headers come from the environment.
    let content_type = head.headers.remove(CONTENT_TYPE).map(|value| (CONTENT_TYPE, value));
    head.headers = content_type.into_iter().chain([(HOST, host)]).collect();
    head.uri = head.uri.path().parse().map_err(io::Error::other)?;
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let stream = timeout(COLLECTOR_TIMEOUT, TcpStream::connect(address)).await??;
    let exchange = async {
        let request = Request::from_parts(head, Body::from(body));
        Connection::open(stream).await?.send(request, MAX_RESPONSE_BYTES).await
    };
    timeout(COLLECTOR_TIMEOUT, exchange).await?
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn a_request_has_no_headers_from_the_environment() {
        let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = collector.local_addr().unwrap();
        let request = Request::post(format!("http://{address}/v1/traces"))
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header("authorization", "Bearer hush")
            .body(Bytes::from_static(b"spans"))
            .unwrap();
        let received = async {
            let (mut stream, _) = collector.accept().await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"spans") {
                assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(text).unwrap()
        };
        let (sent, text) = tokio::join!(send(request), received);
        assert_eq!(sent.unwrap().status(), 200);
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.remove(0), "POST /v1/traces HTTP/1.1");
        lines.sort_unstable();
        let host = format!("host: {address}");
        assert_eq!(lines, ["", "content-length: 5", "content-type: application/x-protobuf", &host, "spans"]);
    }
}
