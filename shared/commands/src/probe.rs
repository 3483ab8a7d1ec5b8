//! `gateway probe` and `publisher probe`: the question whether a service is ready, for images that have no shell.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use tokio::time::timeout;

use crate::{block_on, http_client::Endpoint};

/// How long all of it may take; `/readyz` answers within about a second.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the `service` with this `OPS_LISTEN` whether it is ready. Exit code 1 and a message if not.
#[must_use]
pub fn run(service: &str, ops_listen: SocketAddr) -> ExitCode {
    block_on(async {
        match ready(ops_listen).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{service}: {error}");
                ExitCode::FAILURE
            }
        }
    })
}

/// Asks `GET /readyz` on this machine. When it is not 200, that is the error.
async fn ready(ops_listen: SocketAddr) -> io::Result<()> {
    let endpoint = Endpoint::parse(&format!("http://{}", local(ops_listen))).map_err(io::Error::other)?;
    let asked = timeout(TIMEOUT, endpoint.send("GET", "/readyz", &[], String::new()));
    let answer = asked.await.map_err(|_| io::ErrorKind::TimedOut)??;
    if answer.status == 200 { Ok(()) } else { Err(io::Error::other(format!("not ready: {}", answer.text))) }
}

/// A listener on all addresses is asked on loopback.
fn local(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    SocketAddr::new(address, listen.port())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    async fn ask_one_that_says(answer: &'static str) -> io::Result<()> {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = socket.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            socket.write_all(answer.as_bytes()).unwrap();
        });
        let asked = ready(address).await;
        service.join().unwrap();
        asked
    }

    #[tokio::test]
    async fn only_200_is_ready_and_else_the_reasons_are_told() {
        ask_one_that_says("HTTP/1.1 200 OK\r\n\r\n{\"ready\":true}").await.unwrap();
        let refused =
            ask_one_that_says("HTTP/1.1 503 Service Unavailable\r\n\r\nDRAINING").await.unwrap_err();
        assert_eq!(refused.to_string(), "not ready: DRAINING");
        ask_one_that_says("").await.unwrap_err();
    }

    #[tokio::test]
    async fn nobody_there_is_not_ready() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        ready(address).await.unwrap_err();
    }
}
