//! Parses `REDIS_URL`, which names one Redis, sentinels, or a cluster.

use ::redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates};
use protocol::Secret;

/// The Redis that holds the markets' logs.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// `redis://`, `rediss://`, `redis-sentinel://h1:26379,h2:26379/mymaster` or `redis-cluster://h1:7000,h2:7001`; the
    /// last two also as `rediss-…`. `user:password@` applies to the Redis nodes, not to the sentinels.
    pub url: Secret,
    /// PEM of the certificate authorities to trust instead of the system's, for `rediss`.
    pub ca_pem: Option<Secret>,
    /// The nodes at which logs are followed.
    pub tail_from: TailFrom,
}

/// The nodes at which logs are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TailFrom {
    /// At the primaries.
    #[default]
    Primary,
    /// At a replica of each primary while one keeps up, so that following puts no load on the primaries. All other calls
    /// go to the primaries.
    Replica,
}

impl std::str::FromStr for TailFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "replica" => Ok(Self::Replica),
            _ => Err(format!("{text:?} is neither primary nor replica")),
        }
    }
}

/// The servers that a URL names.
#[derive(Debug)]
pub(super) enum Servers {
    /// One Redis.
    Single(Address),
    /// Sentinels, which know the primary by this name.
    Sentinels { sentinels: Vec<Address>, name: String },
    /// Nodes of a cluster. Any of them knows all primaries.
    Cluster { seeds: Vec<Address> },
}

/// `host:port`, with an IPv6 host in brackets.
pub(super) type Address = String;

/// Joins host and port.
pub(super) fn address(host: &str, port: impl std::fmt::Display) -> Address {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// What it takes to connect to any of the nodes.
#[derive(Debug)]
pub(super) struct Dialer {
    tls: bool,
    /// `user:password@`, percent-encoded as in the URL; or empty.
    user: String,
    /// `/db`, or empty.
    path: String,
    ca_pem: Option<Secret>,
}

/// Why a `REDIS_URL` is invalid. Never shows the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRedisUrl {
    /// The scheme is unknown.
    #[error("must begin with redis://, rediss://, redis-sentinel:// or redis-cluster://")]
    Scheme,
    /// There is no host.
    #[error("names no host")]
    NoHost,
    /// The URL lacks the name by which the sentinels know the primary.
    #[error("must end with the primary's name, as in redis-sentinel://h1:26379,h2:26379/mymaster")]
    NoName,
    /// The redis crate rejects the rest of the URL, or the certificates.
    #[error("cannot be used: {0}")]
    Redis(#[from] RedisError),
}

impl RedisConfig {
    pub(super) fn parse(&self) -> Result<(Servers, Dialer), InvalidRedisUrl> {
        let (scheme, rest) = self.url.expose().split_once("://").ok_or(InvalidRedisUrl::Scheme)?;
        let tls = scheme.starts_with("rediss");
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (format!("{user}@"), rest),
            None => (String::new(), rest),
        };
        let (hosts, path) = match rest.split_once('/') {
            Some((hosts, path)) => (hosts, path),
            None => (rest, ""),
        };
        let addresses = |port: u16| -> Result<Vec<Address>, InvalidRedisUrl> {
            let hosts: Vec<Address> =
                hosts.split(',').filter(|host| !host.is_empty()).map(|host| with_port(host, port)).collect();
            if hosts.is_empty() { Err(InvalidRedisUrl::NoHost) } else { Ok(hosts) }
        };
        let mut dialer = Dialer { tls, user, path: String::new(), ca_pem: self.ca_pem.clone() };
        let servers = match scheme {
            "redis" | "rediss" => {
                if !path.is_empty() {
                    dialer.path = format!("/{path}");
                }
                Servers::Single(addresses(6379)?.swap_remove(0))
            }
            "redis-sentinel" | "rediss-sentinel" => {
                let (name, db) = path.split_once('/').map_or((path, None), |(name, db)| (name, Some(db)));
                if name.is_empty() {
                    return Err(InvalidRedisUrl::NoName);
                }
                dialer.path = db.map_or(String::new(), |db| format!("/{db}"));
                Servers::Sentinels { sentinels: addresses(26379)?, name: name.to_owned() }
            }
            "redis-cluster" | "rediss-cluster" => Servers::Cluster { seeds: addresses(6379)? },
            _ => return Err(InvalidRedisUrl::Scheme),
        };
        // Finds a bad password encoding or certificate at start, not at the first connection.
        dialer.node(match &servers {
            Servers::Single(address) => address,
            Servers::Sentinels { sentinels, .. } => &sentinels[0],
            Servers::Cluster { seeds } => &seeds[0],
        })?;
        Ok((servers, dialer))
    }
}

impl Dialer {
    /// Creates a client for the Redis node at `address`.
    pub(super) fn node(&self, address: &str) -> Result<Client, RedisError> {
        self.dial(address, &self.user, &self.path)
    }

    /// Creates a client for the sentinel at `address`. Sentinels have no databases, and passwords of their own.
    pub(super) fn sentinel(&self, address: &str) -> Result<Client, RedisError> {
        self.dial(address, "", "")
    }

    fn dial(&self, address: &str, user: &str, path: &str) -> Result<Client, RedisError> {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let info: ConnectionInfo = format!("{scheme}://{user}{address}{path}").into_connection_info()?;
        let nodelay = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(nodelay);
        if !self.tls {
            return Client::open(info);
        }
        // rustls panics at the first connection without a crypto provider. Installing fails only if there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root_cert = self.ca_pem.as_ref().map(|pem| pem.expose().as_bytes().to_vec());
        Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
    }
}

fn with_port(host: &str, port: u16) -> Address {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']') && !port.is_empty());
    if has_port { host.to_owned() } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<(Servers, Dialer), InvalidRedisUrl> {
        RedisConfig { url: Secret::new(url), ca_pem: None, tail_from: TailFrom::Primary }.parse()
    }

    #[test]
    fn the_scheme_selects_the_topology() {
        let (servers, dialer) = parse("redis://user:p%40ss@example.com/2").unwrap();
        assert!(matches!(servers, Servers::Single(address) if address == "example.com:6379"));
        let info = dialer.node("other:1").unwrap().get_connection_info().clone();
        assert_eq!(info.redis_settings().password(), Some("p@ss"));
        assert_eq!((info.redis_settings().db(), info.tcp_settings().nodelay()), (2, true));
        assert_eq!(info.addr().to_string(), "other:1");

        let (servers, dialer) = parse("redis-sentinel://:secret@a,b:1,[::1]:2/mymaster").unwrap();
        let Servers::Sentinels { sentinels, name } = servers else { panic!("{servers:?}") };
        assert_eq!((sentinels.join(" ").as_str(), name.as_str()), ("a:26379 b:1 [::1]:2", "mymaster"));
        assert_eq!(dialer.sentinel("a:1").unwrap().get_connection_info().redis_settings().password(), None);

        let (servers, _) = parse("redis-cluster://a:7000,b:7001").unwrap();
        assert!(matches!(servers, Servers::Cluster { seeds } if seeds == ["a:7000", "b:7001"]));
    }

    #[test]
    fn an_invalid_url_is_refused_without_showing_the_password() {
        for url in [
            "",
            "localhost",
            "http://a",
            "redis://",
            "redis-sentinel://a",
            "redis-cluster:///",
            "redis://a/x",
        ] {
            assert!(parse(url).is_err(), "{url:?}");
        }
        let error = parse("redis-sentinel://:hush@a").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hush"));
    }
}
