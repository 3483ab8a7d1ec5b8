//! Faults in an order that a seed draws, while desks publish without a pause and clients change pods at random.
//!
//! Each [`Follower`] checks its messages. After each fault every client has what Redis has, and Redis has every
//! acknowledged update.
//!
//! `FAULT_SEED=…` repeats one sequence. `FAULT_SEEDS=20` runs 20 of them. `FAULT_SOAK=10m` runs one after the other for 10
//! minutes, with hangs of half a minute.

mod sets;

use std::{
    collections::{BTreeMap, HashMap},
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use service::settings::FromSetting;
use tests::{
    Access, Admin, Desk, Follower, Http, Launch, Redis, Rest, Sentinels, Service,
    chaos::{Chaos, Weather},
    eventually, fresh_market,
    ports::Port,
    redis::Refusal,
    within,
};
use tokio::{runtime, sync::watch, task::JoinHandle, time::sleep};

use self::sets::{Role, Set, Trouble};

/// Sequences unless it is said how many.
const SEQUENCES: usize = 4;
const AT_ONCE: usize = 4;
/// Faults in one, and in one that replaces primaries, which takes seconds each time.
const FAULTS: usize = 6;
const FAULTS_OF_SETS: usize = 3;
const MARKETS: usize = 4;
const FOLLOWERS: usize = 6;
/// Overrides of each market that must be acknowledged before, in and after a fault. The first of them may have been
/// on its way already.
const MORE: usize = 3;
/// Messages that a client stays for, about.
const STAY: u32 = 30;
/// Between a client's attempts to connect, and between two overrides of a market.
const PACE: Duration = Duration::from_millis(10);
/// How long Redis hangs, refuses, and loads.
const MOMENT: Duration = Duration::from_millis(1500);
const LONG_MOMENT: Duration = Duration::from_secs(30);
/// What a process has open to one Redis at most (docs/operations.md).
const REDIS_CONNECTIONS: usize = 11;

#[test]
fn whatever_goes_wrong_in_whatever_order_everybody_is_whole_afterwards() {
    run(SEQUENCES, AT_ONCE, |_| Home::Single(Box::new(Single::start())));
}

#[test]
fn whatever_happens_behind_sentinels_in_whatever_order_everybody_is_whole_afterwards() {
    run(1, 1, |rng| Home::Set(Set::Sentinels(Sentinels::with_chaos()), rng.random()));
}

#[test]
fn whatever_happens_in_a_cluster_in_whatever_order_everybody_is_whole_afterwards() {
    run(1, 1, |rng| Home::Set(Set::cluster(), rng.random()));
}

/// So many sequences unless it is said how many, with so many of them under way.
fn run(sequences: usize, at_once: usize, home: fn(&mut StdRng) -> Home) {
    let variable = |name: &str| env::var(name).ok();
    let number = |name: &str| variable(name).map(|text| text.parse::<usize>().unwrap());
    let given = variable("FAULT_SEED").map(|text| text.parse::<u64>().unwrap());
    let count = given.map_or_else(|| number("FAULT_SEEDS").unwrap_or(sequences), |_| 1);
    let end = variable("FAULT_SOAK").map(|text| Instant::now() + Duration::parse(&text).unwrap());
    let moment = if end.is_some() { LONG_MOMENT } else { MOMENT };
    let begun = AtomicUsize::new(0);
    let is_wanted = || {
        let before = begun.fetch_add(1, Ordering::Relaxed);
        end.map_or(before < count, |end| Instant::now() < end)
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while is_wanted() {
                    let seed = Seed(given.unwrap_or_else(rand::random));
                    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                    runtime.unwrap().block_on(sequence(&seed, moment, home));
                }
            });
        }
    });
}

/// Shown when its sequence fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("again with FAULT_SEED={}", self.0);
        }
    }
}

