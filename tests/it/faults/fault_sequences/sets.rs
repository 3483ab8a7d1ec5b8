//! The same sequences behind sentinels and in a cluster, with a proxy before the nodes that faults hit.

use std::{sync::atomic::AtomicUsize, time::Duration};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tests::{
    Access, Cluster, Redis, Sentinels,
    chaos::{Chaos, Weather},
    cluster, eventually, fresh_market,
};
use tokio::time::sleep;

use super::{MARKETS, more};

/// What the services are on. Every override must be on all replicas before it is acknowledged, so that none is lost,
/// whichever of them is promoted and whatever its former primary still believes.
pub(super) enum Set {
    Sentinels(Sentinels),
    /// Faults hit the primary that is first at the start, and its replica.
    Cluster(Cluster),
}

/// Which node a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    Replica,
}

/// What happens to it, or to the connections there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The node comes back, after a failover if it was a primary.
    Killed,
    /// The node is away so long that a failover may happen.
    Hangs,
    LinksCut,
    RepliesCut,
    Slow,
    Trickle,
    HalfOpen,
}

impl Trouble {
    /// Sentinels also use the proxy. A primary that looks dead to them is replaced while it lives,
    /// and they need half a minute to demote it.
    const BEHIND_SENTINELS: [Self; 5] =
        [Self::Killed, Self::Hangs, Self::LinksCut, Self::RepliesCut, Self::Slow];
    const IN_A_CLUSTER: [Self; 7] = [
        Self::Killed,
        Self::Hangs,
        Self::LinksCut,
        Self::RepliesCut,
        Self::Slow,
        Self::Trickle,
        Self::HalfOpen,
    ];
}

impl Set {
    pub(super) fn cluster() -> Self {
        let mut cluster = Cluster::start();
        for node in [0, cluster::PRIMARIES] {
            cluster.put_chaos_before(node);
        }
        Self::Cluster(cluster)
    }

    pub(super) fn access(&self) -> Access {
        match self {
            Self::Sentinels(set) => set.into(),
            Self::Cluster(cluster) => cluster.into(),
        }
    }

    /// `PUBLISH_MIN_REPLICAS`: all replicas of a primary.
    pub(super) fn replicas(&self) -> usize {
        match self {
            Self::Sentinels(_) => 2,
            Self::Cluster(_) => 1,
        }
    }

    /// The first market is on the nodes that faults hit.
    pub(super) fn fresh_markets(&self) -> Vec<u64> {
        (0..MARKETS)
            .map(|index| match self {
                Self::Sentinels(_) => fresh_market(),
                Self::Cluster(cluster) => cluster.fresh_market_at(index % cluster::PRIMARIES),
            })
            .collect()
    }

    /// An event that may happen to a node.
    pub(super) fn draw(&self, rng: &mut StdRng) -> (Role, Trouble) {
        let troubles = match self {
            Self::Sentinels(_) => &Trouble::BEHIND_SENTINELS[..],
            Self::Cluster(_) => &Trouble::IN_A_CLUSTER,
        };
        let role = [Role::Primary, Role::Replica][rng.random_range(0..2)];
        (role, *troubles.choose(rng).expect("there are some"))
    }

    /// Returns the node that is this market's primary. Blocks the thread.
    fn primary(&self, market: u64) -> usize {
        match self {
            Self::Sentinels(set) => set.primary(),
            Self::Cluster(cluster) => cluster.holder_of(market),
        }
    }

    fn node(&self, index: usize) -> &Redis {
        match self {
            Self::Sentinels(set) => set.node(index),
            Self::Cluster(cluster) => cluster.node(index),
        }
    }

    /// Returns this market's primary. Blocks the thread.
    pub(super) fn redis_of(&self, market: u64) -> &Redis {
        self.node(self.primary(market))
    }

    /// Makes this happen to a node that has `market`.
    pub(super) async fn strike(
        &mut self,
        (role, trouble): (Role, Trouble),
        market: u64,
        moment: Duration,
        acknowledged: &[AtomicUsize; MARKETS],
    ) {
        let primary = self.primary(market);
        let index = match (role, &self) {
            (Role::Primary, _) => primary,
            (Role::Replica, Self::Sentinels(_)) => (primary + 1) % (self.replicas() + 1),
            (Role::Replica, Self::Cluster(_)) => cluster::PRIMARIES - primary,
        };
        match trouble {
            Trouble::Killed => {
                self.node(index).kill();
                if role == Role::Primary {
                    // A primary that came back at once would be empty, and its replicas would copy that.
                    eventually("it is replaced", async || (self.primary(market) != index).then_some(()))
                        .await;
                }
                self.restart(index);
            }
            Trouble::Hangs => {
                self.node(index).process().pause();
                sleep(moment).await;
                self.node(index).process().unpause();
            }
            Trouble::LinksCut => self.chaos(index).cut(),
            Trouble::RepliesCut => {
                self.chaos(index).cut_replies(5);
                more(acknowledged).await;
                // No process uses a replica that no gateway follows.
                self.chaos(index).cut_replies(0);
            }
            Trouble::Slow => {
                self.weather(index, Weather::Slow(Duration::from_millis(50)), acknowledged).await;
            }
            Trouble::Trickle => {
                self.weather(index, Weather::Trickle(Duration::from_millis(1)), acknowledged).await;
            }
            Trouble::HalfOpen => self.chaos(index).swallow(),
        }
    }

    fn chaos(&self, index: usize) -> &Chaos {
        self.node(index).chaos()
    }

    fn restart(&mut self, index: usize) {
        match self {
            Self::Sentinels(set) => set.restart_as_replica(index),
            Self::Cluster(cluster) => cluster.restart(index),
        }
    }

    async fn weather(&self, index: usize, weather: Weather, acknowledged: &[AtomicUsize; MARKETS]) {
        self.chaos(index).set(weather);
        more(acknowledged).await;
        self.chaos(index).set(Weather::Fair);
    }
}
