//! An HTTP client of one keep-alive connection with one request at a time.

use std::net::{SocketAddr, ToSocketAddrs};
use std::{fmt, io, str::FromStr, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use axum::body::{Body, Bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{Method, Request, Uri};
use service::http::client::Connection;
use tokio::{net::TcpStream, time::timeout};

/// How long one request may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest response, bytes. A page of updates has a thousand of at most 16 KiB.
const MAX_RESPONSE_BYTES: usize = 32 << 20;

/// A keep-alive connection, opened on first use and again after it broke.
pub(crate) struct Http {
    endpoint: Endpoint,
    bearer: Option<String>,
    connection: Option<Connection>,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

impl Http {
    /// A client that sends the bearer token with every request.
    pub(crate) fn new(endpoint: &Endpoint, bearer: Option<String>) -> Self {
        Self { endpoint: endpoint.clone(), bearer, connection: None }
    }

    /// Connects now, so that the first request does not have to.
    pub(crate) async fn open(&mut self) -> Result<()> {
        match timeout(TIMEOUT, self.connection()).await {
            Ok(connection) => connection.map(drop),
            Err(_) => bail!("no connection to {} within {} s", self.endpoint, TIMEOUT.as_secs()),
        }
    }

    /// `GET path`. Fails without a whole response; any status is a response.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Response> {
        self.send(Method::GET, path, String::new(), TIMEOUT).await
    }

    /// `POST path` with a JSON body. After a failure the server may have acted on the request.
    pub(crate) async fn post(&mut self, path: &str, body: String) -> Result<Response> {
        self.send(Method::POST, path, body, TIMEOUT).await
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: String,
        within: Duration,
    ) -> Result<Response> {
        let response = timeout(within, self.exchange(method, path, body)).await;
        let response = response.unwrap_or_else(|_| Err(anyhow!("no response within {} s", within.as_secs())));
        if response.is_err() {
            self.connection = None;
        }
        response
    }

    async fn exchange(&mut self, method: Method, path: &str, body: String) -> Result<Response> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.endpoint.authority)
            .header(CONTENT_TYPE, "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let request = request.body(Body::from(body)).context("the token or key is not fit for a header")?;
        let response = self.connection().await?.send(request, MAX_RESPONSE_BYTES).await?;
        Ok(Response { status: response.status().as_u16(), body: response.into_body() })
    }

    async fn connection(&mut self) -> Result<&mut Connection> {
        let usable = match &mut self.connection {
            Some(connection) => connection.is_usable().await,
            None => false,
        };
        if !usable {
            self.connection = None;
            let connected = TcpStream::connect(self.endpoint.address).await;
            let stream = connected.map_err(|error| anyhow!(unreachable(&self.endpoint, &error)))?;
            stream.set_nodelay(true)?;
            self.connection = Some(Connection::open(stream).await?);
        }
        self.connection.as_mut().context("connected above")
    }
}

/// A single-threaded runtime for `Http`.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start an I/O runtime")
}

/// The number of connections of a gateway. Fails with a remedy if the endpoint is no gateway.
pub(crate) fn connections(endpoint: &Endpoint) -> Result<u64> {
    #[derive(serde::Deserialize)]
    struct Health {
        connections: u64,
    }

    let Response { status, body } = runtime()?.block_on(Http::new(endpoint, None).get("/api/ws/health"))?;
    if status != 200 {
        bail!("{endpoint} responds with {status} to GET /api/ws/health: that is not a KMarket gateway");
    }
    Ok(serde_json::from_slice::<Health>(&body)?.connections)
}

/// Which request was refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    Token,
    Socket,
    Override,
}