async fn sequence(seed: &Seed, moment: Duration, home: fn(&mut StdRng) -> Home) {
    let mut rng = StdRng::seed_from_u64(seed.0);
    let home = home(&mut rng);
    let faults = home.draw(&mut rng);
    println!("FAULT_SEED={}: {faults:?}", seed.0);
    let mut world = World::start(rng, moment, home).await;
    for fault in faults {
        let began = Instant::now();
        world.go_through(fault).await;
        println!("FAULT_SEED={}: {fault:?} took {:?}", seed.0, began.elapsed());
    }
    world.expect_no_trace_of_clients().await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    RedisKilled,
    RedisHangs,
    RedisLoads,
    Flushed,
    Emptied,
    OlderCopy,
    LaggingReplica,
    Refuses(Refusal),
    RepliesCut,
    LinksCut,
    Slow,
    Trickle,
    HalfOpen,
    TrackingKilled,
    TrackingOverflows,
    GatewayKilled,
    PublisherKilled,
    /// Faults of a set of nodes.
    Node(Role, Trouble),
}

impl Fault {
    const OF_ONE: [Self; 20] = [
        Self::RedisKilled,
        Self::RedisHangs,
        Self::RedisLoads,
        Self::Flushed,
        Self::Emptied,
        Self::OlderCopy,
        Self::LaggingReplica,
        Self::Refuses(Refusal::ReadOnly),
        Self::Refuses(Refusal::OutOfMemory),
        Self::Refuses(Refusal::TooFewReplicas),
        Self::Refuses(Refusal::CannotSave),
        Self::RepliesCut,
        Self::LinksCut,
        Self::Slow,
        Self::Trickle,
        Self::HalfOpen,
        Self::TrackingKilled,
        Self::TrackingOverflows,
        Self::GatewayKilled,
        Self::PublisherKilled,
    ];

    /// Returns true if Redis may have lost acknowledged updates afterwards.
    fn loses(self) -> bool {
        matches!(self, Self::Flushed | Self::Emptied | Self::OlderCopy | Self::LaggingReplica)
    }

    /// Returns true if Redis may have lost updates that were not acknowledged and that clients may have seen.
    fn may_lose_more(self) -> bool {
        matches!(self, Self::Node(..))
    }
}

/// What the services are on.
enum Home {
    Single(Box<Single>),
    /// The flag says whether gateways follow logs at replicas.
    Set(Set, bool),
}

/// One Redis.
struct Single {
    redis: Redis,
    /// Proxies between the gateways and Redis, and between the publishers and Redis.
    links: [Chaos; 2],
}

impl Home {
    /// A sequence of faults.
    fn draw(&self, rng: &mut StdRng) -> Vec<Fault> {
        match self {
            Self::Single(_) => {
                (0..FAULTS).map(|_| Fault::OF_ONE[rng.random_range(0..Fault::OF_ONE.len())]).collect()
            }
            Self::Set(set, _) => (0..FAULTS_OF_SETS)
                .map(|_| {
                    let (role, trouble) = set.draw(rng);
                    Fault::Node(role, trouble)
                })
                .collect(),
        }
    }

    /// How gateways and publishers reach Redis.
    fn accesses(&self) -> [Access; 2] {
        match self {
            Self::Single(single) => single.links.each_ref().map(Access::from),
            Self::Set(set, _) => [set.access(), set.access()],
        }
    }

    fn fresh_markets(&self) -> Vec<u64> {
        match self {
            Self::Single(_) => (0..MARKETS).map(|_| fresh_market()).collect(),
            Self::Set(set, _) => set.fresh_markets(),
        }
    }

    /// Returns this market's latest position. Blocks the thread.
    fn redis_of(&self, market: u64) -> &Redis {
        match self {
            Self::Single(single) => &single.redis,
            Self::Set(set, _) => set.redis_of(market),
        }
    }

    /// Returns the nodes that a process may have connections to.
    fn nodes(&self) -> usize {
        match self {
            Self::Single(_) => 1,
            Self::Set(Set::Sentinels(_), _) => 3,
            Self::Set(Set::Cluster(_), _) => 6,
        }
    }
}

impl Single {
    fn start() -> Self {
        let redis = Redis::durable();
        let links = [(); 2].map(|()| Chaos::before(redis.port()));
        Self { redis, links }
    }

