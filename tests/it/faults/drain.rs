//! SIGTERM (rule 11 of `docs/protocol.md#rules`), with many clients and with requests in flight.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tests::{
    Admin, Crowd, Desk, Launch, Redis, Service, Socket, Stack,
    admin::{numbered, override_body},
    fresh_market, fresh_user,
    launch::log_field,
    process::Stream,
    tokens, within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_blocking,
    time::interval,
};

const CLIENTS: usize = 5_000;
const MARKETS: usize = 10;
const DRAIN_SECONDS: u32 = 3;
/// From one update of all clients' to the next, of one market in ten.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_5000_clients_each_goes_on_elsewhere_without_a_hole_and_no_second_has_more_than_twice_the_average()
{
    let mut pods = Pods::start().await;
    let (leaves, stays) = (pods.gateway(), pods.gateway());
    let mut crowd = Crowd::start(CLIENTS, &pods.markets, &[leaves.api]).await;
    crowd.send_to(&[leaves.api, stays.api]);
    let moved = async {
        terminate_and_expect_end(&leaves).await;
        crowd.expect_subscribed(CLIENTS).await;
    };
    let tops = Box::pin(pods.publish_until(moved)).await;
    let stories = crowd.leave_at(tops).await;
    assert_eq!(stories.len(), CLIENTS);
    let mut waits = BTreeSet::new();
    for story in &stories {
        let [bye] = &story.byes[..] else { panic!("one bye each, not {:?}", story.byes) };
        assert_eq!((bye.code, bye.reason.as_str(), bye.reconnect), (1012, "DRAINING", true));
        assert!(bye.after_ms.is_some_and(|after_ms| after_ms <= 3_000));
        waits.insert(bye.after_ms);
    }
    assert!(waits.len() > 1_000, "they are told to wait differently: {}", waits.len());
    // The check uses the pod's own schedule. When the pod acts on it, and when clients read of it, depends on the machine.
    let said = leaves.process.said(Stream::Err);
    let mut times: Vec<u64> = said
        .lines()
        .filter_map(|line| log_field(line, "drain_ms").filter(|_| line.contains("a connection is closed")))
        .map(|time| time.parse().unwrap())
        .collect();
    assert_eq!(times.len(), CLIENTS);
    times.sort_unstable();
    let average = CLIENTS / DRAIN_SECONDS as usize;
    let in_a_second =
        |from: usize| times[from..].iter().take_while(|time| **time < times[from] + 1_000).count();
    let most = (0..times.len()).map(in_a_second).max();
    assert!(most <= Some(2 * average), "{most:?} in a second, {average} on average");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_pods_costs_5000_clients_nothing() {
    let mut pods = Pods::start().await;
    let old = [pods.gateway(), pods.gateway()];
    let mut at = old.each_ref().map(|gateway| gateway.api);
    let crowd = Crowd::start(CLIENTS, &pods.markets, &at).await;
    let new = [pods.gateway(), pods.gateway()];
    let rolled = async {
        for (index, gateway) in old.iter().enumerate() {
            // The balancer learns of the new pod before the old one gets its signal, and of the old pod's end some time later.
            crowd.send_to(&[at[0], at[1], new[index].api]);
            terminate_and_expect_end(gateway).await;
            at[index] = new[index].api;
            crowd.send_to(&at);
        }
    };
    let tops = Box::pin(pods.publish_until(rolled)).await;
    let stories = crowd.leave_at(tops).await;
    assert_eq!(stories.len(), CLIENTS);
    assert!(stories.iter().all(|story| !story.byes.is_empty()), "each has moved");
}

#[tokio::test]
async fn a_second_sigterm_ends_a_gateway_at_once() {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("DRAIN_SECONDS", "86400")]);
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await);
    }
    gateway.process.terminate();
    gateway.expect_readiness(503).await;
    gateway.process.terminate();
    assert!(gateway.process.wait().success());
}

