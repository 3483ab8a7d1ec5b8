//! Pages that are part of a service: files in its binary, under a strict policy. A page may run its own scripts and talk to
//! its own host, and nothing else.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest, Sha256};

/// The style sheet of all pages. Each page serves it under a path of its own.
pub const BASE_CSS: &str = include_str!("../../web/base.css");
/// The script with which all pages make elements.
pub const DOM_JS: &str = include_str!("../../web/dom.js");
/// The script with which all pages choose the reader's language.
pub const I18N_JS: &str = include_str!("../../web/i18n.js");
/// The icon of all pages.
pub const ICON_SVG: &str = include_str!("../../web/icon.svg");

/// One file of a page.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// The path, such as `/board/board.js`.
    pub path: &'static str,
    /// The media type, with its charset.
    pub content_type: &'static str,
    /// The content.
    pub bytes: &'static [u8],
}

impl File {
    /// Makes an HTML page.
    #[must_use]
    pub const fn html(path: &'static str, text: &'static str) -> Self {
        Self { path, content_type: "text/html; charset=utf-8", bytes: text.as_bytes() }
    }

    /// Makes a style sheet.
    #[must_use]
    pub const fn css(path: &'static str, text: &'static str) -> Self {
        Self { path, content_type: "text/css; charset=utf-8", bytes: text.as_bytes() }
    }

    /// Makes a JavaScript module.
    #[must_use]
    pub const fn js(path: &'static str, text: &'static str) -> Self {
        Self { path, content_type: "text/javascript; charset=utf-8", bytes: text.as_bytes() }
    }

    /// Makes an SVG image.
    #[must_use]
    pub const fn svg(path: &'static str, text: &'static str) -> Self {
        Self { path, content_type: "image/svg+xml", bytes: text.as_bytes() }
    }
}

/// The headers of every response. They allow nothing inline, nothing from other hosts, and no frame around the page.
const POLICY: [(HeaderName, &str); 6] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // A page and its scripts change together, so a browser asks each time; usually the response is a short 304.
    (CACHE_CONTROL, "no-cache"),
];

/// Serves `GET` and `HEAD` of each of `files`. The response is 304 if `If-None-Match` has the file's tag.
pub fn router(files: impl IntoIterator<Item = File>) -> Router {
    files.into_iter().fold(Router::new(), |router, file| {
        let mut headers = HeaderMap::new();
        for (name, value) in POLICY {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
        let tag: Arc<str> = tag(file.bytes).into();
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(ETAG, tag);
        }
        let handler = async move |request: HeaderMap| respond(file.bytes, &tag, headers, &request);
        router.route(file.path, get(handler))
    })
}

fn respond(bytes: &'static [u8], tag: &str, mut headers: HeaderMap, request: &HeaderMap) -> Response {
    if !has_tag(request, tag) {
        return (headers, Bytes::from_static(bytes)).into_response();
    }
    headers.remove(CONTENT_TYPE);
    (StatusCode::NOT_MODIFIED, headers).into_response()
}

/// Returns true if the client has the content that `tag` names (RFC 9110 section 13.1.2).
fn has_tag(request: &HeaderMap, tag: &str) -> bool {
    let lists = request.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// Returns a quoted tag, which is the same only for the same content.
fn tag(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let half = digest.first_chunk().map_or(0, |half| u128::from_be_bytes(*half));
    format!("\"{half:032x}\"")
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, extract::Request, http::Method};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    const FILES: [File; 2] =
        [File::html("/", "<!doctype html><title>你好</title>"), File::js("/page/page.js", "go();")];

    async fn ask(method: Method, path: &str, if_none_match: Option<&str>) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(tags) = if_none_match {
            request = request.header(IF_NONE_MATCH, tags);
        }
        let request = request.body(Body::empty()).unwrap();
        let (parts, body) = router(FILES).oneshot(request).await.unwrap().into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn every_response_has_the_policy_and_the_file_s_type() {
        for file in FILES {
            let (status, headers, body) = ask(Method::GET, file.path, None).await;
            assert_eq!((status, &body[..]), (StatusCode::OK, file.bytes));
            assert_eq!(headers[CONTENT_TYPE], file.content_type);
            for (name, value) in POLICY {
                assert_eq!(headers[&name], value, "{name}");
            }
            let (status, of_head, body) = ask(Method::HEAD, file.path, None).await;
            assert_eq!((status, body.len()), (StatusCode::OK, 0));
            assert_eq!(of_head[ETAG], headers[ETAG]);
        }
    }

    #[tokio::test]
    async fn a_client_that_has_the_file_gets_304() {
        let tag = ask(Method::GET, "/", None).await.1[ETAG].to_str().unwrap().to_owned();
        assert_ne!(ask(Method::GET, "/page/page.js", None).await.1[ETAG], tag);
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let (status, headers, body) = ask(Method::GET, "/", Some(&known)).await;
            assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
            assert_eq!(headers[ETAG], tag);
            assert!(headers.contains_key(CONTENT_SECURITY_POLICY) && headers.contains_key(CACHE_CONTROL));
        }
        for other in ["\"other\"", "", &tag[1..]] {
            assert_eq!(ask(Method::GET, "/", Some(other)).await.0, StatusCode::OK, "{other}");
        }
    }

    #[tokio::test]
    async fn files_are_only_read() {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            assert_eq!(ask(method, "/", None).await.0, StatusCode::METHOD_NOT_ALLOWED);
        }
        assert_eq!(ask(Method::GET, "/page/", None).await.0, StatusCode::NOT_FOUND);
    }
}
