//! Which client a request comes from.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// What a client address is counted by: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer
/// has at least.
pub type ClientKey = IpAddr;

/// Tells clients from proxies.
#[derive(Debug)]
pub struct Addresses {
    trusted: Vec<IpNet>,
}

impl Addresses {
    /// Believes `X-Forwarded-For` only from these networks.
    #[must_use]
    pub fn new(trusted: Vec<IpNet>) -> Self {
        Self { trusted }
    }

    /// The client behind `peer`: the rightmost address in `X-Forwarded-For` that is no trusted proxy, provided that
    /// the peer is one.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientKey {
        let mut client = peer.to_canonical();
        let forwarded: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        for hop in forwarded.into_iter().rev() {
            if !self.trusted.iter().any(|network| network.contains(&client)) {
                break;
            }
            match hop.trim().parse::<IpAddr>() {
                Ok(address) => client = address.to_canonical(),
                Err(_) => break,
            }
        }
        key(client)
    }
}

fn key(address: IpAddr) -> ClientKey {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let addresses = Addresses::new(trusted.iter().map(|network| network.parse().unwrap()).collect());
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        addresses.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_about_its_own_peer() {
        assert_eq!(client(&[], "198.51.100.7", &["203.0.113.9"]), "198.51.100.7");
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            client(&["10.0.0.0/8"], "10.0.0.1", &["1.2.3.4, 203.0.113.9, 10.0.0.2"]),
            "203.0.113.9",
            "spoofed"
        );
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["1.2.3.4", "203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(&["10.0.0.0/8"], "10.0.0.1", &["nonsense"]), "10.0.0.1");
        assert_eq!(client(&["10.0.0.0/8"], "::ffff:10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(&[], "2001:db8:1:2:3:4:5:6", &[]), "2001:db8:1:2::");
    }
}
