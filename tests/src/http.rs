//! An HTTP client that reads responses as text.

use reqwest::{Client, RequestBuilder, header::HeaderMap};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{message, wait::within};

/// Sends requests.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
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
        Self { client: Client::builder().no_proxy().build().expect("an HTTP client") }
    }
}

impl Http {
    /// `GET url`.
    pub async fn get(&self, url: &str) -> Response {
        self.get_with(url, &[]).await
    }

    /// `GET url` with headers.
    pub async fn get_with(&self, url: &str, headers: Headers<'_>) -> Response {
        send(self.client.get(url), headers).await
    }

    /// `POST url` with a JSON body.
    pub async fn post(&self, url: &str, body: &str) -> Response {
        self.post_with(url, &[("content-type", "application/json")], body).await
    }

    /// `POST url` with headers, which name the body's type.
    pub async fn post_with(&self, url: &str, headers: Headers<'_>, body: &str) -> Response {
        send(self.client.post(url).body(body.to_owned()), headers).await
    }

    /// Like [`Self::post_with`], but returns `None` when the connection is refused or breaks.
    pub async fn try_post_with(&self, url: &str, headers: Headers<'_>, body: &str) -> Option<Response> {
        try_send(self.client.post(url).body(body.to_owned()), headers).await.ok()
    }

    /// `OPTIONS url` with headers.
    pub async fn options_with(&self, url: &str, headers: Headers<'_>) -> Response {
        send(self.client.request(reqwest::Method::OPTIONS, url), headers).await
    }

    /// A WebSocket handshake with these headers besides the required ones, for a refusal.
    pub async fn handshake(&self, url: &str, headers: Headers<'_>) -> Response {
        let request = self
            .client
            .get(url)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        send(request, headers).await
    }
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

async fn send(request: RequestBuilder, headers: Headers<'_>) -> Response {
    try_send(request, headers).await.unwrap_or_else(|error| panic!("no response: {error:?}"))
}

async fn try_send(request: RequestBuilder, headers: Headers<'_>) -> reqwest::Result<Response> {
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    within("a response", async {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // A 101 has no body. The WebSocket that follows is dropped here.
        let text = match status {
            101 => String::new(),
            _ => response.text().await?,
        };
        Ok(Response { status, headers, text })
    })
    .await
}
