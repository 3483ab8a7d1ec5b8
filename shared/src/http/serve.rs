//! An HTTP/1 listener that a slow or rude client cannot hold up, and that ends without cutting anyone off.
//!
//! axum's own `serve` sets no time limit on a request's header (slowloris) and no bound on connections.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tower::Service;

/// What a listener puts up with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the beginning of a connection, or the end of an answer, to the end of the next request's header.
    pub header_timeout: Duration,
    /// Open connections; further ones wait in the kernel's queue. One that was upgraded no longer counts.
    pub connections: usize,
    /// How long requests in flight may take after the shutdown began.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_timeout: Duration::from_secs(30), connections: 1024, drain: Duration::from_secs(20) }
    }
}

/// The address a request's connection comes from, an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// How long accepting pauses when it fails, as when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Read buffer of a connection, and so the longest request header, bytes. A token may have 16 KiB.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Serves `router` on `listener` until `shutdown`; then takes no more connections, lets the requests in flight be
/// answered for at most `limits.drain`, and returns.
///
/// A handler may upgrade; what [`hyper::upgrade::on`] then gives downcasts to `TokioIo<TcpStream>`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(MAX_HEADER_BYTES);
    let connections = Arc::new(Semaphore::new(limits.connections));
    // Each connection holds a receiver for as long as it lasts.
    let (stop, stopped) = watch::channel(());
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, accept(&listener).await)
        };
        let (permit, (stream, peer)) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accepted => accepted,
        };
        let router = router.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request: Request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(Peer(peer));
            router.clone().call(request)
        });
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut stopped = stopped.clone();
        tokio::spawn(async move {
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                _ = stopped.changed() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            drop((permit, stopped));
        });
    }
    drop((listener, stopped));
    let open = stop.receiver_count();
    stop.send_replace(());
    if timeout(limits.drain, stop.closed()).await.is_err() {
        tracing::warn!(
            of = open,
            after_s = limits.drain.as_secs(),
            "connections cut off: they did not end in time"
        );
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
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::{Notify, oneshot},
        task::JoinHandle,
    };

    use super::*;

    struct Served {
        address: std::net::SocketAddr,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<()>,
    }

    async fn start(router: Router, limits: Limits) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(serve(listener, router, limits, async { _ = stopped.await }));
        Served { address, stop, ended }
    }

    async fn read_all(stream: &mut TcpStream) -> String {
        let mut answer = String::new();
        timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_after_shutdown_began() {
        let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (entered_too, go_on_too) = (Arc::clone(&entered), Arc::clone(&go_on));
        let handler = get(async move || {
            entered_too.notify_one();
            go_on_too.notified().await;
            "done"
        });
        let served = start(Router::new().route("/", handler), Limits::default()).await;
        let mut busy = TcpStream::connect(served.address).await.unwrap();
        busy.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        entered.notified().await;
        served.stop.send(()).unwrap();
        // The listener is closed before the requests in flight have ended.
        let refused = async { while TcpStream::connect(served.address).await.is_ok() {} };
        timeout(Duration::from_secs(10), refused).await.unwrap();
        assert!(!served.ended.is_finished());
        go_on.notify_one();
        let answer = read_all(&mut busy).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        timeout(Duration::from_secs(10), served.ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_header_that_does_not_end_is_given_up() {
        let limits = Limits { header_timeout: Duration::from_millis(50), ..Limits::default() };
        let served = start(Router::new(), limits).await;
        let mut slow = TcpStream::connect(served.address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.unwrap();
        let answer = read_all(&mut slow).await;
        assert!(!answer.contains("200"), "{answer}");
    }

    #[tokio::test]
    async fn a_request_that_never_ends_does_not_hold_up_the_shutdown() {
        let entered = Arc::new(Notify::new());
        let entered_too = Arc::clone(&entered);
        let handler = get(async move || {
            entered_too.notify_one();
            std::future::pending::<()>().await;
        });
        let limits = Limits { drain: Duration::from_millis(20), ..Limits::default() };
        let served = start(Router::new().route("/", handler), limits).await;
        let mut stuck = TcpStream::connect(served.address).await.unwrap();
        stuck.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        entered.notified().await;
        served.stop.send(()).unwrap();
        timeout(Duration::from_secs(10), served.ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_one_that_ends() {
        static SECOND_ANSWERED: AtomicBool = AtomicBool::new(false);
        let served = start(
            Router::new().route("/", get(async || "hello")),
            Limits { connections: 1, ..Limits::default() },
        )
        .await;
        let mut first = TcpStream::connect(served.address).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut byte = [0];
        first.read_exact(&mut byte).await.unwrap();
        let address = served.address;
        let second = tokio::spawn(async move {
            let mut second = TcpStream::connect(address).await.unwrap();
            second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let answer = read_all(&mut second).await;
            SECOND_ANSWERED.store(true, Ordering::SeqCst);
            answer
        });
        // Still served while the second waits.
        for _ in 0..3 {
            first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            first.read_exact(&mut byte).await.unwrap();
        }
        assert!(!SECOND_ANSWERED.load(Ordering::SeqCst));
        drop(first);
        assert!(second.await.unwrap().contains("hello"));
    }
}
