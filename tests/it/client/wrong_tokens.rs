//! Tokens of the other API, and tokens that are too long (`docs/protocol.md#tokens`).

use service::token::Role;
use tests::{Admin, Http, Launch, Socket, Stack, fresh_user, tokens};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn a_token_of_one_api_is_refused_by_the_other_even_when_both_have_one_secret() {
    let system = Launch::embedded()
        .env("READ_AUTH", "token")
        .env("JWT_SECRET", tokens::ADMIN_JWT_SECRET)
        .env("ADMIN_JWT_SECRET", tokens::ADMIN_JWT_SECRET)
        .start();
    let keys = |audience| {
        service::token::Keyring::parse(&protocol::Secret::new(tokens::ADMIN_JWT_SECRET), audience).unwrap()
    };
    let for_sockets = tokens::signed(&keys(service::token::Audience::Ws), fresh_user());
    let for_admins = tokens::admin(Role::Admin);
    let http = Http::default();
    let (socket, read) = (system.url("/ws/odds"), system.url("/api/markets/1/odds/snapshot"));
    for (token, on_clients, on_admin) in [(&for_sockets, (101, 200), 401), (&for_admins, (401, 401), 200)] {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        assert_eq!(http.handshake(&socket, &headers).await.status, on_clients.0);
        assert_eq!(http.get_with(&read, &headers).await.status, on_clients.1);
        let admin = Admin::with_token(system.url(""), token);
        assert_eq!(admin.audit("marketId=1").await.status, on_admin);
    }
    let mut open = Socket::connect(system.api, &for_sockets).await;
    open.send(format_args!(r#"{{"type":"refresh","token":"{for_admins}"}}"#)).await;
    assert_eq!(open.error().await.code, "UNAUTHORIZED");
}

#[tokio::test]
async fn a_token_of_any_size_is_a_client_error_and_costs_nobody_anything() {
    let stack = Stack::shared();
    let (gateway, publisher) = (stack.gateway(0), stack.publisher());
    for bytes in [16 * 1024, 16 * 1024 + 1, 60_000, 1 << 20] {
        let token = "a".repeat(bytes);
        for (address, request) in [
            (gateway.api, format!("GET /ws/odds?token={token} HTTP/1.1\r\n")),
            (gateway.api, format!("GET /ws/odds HTTP/1.1\r\nAuthorization: Bearer {token}\r\n")),
            (gateway.api, format!("GET /ws/odds HTTP/1.1\r\nSec-WebSocket-Protocol: token.{token}\r\n")),
            (
                publisher.api,
                format!("GET /admin/audit?marketId=1 HTTP/1.1\r\nAuthorization: Bearer {token}\r\n"),
            ),
        ] {
            let status = status(address, &request).await;
            assert!([401, 414, 431].contains(&status), "{status} to {bytes} bytes");
        }
    }
    let mut socket = stack.socket(0).await;
    socket.send(format_args!(r#"{{"type":"refresh","token":"{}"}}"#, "a".repeat(16_000))).await;
    assert_eq!(socket.error().await.code, "UNAUTHORIZED");
    socket.send(format_args!(r#"{{"type":"refresh","token":"{}"}}"#, "a".repeat(1 << 20))).await;
    assert_eq!(socket.closed().await.code, 1009);
    stack.socket(0).await.expect_silence().await;
}

/// The status of the answer to a request whose head may be refused before it has been read.
async fn status(address: std::net::SocketAddr, request: &str) -> u16 {
    tests::within("an answer", async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let head = format!("{request}Host: x\r\nConnection: close\r\n\r\n");
        // The server does not read the rest of a token that is too long.
        let writing = tokio::spawn(async move {
            let _ = write.write_all(head.as_bytes()).await;
            write
        });
        let mut answer = [0; 12];
        read.read_exact(&mut answer).await.unwrap();
        drop(writing.await);
        std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
    })
    .await
}
