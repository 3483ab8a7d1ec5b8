//! Ports that belong to one server at a time, among all test runs on this machine.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
};

use rand::RngExt;

/// Below the ports of outgoing connections (32768 and up), so that the port of a killed server is still free when it
/// restarts. The ports of cluster buses, 10000 above, are between the two.
const PORTS: std::ops::Range<u16> = 10_000..20_000;
/// Redis adds this to a cluster node's port for the port of its bus.
const BUS_OFFSET: u16 = 10_000;
const ATTEMPTS: usize = 100;

/// A port of 127.0.0.1 and the port 10000 above. No other [`Port`] in any process has them, so a killed server can
/// restart on its port, and meanwhile its clients meet no other server there.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Locked while it is open.
    _lock: File,
}

impl Port {
    /// Returns a port without a listener.
    #[must_use]
    pub fn free() -> Self {
        std::iter::repeat_with(|| rand::rng().random_range(PORTS))
            .take(ATTEMPTS)
            .find_map(Self::take)
            .unwrap_or_else(|| panic!("no free port in {ATTEMPTS} attempts"))
    }

    /// The port's number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }

    fn take(number: u16) -> Option<Self> {
        let dir = env::temp_dir().join("kmarket-test-ports");
        fs::create_dir_all(&dir).expect("the directory for temporary files is writable");
        let lock = File::create(dir.join(number.to_string())).expect("a lock file");
        lock.try_lock().ok()?;
        let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        (is_free(number) && is_free(number + BUS_OFFSET)).then_some(Self { number, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_holder() {
        let port = Port::free();
        assert!(Port::take(port.number()).is_none());
        let number = port.number();
        drop(port);
        assert!(Port::take(number).is_some());
    }
}
