//! The admin API (contract, section 5): the router, its handlers, and the one table from errors to answers.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Query, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Uri,
        header::{ACCEPT, CONTENT_DISPOSITION, CONTENT_TYPE},
        request::Parts,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use backbone::{Appended, Durability};
use protocol::{
    Epoch, MarketId, Seq,
    error::{ErrorBody, ErrorCode},
    overrides::{InvalidOverride, MAX_OVERRIDE_BYTES, Override},
    schema::always,
};
use serde::Serialize;
use service::{
    http::{
        body::{self, BodyError},
        json, json_text,
        openapi::{self as documents},
        refuse,
    },
    telemetry::traces::{self, Span},
    token::Role,
};
use tokio::sync::Semaphore;
use tracing::field;
use utoipa::ToSchema;

use crate::{
    append::{self, NotAppended, Sender},
    audit::{self, AuditError, AuditQuery, InvalidQuery},
    auth::{self, authorize},
    batch::{self, Format, InvalidBatch, MAX_BATCH_BYTES},
    console,
    markets::{self, InvalidStatus, MAX_STATUS_BYTES, MarketsError, MarketsQuery, Status, StatusRequest},
    metrics, openapi,
    revoke::{self, InvalidRevocation, MAX_REVOKE_BYTES, NotRevoked},
    state::Admin,
};

/// The routes under `/admin` and `/console`, for a listener that has others too: no fallback, so that it can be merged.
pub fn router(admin: Admin) -> Router {
    routes(admin).layer(middleware::from_fn(observe)).merge(console())
}

/// The routes of a listener that has nothing else: any other path is answered 404 in the contract's shape.
pub fn service(admin: Admin) -> Router {
    routes(admin).fallback(not_found).layer(middleware::from_fn(observe)).merge(console())
}

fn routes(admin: Admin) -> Router {
    Router::new()
        .route("/admin/odds/override", post(override_one))
        .route("/admin/odds/batch", post(override_many))
        .route("/admin/audit", get(read_audit))
        .route("/admin/markets", get(read_markets))
        .route("/admin/markets/suspend", post(suspend))
        .route("/admin/markets/open", post(open))
        .route("/admin/tokens/revoke", post(revoke_tokens))
        .route("/admin/openapi.json", get(async || documents::serve(&openapi::DOCUMENT)))
        .route("/admin/{*rest}", any(not_found))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(admin))
}

fn console() -> Router {
    console::router().method_not_allowed_fallback(method_not_allowed)
}

/// Batches whose bodies are in memory at once, each of at most [`MAX_BATCH_BYTES`]; the next ones wait for their turn.
static BATCHES: Semaphore = Semaphore::const_new(8);
/// The longest idempotency key, visible ASCII characters.
pub(crate) const MAX_IDEMPOTENCY_KEY: usize = 255;
/// The longest request id that is taken over from a client, visible ASCII characters.
pub(crate) const MAX_REQUEST_ID: usize = 128;

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static X_AUDIT_SOURCE: HeaderName = HeaderName::from_static("x-audit-source");
static X_NEXT_BEFORE: HeaderName = HeaderName::from_static("x-next-before");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