    async fn strike(
        &mut self,
        fault: Fault,
        rng: &mut StdRng,
        moment: Duration,
        acknowledged: &[AtomicUsize; MARKETS],
    ) {
        match fault {
            Fault::RedisKilled => self.redis.restart(),
            Fault::RedisHangs => {
                self.redis.process().pause();
                sleep(moment).await;
                self.redis.process().unpause();
            }
            Fault::RedisLoads => self.redis.restart_loading(MOMENT),
            Fault::Flushed => self.redis.tell("FLUSHALL"),
            Fault::Emptied => self.redis.restart_empty(),
            Fault::OlderCopy => {
                self.redis.copy();
                more(acknowledged).await;
                self.redis.restart_from_copy();
            }
            Fault::LaggingReplica => {
                let replica = Redis::durable();
                replica.follow(self.redis.port());
                replica.tell::<()>("REPLICAOF NO ONE");
                more(acknowledged).await;
                self.redis.kill();
                self.links.iter().for_each(|link| link.lead_to(replica.port()));
                self.redis = replica;
            }
            Fault::Refuses(refusal) => {
                self.redis.refuse(refusal);
                sleep(MOMENT).await;
                self.redis.cure(refusal);
            }
            Fault::RepliesCut => {
                for link in &self.links {
                    link.cut_replies(5);
                    eventually("the replies are cut", async || link.has_cut_replies().then_some(())).await;
                }
            }
            Fault::LinksCut => self.links.iter().for_each(Chaos::cut),
            Fault::Slow => self.weather(Weather::Slow(Duration::from_millis(100)), acknowledged).await,
            Fault::Trickle => self.weather(Weather::Trickle(Duration::from_millis(1)), acknowledged).await,
            Fault::HalfOpen => self.links[rng.random_range(0..2)].swallow(),
            Fault::TrackingKilled => self.redis.kill_tracking(),
            // The proxy of the gateways.
            Fault::TrackingOverflows => {
                self.redis.expect_tracking(4);
                self.links[0].set(Weather::Held);
                self.redis.overflow_tracking(2);
                more(acknowledged).await;
                self.links[0].set(Weather::Fair);
            }
            Fault::GatewayKilled | Fault::PublisherKilled | Fault::Node(..) => {
                unreachable!("{fault:?} is no fault of one Redis")
            }
        }
    }

    async fn weather(&self, weather: Weather, acknowledged: &[AtomicUsize; MARKETS]) {
        self.links.iter().for_each(|link| link.set(weather));
        more(acknowledged).await;
        self.links.iter().for_each(|link| link.set(Weather::Fair));
    }
}

struct World {
    rng: StdRng,
    moment: Duration,
    clients: Vec<Client>,
    /// One follower per market.
    desks: Vec<Desk>,
    markets: Vec<u64>,
    gateways: [Pod; 2],
    publishers: [Pod; 2],
    /// Open files and threads of a gateway and of a publisher without clients.
    idle: [(usize, usize); 2],
    home: Home,
}

impl World {
    async fn start(mut rng: StdRng, moment: Duration, home: Home) -> Self {
        let [to_gateways, to_publishers] = home.accesses();
        let (tail_from, replicas) = match &home {
            Home::Set(set, true) => ("replica", set.replicas()),
            Home::Set(set, false) => ("primary", set.replicas()),
            Home::Single(_) => ("primary", 0),
        };
        let gateway = Launch::gateway(&to_gateways).envs(&[
            ("HISTORY_LEN", "100000"),
            ("STALE_AFTER", "1s"),
            ("HEARTBEAT_INTERVAL", "5s"),
            ("TAIL_FROM", tail_from),
        ]);
        let publisher = Launch::publisher(&to_publishers)
            .envs(&[("HISTORY_LEN", "100000"), ("PUBLISH_MIN_REPLICAS", &replicas.to_string())]);
        let gateways = [(); 2].map(|()| Pod::start(gateway.clone()));
        let publishers = [(); 2].map(|()| Pod::start(publisher.clone()));
        let idle = [&gateways[0], &publishers[0]].map(|pod| pod.service.process.files_and_threads());
        let markets = home.fresh_markets();
        let mut desks = Vec::new();
        for &market in &markets {
            let mut desk = Desk::at(publishers.iter().map(|pod| Admin::new(pod.service.url(""))).collect());
            desk.publish(market).await;
            desks.push(desk);
        }
        let mut clients = Vec::new();
        for index in 0..FOLLOWERS {
            let follower = Follower::start(gateways[index % 2].service.api, &markets).await;
            clients.push(Client { follower, rng: StdRng::seed_from_u64(rng.next_u64()), at: index % 2 });
        }
        Self { rng, moment, clients, desks, markets, gateways, publishers, idle, home }
    }

