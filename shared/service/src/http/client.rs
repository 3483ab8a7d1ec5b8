//! An HTTP/1 client: one connection, one request at a time, and a bound for every response.
//!
//! The caller brings the stream, plain or TLS, and the time limit.

use std::io;

use axum::{
    body::{Body, Bytes},
    http::{Request, Response},
};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection to a server. Dropping it closes the connection.
#[derive(Debug)]
pub struct Connection(SendRequest<Body>);

impl Connection {
    /// Speaks HTTP over `stream`.
    ///
    /// # Errors
    /// If the stream breaks.
    pub async fn open(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<Self> {
        let (requests, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // The task ends with the connection, which ends when `requests` is dropped. `send` returns its error.
        tokio::spawn(connection);
        Ok(Self(requests))
    }

    /// Returns true if the server keeps the connection open for another request.
    pub async fn is_usable(&mut self) -> bool {
        self.0.ready().await.is_ok()
    }

    /// Sends a request, whose target is a path and whose headers include `Host`. Returns the response, whatever its status.
    ///
    /// # Errors
    /// If there is no whole response, or its body is longer than `max_bytes`. The server may have acted on the request.
    pub async fn send(&mut self, request: Request<Body>, max_bytes: usize) -> io::Result<Response<Bytes>> {
        let (head, body) = self.0.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = Limited::new(body, max_bytes).collect().await.map_err(io::Error::other)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
