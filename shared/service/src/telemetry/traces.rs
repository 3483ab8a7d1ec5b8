//! Traces: where one override's time went, told to an OpenTelemetry collector. Off unless `OTLP_ENDPOINT` is set.
//!
//! ```text
//!   request ─▶ append ─▶ (the entry in the log: field `t`) ─▶ read ─▶ deliver, one for each shard
//!   └──── publisher ────┘                                    └───────── gateway ─────────┘
//! ```
//!
//! A [`TraceContext`] is there only where a trace is sampled: everything else costs one branch. Nothing waits for the collector:
//! a span is put into a queue, and lost when that is full.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::http::Uri;
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span as _, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{
        common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    propagation::TraceContextPropagator,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData,
        SpanExporter, SpanProcessor,
    },
};
use prost::Message;

pub use opentelemetry::trace::SpanKind;

use protocol::TraceContext;

use crate::settings::{FromSetting, Setting, Settings};

/// Spans that wait for the collector; further ones are lost.
const MAX_QUEUED: usize = 4096;
/// Spans in one request to the collector.
const MAX_BATCH: usize = 512;
/// How long a span waits for others to go with it.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take for each step of a request.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the end of a process may wait for the collector.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// The port of a collector whose address names none.
const COLLECTOR_PORT: u16 = 4318;
/// What may become of a span: the values of the label `outcome`.
pub const SPAN_OUTCOMES: [&str; 2] = ["exported", "lost"];

/// Where traces go.
pub const OTLP_ENDPOINT: Setting<Endpoint> = Setting::new(
    "OTLP_ENDPOINT",
    "",
    "OpenTelemetry collector that traces are sent to over HTTP, such as http://127.0.0.1:4318; not set = no traces",
);
/// How many requests begin one.
pub const OTLP_SAMPLE_RATIO: Setting<Ratio> = Setting::new(
    "OTLP_SAMPLE_RATIO",
    "0.01",
    "share of admin requests, from 0 to 1, that begin a trace; one with a traceparent header does what that says",
);

/// What [`OTLP_ENDPOINT`] and [`OTLP_SAMPLE_RATIO`] say.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    endpoint: Endpoint,
    ratio: f64,
}

impl TraceSettings {
    /// `None`: no traces.
    pub fn read(settings: &mut Settings) -> Option<Self> {
        let Ratio(ratio) = settings.value(&OTLP_SAMPLE_RATIO);
        Some(Self { endpoint: settings.optional(&OTLP_ENDPOINT)?, ratio })
    }
}

/// A collector's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

impl FromSetting for Endpoint {
    fn parse(text: &str) -> Result<Self, String> {
        // Not repeated: what a user writes before an @ is a password.
        let wrong = || "write http://host:4318".to_owned();
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(wrong)?;
        if uri.scheme_str() != Some("http") || uri.query().is_some() {
            return Err(wrong());
        }
        let path = format!("{}/v1/traces", uri.path().trim_end_matches('/'));
        let port = authority.port_u16().unwrap_or(COLLECTOR_PORT);
        Ok(Self { host: authority.host().to_owned(), port, path })
    }
}

impl Endpoint {
    fn post(&self, body: &[u8]) -> io::Result<()> {
        let Self { host, port, path } = self;
        // Asked for each time: a collector may move.
        let address = (host.trim_matches(['[', ']']), *port).to_socket_addrs()?.next();
        let address = address.ok_or_else(|| io::Error::other("its name has no address"))?;
        let mut socket = TcpStream::connect_timeout(&address, COLLECTOR_TIMEOUT)?;
        socket.set_read_timeout(Some(COLLECTOR_TIMEOUT))?;
        socket.set_write_timeout(Some(COLLECTOR_TIMEOUT))?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/x-protobuf\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes())?;
        socket.write_all(body)?;
        let mut status = String::new();
        BufReader::new(socket.take(1024)).read_line(&mut status)?;
        let accepted = status.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
        if accepted { Ok(()) } else { Err(io::Error::other(format!("it answers {:?}", status.trim_end()))) }
    }
}

/// A share from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub struct Ratio(f64);