async fn override_one(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let claims = authorize(&admin.keys, &parts.headers, Role::Trader)?;
    let key = idempotency_key(&parts.headers)?;
    let body = body::read(body, MAX_OVERRIDE_BYTES).await?;
    let text = std::str::from_utf8(&body).map_err(|_| InvalidOverride::NotUtf8);
    let parsed = text.and_then(Override::parse).inspect_err(|_| metrics::count_override("invalid"))?;
    let idempotency = key.map(|key| append::idempotency(key.to_owned(), &claims.sub, &body));
    let append = sender(&claims.sub, &parts).append(parsed, idempotency);
    let mut results = append::submit(&*admin.backbone, vec![append]).await;
    let appended = results.pop().unwrap_or(Err(NotAppended::Unreachable))?;
    let mut response = json(&Answer::from(&appended));
    if appended.replayed {
        response.headers_mut().insert(&IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

async fn override_many(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let claims = authorize(&admin.keys, &parts.headers, Role::Trader)?;
    let idempotency_key = idempotency_key(&parts.headers)?;
    // Never closed, so that this is always a permit.
    let _permit = BATCHES.acquire().await;
    let format = Format::of(parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()));
    let body = body::read(body, MAX_BATCH_BYTES).await?;
    let items = batch::split(&body, format)?;
    let results = batch::run(&*admin.backbone, &sender(&claims.sub, &parts), idempotency_key, items).await;
    Ok(([(CONTENT_TYPE, format.content_type())], format.write(&results)).into_response())
}

async fn read_audit(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    authorize(&admin.keys, &headers, Role::Viewer)?;
    let Query(query) = Query::<AuditQuery>::try_from_uri(&uri).map_err(|_| RequestError::Query)?;
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let copy = admin.copy.as_ref();
    let (request, format) = (query.parse(copy.is_some())?, query.format(accept)?);
    let (page, source) = audit::page(&*admin.backbone, copy, &request).await?;
    let mut response = match format {
        audit::Format::Json => json_text(page.json()?),
        audit::Format::Csv => {
            let of = request.market.map_or("all".to_owned(), |market| market.to_string());
            let name = format!("attachment; filename=\"audit-{of}.csv\"");
            let types = [(CONTENT_TYPE, "text/csv; charset=utf-8"), (CONTENT_DISPOSITION, &name)];
            let mut response = (types, page.csv()).into_response();
            if let Some(before) = page.next.and_then(|id| HeaderValue::try_from(id.to_string()).ok()) {
                response.headers_mut().insert(&X_NEXT_BEFORE, before);
            }
            response
        }
    };
    if copy.is_some() {
        let source = match source {
            audit::Source::Postgres => "postgres",
            audit::Source::Backbone => "redis",
        };
        response.headers_mut().insert(&X_AUDIT_SOURCE, HeaderValue::from_static(source));
    }
    Ok(response)
}

async fn read_markets(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    authorize(&admin.keys, &headers, Role::Viewer)?;
    let Query(query) = Query::<MarketsQuery>::try_from_uri(&uri).map_err(|_| RequestError::Query)?;
    Ok(json_text(markets::page(&*admin.backbone, query.parse()?).await?))
}

async fn suspend(state: State<Arc<Admin>>, request: Request) -> Result<Response, Problem> {
    set_status(state, request, Status::Suspended).await
}

async fn open(state: State<Arc<Admin>>, request: Request) -> Result<Response, Problem> {
    set_status(state, request, Status::Open).await
}

async fn set_status(
    State(admin): State<Arc<Admin>>,
    request: Request,
    status: Status,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let claims = authorize(&admin.keys, &parts.headers, Role::Trader)?;
    let asked = StatusRequest::parse(&body::read(body, MAX_STATUS_BYTES).await?)?;
    let sender = sender(&claims.sub, &parts);
    Ok(json(&markets::set_status(&*admin.backbone, sender, status, asked).await?))
}

async fn revoke_tokens(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let claims = authorize(&admin.keys, &parts.headers, Role::Admin)?;
    let whom = revoke::parse(&body::read(body, MAX_REVOKE_BYTES).await?)?;
    Ok(json(&revoke::run(&*admin.backbone, whom, &claims.sub, request_id(&parts)).await?))
}

async fn not_found() -> Problem {
    Problem::new(ErrorCode::NotFound, "no such path".to_owned())
}

async fn method_not_allowed() -> Problem {
    Problem::new(ErrorCode::MethodNotAllowed, "this path has no such method".to_owned())
}

/// Names the request, and counts its answer.
async fn observe(mut request: Request, next: Next) -> Response {
    let named =
        request.headers().get(&X_REQUEST_ID).filter(|id| is_visible_ascii(id, MAX_REQUEST_ID)).cloned();
    let id = named.unwrap_or_else(|| {
        let id = format!("{:032x}", rand::random::<u128>());
        HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
    });
    // A path of the client's own making must not become a label.
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

/// The request's span, where it is traced; its handler finds it among the extensions. Only what has bounds goes into it: no
/// path or method of the client's making, no query, no header but the id.
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

fn sender<'a>(actor: &'a str, parts: &'a Parts) -> Sender<'a> {
    Sender { actor, request_id: request_id(parts), trace: parts.extensions.get().cloned() }
}

/// The id that [`observe`] gave the request.
fn request_id(parts: &Parts) -> &str {
    parts.headers.get(&X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default()
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, RequestError> {
    let mut keys = headers.get_all(&IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) if is_visible_ascii(key, MAX_IDEMPOTENCY_KEY) => {
            key.to_str().map(Some).map_err(|_| RequestError::IdempotencyKey)
        }
        _ => Err(RequestError::IdempotencyKey),
    }
}

fn is_visible_ascii(value: &HeaderValue, max: usize) -> bool {
    (1..=max).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// What is wrong with a request around its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum RequestError {
    #[error("Idempotency-Key: one header of 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters")]
    IdempotencyKey,
    #[error("the query cannot be read: a parameter stands twice")]
    Query,
}

/// `200` to an override: it is in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Appended, description = "An update that is in the log, the state and the audit.")]
pub struct Answer {
    /// The market's.
    market_id: MarketId,
    /// The log's.
    epoch: Epoch,
    /// The update's.
    seq: Seq,
    /// Unix milliseconds at which it was accepted.
    ts: u64,
    /// The audit entry's id, `<market>-<Unix ms>-<n>`, unique over all markets.
    #[schema(example = "1001-1710001113000-0")]
    audit_id: String,
    /// `replicated` when `PUBLISH_MIN_REPLICAS` replicas have it as well.
    #[schema(value_type = Durability)]
    durability: &'static str,
}

impl From<&Appended> for Answer {
    fn from(appended: &Appended) -> Self {
        Self {
            market_id: appended.audit_id.market,
            epoch: appended.position.epoch,
            seq: appended.position.seq,
            ts: appended.ts,
            audit_id: appended.audit_id.to_string(),
            durability: appended.durability.as_str(),
        }
    }
}

/// Anything but a `200`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: ErrorCode,
    message: String,
    current_seq: Option<Seq>,
}

impl Problem {
    pub(crate) fn new(code: ErrorCode, message: String) -> Self {
        Self { code, message, current_seq: None }
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    /// What the client reads of one item among others.
    pub(crate) fn item(&self) -> ProblemItem<'_> {
        ProblemItem { ok: false, problem: self.body() }
    }

    /// What the client reads.
    fn body(&self) -> ProblemBody<'_> {
        let error = ErrorBody { code: self.code.as_str(), message: &self.message };
        ProblemBody { error, current_seq: self.current_seq }
    }
}

/// `{"ok":false,"code":"…","message":"…"}`: what an item among others reads.
#[derive(Serialize, ToSchema)]
#[schema(description = "One of several that failed alone.")]
pub(crate) struct ProblemItem<'a> {
    #[schema(schema_with = always::<false>)]
    ok: bool,
    #[serde(flatten)]
    problem: ProblemBody<'a>,
}

/// `{"code":"…","message":"…"}`; a `CONFLICT` adds `currentSeq`.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, description = "An error.")]
pub(crate) struct ProblemBody<'a> {
    #[serde(flatten)]
    error: ErrorBody<'a>,
    /// With `CONFLICT` only: where the market is.
    #[serde(rename = "currentSeq", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    current_seq: Option<Seq>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        refuse(self.code, &self.body())
    }
}

