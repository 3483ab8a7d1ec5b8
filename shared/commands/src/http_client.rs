//! HTTP for commands: URLs, plain or TLS connections, one request per connection, no redirects.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, Uri, header::HOST, uri::Authority},
};
use service::http::client::Connection;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

/// How long connecting may take, and then the request with its response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest response, bytes. A page of updates has a thousand of at most 16 KiB.
const MAX_RESPONSE_BYTES: usize = 32 << 20;

/// A server, and the path in front of all of its routes.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    is_tls: bool,
    authority: Authority,
    path: String,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The body.
    pub(crate) text: String,
}

/// A connection, plain or TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Endpoint {
    /// Reads `http://`, `https://`, `ws://` or `wss://` with a host, perhaps a port, and perhaps a path.
    ///
    /// # Errors
    /// A sentence with what is expected.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
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

    /// Returns the URL of a WebSocket at `path`.
    #[must_use]
    pub(crate) fn websocket(&self, path: &str) -> String {
        format!("{}://{}{}{path}", if self.is_tls { "wss" } else { "ws" }, self.authority, self.path)
    }

    /// Connects.
    ///
    /// # Errors
    /// If that fails, or takes longer than ten seconds.
    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        timeout(TIMEOUT, self.connect_at_leisure()).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn connect_at_leisure(&self) -> io::Result<Box<dyn Stream>> {
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

    /// Sends `method path` with these headers and this body, on a connection of its own.
    ///
    /// # Errors
    /// If no whole response comes within ten seconds. Then it is unknown what became of the request.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> io::Result<Response> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.path))
            .header(HOST, self.authority.as_str());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).map_err(io::Error::other)?;
        let stream = self.connect().await?;
        let exchange = async { Connection::open(stream).await?.send(request, MAX_RESPONSE_BYTES).await };
        let response = timeout(TIMEOUT, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let status = response.status().as_u16();
        let text = String::from_utf8(response.into_body().into()).map_err(io::Error::other)?;
        Ok(Response { status, text })
    }
}

/// Trusts the system's authorities, or those in `SSL_CERT_FILE`.
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
