//! Free ports that stay free.

use std::net::{Ipv4Addr, TcpListener};

use rand::RngExt;

/// Below the range that outgoing connections take theirs from (32768 and up), and so that the port of a killed server
/// is still free when it starts again; a cluster node's bus, 10000 above, is below it as well.
const PORTS: std::ops::Range<u16> = 10_000..22_000;
/// What Redis adds to a cluster node's port for its bus.
const BUS_OFFSET: u16 = 10_000;
const ATTEMPTS: usize = 100;

/// A port of 127.0.0.1 that nobody listens on, nor on the one 10000 above. Another process may be faster to take it.
#[must_use]
pub fn free() -> u16 {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let random = || rand::rng().random_range(PORTS);
    std::iter::repeat_with(random)
        .take(ATTEMPTS)
        .find(|&port| is_free(port) && is_free(port + BUS_OFFSET))
        .unwrap_or_else(|| panic!("no free port in {ATTEMPTS} attempts"))
}
