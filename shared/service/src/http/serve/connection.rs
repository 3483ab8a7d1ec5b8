//! The life of one connection: its requests, its time limits, and its end.

use std::{
    convert::Infallible,
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::timeout,
};
use tower::Service;

use super::{
    Limits, Peer,
    admission::Admission,
    refusal::{MAX_HEADER_BYTES, Refusal, header_bytes},
};

/// How much of a longer header is read, bytes, so that it gets a response like any other error. Beyond that, and for more
/// than 100 fields, hyper itself responds with 431, without a body, and reads no further.
const MAX_HEADER_READ_BYTES: usize = 2 * MAX_HEADER_BYTES;
/// How long a client that is refused may take to send its request, and to read the response. This is less than others
/// have, so that its permit is soon free.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that was accepted.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) admission: Admission,
    pub(super) router: Router,
    /// Further requests are refused.
    pub(super) draining: Arc<AtomicBool>,
    /// Changes when the shutdown begins. The shutdown waits until the receiver is gone; `None`: it does not wait for this
    /// connection.
    pub(super) stop: Option<watch::Receiver<()>>,
}

impl Connection {
    /// Serves the connection until it ends, or until the client takes too long.
    pub(super) async fn run(mut self, stream: TcpStream, limits: Limits) {
        let most = if self.admission.is_refused() { REFUSAL_TIMEOUT } else { Duration::MAX };
        let header_timeout = limits.header_timeout.min(most);
        // From one request's beginning to the next one's: the response, and the wait for the next header.
        let silence = limits.request_timeout.min(most).saturating_add(header_timeout);
        let mut stop = self.stop.take();
        let requests = Arc::new(Notify::new());
        let begun = Arc::clone(&requests);
        // The service has the connection's permit, and ends with it.
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            begun.notify_one();
            self.respond(request.map(Body::new))
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_header_size(MAX_HEADER_READ_BYTES)
            .max_buf_size(MAX_HEADER_READ_BYTES);
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        let (mut has_asked, mut is_stopping) = (false, false);
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                    return;
                }
                request = timeout(silence, requests.notified()) => match request {
                    Ok(()) => has_asked = true,
                    Err(_) => return tracing::debug!("connection ended: its response was not taken in time"),
                },
                () = stopped(stop.as_mut()), if !is_stopping => {
                    is_stopping = true;
                    if has_asked {
                        connection.as_mut().graceful_shutdown();
                    } else {
                        // Its first request is refused, and the shutdown does not wait for that.
                        stop = None;
                    }
                }
            }
        }
    }

    fn respond(&self, mut request: Request) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        let refusal = self.refusal(&request);
        let mut router = self.router.clone();
        request.extensions_mut().insert(Peer(self.peer));
        async move {
            match refusal {
                Some(refusal) => Ok(refusal.respond(request).await),
                None => router.call(request).await,
            }
        }
    }

    fn refusal(&self, request: &Request) -> Option<Refusal> {
        if self.admission.is_refused() {
            Some(Refusal::Full)
        } else if self.draining.load(Ordering::Relaxed) {
            Some(Refusal::Draining)
        } else if header_bytes(request) > MAX_HEADER_BYTES {
            Some(Refusal::HeaderTooLarge)
        } else {
            None
        }
    }
}

async fn stopped(stop: Option<&mut watch::Receiver<()>>) {
    match stop {
        // An error means that the listener is gone: that is the end as well.
        Some(stop) => _ = stop.changed().await,
        None => pending().await,
    }
}
