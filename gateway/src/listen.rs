//! The listeners: their addresses, and the bounds of a client's buffers in the kernel.

use std::{io, net::SocketAddr, time::Duration};

use service::{
    http::ops,
    settings::{Setting, Settings},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// The clients' listener.
pub const LISTEN: Setting<SocketAddr> = Setting::new("LISTEN", "127.0.0.1:8080", "address for clients");
/// The operators' listener.
pub const OPS_LISTEN: Setting<SocketAddr> =
    ops::OPS_LISTEN.with("127.0.0.1:9180", ops::OPS_LISTEN.row().help);
/// The time that a handshake may take.
pub const HANDSHAKE_TIMEOUT: Setting<Duration> =
    Setting::new("HANDSHAKE_TIMEOUT", "5s", "time from accept to the end of the handshake");

/// The kernel's queue of connections to accept.
const BACKLOG: i32 = 4096;
/// A client's send buffer in the kernel, bytes: the most that is on the way to the client at once.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// The part of the send buffer that may wait to be sent, bytes. It is what a stalled phone costs, and what a conflated
/// snapshot cannot overtake.
const NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;

/// The settings of the listeners.
#[derive(Clone, Copy, Debug)]
pub struct ListenSettings {
    /// The address for clients.
    pub api: SocketAddr,
    /// The address of `/livez`, `/readyz` and `/metrics`.
    pub ops: SocketAddr,
    /// From accept to the end of a handshake.
    pub handshake_timeout: Duration,
}

impl ListenSettings {
    /// Reads the settings.
    pub fn read(settings: &mut Settings) -> Self {
        Self {
            api: settings.value(&LISTEN),
            ops: settings.value(&OPS_LISTEN),
            handshake_timeout: settings.value(&HANDSHAKE_TIMEOUT),
        }
    }
}

/// Listens on `address`. Connections inherit the bounds of the send buffer.
///
/// # Errors
/// When the address is in use, or not one of this machine's.
pub fn listen(address: SocketAddr, name: &str) -> io::Result<TcpListener> {
    let listener = bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
    tracing::info!(listener = name, address = %listener.local_addr()?, "listening");
    Ok(listener)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
