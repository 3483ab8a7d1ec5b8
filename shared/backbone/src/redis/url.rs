//! `REDIS_URL`: one Redis, one behind sentinels, or a cluster.

use ::redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates};
use protocol::Secret;

/// Where the markets' logs are.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// `redis://`, `rediss://`, `redis-sentinel://h1:26379,h2:26379/mymaster` or `redis-cluster://h1:7000,h2:7001`; the
    /// last two also as `rediss-…`. May hold `user:password@`, which is for the Redis nodes.
    pub url: Secret,
    /// PEM of the certificate authorities to trust instead of the system's, for `rediss`.
    pub ca_pem: Option<Secret>,
    /// Where logs are followed.
    pub tail_from: TailFrom,
}

/// Where logs are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TailFrom {
    /// At the primaries.
    #[default]
    Primary,
    /// At a replica of each while one keeps up, so that following costs the primaries nothing. Everything else is asked
    /// of the primaries.
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

/// A URL taken apart.
#[derive(Debug)]
pub(super) enum Topology {
    /// One Redis.
    Single(Address),
    /// The primary that these sentinels name.
    Sentinel { sentinels: Vec<Address>, name: String },
    /// The primaries that any of these knows.
    Cluster { seeds: Vec<Address> },
}

/// `host:port`; an IPv6 host in brackets.
pub(super) type Address = String;

/// How to connect to any node.
#[derive(Debug)]
pub(super) struct Dialer {
    tls: bool,
    /// `user:password@`, percent-encoded as it came.
    user: String,
    /// `/db`, or nothing.
    path: String,
    ca_pem: Option<Secret>,
}

/// Why a `REDIS_URL` cannot be used. Never shows the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRedisUrl {
    /// Not one of the schemes.
    #[error("must begin with redis://, rediss://, redis-sentinel:// or redis-cluster://")]
    Scheme,
    /// No host.
    #[error("names no host")]
    NoHost,
    /// Sentinels without the name they know the primary by.
    #[error("must end with the primary's name, as in redis-sentinel://h1:26379,h2:26379/mymaster")]
    NoName,
    /// Anything else that redis-rs refuses.
    #[error("cannot be used: {0}")]
    Redis(#[from] RedisError),
}

impl RedisConfig {
    pub(super) fn parse(&self) -> Result<(Topology, Dialer), InvalidRedisUrl> {
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
        let topology = match scheme {
            "redis" | "rediss" => {
                if !path.is_empty() {
                    dialer.path = format!("/{path}");
                }
                Topology::Single(addresses(6379)?.swap_remove(0))
            }
            "redis-sentinel" | "rediss-sentinel" => {
                let (name, db) = path.split_once('/').map_or((path, None), |(name, db)| (name, Some(db)));
                if name.is_empty() {
                    return Err(InvalidRedisUrl::NoName);
                }
                dialer.path = db.map_or(String::new(), |db| format!("/{db}"));
                Topology::Sentinel { sentinels: addresses(26379)?, name: name.to_owned() }
            }
            "redis-cluster" | "rediss-cluster" => Topology::Cluster { seeds: addresses(6379)? },
            _ => return Err(InvalidRedisUrl::Scheme),
        };
        // A bad password encoding or certificate is known at start, not at the first connection.
        dialer.node(match &topology {
            Topology::Single(address) => address,
            Topology::Sentinel { sentinels, .. } => &sentinels[0],
            Topology::Cluster { seeds } => &seeds[0],
        })?;
        Ok((topology, dialer))
    }
}

impl Dialer {
    /// A client for the Redis node at `address`, Nagle off.
    pub(super) fn node(&self, address: &str) -> Result<Client, RedisError> {
        self.dial(address, &self.user, &self.path)
    }

    /// A client for the sentinel at `address`. Sentinels have no databases and passwords of their own.
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
        // rustls panics at the first connection unless it was told whose cryptography to use. Fails only when it was.
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

    fn parse(url: &str) -> Result<(Topology, Dialer), InvalidRedisUrl> {
        RedisConfig { url: Secret::new(url), ca_pem: None, tail_from: TailFrom::Primary }.parse()
    }

    #[test]
    fn each_topology_is_told_by_its_scheme() {
        let (topology, dialer) = parse("redis://user:p%40ss@example.com/2").unwrap();
        assert!(matches!(topology, Topology::Single(address) if address == "example.com:6379"));
        let info = dialer.node("other:1").unwrap().get_connection_info().clone();
        assert_eq!(info.redis_settings().password(), Some("p@ss"));
        assert_eq!((info.redis_settings().db(), info.tcp_settings().nodelay()), (2, true));
        assert_eq!(info.addr().to_string(), "other:1");

        let (topology, dialer) = parse("redis-sentinel://:secret@a,b:1,[::1]:2/mymaster").unwrap();
        let Topology::Sentinel { sentinels, name } = topology else { panic!("{topology:?}") };
        assert_eq!((sentinels.join(" ").as_str(), name.as_str()), ("a:26379 b:1 [::1]:2", "mymaster"));
        assert_eq!(dialer.sentinel("a:1").unwrap().get_connection_info().redis_settings().password(), None);

        let (topology, _) = parse("redis-cluster://a:7000,b:7001").unwrap();
        assert!(matches!(topology, Topology::Cluster { seeds } if seeds == ["a:7000", "b:7001"]));
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_showing_the_password() {
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
