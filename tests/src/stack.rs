//! The whole system: Redis, two gateways, one publisher.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    access::Access,
    admin::Admin,
    launch::{Launch, Service},
    redis::Redis,
    shared_set::SharedSet,
    socket::Socket,
    tokens,
};

/// A running system. Clones share it; dropping the last one stops it.
#[derive(Clone, Debug)]
pub struct Stack(Arc<System>);

/// The processes of a [`Stack`].
#[derive(Debug)]
struct System {
    services: Services,
    /// The last field, so that it outlives the services.
    redis: Redis,
}

/// Two gateways with the same settings and a publisher, on a Redis of any kind.
#[derive(Debug)]
pub struct Services {
    gateways: [Service; 2],
    publisher: Service,
}

impl Stack {
    /// Returns the system with default settings that concurrent tests share. Each test uses markets and users of its
    /// own ([`fresh_market`], [`fresh_user`]) and breaks nothing.
    #[must_use]
    pub fn shared() -> Self {
        static SHARED: SharedSet<System> = SharedSet::new(|| System::start(&[], &[]));
        Self(SHARED.get())
    }

    /// Starts a system for one test, with these settings.
    #[must_use]
    pub fn with(gateway: &[(&str, &str)], publisher: &[(&str, &str)]) -> Self {
        Self(Arc::new(System::start(gateway, publisher)))
    }

    /// Redis.
    #[must_use]
    pub fn redis(&self) -> &Redis {
        &self.0.redis
    }

    /// The first or second gateway.
    #[must_use]
    pub fn gateway(&self, index: usize) -> &Service {
        self.0.services.gateway(index)
    }

    /// The publisher.
    #[must_use]
    pub fn publisher(&self) -> &Service {
        self.0.services.publisher()
    }

    /// Starts another gateway on the same Redis, with these settings.
    #[must_use]
    pub fn another_gateway(&self, settings: &[(&str, &str)]) -> Service {
        Launch::gateway(self.redis()).envs(settings).start()
    }

    /// Starts another publisher on the same Redis, with these settings.
    #[must_use]
    pub fn another_publisher(&self, settings: &[(&str, &str)]) -> Service {
        Launch::publisher(self.redis()).envs(settings).start()
    }

    /// A trader's client of the admin API.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.publisher().url(""))
    }

    /// Connects a new user to the first or second gateway.
    pub async fn socket(&self, index: usize) -> Socket {
        Socket::connect(self.gateway(index).api, &tokens::for_user(fresh_user())).await
    }
}

impl System {
    fn start(gateway: &[(&str, &str)], publisher: &[(&str, &str)]) -> Self {
        let redis = Redis::start();
        Self { services: Services::start(&redis, gateway, publisher), redis }
    }
}

impl Services {
    /// Starts the services with these settings.
    #[must_use]
    pub fn start(redis: impl Into<Access>, gateway: &[(&str, &str)], publisher: &[(&str, &str)]) -> Self {
        let redis = redis.into();
        Self {
            gateways: [0, 1].map(|_| Launch::gateway(&redis).envs(gateway).start()),
            publisher: Launch::publisher(&redis).envs(publisher).start(),
        }
    }

    /// The first or second gateway.
    #[must_use]
    pub fn gateway(&self, index: usize) -> &Service {
        &self.gateways[index]
    }

    /// The publisher.
    #[must_use]
    pub fn publisher(&self) -> &Service {
        &self.publisher
    }

    /// Waits until both gateways are ready.
    pub async fn expect_ready(&self) {
        for gateway in &self.gateways {
            gateway.expect_readiness(200).await;
        }
    }

    /// A trader's client of the admin API.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.publisher.url(""))
    }

    /// Connects a new user to the first or second gateway.
    pub async fn socket(&self, index: usize) -> Socket {
        Socket::connect(self.gateways[index].api, &tokens::for_user(fresh_user())).await
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // With the last handle the processes print their last lines by themselves.
        if thread::panicking() && Arc::strong_count(&self.0) > 1 {
            let Services { gateways, publisher } = &self.0.services;
            for service in gateways.iter().chain([publisher]) {
                eprintln!("{}", service.process.last_lines());
            }
        }
    }
}

/// Returns a market that no other test uses.
#[must_use]
pub fn fresh_market() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(100_001);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Returns a user that no other test uses.
#[must_use]
pub fn fresh_user() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
