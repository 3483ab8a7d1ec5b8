//! One connection: bytes between the kernel and its session.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::{io, mem};

use ::tests::frame::MAX_FRAME_BYTES;
use mio::{Interest, Registry, Token, event::Event, net::TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use super::session::{Ended, Session};
use crate::{clock::now_us, report::Counts};

/// A connection. It holds no buffer while it is idle.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) session: Session,
    /// The start of a frame whose rest has not come yet.
    partial: Vec<u8>,
    /// What the kernel has not taken yet.
    unsent: Vec<u8>,
}

/// What all connections of a thread share, since they use it one at a time.
pub(crate) struct Shared {
    pub(crate) counts: Counts,
    /// What the current connection has to send.
    pub(crate) out: Vec<u8>,
    /// What the current connection has read.
    pub(crate) buffer: Vec<u8>,
}

impl Connection {
    /// Starts to connect, and to send `request` once connected.
    pub(crate) fn open(
        to: SocketAddr,
        from: Option<IpAddr>,
        small_buffer: bool,
        request: String,
        session: Session,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if small_buffer {
            // Linux raises it to its minimum.
            socket.set_recv_buffer_size(1)?;
        }
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        match socket.connect(&to.into()) {
            Err(error) if !is_connecting(&error) => return Err(error),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, session, partial: Vec::new(), unsent: request.into_bytes() })
    }

    /// Does what epoll says is possible. After an `Ended` the caller drops the connection.
    pub(crate) fn handle(&mut self, event: &Event, shared: &mut Shared) -> Result<(), Ended> {
        if event.is_writable() || event.is_error() {
            self.flush()?;
        }
        if event.is_readable() || event.is_read_closed() {
            self.read(event.is_read_closed(), shared)?;
        }
        Ok(())
    }

    /// Sends `out`, or keeps it until the kernel takes it.
    pub(crate) fn send(&mut self, out: &mut Vec<u8>) -> Result<(), Ended> {
        if !out.is_empty() {
            self.unsent.append(out);
            self.flush()?;
        }
        Ok(())
    }

    /// Reads until the socket is empty, since epoll is edge-triggered here. A read that does not fill its buffer has
    /// emptied the socket (epoll(7)), except for an end that was already announced.
    fn read(&mut self, to_end: bool, shared: &mut Shared) -> Result<(), Ended> {
        let Shared { counts, out, buffer } = shared;
        loop {
            let held = self.partial.len();
            if buffer.len() < held + MIN_READ_BYTES {
                buffer.resize((held + MIN_READ_BYTES).min(MAX_FRAME_BYTES + 2 * MIN_READ_BYTES), 0);
            }
            buffer[..held].copy_from_slice(&self.partial);
            let read = match self.stream.read(&mut buffer[held..]) {
                Ok(0) => return Err(Ended::lost("the server hung up without a close frame")),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let emptied = held + read < buffer.len();
            let bytes = &buffer[..held + read];
            let received = self.session.receive(bytes, now_us(), counts, out);
            let sent = self.send(out);
            let rest = &bytes[received?..];
            sent?;
            if !rest.is_empty() {
                self.partial.clear();
                self.partial.extend_from_slice(rest);
            } else if held > 0 {
                self.partial = Vec::new();
            }
            if emptied && !to_end {
                return Ok(());
            }
        }
    }

    fn flush(&mut self) -> Result<(), Ended> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) if written == self.unsent.len() => drop(mem::take(&mut self.unsent)),
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The shared buffer never offers less than this to a read.
const MIN_READ_BYTES: usize = 128 * 1024;

fn is_connecting(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::lost(error)
    }
}
