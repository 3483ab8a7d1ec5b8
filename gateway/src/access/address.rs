//! The address that a request comes from: the peer's, or the one that a trusted proxy names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;
use service::settings::{FromSetting, Setting};

/// The networks of trusted proxies.
pub const TRUSTED_PROXIES: Setting<Proxies> = Setting::new(
    "TRUSTED_PROXIES",
    "",
    "networks of proxies that are trusted to set X-Forwarded-For, such as 10.0.0.0/8",
);

/// The key that a client's requests are counted by: an IPv4 address, or the first 64 bits of an IPv6 address. One
/// customer has at least that network.
pub type ClientKey = IpAddr;

/// Networks of proxies that are trusted to set `X-Forwarded-For`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

impl Proxies {
    /// Returns the client behind `peer`: the rightmost address in `X-Forwarded-For` that is no trusted proxy. Unless the
    /// peer is a trusted proxy, the client is the peer.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientKey {
        let mut client = peer.to_canonical();
        // Bytes: a value may be no text at its left end, which the client writes, and still be text at its right end.
        let forwarded: Vec<&[u8]> = headers
            .get_all("x-forwarded-for")
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .collect();
        for hop in forwarded.into_iter().rev() {
            if !self.0.iter().any(|network| network.contains(&client)) {
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

impl FromSetting for Proxies {
    fn parse(text: &str) -> Result<Self, String> {
        let parse = |network: &str| {
            network
                .parse::<IpNet>()
                .or_else(|_| network.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| format!("{network:?} is not a network such as 10.0.0.0/8"))
        };
        text.split(',')
            .map(str::trim)
            .filter(|network| !network.is_empty())
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// Parses an address. Some proxies write the port behind it.
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
        let proxies = Proxies::parse(&trusted.join(",")).unwrap();
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    const PROXIES: &[&str] = &["10.0.0.0/8", "2001:db8:ffff::/48"];

    #[test]
    fn only_a_trusted_proxy_names_the_client() {
        assert_eq!(client(&[], "198.51.100.7", &["203.0.113.9"]), "198.51.100.7");
        assert_eq!(client(PROXIES, "198.51.100.7", &["203.0.113.9, 10.0.0.1"]), "198.51.100.7");
        assert_eq!(client(PROXIES, "10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(PROXIES, "::ffff:10.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(PROXIES, "2001:db8:ffff::1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client(PROXIES, "10.0.0.1", &[]), "10.0.0.1");
    }

    /// Proxies append to the right of anything that the client wrote.
    #[test]
    fn a_proxy_is_trusted_about_its_own_peer_only() {
        for spoofed in ["1.2.3.4", "10.0.0.9", "127.0.0.1", "::1", "1.2.3.4, 10.0.0.2", "nonsense", ",,", ""]
        {
            let appended = format!("{spoofed}, 203.0.113.9");
            assert_eq!(client(PROXIES, "10.0.0.1", &[&appended]), "203.0.113.9", "{spoofed:?}");
            assert_eq!(client(PROXIES, "10.0.0.1", &[spoofed, "203.0.113.9"]), "203.0.113.9", "{spoofed:?}");
            // Over several proxies. One of them speaks IPv6.
            let hops = format!("{appended}, 10.0.0.7 ,2001:db8:ffff::2");
            assert_eq!(client(PROXIES, "10.0.0.1", &[&hops]), "203.0.113.9", "{spoofed:?}");
        }
    }

    #[test]
    fn text_that_is_no_address_ends_the_search_at_the_proxy_that_wrote_it() {
        for garbage in ["nonsense", "", "unknown", "_hidden", "203.0.113.009", "1.2.3", "[2001:db8::1]"] {
            assert_eq!(client(PROXIES, "10.0.0.1", &[garbage]), "10.0.0.1", "{garbage:?}");
            let hops = format!("203.0.113.9, {garbage}, 10.0.0.2");
            assert_eq!(client(PROXIES, "10.0.0.1", &[&hops]), "10.0.0.2", "{garbage:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_hide_nothing_to_their_right() {
        let proxies = Proxies::parse("10.0.0.0/8").unwrap();
        let mut headers = HeaderMap::new();
        for value in [&b"192.0.2.1"[..], b"\xff, 203.0.113.9"] {
            headers.append("x-forwarded-for", axum::http::HeaderValue::from_bytes(value).unwrap());
        }
        assert_eq!(proxies.client("10.0.0.1".parse().unwrap(), &headers).to_string(), "203.0.113.9");
    }

    #[test]
    fn a_port_behind_the_address_is_ignored() {
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