impl FromSetting for Ratio {
    fn parse(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Self(ratio)),
            _ => Err(format!("{text:?} is not from 0 to 1")),
        }
    }
}

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// What ends with the process: spans that wait are sent then.
#[derive(Debug)]
pub struct Traces(Option<SdkTracerProvider>);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // A collector that is away has been logged already.
            let _ = provider.shutdown_with_timeout(END_TIMEOUT);
        }
    }
}

/// Begins to send traces as `service`, and to count their spans as `counter`. Once a process.
#[must_use]
pub fn init_traces(service: &'static str, counter: &'static str, settings: Option<&TraceSettings>) -> Traces {
    let Some(settings) = settings else { return Traces(None) };
    let provider = provider(service, counter, settings);
    let _ = TRACER.set(provider.tracer(service));
    let TraceSettings { endpoint, ratio } = settings;
    tracing::info!(host = endpoint.host, port = endpoint.port, ratio, "traces are sent to a collector");
    Traces(Some(provider))
}

fn provider(service: &'static str, counter: &'static str, settings: &TraceSettings) -> SdkTracerProvider {
    let TraceSettings { endpoint, ratio } = settings;
    let queued = Arc::new(AtomicUsize::new(0));
    let collector = Collector {
        endpoint: endpoint.clone(),
        resource: ResourceAttributesWithSchema::default(),
        counter,
        queued: Arc::clone(&queued),
        away: AtomicBool::new(false),
    };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(MAX_QUEUED)
        .with_max_export_batch_size(MAX_BATCH)
        .with_scheduled_delay(BATCH_EVERY)
        .build();
    let batches = BatchSpanProcessor::builder(collector).with_batch_config(config).build();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    SdkTracerProvider::builder()
        .with_resource(Resource::builder_empty().with_service_name(service).with_attribute(version).build())
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(*ratio))))
        .with_span_processor(Bounded { batches, counter, queued })
        .build()
}

/// The W3C header that propagators read and write.
const TRACEPARENT: &str = "traceparent";
/// The length of a `traceparent`: version, trace, span and flags. A later version may append more.
const TRACEPARENT_BYTES: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

