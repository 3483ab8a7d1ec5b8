//! An HTTP/1 listener that slow or rude clients cannot hold up, and that ends without cutting requests off.
//!
//! axum's own `serve` has no bound on connections. It has no time limit for a request's header (slowloris), and none for a
//! client that does not read its response. `serve/admission.rs` decides which connections are served, `serve/connection.rs`
//! is the life of one connection, `serve/refusal.rs` refuses requests in the router's place.

mod admission;
mod connection;
mod refusal;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

use self::{admission::Admissions, connection::Connection};

/// The bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the beginning of a connection, or the end of a response, to the end of the next request's header.
    pub header_timeout: Duration,
    /// From the end of a request's header to the last byte of its response.
    pub request_timeout: Duration,
    /// Open connections. Further ones wait for one to end. After a second in which none has ended they get 503, as many
    /// at a time as [`Self::refusals`]. A connection that was upgraded no longer counts.
    pub connections: usize,
    /// Connections beyond that which may be getting a 503 at a time. Further ones wait in the kernel's queue.
    pub refusals: usize,
    /// How long requests in flight may take after the shutdown began.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_mins(2),
            connections: 1024,
            refusals: 64,
            drain: Duration::from_secs(20),
        }
    }
}

/// The address that a request's connection comes from, an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// How long accepting pauses when it fails, such as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown`. Then it waits for the requests in flight, at most `limits.drain`, while
/// it refuses further requests with 503, and returns.
///
/// A handler may upgrade: what [`hyper::upgrade::on`] returns then downcasts to `TokioIo<TcpStream>`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let server = Server {
        router,
        limits,
        admissions: Admissions::new(limits.connections, limits.refusals),
        draining: Arc::default(),
        stop: watch::Sender::new(()),
    };
    tokio::select! {
        biased;
        () = shutdown => {}
        never = server.accept_all(&listener) => match never {},
    }
    server.draining.store(true, Ordering::Relaxed);
    let open = server.stop.receiver_count();
    server.stop.send_replace(());
    let drained = tokio::select! {
        biased;
        drained = timeout(limits.drain, server.stop.closed()) => drained,
        never = server.accept_all(&listener) => match never {},
    };
    if drained.is_err() {
        tracing::warn!(
            of = open,
            after_s = limits.drain.as_secs(),
            "connections cut off: they did not end in time"
        );
    }
}

struct Server {
    router: Router,
    limits: Limits,
    admissions: Admissions,
    /// Further requests are refused.
    draining: Arc<AtomicBool>,
    /// Every connection that the shutdown waits for has a receiver.
    stop: watch::Sender<()>,
}

impl Server {
    async fn accept_all(&self, listener: &TcpListener) -> Infallible {
        let mut is_full = false;
        loop {
            // Admitted before it is accepted: a connection that cannot even be refused waits in the kernel's queue.
            let admission = self.admissions.next(is_full).await;
            let (stream, peer) = accept(listener).await;
            // Another connection may have ended meanwhile.
            let admission = self.admissions.try_serve().unwrap_or(admission);
            if admission.is_refused() && !is_full {
                let served = self.limits.connections;
                tracing::warn!(served, "too many HTTP connections: further ones are answered 503");
            }
            is_full = admission.is_refused();
            let is_waited_for = !is_full && !self.draining.load(Ordering::Relaxed);
            let connection = Connection {
                peer,
                admission,
                router: self.router.clone(),
                draining: Arc::clone(&self.draining),
                stop: is_waited_for.then(|| self.stop.subscribe()),
            };
            tokio::spawn(connection.run(stream, self.limits));
        }
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was gone at once");
                    continue;
                }
                return (stream, peer);
            }
            // The client went away while it waited.
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests;
