//! Ports that belong to one server, of all test runs on this machine, for as long as it has them.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
};

use rand::RngExt;

/// Below the range that outgoing connections take theirs from (32768 and up), and so that the port of a killed server
/// is still free when it starts again; the buses of cluster nodes, 10000 above, lie between the two.
const PORTS: std::ops::Range<u16> = 10_000..20_000;
/// What Redis adds to a cluster node's port for its bus.
const BUS_OFFSET: u16 = 10_000;
const ATTEMPTS: usize = 100;

/// A port of 127.0.0.1, and the one 10000 above, which no other holder of a [`Port`] has in any process: a server that
/// was killed may start again on it, and nobody meets a stranger there meanwhile.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Locked as long as it is open.
    _lock: File,
}

impl Port {
    /// One that nobody listens on.
    #[must_use]
    pub fn free() -> Self {
        std::iter::repeat_with(|| rand::rng().random_range(PORTS))
            .take(ATTEMPTS)
            .find_map(Self::take)
            .unwrap_or_else(|| panic!("no free port in {ATTEMPTS} attempts"))
    }

    /// Its number.
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