/// The table: each error of each operation, and the code it is answered with.
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
    auth::Refused: {
        auth::Refused::Token(_) => Unauthorized,
        auth::Refused::Role { .. } => Forbidden,
    }
    BodyError: {
        BodyError::TooLarge { .. } => PayloadTooLarge,
        BodyError::Broken | BodyError::TooSlow => BadRequest,
    }
    RequestError: { _ => BadRequest }
    InvalidOverride: {
        InvalidOverride::TooLarge => PayloadTooLarge,
        InvalidOverride::Reason | InvalidOverride::Payload(_) => Unprocessable,
        _ => BadRequest,
    }
    InvalidBatch: {
        InvalidBatch::NotUtf8 | InvalidBatch::Json(_) => BadRequest,
        InvalidBatch::TooManyItems => PayloadTooLarge,
    }
    InvalidQuery: { _ => BadRequest }
    markets::InvalidQuery: { _ => BadRequest }
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
        Self { code, message: error.to_string(), current_seq }
    }
}

/// What the backbone says is for the log, not for clients.
impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        tracing::error!(%error, "audit cannot be read");
        match error {
            AuditError::Copy(_) => Self::new(
                ErrorCode::ServiceUnavailable,
                "the audit of all markets cannot be read now: retry, or ask for one market's with marketId"
                    .to_owned(),
            ),
            AuditError::TimedOut | AuditError::Backbone(_) => {
                Self::new(ErrorCode::ServiceUnavailable, "the audit cannot be read now: retry".to_owned())
            }
            AuditError::Malformed(_) => {
                Self::new(ErrorCode::Internal, "an audit entry cannot be read; the log says which".to_owned())
            }
        }
    }
}

impl From<MarketsError> for Problem {
    fn from(error: MarketsError) -> Self {
        tracing::error!(%error, "markets cannot be read");
        match error {
            MarketsError::TimedOut | MarketsError::Backbone(_) => {
                Self::new(ErrorCode::ServiceUnavailable, "the markets cannot be read now: retry".to_owned())
            }
            MarketsError::Malformed(_) => {
                Self::new(ErrorCode::Internal, "a market cannot be read; the log says why".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests;
