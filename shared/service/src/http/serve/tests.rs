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
    let mut response = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut response)).await.unwrap().unwrap();
    response
}

#[tokio::test]
async fn a_request_in_flight_gets_its_response_after_the_shutdown_began() {
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
    let response = read_all(&mut busy).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("done"), "{response}");
    timeout(Duration::from_secs(10), served.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_ends_whose_header_does_not() {
    let limits = Limits { header_timeout: Duration::from_millis(50), ..Limits::default() };
    let served = start(Router::new(), limits).await;
    let mut slow = TcpStream::connect(served.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.unwrap();
    let response = read_all(&mut slow).await;
    assert!(!response.contains("200"), "{response}");
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
async fn a_connection_without_a_request_at_shutdown_gets_503_and_is_not_waited_for() {
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
async fn a_connection_ends_when_its_response_is_not_read() {
    let brief = Duration::from_millis(50);
    let limits =
        Limits { header_timeout: brief, request_timeout: brief, connections: 1, ..Limits::default() };
    let router = Router::new()
        .route("/", get(async || "hello"))
        .route("/big", get(async || vec![b'x'; 64 * 1024 * 1024]));
    let served = start(router, limits).await;
    let mut lazy = TcpStream::connect(served.address).await.unwrap();
    // After a last request hyper itself has no time limit any more.
    lazy.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    lazy.peek(&mut [0]).await.unwrap();
    eventually_served(served.address).await;
}

#[tokio::test]
async fn connections_beyond_the_bound_get_503_until_one_ends() {
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
    // A connection that is refused and sends nothing makes room for the next one all the same.
    let _silent = TcpStream::connect(served.address).await.unwrap();
    expect_refusal(&ask_once(served.address).await);
    open.pop();
    eventually_served(served.address).await;
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// Sends a request, and reads a response whose body is `hello`.
async fn ask(stream: &mut TcpStream) {
    stream.write_all(GET).await.unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"hello") {
        assert_ne!(
            stream.read_buf(&mut response).await.unwrap(),
            0,
            "{}",
            String::from_utf8_lossy(&response)
        );
    }
}

/// Sends a request on a connection of its own.
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
            let response = ask_once(address).await;
            if !response.contains("hello") {
                return response;
            }
        }
    };
    expect_refusal(&timeout(Duration::from_secs(10), refused).await.unwrap());
}

fn expect_refusal(response: &str) {
    let lower = response.to_lowercase();
    assert!(response.starts_with("HTTP/1.1 503 ") && response.contains("SERVICE_UNAVAILABLE"), "{response}");
    assert!(lower.contains("retry-after: 1") && lower.contains("connection: close"), "{response}");
}
