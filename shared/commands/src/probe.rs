//! `gateway probe` and `publisher probe`: asks a service whether it is ready, for images without a shell.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use tokio::time::timeout;

use crate::{block_on, http_client::Endpoint};

/// How long the whole probe may take. `/readyz` responds within about a second.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the command for `service`, on this machine at its `OPS_LISTEN`. The exit code is 0 if it is ready, else 1.
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

/// Sends `GET /readyz`. Any status but 200 is an error.
async fn ready(ops_listen: SocketAddr) -> io::Result<()> {
    let endpoint = Endpoint::parse(&format!("http://{}", local(ops_listen))).map_err(io::Error::other)?;
    let asked = timeout(TIMEOUT, endpoint.send("GET", "/readyz", &[], String::new()));
    let response = asked.await.map_err(|_| io::ErrorKind::TimedOut)??;
    if response.status == 200 {
        Ok(())
    } else {
        Err(io::Error::other(format!("not ready: {}", response.text)))
    }
}

/// Returns the address at which this machine reaches a listener: loopback for one on all addresses.
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

    async fn probe_a_service_that_responds(response: &'static str) -> io::Result<()> {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = socket.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            socket.write_all(response.as_bytes()).unwrap();
        });
        let asked = ready(address).await;
        service.join().unwrap();
        asked
    }

    #[tokio::test]
    async fn only_200_is_ready_and_other_responses_are_shown() {
        probe_a_service_that_responds("HTTP/1.1 200 OK\r\n\r\n{\"ready\":true}").await.unwrap();
        let refused = probe_a_service_that_responds("HTTP/1.1 503 Service Unavailable\r\n\r\nDRAINING")
            .await
            .unwrap_err();
        assert_eq!(refused.to_string(), "not ready: DRAINING");
        probe_a_service_that_responds("").await.unwrap_err();
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_is_not_ready() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        ready(address).await.unwrap_err();
    }
}