#[tokio::test]
async fn a_draining_publisher_answers_what_is_in_flight_and_refuses_the_rest_with_retry_after() {
    let stack = Stack::shared();
    let publisher = stack.another_publisher(&[]);
    let (admin, market) = (Admin::new(publisher.url("")), fresh_market());
    let in_flight = InFlight::begin(&publisher, &override_body(market, &numbered(1))).await;
    // This client is connected and silent when the signal comes. The pod refuses its later request and does not wait for it.
    let mut early = TcpStream::connect(publisher.api).await.unwrap();
    publisher.process.terminate();
    publisher.expect_readiness(503).await;

    let refused = admin.send(&override_body(market, &numbered(2))).await;
    refused.expect_error(503, "SERVICE_UNAVAILABLE");
    assert_eq!(refused.header("retry-after"), Some("1"));
    early
        .write_all(b"POST /admin/odds/override HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        .await
        .unwrap();
    assert!(read_to_end(&mut early).await.starts_with("HTTP/1.1 503 "));

    let answer = in_flight.finish().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""seq":1"#), "{answer}");
    assert!(publisher.process.wait().success());
    assert_eq!(stack.admin().publish(market, &numbered(2)).await.seq, 2, "the refused one was not appended");
}

#[tokio::test]
async fn a_second_sigterm_ends_a_publisher_at_once() {
    let stack = Stack::shared();
    let publisher = stack.another_publisher(&[]);
    let _in_flight = InFlight::begin(&publisher, &override_body(fresh_market(), &numbered(1))).await;
    publisher.process.terminate();
    publisher.expect_readiness(503).await;
    publisher.process.terminate();
    assert!(publisher.process.wait().success());
    let said = publisher.process.said(Stream::Err);
    assert!(said.contains("second signal"), "{said}");
    assert!(!said.contains("cut off"), "not after the 20 s that a request may take: {said}");
}

/// Redis, a publisher and some markets, with gateways that come and go.
struct Pods {
    markets: Vec<u64>,
    desk: Desk,
    _publisher: Service,
    redis: Redis,
}

impl Pods {
    async fn start() -> Self {
        let redis = Redis::start();
        let publisher = Launch::publisher(&redis).start();
        let mut desk = Desk::new(Admin::new(publisher.url("")));
        let markets: Vec<u64> = (0..MARKETS).map(|_| fresh_market()).collect();
        for &market in &markets {
            desk.publish(market).await;
        }
        Self { markets, desk, _publisher: publisher, redis }
    }

    fn gateway(&self) -> Arc<Service> {
        let launch = Launch::gateway(&self.redis).env("DRAIN_SECONDS", &DRAIN_SECONDS.to_string());
        Arc::new(launch.env("RUST_LOG", "info,gateway::shard=debug").start())
    }

    /// Publishes in all markets until `until` is done. Returns the last number of each.
    async fn publish_until(&mut self, until: impl Future<Output = ()>) -> BTreeMap<u64, u64> {
        let mut ticks = interval(PUBLISH_EVERY);
        tokio::pin!(until);
        for market in self.markets.iter().cycle() {
            tokio::select! {
                biased;
                () = &mut until => break,
                _ = ticks.tick() => {
                    self.desk.publish(*market).await;
                }
            }
        }
        self.desk.last().iter().map(|(market, (_, seq))| (*market, *seq)).collect()
    }
}

async fn terminate_and_expect_end(gateway: &Arc<Service>) {
    gateway.process.terminate();
    gateway.expect_readiness(503).await;
    let patience = Duration::from_secs(u64::from(DRAIN_SECONDS) + 5);
    let gateway = Arc::clone(gateway);
    // The publisher has a thread of its own, so updates go on meanwhile.
    let ended = spawn_blocking(move || gateway.process.wait_for(patience)).await.unwrap();
    assert!(ended.success(), "{ended}");
}

/// An override that its publisher has begun to read.
struct InFlight {
    stream: TcpStream,
    rest: String,
}

impl InFlight {
    async fn begin(publisher: &Service, body: &str) -> Self {
        let token = tokens::admin(service::token::Role::Trader);
        let head = format!(
            "POST /admin/odds/override HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             content-length: {}\r\nexpect: 100-continue\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(publisher.api).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        within("100 Continue", stream.read_exact(&mut answer)).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&answer));
        Self { stream, rest: body.to_owned() }
    }

    async fn finish(mut self) -> String {
        self.stream.write_all(self.rest.as_bytes()).await.unwrap();
        read_to_end(&mut self.stream).await
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    within("the connection's end", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}