/// Reads a `traceparent`. Without a valid one the context has no span.
fn extract(traceparent: &str) -> Context {
    // The propagator also takes a sign in front of a number, and fields that are too short.
    let is_hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    if !traceparent.get(..TRACEPARENT_BYTES).is_some_and(|head| head.bytes().all(is_hex)) {
        return Context::new();
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

/// A span of a sampled trace. It ends when it is dropped.
#[derive(Debug)]
pub struct Span(opentelemetry_sdk::trace::Span);

/// Begins the first span of a request in this service. Returns `None` if the request is not traced.
///
/// A request with a `traceparent` goes on from it, and is traced if that says "sampled".
#[must_use]
pub fn begin(traceparent: Option<&str>) -> Option<Span> {
    let tracer = TRACER.get()?;
    let parent = traceparent.map_or_else(Context::new, extract);
    let span = tracer.span_builder("request").with_kind(SpanKind::Server).start_with_context(tracer, &parent);
    span.is_recording().then_some(Span(span))
}

/// Begins a child of `parent` at `started`. Returns `None` where no traces are sent.
#[must_use]
pub fn child(parent: &TraceContext, name: &'static str, kind: SpanKind, started: SystemTime) -> Option<Span> {
    let tracer = TRACER.get()?;
    let span = tracer.span_builder(name).with_kind(kind).with_start_time(started);
    let span = span.start_with_context(tracer, &extract(parent.as_str()));
    span.is_recording().then_some(Span(span))
}

impl Span {
    /// Returns the context that this span's children go on from.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        let mut carrier = HashMap::new();
        let context = Context::new().with_remote_span_context(self.0.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut carrier);
        TraceContext::new(carrier.get(TRACEPARENT).map_or("", String::as_str))
    }

    /// Returns the trace's id, as logs show it.
    #[must_use]
    pub fn trace_id(&self) -> impl std::fmt::Display {
        self.0.span_context().trace_id()
    }

    /// Gives it the name of what it turned out to be.
    pub fn name(&mut self, name: String) {
        self.0.update_name(name);
    }

    /// Adds what is known of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// What it stands for went wrong.
    pub fn fail(&mut self) {
        self.0.set_status(Status::error(""));
    }
}

/// A bound whose losses are counted, before the processor's own, of equal size, whose are not.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    counter: &'static str,
    queued: Arc<AtomicUsize>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, context: &Context) {
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

/// Sends batches, on a thread that has nothing else to do. Trouble is logged when it begins and when it ends.
#[derive(Debug)]
struct Collector {
    endpoint: Endpoint,
    resource: ResourceAttributesWithSchema,
    counter: &'static str,
    queued: Arc<AtomicUsize>,
    away: AtomicBool,
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let sent = self.endpoint.post(&ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        self.queued.fetch_sub(spans, Ordering::Relaxed);
        count(self.counter, if sent.is_ok() { "exported" } else { "lost" }, spans);
        match (&sent, self.away.swap(sent.is_err(), Ordering::Relaxed)) {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_the_w3c_writes_it() {
        let read = |text: &str| extract(text).span().span_context().clone();
        let sampled = read(SAMPLED);
        assert!(sampled.is_valid() && sampled.is_sampled());
        assert_eq!(format!("00-{}-{}-01", sampled.trace_id(), sampled.span_id()), SAMPLED);
        let unsampled = read(&SAMPLED.replace("-01", "-00"));
        assert!(unsampled.is_valid() && !unsampled.is_sampled());
        // A later version may say more; this one may not.
        let later = SAMPLED.replacen("00", "cc", 1);
        assert!(read(&later).is_valid() && read(&format!("{later}-more")).is_valid());
        for wrong in [
            String::new(),
            format!("{SAMPLED}-more"),
            SAMPLED.replacen("00", "ff", 1),
            SAMPLED.to_uppercase(),
            SAMPLED.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            SAMPLED.replace("b7ad6b7169203331", &"0".repeat(16)),
            SAMPLED.replace("b7ad", "+7ad"),
            SAMPLED[..SAMPLED.len() - 1].to_owned(),
        ] {
            assert!(!read(&wrong).is_valid(), "{wrong}");
        }
    }

    #[test]
    fn a_collector_is_named_by_host_and_port() {
        let parsed = |text| Endpoint::parse(text).map(|Endpoint { host, port, path }| (host, port, path));
        let expected = |host: &str, port, path: &str| Ok((host.to_owned(), port, path.to_owned()));
        assert_eq!(parsed("http://otel:4318"), expected("otel", 4318, "/v1/traces"));
        assert_eq!(parsed("http://otel/in/"), expected("otel", 4318, "/in/v1/traces"));
        assert_eq!(parsed("http://[::1]:9"), expected("[::1]", 9, "/v1/traces"));
        for wrong in ["", "otel:4318", "https://otel:4318", "http://u:secret@otel", "http://otel?x=secret"] {
            let problem = parsed(wrong).unwrap_err();
            assert!(!problem.contains("secret"), "{problem}");
        }
    }

    #[test]
    fn further_spans_than_may_wait_are_lost_and_counted() {
        // It never answers, so that nothing leaves the queue.
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", collector.local_addr().unwrap())).unwrap();
        let recorder = PrometheusBuilder::new().build_recorder();
        let provider = provider("a service", "spans_total", &TraceSettings { endpoint, ratio: 1.0 });
        let tracer = provider.tracer("a service");
        metrics::with_local_recorder(&recorder, || {
            for _ in 0..MAX_QUEUED + 10 {
                tracer.start("a span").end();
            }
        });
        drop(collector);
        assert!(recorder.handle().render().contains("spans_total{outcome=\"lost\"} 10\n"));
    }

    #[test]
    fn a_share_is_from_nothing_to_all() {
        for (text, good) in
            [("0", true), ("1", true), ("0.01", true), ("1.1", false), ("-1", false), ("NaN", false)]
        {
            assert_eq!(Ratio::parse(text).is_ok(), good, "{text}");
        }
    }
}
