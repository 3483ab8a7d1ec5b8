//! An HTTP/1 listener that a slow or rude client cannot hold up, and that ends without cutting anyone off.
//!
//! axum's own `serve` sets no time limit on a request's header (slowloris) or on a client that does not read its
//! answer, and no bound on connections.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, header::CONNECTION},
    response::Response,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use protocol::error::ErrorCode;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tower::Service;

use super::{body, refusal};

/// What a listener puts up with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the beginning of a connection, or the end of an answer, to the end of the next request's header.
    pub header_timeout: Duration,
    /// From the end of a request's header to the last byte of its answer.
    pub request_timeout: Duration,
    /// Open connections. A further one waits for one to end, and is answered 503 once none has for a second, as long as
    /// [`Self::refusals`] lasts. One that was upgraded no longer counts.
    pub connections: usize,
    /// Connections beyond that which are being answered 503; further ones wait in the kernel's queue.
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

/// The address a request's connection comes from, an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// How long accepting pauses when it fails, as when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest header of a request, bytes: its first line, each field as `name: value`, and their line ends, the empty
/// line's too. A token may have 16 KiB.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// As much of a longer one is read, so that it is answered like everything else. Beyond that, and for more than 100 fields,
/// hyper itself answers 431, without a body, and reads no further.
const MAX_HEADER_READ_BYTES: usize = 2 * MAX_HEADER_BYTES;
/// How long one that is refused may take to send its request and to read the answer: less than others, so that its
/// place is soon the next one's.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the next connection waits in the kernel's queue for one to end before it is told that none does: in a storm of
/// handshakes hundreds end meanwhile, and nobody has to come again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves `router` on `listener` until `shutdown`; then answers further requests 503 for as long as those in flight
/// take, at most `limits.drain`, and returns.
///
/// A handler may upgrade; what [`hyper::upgrade::on`] then gives downcasts to `TokioIo<TcpStream>`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let server = Server {
        router,
        limits,
        connections: Arc::new(Semaphore::new(limits.connections)),
        refusals: Arc::new(Semaphore::new(limits.refusals)),
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
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    /// Further requests are refused.
    draining: Arc<AtomicBool>,
    /// Each connection that the shutdown has to wait for holds a receiver.
    stop: watch::Sender<()>,
}

/// A connection's place, given back on drop.
struct Admission {
    is_refused: bool,
    place: OwnedSemaphorePermit,
}

impl Server {
    async fn accept_all(&self, listener: &TcpListener) -> Infallible {
        let mut is_full = false;
        loop {
            // Taken before the connection, so that what nobody can even refuse waits in the kernel's queue.
            let admission = self.admit(is_full).await;
            let (stream, peer) = accept(listener).await;
            // Meanwhile one may have ended.
            let admission = self.try_admit().unwrap_or(admission);
            if admission.is_refused && !is_full {
                let served = self.limits.connections;
                tracing::warn!(served, "too many HTTP connections: further ones are answered 503");
            }
            is_full = admission.is_refused;
            self.spawn(stream, peer, admission);
        }
    }

    /// Waits until a connection can be taken, if only to be told that it cannot.
    async fn admit(&self, is_full: bool) -> Admission {
        let acquire = |places: &Arc<Semaphore>| Arc::clone(places).acquire_owned();
        if !is_full && let Ok(Ok(place)) = timeout(PATIENCE, acquire(&self.connections)).await {
            return Admission { is_refused: false, place };
        }
        tokio::select! {
            biased;
            Ok(place) = acquire(&self.connections) => Admission { is_refused: false, place },
            Ok(place) = acquire(&self.refusals) => Admission { is_refused: true, place },
            // Neither is ever closed.
            else => pending().await,
        }
    }

    fn try_admit(&self) -> Option<Admission> {
        let place = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        Some(Admission { is_refused: false, place })
    }

    fn spawn(&self, stream: TcpStream, peer: SocketAddr, admission: Admission) {
        let Admission { is_refused, place } = admission;
        let most = if is_refused { REFUSAL_TIMEOUT } else { Duration::MAX };
        let header_timeout = self.limits.header_timeout.min(most);
        // Counted from the request's beginning, and so with the wait for the next one's header behind its answer.
        let silence = self.limits.request_timeout.min(most).saturating_add(header_timeout);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_header_size(MAX_HEADER_READ_BYTES)
            .max_buf_size(MAX_HEADER_READ_BYTES);
        let (router, draining) = (self.router.clone(), Arc::clone(&self.draining));
        let began = Arc::new(Notify::new());
        let begins = Arc::clone(&began);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            begins.notify_one();
            let refusal = if is_refused {
                let message = "too many connections: try again, another process may have room";
                Some((ErrorCode::ServiceUnavailable, message.to_owned()))
            } else if draining.load(Ordering::Relaxed) {
                let message = "this process is about to end, and did nothing: try again at another";
                Some((ErrorCode::ServiceUnavailable, message.to_owned()))
            } else if header_bytes(&request) > MAX_HEADER_BYTES {
                let message = format!("a request's header has at most {MAX_HEADER_BYTES} bytes here");
                Some((ErrorCode::HeaderTooLarge, message))
            } else {
                None
            };
            let mut request: Request = request.map(Body::new);
            request.extensions_mut().insert(Peer(peer));
            let mut router = router.clone();
            async move {
                match refusal {
                    Some((code, message)) => Ok(refuse(request, code, &message).await),
                    None => router.call(request).await,
                }
            }
        });
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let is_waited_for = !is_refused && !self.draining.load(Ordering::Relaxed);
        let mut stop = is_waited_for.then(|| self.stop.subscribe());
        tokio::spawn(async move {
            let _place = place;
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
                    asked = timeout(silence, began.notified()) => match asked {
                        Ok(()) => has_asked = true,
                        Err(_) => return tracing::debug!("connection ended: its answer was not taken in time"),
                    },
                    () = stopped(stop.as_mut()), if !is_stopping => {
                        is_stopping = true;
                        if has_asked {
                            connection.as_mut().graceful_shutdown();
                        } else {
                            // What it asks is refused, and nobody waits for it.
                            stop = None;
                        }
                    }
                }
            }
        });
    }
}

