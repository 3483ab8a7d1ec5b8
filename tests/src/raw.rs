//! A WebSocket client of single frames: for frames that no library would send, for clients that send no pongs, and
//! for very many clients.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

pub use crate::frame::{frame, last, opcode, unmasked_frame};
use crate::{
    frame::{Side, parse},
    message::Message,
    wait::within,
};

/// `Sec-WebSocket-Accept` of the response to an [`upgrade_request`] (RFC 6455 section 1.3).
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The upgrade request of a client with this token. Every client sends the example key of RFC 6455 section 1.3, so
/// that the right response is a constant ([`ACCEPT`]).
#[must_use]
pub fn upgrade_request(host: &str, token: &str) -> String {
    format!(
        "GET /ws/odds?token={token} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct RawSocket {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How much of `buffer` has been parsed.
    parsed: usize,
}

/// A frame that the server sent. The server fragments no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`opcode`].
    pub opcode: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl RawSocket {
    /// Connects with the token in the query.
    pub async fn connect(gateway: SocketAddr, token: &str) -> Self {
        Self::connect_with(TcpSocket::new_v4().expect("a socket"), gateway, token, &[]).await
    }

    /// Connects with a small receive buffer, so that the server soon finds the connection unwritable.
    pub async fn connect_with_small_buffer(gateway: SocketAddr, token: &str, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("SO_RCVBUF");
        Self::connect_with(socket, gateway, token, &[]).await
    }

    /// Connects and sends `first` in the same packet as the upgrade request.
    pub async fn connect_with(socket: TcpSocket, gateway: SocketAddr, token: &str, first: &[u8]) -> Self {
        let connected = Self::try_connect_with(socket, gateway, token, first).await;
        connected.unwrap_or_else(|response| panic!("101, not {response:?}"))
    }

    /// Connects with the token in the query.
    ///
    /// # Errors
    /// The gateway's response in place of 101; empty if the gateway is gone.
    pub async fn try_connect(gateway: SocketAddr, token: &str) -> Result<Self, String> {
        Self::try_connect_with(TcpSocket::new_v4().expect("a socket"), gateway, token, &[]).await
    }

    async fn try_connect_with(
        socket: TcpSocket,
        gateway: SocketAddr,
        token: &str,
        first: &[u8],
    ) -> Result<Self, String> {
        let request = upgrade_request(&gateway.to_string(), token);
        within("handshake", async {
            let Ok(stream) = socket.connect(gateway).await else { return Err(String::new()) };
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let mut this = Self { stream, buffer: Vec::new(), parsed: 0 };
            // A failed write shows as a missing response.
            let _ = this.stream.write_all(&[request.as_bytes(), first].concat()).await;
            let end = loop {
                if let Some(end) = this.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                    break end + 4;
                }
                if !this.fill().await {
                    return Err(String::from_utf8_lossy(&this.buffer).into_owned());
                }
            };
            let head = String::from_utf8_lossy(&this.buffer[..end]);
            if !head.starts_with("HTTP/1.1 101 ") {
                return Err(head.into_owned());
            }
            assert!(head.contains(ACCEPT), "{head}");
            assert!(!head.to_lowercase().contains("sec-websocket-extensions"), "no extension: {head}");
            this.parsed = end;
            Ok(this)
        })
        .await
    }

    /// Sends these bytes as they are. Ignores that the server may have closed the connection.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = within("send", self.stream.write_all(bytes)).await;
    }

    /// Sends one text frame.
    pub async fn send(&mut self, text: &str) {
        self.send_bytes(&frame(last(opcode::TEXT), text.as_bytes())).await;
    }

    /// The next frame; `None` at the connection's end.
    pub async fn frame(&mut self) -> Option<Frame> {
        within("a frame", self.next()).await
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The text of the next text frame; `None` at the connection's end. Sends nothing in reply to pings.
    async fn text(&mut self) -> Option<String> {
        loop {
            let frame = self.frame().await?;
            if frame.opcode == opcode::TEXT {
                return Some(String::from_utf8(frame.payload).expect("text frames are UTF-8"));
            }
        }
    }

    /// The next message that is not a ping; `None` at the connection's end. Sends no pong.
    pub async fn recv(&mut self) -> Option<Message> {
        within("a message that is no heartbeat", self.recv_patiently()).await
    }

    /// Like [`Self::recv`], but without a deadline while heartbeats come.
    pub(crate) async fn recv_patiently(&mut self) -> Option<Message> {
        loop {
            match Message::parse(&self.text().await?) {
                Message::Ping(_) => {}
                message => return Some(message),
            }
        }
    }

    /// Reads until the server closes the connection. Returns the code of its close frame, which its `bye` must name too.
    pub async fn close_code(&mut self) -> u16 {
        within("the server closes the connection", async {
            let mut bye = None;
            while let Some(frame) = self.next().await {
                match frame.opcode {
                    opcode::TEXT => {
                        if let Message::Bye(said) = Message::parse(&String::from_utf8_lossy(&frame.payload)) {
                            bye = Some(said);
                        }
                    }
                    opcode::CLOSE => {
                        let code = frame.payload.first_chunk().map(|&code| u16::from_be_bytes(code));
                        assert_eq!(bye.map(|bye| bye.code), code, "bye names the code of the close frame");
                        return code.expect("the server's close frames carry a code");
                    }
                    _ => {}
                }
            }
            panic!("the connection ended without a close frame, after {bye:?}");
        })
        .await
    }

    /// Reads more; `false` at the end, orderly or not.
    async fn fill(&mut self) -> bool {
        self.buffer.drain(..self.parsed);
        self.parsed = 0;
        self.buffer.reserve(4096);
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let parsed = parse(&self.buffer[self.parsed..], Side::Server)
            .unwrap_or_else(|violation| panic!("the gateway sent {violation}"))?;
        self.parsed += parsed.length;
        Some(Frame { opcode: parsed.opcode, payload: parsed.payload.into_owned() })
    }
}