/// What a user can do about a refusal.
pub(crate) fn explain(asked: Asked, status: u16) -> Option<&'static str> {
    Some(match (asked, status) {
        (Asked::Token, 401 | 403) => "the gateway has a TOKEN_API_KEY: pass it with --token-api-key",
        (Asked::Token, 404) => "no token endpoint there: is --gateway a gateway?",
        (Asked::Token, 429) => {
            "a user may ask for 10 tokens per minute: start the gateway with TOKEN_RATE_LIMIT=0, wait a minute, \
             or use other users with --first-user"
        }
        (Asked::Socket, 401) => {
            "the gateway does not accept this token: all gateways need one JWT_SECRET, and --jwt-secret must be it"
        }
        (Asked::Socket, 429) => {
            "start the gateway with HANDSHAKE_RATE_LIMIT=0, or stay below it with --connect-rate 15; \
             as to --per-user, a gateway allows 10 connections per user"
        }
        (Asked::Socket, 503) => {
            "the gateway is full, draining or not ready: look at its MAX_CONNECTIONS, its open-file limit (ulimit -n) \
             and GET /readyz on its ops port"
        }
        (Asked::Override, 401) => {
            "pass an admin token with --admin-token or ADMIN_TOKEN: a gateway without REDIS_URL prints one at start, \
             `publisher token --sub swarm --role trader --ttl 8h` makes one"
        }
        (Asked::Override, 403) => "the admin token's role must be trader or admin",
        (Asked::Override, 404 | 405) => "no admin API there: pass the publisher's address with --publisher",
        (Asked::Override, 429) => "the publisher limits its callers: load it less, or lift its limit",
        (Asked::Override, 503) => "the publisher cannot reach its backbone: look at its log and GET /readyz",
        _ => return None,
    })
}

/// An error for a response other than 200, with the beginning of its body and what to do.
pub(crate) fn refusal(asked: Asked, endpoint: &Endpoint, response: &Response) -> anyhow::Error {
    let body: String = String::from_utf8_lossy(&response.body).chars().take(200).collect();
    let hint = explain(asked, response.status).map(|hint| format!(": {hint}")).unwrap_or_default();
    anyhow!("{endpoint} responded with {} {body}{hint}", response.status)
}

/// The error of a connection that could not be opened, with what to do.
pub(crate) fn unreachable(endpoint: &Endpoint, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::ConnectionRefused => "is it running? `cargo run --release` starts the whole system",
        io::ErrorKind::AddrNotAvailable => "no free source port: use more source addresses with --sources",
        _ => "check the address",
    };
    format!("cannot connect to {endpoint}: {error}; {hint}")
}

/// Where a service listens: a URL without TLS and without a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host:port`, as given.
    pub(crate) authority: String,
    /// Its address, IPv4 first, since the services listen there by default.
    pub(crate) address: SocketAddr,
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let uri: Uri = text.parse()?;
        match uri.scheme_str() {
            Some("http" | "ws") => {}
            Some("https" | "wss") => {
                bail!("no TLS here: give the address behind the balancer, as http://host:port")
            }
            _ => bail!("give a URL such as http://127.0.0.1:8080"),
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            bail!("give only http://host:port, the paths are known");
        }
        let host = uri.host().context("a host is missing")?.trim_matches(['[', ']']);
        let mut addresses = (host, uri.port_u16().unwrap_or(80)).to_socket_addrs()?.collect::<Vec<_>>();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let address = *addresses.first().with_context(|| format!("{host} has no address"))?;
        let authority = uri.authority().context("a host is missing")?.to_string();
        Ok(Self { authority, address })
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { authority: address.to_string(), address }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_host_and_port_without_tls_and_path() {
        let endpoint: Endpoint = "http://127.0.0.1:8080".parse().unwrap();
        assert_eq!(endpoint.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!("ws://127.0.0.1:8080/".parse::<Endpoint>().unwrap(), endpoint);
        assert_eq!("http://[::1]:81".parse::<Endpoint>().unwrap().address, "[::1]:81".parse().unwrap());
        assert!("http://localhost:9".parse::<Endpoint>().unwrap().address.is_ipv4());
        for bad in
            ["127.0.0.1:8080", "https://127.0.0.1:8080", "http://127.0.0.1:8080/ws/odds", "http://", ""]
        {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