async fn stopped(stop: Option<&mut watch::Receiver<()>>) {
    match stop {
        // An error means that the listener is gone, which is the end as well.
        Some(stop) => _ = stop.changed().await,
        None => pending().await,
    }
}

/// The length of a request's header as a client writes it that sends nothing needless.
fn header_bytes(request: &hyper::Request<Incoming>) -> usize {
    let uri = request.uri();
    let target = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len())
        + uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    let first_line = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    let field =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    first_line + request.headers().iter().map(field).sum::<usize>() + "\r\n".len()
}

/// An answer that says no, and the connection's end.
async fn refuse(request: Request, code: ErrorCode, message: &str) -> Response {
    // Who writes a whole body before it reads is to see the answer, not a broken connection.
    let _ = body::read(request.into_body(), 0).await;
    let mut response = refusal(code, message);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
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
        busy.write_all(GET).await.unwrap();
        entered.notified().await;
        served.stop.send(()).unwrap();
        eventually_refused(served.address).await;
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
        stuck.write_all(GET).await.unwrap();
        entered.notified().await;
        served.stop.send(()).unwrap();
        timeout(Duration::from_secs(10), served.ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_has_asked_nothing_when_the_shutdown_begins_is_answered_503_and_not_waited_for()
    {
        let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (entered_too, go_on_too) = (Arc::clone(&entered), Arc::clone(&go_on));
        let handler = get(async move || {
            entered_too.notify_one();
            go_on_too.notified().await;
        });
        let served = start(Router::new().route("/", handler), Limits::default()).await;
        let mut early = TcpStream::connect(served.address).await.unwrap();
        let _silent = TcpStream::connect(served.address).await.unwrap();
        let mut busy = TcpStream::connect(served.address).await.unwrap();
        busy.write_all(GET).await.unwrap();
        entered.notified().await;
        served.stop.send(()).unwrap();
        eventually_refused(served.address).await;
        early.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody").await.unwrap();
        expect_refusal(&read_all(&mut early).await);
        go_on.notify_one();
        timeout(Duration::from_secs(10), served.ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_given_up() {
        let brief = Duration::from_millis(50);
        let limits =
            Limits { header_timeout: brief, request_timeout: brief, connections: 1, ..Limits::default() };
        let router = Router::new()
            .route("/", get(async || "hello"))
            .route("/big", get(async || vec![b'x'; 64 * 1024 * 1024]));
        let served = start(router, limits).await;
        let mut lazy = TcpStream::connect(served.address).await.unwrap();
        // Behind a last request hyper itself has no time limit any more.
        lazy.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        lazy.peek(&mut [0]).await.unwrap();
        eventually_served(served.address).await;
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_are_answered_503_until_one_ends() {
        let limits = Limits { connections: 2, refusals: 1, ..Limits::default() };
        let served = start(Router::new().route("/", get(async || "hello")), limits).await;
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            ask(&mut stream).await;
            open.push(stream);
        }
        for _ in 0..3 {
            eventually_refused(served.address).await;
            // Still served while others are refused.
            ask(&mut open[0]).await;
        }
        // Whoever is to be refused and asks nothing makes room for the next all the same.
        let _silent = TcpStream::connect(served.address).await.unwrap();
        expect_refusal(&ask_once(served.address).await);
        open.pop();
        eventually_served(served.address).await;
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Asks, and reads an answer whose body is `hello`.
    async fn ask(stream: &mut TcpStream) {
        stream.write_all(GET).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            assert_ne!(
                stream.read_buf(&mut answer).await.unwrap(),
                0,
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    }

    /// Asks on a connection of its own.
    async fn ask_once(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        read_all(&mut stream).await
    }

    async fn eventually_served(address: SocketAddr) {
        let served = async { while !ask_once(address).await.contains("hello") {} };
        timeout(Duration::from_secs(10), served).await.unwrap();
    }

    async fn eventually_refused(address: SocketAddr) {
        let refused = async {
            loop {
                let answer = ask_once(address).await;
                if !answer.contains("hello") {
                    return answer;
                }
            }
        };
        expect_refusal(&timeout(Duration::from_secs(10), refused).await.unwrap());
    }

    fn expect_refusal(answer: &str) {
        let lower = answer.to_lowercase();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("SERVICE_UNAVAILABLE"), "{answer}");
        assert!(lower.contains("retry-after: 1") && lower.contains("connection: close"), "{answer}");
    }
}
