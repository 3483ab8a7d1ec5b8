//! An HTTP client that keeps answers as text.

use reqwest::{Client, RequestBuilder, header::HeaderMap};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{message, wait::within};

/// Sends requests.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
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
    pub async fn get(&self, url: &str) -> Answer {
        self.get_with(url, &[]).await
    }

    /// `GET url` with headers.
    pub async fn get_with(&self, url: &str, headers: Headers<'_>) -> Answer {
        send(self.client.get(url), headers).await
    }

    /// `POST url` with a JSON body.
    pub async fn post(&self, url: &str, body: &str) -> Answer {
        self.post_with(url, &[("content-type", "application/json")], body).await
    }

    /// `POST url` with headers, which say what the body is.
    pub async fn post_with(&self, url: &str, headers: Headers<'_>, body: &str) -> Answer {
        send(self.client.post(url).body(body.to_owned()), headers).await
    }

    /// [`Self::post_with`]; `None` when the connection is refused or breaks.
    pub async fn try_post_with(&self, url: &str, headers: Headers<'_>, body: &str) -> Option<Answer> {
        try_send(self.client.post(url).body(body.to_owned()), headers).await.ok()
    }

    /// `OPTIONS url` with headers.
    pub async fn options_with(&self, url: &str, headers: Headers<'_>) -> Answer {
        send(self.client.request(reqwest::Method::OPTIONS, url), headers).await
    }

    /// A WebSocket handshake with these headers besides the necessary ones, for its refusal.
    pub async fn handshake(&self, url: &str, headers: Headers<'_>) -> Answer {
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

impl Answer {
    /// The body in its contract's shape.
    #[must_use]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        message::parse(&self.text)
    }

    /// The body of an answer that must be 200.
    #[must_use]
    pub fn ok<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Panics unless this is an error answer with this status and code; its message for people.
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

async fn send(request: RequestBuilder, headers: Headers<'_>) -> Answer {
    try_send(request, headers).await.unwrap_or_else(|error| panic!("no answer: {error:?}"))
}

async fn try_send(request: RequestBuilder, headers: Headers<'_>) -> reqwest::Result<Answer> {
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    within("an answer", async {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // 101 has no body: what follows is a WebSocket, which is dropped here.
        let text = match status {
            101 => String::new(),
            _ => response.text().await?,
        };
        Ok(Answer { status, headers, text })
    })
    .await
}
