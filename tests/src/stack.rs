//! The whole system: Redis, two gateways, one publisher.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    admin::Admin,
    launch::{Launch, Service},
    redis::{Access, Redis},
    shared_set::SharedSet,
    socket::Socket,
    tokens,
};

/// A running system. Clones share it; the last one gone stops it.
#[derive(Clone, Debug)]
pub struct Stack(Arc<Parts>);

/// What a [`Stack`] consists of.
#[derive(Debug)]
struct Parts {
    services: Services,
    /// The Redis between them. Last, so that it outlives the others.
    redis: Redis,
}

/// Two gateways with the same settings and a publisher, on a Redis of whatever kind.
#[derive(Debug)]
pub struct Services {
    gateways: [Service; 2],
    publisher: Service,
}

impl Stack {
    /// The system with default settings that all tests running at this moment share. Each uses markets and users of
    /// its own ([`fresh_market`], [`fresh_user`]) and breaks nothing.
    #[must_use]
    pub fn shared() -> Self {
        static SHARED: SharedSet<Parts> = SharedSet::new(|| Parts::start(&[], &[]));
        Self(SHARED.get())
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
        self.0.services.gateway(index)
    }

    /// The publisher.
    #[must_use]
    pub fn publisher(&self) -> &Service {
        self.0.services.publisher()
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
        Self { services: Services::start(&redis, gateway, publisher), redis }
    }
}

impl Services {
    /// Starts them with these settings.
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

    /// Waits until both gateways vouch for their prices.
    pub async fn expect_ready(&self) {
        for gateway in &self.gateways {
            gateway.expect_readiness(200).await;
        }
    }

    /// A trader.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.publisher.url(""))
    }

    /// A new user's connection to the first or second gateway.
    pub async fn socket(&self, index: usize) -> Socket {
        Socket::connect(self.gateways[index].api, &tokens::for_user(fresh_user())).await
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The processes say their last lines by themselves when this is the last handle.
        if thread::panicking() && Arc::strong_count(&self.0) > 1 {
            let Services { gateways, publisher } = &self.0.services;
            for service in gateways.iter().chain([publisher]) {
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
