//! A small HTTP client for commands at the terminal: one request, one connection, no redirects.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, Uri, header::HOST, uri::Authority},
};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

/// Of connecting, and of an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of an answer: a page of updates has a thousand of at most 16 KiB.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// A server, and the path in front of all of its routes.
#[derive(Clone, Debug)]
pub struct Endpoint {
    is_tls: bool,
    authority: Authority,
    path: String,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Body.
    pub text: String,
}

/// A connection, plain or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Endpoint {
    /// Reads `http://`, `https://`, `ws://` or `wss://` with a host, a port if need be, and maybe a path.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong = || format!("{url:?} is not a URL such as http://127.0.0.1:8080 or https://odds.example");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let is_tls = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().cloned().filter(|authority| !authority.as_str().contains('@'));
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { is_tls, authority: authority.ok_or_else(wrong)?, path })
    }

    /// Where it is, for a WebSocket's handshake at `path`.
    #[must_use]
    pub fn websocket(&self, path: &str) -> String {
        format!("{}://{}{}{path}", if self.is_tls { "wss" } else { "ws" }, self.authority, self.path)
    }

    /// A connection there.
    ///
    /// # Errors
    /// When there is none within ten seconds.
    pub async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        timeout(TIMEOUT, self.connect_at_all()).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn connect_at_all(&self) -> io::Result<Box<dyn Stream>> {
        let port = self.authority.port_u16().unwrap_or(if self.is_tls { 443 } else { 80 });
        let host = self.authority.host().trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        if !self.is_tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(tls()?.connect(name, stream).await?))
    }

    /// `method path` with these headers and this body.
    ///
    /// # Errors
    /// When no whole answer comes within ten seconds: what became of the request is not known.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> io::Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.path))
            .header(HOST, self.authority.as_str());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).map_err(io::Error::other)?;
        let stream = self.connect().await?;
        timeout(TIMEOUT, exchange(stream, request)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

async fn exchange(stream: Box<dyn Stream>, request: Request<Body>) -> io::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let text = String::from_utf8(bytes.into()).map_err(io::Error::other)?;
    Ok(Answer { status, text })
}

/// Trusts whom the system trusts, or `SSL_CERT_FILE`.
fn tls() -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_a_scheme_and_a_host_and_may_have_a_path() {
        let endpoint = Endpoint::parse("https://odds.example/live/").unwrap();
        assert_eq!(endpoint.websocket("/ws/odds"), "wss://odds.example/live/ws/odds");
        assert_eq!(Endpoint::parse("ws://[::1]:8080").unwrap().websocket("/x"), "ws://[::1]:8080/x");
        for wrong in ["", "127.0.0.1:8080", "/api", "ftp://a", "http://", "http://user:hush@a"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
