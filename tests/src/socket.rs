//! A well-behaved WebSocket client, such as a browser with its page.

use std::{fmt::Display, net::SocketAddr};

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, client::IntoClientRequest, handshake::client::Response, http::Request},
};

use crate::{
    message::{Ack, Bye, ErrorMessage, Message, Pong, Snapshot, Update},
    wait::within,
};

/// An open connection. It replies to ping frames, as every WebSocket library does.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
}

/// What a connection yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A text frame.
    Message(Message),
    /// An RFC 6455 ping frame.
    PingFrame,
    /// A close frame, with its code.
    Close(u16),
    /// The end, after a close frame or without one.
    End,
}

impl Socket {
    /// Connects with the token in the query, as clients in the field do.
    pub async fn connect(gateway: SocketAddr, token: &str) -> Self {
        Self::open(gateway, format!("ws://{gateway}/ws/odds?token={token}")).await.0
    }

    /// Like [`Self::connect`], but returns `None` if the handshake is refused or the gateway is gone.
    pub async fn try_connect(gateway: SocketAddr, token: &str) -> Option<Self> {
        within("handshake", async {
            let stream = TcpStream::connect(gateway).await.ok()?;
            let (stream, _) =
                client_async(format!("ws://{gateway}/ws/odds?token={token}"), stream).await.ok()?;
            Some(Self { stream })
        })
        .await
    }

    /// Connects with this request; panics unless the response is 101.
    pub async fn open(gateway: SocketAddr, request: impl IntoClientRequest + Unpin) -> (Self, Response) {
        let request: Request<()> = request.into_client_request().expect("a well-formed request");
        within("handshake", async {
            let stream = TcpStream::connect(gateway).await.expect("the gateway accepts connections");
            stream.set_nodelay(true).expect("TCP_NODELAY");
            let (stream, response) =
                client_async(request, stream).await.expect("the response to the handshake is 101");
            (Self { stream }, response)
        })
        .await
    }

    /// Sends one text frame.
    pub async fn send(&mut self, text: impl Display) {
        self.send_frame(tungstenite::Message::text(text.to_string())).await;
    }

    /// Like [`Self::send`], but returns false if the connection has ended.
    pub async fn try_send(&mut self, text: impl Display) -> bool {
        within("send", self.stream.send(tungstenite::Message::text(text.to_string()))).await.is_ok()
    }

    /// Sends one frame of any kind.
    pub async fn send_frame(&mut self, frame: tungstenite::Message) {
        within("send", self.stream.send(frame)).await.expect("the connection is open");
    }

    /// The next event of any kind.
    pub async fn event(&mut self) -> Event {
        within("a message", self.next()).await
    }

    async fn next(&mut self) -> Event {
        loop {
            return match self.stream.next().await {
                Some(Ok(tungstenite::Message::Text(text))) => Event::Message(Message::parse(&text)),
                Some(Ok(tungstenite::Message::Ping(_))) => Event::PingFrame,
                Some(Ok(tungstenite::Message::Close(frame))) => {
                    Event::Close(frame.map_or(1005, |frame| frame.code.into()))
                }
                Some(Ok(tungstenite::Message::Pong(_))) => continue,
                Some(Ok(other)) => panic!("the gateway sends text only, not {other:?}"),
                Some(Err(_)) | None => Event::End,
            };
        }
    }

    /// The next text frame, without a deadline.
    ///
    /// # Errors
    /// The close code at the connection's end; 1006 without a close frame.
    pub async fn text(&mut self) -> Result<String, u16> {
        let mut code = 1006;
        loop {
            match self.stream.next().await {
                Some(Ok(tungstenite::Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(tungstenite::Message::Close(frame))) => {
                    code = frame.map_or(1005, |frame| frame.code.into());
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(code),
            }
        }
    }

    /// Like [`Self::recv`], but returns `None` once the connection has ended.
    pub async fn try_recv(&mut self) -> Option<Message> {
        within("a message that is no heartbeat", self.recv_patiently()).await
    }

    /// Like [`Self::try_recv`], but without a deadline while heartbeats come.
    pub async fn recv_patiently(&mut self) -> Option<Message> {
        loop {
            match self.event().await {
                Event::Message(Message::Ping(_)) | Event::PingFrame => {}
                Event::Message(message) => return Some(message),
                Event::Close(_) | Event::End => return None,
            }
        }
    }

    /// The next message that is not a heartbeat.
    pub async fn recv(&mut self) -> Message {
        self.try_recv().await.expect("the connection stays open")
    }

    /// The next message, which must be an ack.
    pub async fn ack(&mut self) -> Ack {
        match self.recv().await {
            Message::Ack(ack) => ack,
            other => panic!("an ack, not {other:?}"),
        }
    }

    /// The next message, which must be an update.
    pub async fn update(&mut self) -> Update {
        match self.recv().await {
            Message::Update(update) => update,
            other => panic!("an odds_update, not {other:?}"),
        }
    }

    /// The next message, which must be a snapshot.
    pub async fn snapshot(&mut self) -> Snapshot {
        match self.recv().await {
            Message::Snapshot(snapshot) => snapshot,
            other => panic!("a snapshot, not {other:?}"),
        }
    }

    /// The next message, which must be a pong.
    pub async fn pong(&mut self) -> Pong {
        match self.recv().await {
            Message::Pong(pong) => pong,
            other => panic!("a pong, not {other:?}"),
        }
    }

    /// The next message, which must be an error.
    pub async fn error(&mut self) -> ErrorMessage {
        match self.recv().await {
            Message::Error(error) => error,
            other => panic!("an error, not {other:?}"),
        }
    }

    /// Subscribes and returns the ack.
    pub async fn subscribe(&mut self, markets: &[u64]) -> Ack {
        self.send(format_args!(r#"{{"type":"subscribe","markets":{markets:?}}}"#)).await;
        self.ack().await
    }

    /// Resumes one market after `seq` and returns the ack.
    pub async fn resume(&mut self, market: u64, seq: u64) -> Ack {
        self.send(format_args!(r#"{{"type":"resume","offsets":{{"{market}":{seq}}}}}"#)).await;
        self.ack().await
    }

    /// Proves that the gateway has nothing more to send about earlier requests: the next message is the pong to a
    /// ping sent now.
    pub async fn expect_silence(&mut self) {
        self.send(r#"{"type":"ping","ts":42}"#).await;
        assert_eq!(self.pong().await.ts, Some(42.into()), "a pong and nothing before it");
    }

    /// Reads until the server closes the connection and returns its `bye`. Panics unless the close frame that follows
    /// has the same code.
    pub async fn closed(&mut self) -> Bye {
        within("the server closes the connection", async {
            let mut bye = None;
            let mut code = None;
            loop {
                match self.next().await {
                    Event::Message(Message::Bye(said)) => assert!(bye.replace(said).is_none(), "one bye"),
                    Event::Message(message) => {
                        assert!(bye.is_none(), "nothing comes after bye, but {message:?} did");
                    }
                    Event::PingFrame => {}
                    Event::Close(named) => code = Some(named),
                    Event::End => {
                        let bye =
                            bye.unwrap_or_else(|| panic!("the end, close code {code:?}, without a bye"));
                        assert_eq!(Some(bye.code), code, "bye names the code of the close frame");
                        return bye;
                    }
                }
            }
        })
        .await
    }
}
