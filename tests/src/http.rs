//! An HTTP client that reads responses as text.

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, Method, Request},
};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{message, wait::within};

/// Sends requests, over connections that are kept open between them.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client<HttpConnector, Body>,
}

/// A response with its whole body.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub text: String,
}

/// Header names and values of a request.
pub type Headers<'a> = &'a [(&'a str, &'a str)];

impl Default for Http {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { client: Client::builder(TokioExecutor::new()).build(connector) }
    }
}

impl Http {
    /// `GET url`.
    pub async fn get(&self, url: &str) -> Response {
        self.get_with(url, &[]).await
    }

    /// `GET url` with headers.
    pub async fn get_with(&self, url: &str, headers: Headers<'_>) -> Response {
        self.send(Method::GET, url, headers, "").await
    }

    /// `POST url` with a JSON body.
    pub async fn post(&self, url: &str, body: &str) -> Response {
        self.post_with(url, &[("content-type", "application/json")], body).await
    }

    /// `POST url` with headers, which name the body's type.
    pub async fn post_with(&self, url: &str, headers: Headers<'_>, body: &str) -> Response {
        self.send(Method::POST, url, headers, body).await
    }

    /// Like [`Self::post_with`], but returns `None` when the connection is refused or breaks.
    pub async fn try_post_with(&self, url: &str, headers: Headers<'_>, body: &str) -> Option<Response> {
        self.try_send(Method::POST, url, headers, body).await.ok()
    }

    /// `OPTIONS url` with headers.
    pub async fn options_with(&self, url: &str, headers: Headers<'_>) -> Response {
        self.send(Method::OPTIONS, url, headers, "").await
    }

    /// A WebSocket handshake with these headers besides the required ones, for a refusal.
    pub async fn handshake(&self, url: &str, headers: Headers<'_>) -> Response {
        let required = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        self.send(Method::GET, url, &[&required[..], headers].concat(), "").await
    }

    async fn send(&self, method: Method, url: &str, headers: Headers<'_>, body: &str) -> Response {
        let response = self.try_send(method, url, headers, body).await;
        response.unwrap_or_else(|error| panic!("no response: {error:?}"))
    }

    async fn try_send(
        &self,
        method: Method,
        url: &str,
        headers: Headers<'_>,
        body: &str,
    ) -> Result<Response, Broken> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).expect("a URL and headers that are valid");
        within("a response", async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let status = head.status.as_u16();
            // A 101 has no body. The WebSocket that follows is dropped here.
            let bytes = if status == 101 { Bytes::new() } else { body.collect().await?.to_bytes() };
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Ok(Response { status, headers: head.headers, text })
        })
        .await
    }
}

/// Why there is no whole response.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Request(#[from] Error),
    #[error(transparent)]
    Body(#[from] hyper::Error),
}

impl Response {
    /// Parses the body; panics if it has another shape.
    #[must_use]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        message::parse(&self.text)
    }

    /// Parses the body; panics unless the status is 200.
    #[must_use]
    pub fn ok<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Panics unless this is an error with this status and code. Returns its message.
    #[expect(clippy::must_use_candidate, reason = "most tests are content with the code")]
    pub fn expect_error(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let body: Value = self.json();
        assert_eq!(body["code"], code, "{}", self.text);
        let message = body["message"].as_str().filter(|message| !message.is_empty());
        message.unwrap_or_else(|| panic!("a message for people in {}", self.text)).to_owned()
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("our headers are ASCII"))
    }
}
