//! The whole system: Redis, two gateways, one publisher.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    admin::Admin,
    launch::{Launch, Service},
    redis::Redis,
    socket::Socket,
    tokens,
};

/// A running system. Clones share it; the last one gone stops it.
#[derive(Clone, Debug)]
pub struct Stack(Arc<Parts>);

/// What a [`Stack`] consists of.
#[derive(Debug)]
pub struct Parts {
    /// Two gateways with the same settings.
    pub gateways: [Service; 2],
    /// The publisher.
    pub publisher: Service,
    /// The Redis between them. Last, so that it outlives the others.
    pub redis: Redis,
}

impl Stack {
    /// The system with default settings that all tests running at this moment share. Each uses markets and users of
    /// its own ([`fresh_market`], [`fresh_user`]) and breaks nothing.
    #[must_use]
    pub fn shared() -> Self {
        static SHARED: Mutex<Weak<Parts>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = shared.upgrade().unwrap_or_else(|| Arc::new(Parts::start(&[], &[])));
        *shared = Arc::downgrade(&parts);
        Self(parts)
    }

    /// A system of the test's own, with these settings.
    #[must_use]
    pub fn with(gateway: &[(&str, &str)], publisher: &[(&str, &str)]) -> Self {
        Self(Arc::new(Parts::start(gateway, publisher)))
    }

    /// Redis.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.0.redis
    }

    /// The first or second gateway.
    #[must_use]
    pub fn gateway(&self, index: usize) -> &Service {
        &self.0.gateways[index]
    }

    /// The publisher.
    #[must_use]
    pub fn publisher(&self) -> &Service {
        &self.0.publisher
    }

    /// A further gateway on the same Redis, with these settings.
    #[must_use]
    pub fn another_gateway(&self, settings: &[(&str, &str)]) -> Service {
        Launch::gateway(self.redis()).envs(settings).start()
    }

    /// A further publisher on the same Redis, with these settings.
    #[must_use]
    pub fn another_publisher(&self, settings: &[(&str, &str)]) -> Service {
        Launch::publisher(self.redis()).envs(settings).start()
    }

    /// A trader.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.publisher().url(""))
    }

    /// A new user's connection to the first or second gateway.
    pub async fn socket(&self, index: usize) -> Socket {
        Socket::connect(self.gateway(index).api, &tokens::for_user(fresh_user())).await
    }
}

impl Parts {
    fn start(gateway: &[(&str, &str)], publisher: &[(&str, &str)]) -> Self {
        let redis = Redis::start();
        let gateways = [0, 1].map(|_| Launch::gateway(&redis).envs(gateway).start());
        let publisher = Launch::publisher(&redis).envs(publisher).start();
        Self { gateways, publisher, redis }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The processes say their last lines by themselves when this is the last handle.
        if thread::panicking() && Arc::strong_count(&self.0) > 1 {
            for service in self.0.gateways.iter().chain([&self.0.publisher]) {
                eprintln!("{}", service.process.last_lines());
            }
        }
    }
}

/// A market that no other test uses.
#[must_use]
pub fn fresh_market() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(100_001);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A user that no other test uses.
#[must_use]
pub fn fresh_user() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
