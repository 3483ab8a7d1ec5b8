//! Names each admin request, traces it, and counts its response.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use service::telemetry::traces::{self, Span};
use tracing::field;

use crate::{
    metrics,
    request::{self, X_REQUEST_ID},
};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Gives the request an id, and counts, logs and traces its response.
pub(super) async fn observe(mut request: Request, next: Next) -> Response {
    let id = request::own_or_new_id(request.headers());
    // A path that the client made up must not become a label.
    let route =
        request.extensions().get::<MatchedPath>().map_or("other".to_owned(), |path| path.as_str().to_owned());
    request.headers_mut().insert(&X_REQUEST_ID, id.clone());
    let started = Instant::now();
    let span = begin_trace(&mut request, &route, &id);
    let mut response = next.run(request).await;
    ::metrics::histogram!(metrics::HTTP_SECONDS, "route" => route.clone()).record(started.elapsed());
    tracing::debug!(
        request_id = id.to_str().ok(),
        trace_id = span.as_ref().map(|span| field::display(span.trace_id())),
        route,
        status = response.status().as_u16(),
        "an admin request is answered"
    );
    response.headers_mut().insert(&X_REQUEST_ID, id);
    if let Some(mut span) = span {
        span.set("http.response.status_code", i64::from(response.status().as_u16()));
        if response.status().is_server_error() {
            span.fail();
        }
    }
    let status = response.status().as_str().to_owned();
    ::metrics::counter!(metrics::HTTP_REQUESTS, "route" => route, "status" => status).increment(1);
    response
}

/// Begins the request's span if the request is traced. The handler finds the trace context among the extensions.
///
/// The span has bounded values only: no path or method that the client made up, no query, no header but the id.
fn begin_trace(request: &mut Request, route: &str, id: &HeaderValue) -> Option<Span> {
    let mut traceparents = request.headers().get_all(&TRACEPARENT).iter();
    let traceparent = traceparents.next().filter(|_| traceparents.next().is_none());
    let mut span = traces::begin(traceparent.and_then(|value| value.to_str().ok()))?;
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        _ => "_OTHER",
    };
    span.name(format!("{method} {route}"));
    span.set("http.request.method", method);
    span.set("http.route", route.to_owned());
    span.set("kmarket.request_id", id.to_str().unwrap_or_default().to_owned());
    request.extensions_mut().insert(span.context());
    Some(span)
}
