//! `gateway probe` and `publisher probe`: the question whether a service is ready, for images that have no shell.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// How long each step may take; `/readyz` answers within about a second.
const TIMEOUT: Duration = Duration::from_secs(3);
/// More than `/readyz` ever says.
const MAX_ANSWER: u64 = 64 * 1024;

/// Asks `GET /readyz` of the service on this machine whose `OPS_LISTEN` this is.
///
/// # Errors
/// When nobody answers in time, or the answer is not 200; then it is the answer.
pub fn ready(ops_listen: SocketAddr) -> io::Result<()> {
    let mut socket = TcpStream::connect_timeout(&local(ops_listen), TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.take(MAX_ANSWER).read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        Ok(())
    } else {
        let text = String::from_utf8_lossy(&answer);
        let body = text.split_once("\r\n\r\n").map_or(&*text, |(_, body)| body);
        Err(io::Error::other(format!("not ready: {body}")))
    }
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
    use std::{net::TcpListener, thread};

    use super::*;

    fn ask_one_that_says(answer: &'static str) -> io::Result<()> {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = socket.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            socket.write_all(answer.as_bytes()).unwrap();
        });
        let asked = ready(address);
        service.join().unwrap();
        asked
    }

    #[test]
    fn only_200_is_ready_and_else_the_reasons_are_told() {
        ask_one_that_says("HTTP/1.1 200 OK\r\n\r\n{\"ready\":true}").unwrap();
        let refused = ask_one_that_says("HTTP/1.1 503 Service Unavailable\r\n\r\nDRAINING").unwrap_err();
        assert_eq!(refused.to_string(), "not ready: DRAINING");
        ask_one_that_says("").unwrap_err();
    }

    #[test]
    fn nobody_there_is_not_ready() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        ready(address).unwrap_err();
    }
}