    /// Publishes and follows before, during and after a fault, and checks everything.
    async fn go_through(&mut self, fault: Fault) {
        let before = self.latest_positions();
        let acknowledged: Arc<[AtomicUsize; MARKETS]> = Arc::default();
        let enough = Arc::new(AtomicBool::new(false));
        let publishing: Vec<JoinHandle<Desk>> = std::mem::take(&mut self.desks)
            .into_iter()
            .enumerate()
            .map(|(index, desk)| {
                let (acknowledged, enough) = (Arc::clone(&acknowledged), Arc::clone(&enough));
                let market = self.markets[index];
                tokio::spawn(
                    async move { keep_publishing(desk, market, &acknowledged[index], &enough).await },
                )
            })
            .collect();
        let (over, is_over) = watch::channel(None);
        let gateways = self.gateways.each_ref().map(|pod| pod.service.api);
        let following: Vec<JoinHandle<Client>> = std::mem::take(&mut self.clients)
            .into_iter()
            .map(|mut client| {
                client.follower.expect_loss(fault.loses() || fault.may_lose_more());
                tokio::spawn(client.live(gateways, is_over.clone()))
            })
            .collect();

        more(&acknowledged).await;
        self.strike(fault, &acknowledged).await;
        more(&acknowledged).await;
        enough.store(true, Ordering::Relaxed);
        for desk in publishing {
            self.desks.push(within("the desks' last overrides", desk).await.unwrap());
        }
        over.send_replace(Some(self.latest_positions()));
        for client in following {
            self.clients.push(within("the last update everywhere", client).await.unwrap());
        }
        self.expect_whole(fault, &before).await;
    }

    async fn strike(&mut self, fault: Fault, acknowledged: &[AtomicUsize; MARKETS]) {
        match (fault, &mut self.home) {
            (Fault::GatewayKilled, _) => self.gateways[self.rng.random_range(0..2)].restart(),
            (Fault::PublisherKilled, _) => self.publishers[self.rng.random_range(0..2)].restart(),
            (Fault::Node(role, trouble), Home::Set(set, _)) => {
                set.strike((role, trouble), self.markets[0], self.moment, acknowledged).await;
            }
            (fault, Home::Single(single)) => {
                single.strike(fault, &mut self.rng, self.moment, acknowledged).await;
            }
            (fault, Home::Set(..)) => unreachable!("{fault:?} is no fault of a set"),
        }
    }

    async fn expect_whole(&mut self, fault: Fault, before: &Tops) {
        for (market, (epoch, seq)) in self.latest_positions() {
            let (former_epoch, former_seq) = before[&market];
            assert!(seq > former_seq, "{fault:?}: {market}");
            assert!(
                fault.may_lose_more() || (epoch > former_epoch) == fault.loses(),
                "{fault:?}: {market}: {former_epoch}, {epoch}"
            );
        }
        for (desk, &market) in self.desks.iter().zip(&self.markets) {
            let redis = self.home.redis_of(market);
            // Every acknowledged update is there, of this epoch or a later one.
            let since = if fault.may_lose_more() { 0 } else { desk.last()[&market].0 };
            desk.expect_all_in(redis, market, since);
            // All followers saw the same update at the same position.
            let mut seen: HashMap<(u64, u64), &str> =
                desk.accepted().iter().map(|(_, position, payload)| (*position, payload.as_str())).collect();
            for client in &self.clients {
                client.follower.expect_as_in(redis, market);
                for (position, payload) in &client.follower.known(market).updates {
                    let other = seen.insert(*position, payload);
                    assert!(other.is_none_or(|other| other == payload), "{position:?} of {market}");
                }
            }
        }
        for (desk, &market) in self.desks.iter_mut().zip(&self.markets) {
            desk.expect_last_is_replayed(market).await;
        }
        for pod in &self.gateways {
            pod.service.expect_readiness(200).await;
        }
    }

