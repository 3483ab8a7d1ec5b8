//! A WebSocket client that sees and sends bytes: for frames that no library would send, for clients that do not
//! answer, and for very many of them.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{message::Message, wait::within};

/// RFC 6455's own example of a key, and the answer to it (section 1.3).
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Opcodes of RFC 6455, section 5.2.
pub mod opcode {
    /// A further fragment.
    pub const CONTINUATION: u8 = 0;
    /// Text.
    pub const TEXT: u8 = 1;
    /// Close.
    pub const CLOSE: u8 = 8;
    /// Ping.
    pub const PING: u8 = 9;
    /// Pong.
    pub const PONG: u8 = 10;
}

/// The bit of a frame's first byte that says it is its message's last.
const FIN: u8 = 0x80;
/// The bit of a frame's second byte that says it is masked.
const MASKED: u8 = 0x80;
/// Lengths that say: the real one follows, in two or in eight bytes.
const LENGTH_IN_2: u8 = 0x7e;
const LENGTH_IN_8: u8 = 0x7f;
/// Any mask will do.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A connection after its handshake.
#[derive(Debug)]
pub struct RawSocket {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How far `buffer` has been taken apart.
    taken: usize,
}

/// A frame the server sent. None is ever fragmented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`opcode`].
    pub opcode: u8,
    /// Its content.
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

    /// Connects and sends `first` in the same packet as the handshake's request.
    pub async fn connect_with(socket: TcpSocket, gateway: SocketAddr, token: &str, first: &[u8]) -> Self {
        let connected = Self::try_connect_with(socket, gateway, token, first).await;
        connected.unwrap_or_else(|answer| panic!("101, not {answer:?}"))
    }

    /// Connects with the token in the query.
    ///
    /// # Errors
    /// What the gateway answered instead of 101; nothing, if it is gone.
    pub async fn try_connect(gateway: SocketAddr, token: &str) -> Result<Self, String> {
        Self::try_connect_with(TcpSocket::new_v4().expect("a socket"), gateway, token, &[]).await
    }

    async fn try_connect_with(
        socket: TcpSocket,
        gateway: SocketAddr,
        token: &str,
        first: &[u8],
    ) -> Result<Self, String> {
        let request = format!(
            "GET /ws/odds?token={token} HTTP/1.1\r\nHost: {gateway}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        within("handshake", async {
            let Ok(stream) = socket.connect(gateway).await else { return Err(String::new()) };
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let mut this = Self { stream, buffer: Vec::new(), taken: 0 };
            // When it is not taken, there is no answer either.
            let _ = this.stream.write_all(&[request.as_bytes(), first].concat()).await;
            let end = loop {
                if let Some(end) = this.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                    break end + 4;
                }
                if !this.fill().await {
                    return Err(String::from_utf8_lossy(&this.buffer).into_owned());
                }
            };
            let answer = String::from_utf8_lossy(&this.buffer[..end]);
            if !answer.starts_with("HTTP/1.1 101 ") {
                return Err(answer.into_owned());
            }
            assert!(answer.contains(ACCEPT), "{answer}");
            assert!(!answer.to_lowercase().contains("sec-websocket-extensions"), "no extension: {answer}");
            this.taken = end;
            Ok(this)
        })
        .await
    }

    /// Sends these bytes as they are. A connection that the server has closed swallows them.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = within("send", self.stream.write_all(bytes)).await;
    }

    /// Sends one text frame.
    pub async fn send(&mut self, text: &str) {
        self.send_bytes(&frame(FIN | opcode::TEXT, text.as_bytes())).await;
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

    /// The text of the next text frame; `None` at the connection's end. Answers nothing.
    async fn text(&mut self) -> Option<String> {
        loop {
            let frame = self.frame().await?;
            if frame.opcode == opcode::TEXT {
                return Some(String::from_utf8(frame.payload).expect("text frames are UTF-8"));
            }
        }
    }

    /// The next message that is not a ping; `None` at the connection's end. Answers nothing.
    pub async fn recv(&mut self) -> Option<Message> {
        within("a message that is no heartbeat", self.recv_patiently()).await
    }

    /// The same, for as long as heartbeats come: for one whose messages somebody else waits for.
    pub async fn recv_patiently(&mut self) -> Option<Message> {
        loop {
            match Message::parse(&self.text().await?) {
                Message::Ping(_) => {}
                message => return Some(message),
            }
        }
    }

    /// Reads on until the server closes the connection: the close frame's code, after a `bye` that names the same.
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
                        return code.expect("a close frame of the server's carries a code");
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
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.reserve(4096);
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let bytes = &self.buffer[self.taken..];
        let (&[first, second], _) = bytes.split_first_chunk()?;
        assert_eq!(first & 0x70, 0, "no extension was negotiated");
        assert_eq!(first & FIN, FIN, "the server fragments nothing");
        assert_eq!(second & MASKED, 0, "a server masks nothing");
        let (header, length) = match second {
            LENGTH_IN_2 => (4, usize::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?))),
            LENGTH_IN_8 => {
                let length = u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?);
                (10, usize::try_from(length).expect("a frame that fits into memory"))
            }
            length => (2, usize::from(length)),
        };
        let payload = bytes.get(header..header + length)?.to_vec();
        self.taken += header + length;
        Some(Frame { opcode: first & 0x0f, payload })
    }
}

/// A masked frame as a client sends it; `first` is the frame's first byte.
#[must_use]
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, payload.len(), MASKED);
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame that breaks the rule that clients mask.
#[must_use]
pub fn unmasked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [head(first, payload.len(), 0), payload.to_vec()].concat()
}

/// The first byte of a whole message's only frame.
#[must_use]
pub const fn last(opcode: u8) -> u8 {
    FIN | opcode
}

fn head(first: u8, length: usize, masked: u8) -> Vec<u8> {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..LENGTH_IN_2), _) => vec![first, masked | length],
        (_, Ok(length)) => [&[first, masked | LENGTH_IN_2], &length.to_be_bytes()[..]].concat(),
        _ => [&[first, masked | LENGTH_IN_8], &(length as u64).to_be_bytes()[..]].concat(),
    }
}
