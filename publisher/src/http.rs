//! The admin API (`docs/protocol.md#admin-api`): the router and its handlers.

mod observe;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Uri,
        header::{ACCEPT, CONTENT_DISPOSITION, CONTENT_TYPE},
    },
    middleware,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use protocol::{
    error::ErrorCode,
    overrides::{InvalidOverride, MAX_OVERRIDE_BYTES, Override},
};
use service::{
    http::{
        body, json, json_text,
        openapi::{self as documents},
    },
    settings::Setting,
    token::Role,
};
use tokio::sync::Semaphore;

use self::observe::observe;
use crate::{
    append::{self, NotAppended},
    audit::{self, AuditQuery},
    audit_reader::{self, AuditError},
    auth::authorize,
    batch::{self, Format, MAX_BATCH_BYTES},
    console,
    markets::{self, MAX_STATUS_BYTES, MarketsQuery, Status, StatusRequest},
    metrics, openapi,
    problem::Problem,
    request::{idempotency_key, query, request_id, sender},
    response::{AppendedBody, BatchItem, StatusResult},
    revoke::{self, MAX_REVOKE_BYTES},
    state::Admin,
};

/// The admin API's listener.
pub(crate) const LISTEN: Setting<SocketAddr> =
    Setting::new("LISTEN", "127.0.0.1:8081", "address of the admin API");

/// Returns the routes under `/admin` and `/console`, to be merged into a listener that has other routes too.
pub fn router(admin: Admin) -> Router {
    routes(admin).layer(middleware::from_fn(observe)).merge(console())
}

/// Returns the same routes for a listener of their own: any other path is 404.
pub(crate) fn service(admin: Admin) -> Router {
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

/// Batches whose bodies are in memory at the same time, each of at most [`MAX_BATCH_BYTES`]. Further ones wait.
static BATCHES: Semaphore = Semaphore::const_new(8);

static IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
static X_AUDIT_SOURCE: HeaderName = HeaderName::from_static("x-audit-source");
static X_NEXT_BEFORE: HeaderName = HeaderName::from_static("x-next-before");

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
    let mut response = json(&AppendedBody::from(&appended));
    if appended.replayed {
        response.headers_mut().insert(&IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

async fn override_many(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let claims = authorize(&admin.keys, &parts.headers, Role::Trader)?;
    let idempotency_key = idempotency_key(&parts.headers)?;
    // The semaphore is never closed, so this is always a permit.
    let _permit = BATCHES.acquire().await;
    let format = Format::of(parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()));
    let body = body::read(body, MAX_BATCH_BYTES).await?;
    let items = batch::split(&body, format)?;
    let results = batch::run(&*admin.backbone, &sender(&claims.sub, &parts), idempotency_key, items).await;
    let results: Vec<BatchItem> = results.into_iter().map(BatchItem::from).collect();
    Ok(([(CONTENT_TYPE, format.content_type())], format.write(&results)).into_response())
}

async fn read_audit(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    authorize(&admin.keys, &headers, Role::Viewer)?;
    let query: AuditQuery = query(&uri)?;
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let copy = admin.copy.as_ref();
    let (request, format) = (query.parse(copy.is_some())?, query.format(accept)?);
    let (page, source) = audit_reader::read(&*admin.backbone, copy, &request).await?;
    let mut response = match format {
        audit::Format::Json => json_text(page.json().map_err(AuditError::Malformed)?),
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
        response.headers_mut().insert(&X_AUDIT_SOURCE, HeaderValue::from_static(source.as_str()));
    }
    Ok(response)
}

async fn read_markets(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    authorize(&admin.keys, &headers, Role::Viewer)?;
    let query: MarketsQuery = query(&uri)?;
    Ok(json_text(markets::list(&*admin.backbone, query.parse()?).await?))
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
    let request = StatusRequest::parse(&body::read(body, MAX_STATUS_BYTES).await?)?;
    let sender = sender(&claims.sub, &parts);
    let results = markets::set_status(&*admin.backbone, sender, status, request).await?;
    Ok(json(&results.into_iter().map(StatusResult::from).collect::<Vec<_>>()))
}

async fn revoke_tokens(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let claims = authorize(&admin.keys, &parts.headers, Role::Admin)?;
    let revoked = revoke::parse(&body::read(body, MAX_REVOKE_BYTES).await?)?;
    Ok(json(&revoke::run(&*admin.backbone, revoked, &claims.sub, request_id(&parts)).await?))
}

async fn not_found() -> Problem {
    Problem::new(ErrorCode::NotFound, "no such path")
}

async fn method_not_allowed() -> Problem {
    Problem::new(ErrorCode::MethodNotAllowed, "this path has no such method")
}

#[cfg(test)]
mod tests;