    /// Checks that clients left nothing behind: no connections, open files or threads.
    async fn expect_no_trace_of_clients(self) {
        let Self { clients, desks, gateways, publishers, idle, home, .. } = self;
        drop((clients, desks));
        let pods = gateways.iter().zip([idle[0]; 2]).chain(publishers.iter().zip([idle[1]; 2]));
        for (pod, (files, threads)) in pods {
            eventually("no more files and threads than at the start", async || {
                let (files_now, threads_now) = pod.service.process.files_and_threads();
                (files_now <= files + home.nodes() * REDIS_CONNECTIONS && threads_now <= threads)
                    .then_some(())
            })
            .await;
        }
        for pod in &gateways {
            let rest = Rest::of(&pod.service);
            let (http, metrics) = (Http::default(), pod.service.ops_url("/metrics"));
            eventually("no connection is counted", async || {
                let is_zero =
                    http.get(&metrics).await.text.lines().any(|line| line == "gateway_connections 0");
                (is_zero && rest.health().await.connections == 0).then_some(())
            })
            .await;
        }
        let Home::Single(single) = &home else { return };
        let redis = &single.redis;
        eventually("Redis has the connections of four processes", async || {
            let (all, tracking) = (redis.clients(None).len(), redis.clients(Some('t')).len());
            (all <= 4 * REDIS_CONNECTIONS + 1 && tracking == gateways.len() + publishers.len()).then_some(())
        })
        .await;
    }

    fn latest_positions(&self) -> Tops {
        self.desks.iter().flat_map(|desk| desk.last().clone()).collect()
    }
}

/// Epoch and seq of each market's last acknowledged update.
type Tops = BTreeMap<u64, (u64, u64)>;

async fn keep_publishing(
    mut desk: Desk,
    market: u64,
    acknowledged: &AtomicUsize,
    enough: &AtomicBool,
) -> Desk {
    while !enough.load(Ordering::Relaxed) {
        desk.persist(market).await;
        acknowledged.fetch_add(1, Ordering::Relaxed);
        // Leaves the processor to others.
        sleep(PACE).await;
    }
    desk
}

/// Waits until more overrides of every market are acknowledged.
async fn more(acknowledged: &[AtomicUsize; MARKETS]) {
    let count = || acknowledged.each_ref().map(|count| count.load(Ordering::Relaxed));
    let before = count();
    eventually("more overrides of every market are acknowledged", async || {
        count().iter().zip(before).all(|(now, before)| *now >= before + MORE).then_some(())
    })
    .await;
}

/// Somebody who follows, and goes to the other pod now and then.
struct Client {
    follower: Follower,
    rng: StdRng,
    at: usize,
}

impl Client {
    /// Follows until the sequence is over and every acknowledged update is here.
    async fn live(mut self, gateways: [SocketAddr; 2], mut over: watch::Receiver<Option<Tops>>) -> Self {
        let is_whole = |follower: &Follower, tops: &Tops| {
            tops.iter().all(|(market, top)| {
                let known = follower.known(*market);
                (known.epoch, known.seq) >= *top
            })
        };
        while !over.borrow().as_ref().is_some_and(|tops| is_whole(&self.follower, tops)) {
            let is_open = tokio::select! {
                changed = over.changed() => match changed {
                    Ok(()) => true,
                    // The test has failed elsewhere.
                    Err(_) => return self,
                },
                is_open = self.follower.try_take_next() => is_open,
            };
            if !is_open || self.rng.random_ratio(1, STAY) {
                self.go_elsewhere(gateways).await;
            }
        }
        self
    }

    async fn go_elsewhere(&mut self, gateways: [SocketAddr; 2]) {
        loop {
            self.at = 1 - self.at;
            if self.follower.try_resume(gateways[self.at]).await {
                return;
            }
            sleep(PACE).await;
        }
    }
}

/// A service that comes back at its address when it is killed.
struct Pod {
    service: Service,
    launch: Launch,
    _port: Port,
}

impl Pod {
    fn start(launch: Launch) -> Self {
        let port = Port::free();
        let launch = launch.env("LISTEN", &format!("127.0.0.1:{}", port.number()));
        Self { service: launch.clone().start(), launch, _port: port }
    }

    fn restart(&mut self) {
        self.service.process.kill();
        self.service = self.launch.clone().start();
    }
}
