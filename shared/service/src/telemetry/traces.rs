//! Traces: where one override's time went, for an OpenTelemetry collector. They are off unless `OTLP_ENDPOINT` is set.
//!
//! ```text
//!   request ─▶ append ─▶ (the entry in the log: field `t`) ─▶ read ─▶ deliver, one per shard
//!   └──── publisher ────┘                                    └───────── gateway ─────────┘
//! ```
//!
//! A [`TraceContext`] exists only where a trace is sampled: everything else costs one branch. No request and no delivery
//! waits for the collector: a span goes into a queue, and is lost if that is full.

mod export;
mod settings;

use std::{
    collections::HashMap,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span as _, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use protocol::TraceContext;

pub use self::{
    export::SPAN_OUTCOMES,
    settings::{OTLP_ENDPOINT, OTLP_SAMPLE_RATIO, TraceSettings},
};
pub use opentelemetry::trace::SpanKind;

/// How long the end of a process may wait for the collector.
const END_TIMEOUT: Duration = Duration::from_secs(2);

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Ends with the process. The spans that wait are sent when it is dropped.
#[derive(Debug)]
#[must_use = "traces end when it is dropped"]
pub struct Traces(Option<SdkTracerProvider>);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // A collector that is away has been logged already.
            let _ = provider.shutdown_with_timeout(END_TIMEOUT);
        }
    }
}

/// Begins to send traces as `service`, and to count their spans as `counter`. A process calls it once.
pub fn init_traces(service: &'static str, counter: &'static str, settings: Option<&TraceSettings>) -> Traces {
    let Some(settings) = settings else { return Traces(None) };
    let provider = provider(service, counter, settings);
    let _ = TRACER.set(provider.tracer(service));
    let TraceSettings { endpoint, ratio } = settings;
    tracing::info!(host = endpoint.host(), port = endpoint.port(), ratio, "traces are sent to a collector");
    Traces(Some(provider))
}

fn provider(
    service: &'static str,
    counter: &'static str,
    TraceSettings { endpoint, ratio }: &TraceSettings,
) -> SdkTracerProvider {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder_empty().with_service_name(service).with_attribute(version).build();
    SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(*ratio))))
        .with_span_processor(export::processor(endpoint, counter))
        .build()
}

/// A span of a sampled trace. It ends when it is dropped.
#[derive(Debug)]
pub struct Span(opentelemetry_sdk::trace::Span);

/// Begins the first span of a request in this service. Returns `None` if the request is not traced.
///
/// A request with a `traceparent` joins that trace, and is traced if the header says "sampled".
#[must_use]
pub fn begin(traceparent: Option<&str>) -> Option<Span> {
    let tracer = TRACER.get()?;
    let parent = traceparent.map_or_else(Context::new, extract);
    let span = tracer.span_builder("request").with_kind(SpanKind::Server).start_with_context(tracer, &parent);
    span.is_recording().then_some(Span(span))
}

/// Begins a child of `parent` at `started`. Returns `None` if no traces are sent.
#[must_use]
pub fn child(parent: &TraceContext, name: &'static str, kind: SpanKind, started: SystemTime) -> Option<Span> {
    let tracer = TRACER.get()?;
    let span = tracer.span_builder(name).with_kind(kind).with_start_time(started);
    let parent = extract(parent.as_str());
    // Without a parent it would begin a trace of its own.
    parent.span().span_context().is_valid().then_some(())?;
    let span = span.start_with_context(tracer, &parent);
    span.is_recording().then_some(Span(span))
}

impl Span {
    /// Returns the context that this span's children continue.
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

    /// Renames the span, once it is known what it is.
    pub fn name(&mut self, name: String) {
        self.0.update_name(name);
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// Marks the span as failed.
    pub fn fail(&mut self) {
        self.0.set_status(Status::error(""));
    }
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::{export::MAX_QUEUED, settings::Endpoint, *};
    use crate::settings::FromSetting;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_the_w3c_writes_it() {
        let read = |text: &str| extract(text).span().span_context().clone();
        let sampled = read(SAMPLED);
        assert!(sampled.is_valid() && sampled.is_sampled());
        assert_eq!(format!("00-{}-{}-01", sampled.trace_id(), sampled.span_id()), SAMPLED);
        let unsampled = read(&SAMPLED.replace("-01", "-00"));
        assert!(unsampled.is_valid() && !unsampled.is_sampled());
        // A later version may append more; version 00 may not.
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
    fn spans_beyond_the_queue_are_lost_and_counted() {
        // It never responds, so that nothing leaves the queue.
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", collector.local_addr().unwrap())).unwrap();
        let recorder = PrometheusBuilder::new().build_recorder();
        let settings = TraceSettings { endpoint, ratio: 1.0 };
        let provider = provider("a service", "spans_total", &settings);
        let tracer = provider.tracer("a service");
        metrics::with_local_recorder(&recorder, || {
            for _ in 0..MAX_QUEUED + 10 {
                tracer.start("a span").end();
            }
        });
        drop(collector);
        assert!(recorder.handle().render().contains("spans_total{outcome=\"lost\"} 10\n"));
    }
}
