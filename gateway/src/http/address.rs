//! Which client a request comes from.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

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
        // Bytes: a value that is no text at its left end, where the client writes, is one at its right end.
        let forwarded: Vec<&[u8]> = headers
            .get_all("x-forwarded-for")
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .collect();
        for hop in forwarded.into_iter().rev() {
            if !self.trusted.iter().any(|network| network.contains(&client)) {
                break;
            }
            match parse(hop) {
                Some(address) => client = address.to_canonical(),
                None => break,
            }
        }
        key(client)
    }
}

/// An address, which some proxies write with the port.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let hop = str::from_utf8(hop).ok()?.trim();
    hop.parse().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip())).ok()
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

    const PROXIES: &[&str] = &["10.0.0.0/8", "2001:db8:ffff::/48"];

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        assert_eq!(client(&[], "198.51.100.7", &["203.0.113.9"]), "198.51.100.7");
        assert_eq!(client(PROXIES, "198.51.100.7", &["203.0.113.9, 10.0.0.1"]), "198.51.100.7");
        assert_eq!(client(PROXIES, "10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(PROXIES, "::ffff:10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(PROXIES, "2001:db8:ffff::1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(PROXIES, "10.0.0.1", &[]), "10.0.0.1");
    }

    /// What a client writes itself stands to the left of what the proxies append.
    #[test]
    fn a_proxy_is_believed_only_about_its_own_peer() {
        for spoofed in ["1.2.3.4", "10.0.0.9", "127.0.0.1", "::1", "1.2.3.4, 10.0.0.2", "nonsense", ",,", ""]
        {
            let appended = format!("{spoofed}, 203.0.113.9");
            assert_eq!(client(PROXIES, "10.0.0.1", &[&appended]), "203.0.113.9", "{spoofed:?}");
            assert_eq!(client(PROXIES, "10.0.0.1", &[spoofed, "203.0.113.9"]), "203.0.113.9", "{spoofed:?}");
            // Over several proxies, one of which speaks IPv6.
            let hops = format!("{appended}, 10.0.0.7 ,2001:db8:ffff::2");
            assert_eq!(client(PROXIES, "10.0.0.1", &[&hops]), "203.0.113.9", "{spoofed:?}");
        }
    }

    #[test]
    fn what_is_no_address_ends_the_search_at_the_proxy_that_wrote_it() {
        for garbage in ["nonsense", "", "unknown", "_hidden", "203.0.113.009", "1.2.3", "[2001:db8::1]"] {
            assert_eq!(client(PROXIES, "10.0.0.1", &[garbage]), "10.0.0.1", "{garbage:?}");
            let hops = format!("203.0.113.9, {garbage}, 10.0.0.2");
            assert_eq!(client(PROXIES, "10.0.0.1", &[&hops]), "10.0.0.2", "{garbage:?}");
        }
    }

    #[test]
    fn what_is_no_text_hides_nothing_that_stands_behind_it() {
        let addresses = Addresses::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        for value in [&b"192.0.2.1"[..], b"\xff, 203.0.113.9"] {
            headers.append("x-forwarded-for", axum::http::HeaderValue::from_bytes(value).unwrap());
        }
        assert_eq!(addresses.client("10.0.0.1".parse().unwrap(), &headers).to_string(), "203.0.113.9");
    }

    #[test]
    fn a_port_behind_the_address_is_passed_over() {
        assert_eq!(client(PROXIES, "10.0.0.1", &["1.2.3.4, 203.0.113.9:443"]), "203.0.113.9");
        assert_eq!(client(PROXIES, "10.0.0.1", &["[2001:db8:1:2::7]:443"]), "2001:db8:1:2::");
    }

    #[test]
    fn an_ipv6_client_is_its_network_of_64_bits_and_a_mapped_ipv4_one_its_own_address() {
        assert_eq!(client(&[], "2001:db8:1:2:3:4:5:6", &[]), "2001:db8:1:2::");
        assert_eq!(client(PROXIES, "10.0.0.1", &["2001:db8:1:2:ffff::1"]), "2001:db8:1:2::");
        assert_eq!(client(PROXIES, "10.0.0.1", &["::ffff:203.0.113.9"]), "203.0.113.9");
    }
}
