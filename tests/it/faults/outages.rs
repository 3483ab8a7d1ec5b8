//! Failures of Redis, and between the services and Redis.
//!
//! Each [`Follower`] checks that it sees no hole, no duplicate and no reordering. At the end its state equals Redis'.

use std::time::Duration;

use futures_util::future::join_all;
use redis::Value;
use tests::{
    Access, Admin, Desk, Follower, Launch, Redis, Rest, Services,
    admin::{numbered, override_body},
    chaos::{Chaos, Weather},
    eventually, fresh_market,
    redis::Refusal,
};

/// Two pods and a publisher, a desk, and a follower at each pod.
struct Scene {
    services: Services,
    desk: Desk,
    followers: Vec<Follower>,
    market: u64,
}

impl Scene {
    async fn start(redis: impl Into<Access>, gateway: &[(&str, &str)]) -> Self {
        let services = Services::start(redis, gateway, &[]);
        let market = fresh_market();
        let mut followers = Vec::new();
        for index in [0, 1] {
            followers.push(Follower::start(services.gateway(index).api, &[market]).await);
        }
        let mut scene = Self { desk: Desk::new(services.admin()), services, followers, market };
        scene.go_on(5).await;
        scene
    }

    /// Publishes, and waits until every client has the update.
    async fn go_on(&mut self, updates: usize) {
        self.desk.publish_many(self.market, updates).await;
        for follower in &mut self.followers {
            follower.reach_all_of(&self.desk).await;
        }
    }

    /// Checks that every client has ended where Redis is.
    async fn expect_whole(&mut self, redis: &Redis, resets: usize) {
        self.go_on(5).await;
        for follower in &self.followers {
            follower.expect_as_in(redis, self.market);
            assert_eq!(follower.known(self.market).resets, resets);
        }
        for index in [0, 1] {
            self.readiness(index, 200).await;
        }
    }

    async fn readiness(&self, index: usize, status: u16) {
        self.services.gateway(index).expect_readiness(status).await;
    }
}

#[tokio::test]
async fn replies_that_break_off_in_the_middle_cost_nothing() {
    let redis = Redis::start();
    let chaos = Chaos::before(redis.port());
    let mut scene = Scene::start(&chaos, &[("STALE_AFTER", "60s")]).await;
    for _ in 0..10 {
        chaos.cut_replies(3);
        scene.desk.publish_many(scene.market, 5).await;
        eventually("the replies are cut", async || chaos.has_cut_replies().then_some(())).await;
        chaos.cut();
    }
    scene.expect_whole(&redis, 0).await;
}

#[tokio::test]
async fn a_slow_redis_delays_and_costs_nothing() {
    let redis = Redis::start();
    let chaos = Chaos::before(redis.port());
    let mut scene = Scene::start(&chaos, &[("STALE_AFTER", "60s")]).await;
    for weather in
        [Weather::Slow(Duration::from_millis(100)), Weather::Trickle(Duration::from_millis(1)), Weather::Fair]
    {
        chaos.set(weather);
        scene.go_on(10).await;
    }
    scene.expect_whole(&redis, 0).await;
}

#[tokio::test]
async fn connections_that_are_half_open_are_noticed_and_replaced() {
    let redis = Redis::start();
    let chaos = Chaos::before(redis.port());
    let gateways = Services::start(&chaos, &[("STALE_AFTER", "1s")], &[]);
    let publisher = Services::start(&redis, &[], &[]);
    let market = fresh_market();
    let mut desk = Desk::new(publisher.admin());
    let mut follower = Follower::start(gateways.gateway(0).api, &[market]).await;
    desk.publish_many(market, 5).await;
    follower.reach_all_of(&desk).await;
    chaos.swallow();
    desk.publish_many(market, 5).await;
    follower.reach_all_of(&desk).await;
    follower.expect_as_in(&redis, market);
    assert_eq!(follower.known(market).resets, 0);
}

/// Each connection that waited for reads would be found out by itself, one after the other.
#[tokio::test]
async fn however_many_connections_are_half_open_a_gateway_is_back_within_the_time_of_one() {
    let redis = Redis::start();
    let chaos = Chaos::before(redis.port());
    let gateways = Services::start(&chaos, &[("STALE_AFTER", "1s")], &[]);
    let gateway = gateways.gateway(0);
    let rest = Rest::of(gateway);
    // The pool is exhausted, since none of these reads ends before all of them have begun.
    chaos.set(Weather::Slow(Duration::from_millis(100)));
    join_all((0..32).map(|_| rest.updates(fresh_market(), "since_seq=0"))).await;
    chaos.set(Weather::Fair);
    chaos.swallow();
    gateway.expect_readiness(503).await;
    gateway.expect_readiness(200).await;
}

#[tokio::test]
async fn a_publisher_s_half_open_connection_is_noticed_and_replaced() {
    let redis = Redis::start();
    let chaos = Chaos::before(redis.port());
    let services = Services::start(&chaos, &[], &[]);
    let market = fresh_market();
    let mut desk = Desk::new(services.admin());
    desk.publish_many(market, 5).await;
    chaos.swallow();
    assert_eq!(desk.publish(market).await.seq, 6, "appended once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_that_has_everything_on_disk_goes_on_in_the_same_epoch() {
    let mut redis = Redis::durable();
    let mut scene = Scene::start(&redis, &[]).await;
    for _ in 0..3 {
        redis.restart();
        scene.go_on(5).await;
    }
    scene.expect_whole(&redis, 0).await;
}

#[tokio::test]
async fn a_redis_that_hangs_makes_prices_stale_until_the_gap_is_healed() {
    let redis = Redis::start();
    let mut scene = Scene::start(&redis, &[("STALE_AFTER", "1s")]).await;
    redis.process().pause();
    for (index, follower) in scene.followers.iter_mut().enumerate() {
        let status = follower.status().await;
        assert!(status.stale && status.since.is_some());
        assert_eq!(status.reason.as_deref(), Some("BACKBONE_UNREACHABLE"));
        let path = format!("/api/markets/{}/odds/snapshot", scene.market);
        let answer: serde_json::Value = Rest::of(scene.services.gateway(index)).get(&path).await.ok();
        assert_eq!((&answer["stale"], &answer["seq"]), (&true.into(), &5.into()), "{answer}");
    }
    for index in [0, 1] {
        scene.readiness(index, 503).await;
    }
    redis.process().unpause();
    scene.desk.publish_many(scene.market, 5).await;
    for follower in &mut scene.followers {
        assert!(!follower.status().await.stale);
    }
    scene.expect_whole(&redis, 0).await;
    for follower in &scene.followers {
        assert_eq!(follower.statuses().len(), 2, "told once each");
    }
}

/// It answers, and nothing that it says is of use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_loads_overrides_are_refused_and_prices_are_stale_until_it_has() {
    const LOADING: Duration = Duration::from_secs(4);
    let mut redis = Redis::durable();
    let mut scene = Scene::start(&redis, &[("STALE_AFTER", "500ms")]).await;
    let (admin, url) = (scene.services.admin(), redis.url());
    scene.go_on(100).await;
    let loading = tokio::task::spawn_blocking(move || {
        redis.restart_loading(LOADING);
        redis
    });
    let client = redis::Client::open(url).unwrap();
    eventually("Redis loads", async || {
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let answer = redis::cmd("DBSIZE").query_async::<u64>(&mut connection).await;
        answer.is_err_and(|error| error.code() == Some("LOADING")).then_some(())
    })
    .await;
    // The first request may find its connection broken. Then its outcome is unknown.
    eventually("the publisher says that nothing was appended", async || {
        let answer = admin.send(&override_body(scene.market, &numbered(0))).await;
        let message = answer.expect_error(503, "SERVICE_UNAVAILABLE");
        message.contains("nothing was appended").then_some(())
    })
    .await;
    for follower in &mut scene.followers {
        assert!(follower.status().await.stale);
    }
    let redis = loading.await.unwrap();
    for follower in &mut scene.followers {
        assert!(!follower.status().await.stale);
    }
    scene.expect_whole(&redis, 0).await;
}

#[tokio::test]
async fn when_everything_is_flushed_seq_goes_on_in_a_new_epoch() {
    let redis = Redis::start();
    let mut scene = Scene::start(&redis, &[]).await;
    for _ in 0..2 {
        redis.tell::<()>("FLUSHALL");
        scene.go_on(3).await;
    }
    scene.expect_whole(&redis, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_empty_goes_on_in_a_new_epoch() {
    let mut redis = Redis::start();
    let mut scene = Scene::start(&redis, &[]).await;
    redis.restart();
    scene.go_on(3).await;
    scene.expect_whole(&redis, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_with_an_older_copy_goes_on_in_a_new_epoch() {
    let mut redis = Redis::durable();
    let mut scene = Scene::start(&redis, &[]).await;
    redis.copy();
    scene.go_on(5).await;
    redis.restart_from_copy();
    scene.go_on(3).await;
    scene.expect_whole(&redis, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_restored_from_a_backup_goes_on_in_a_new_epoch_and_is_durable_again() {
    let mut redis = Redis::durable();
    let mut scene = Scene::start(&redis, &[]).await;
    let backup = redis.back_up();
    scene.go_on(5).await;
    redis.restore(&backup);
    scene.go_on(3).await;
    redis.restart();
    scene.expect_whole(&redis, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_that_lagged_goes_on_in_a_new_epoch() {
    let (primary, replica) = (Redis::durable(), Redis::durable());
    replica.follow(primary.port());
    let chaos = Chaos::before(primary.port());
    let mut scene = Scene::start(&chaos, &[]).await;
    let replicas: u64 = primary.tell("WAIT 1 5000");
    assert_eq!(replicas, 1);
    replica.tell::<()>("REPLICAOF NO ONE");
    // The update is acknowledged, every client has it, and only the primary holds it.
    scene.go_on(4).await;
    primary.kill();
    chaos.lead_to(replica.port());
    scene.go_on(3).await;
    scene.expect_whole(&replica, 1).await;
}

#[tokio::test]
async fn a_killed_tracking_connection_costs_nothing() {
    let redis = Redis::start();
    let mut scene = Scene::start(&redis, &[("STALE_AFTER", "60s")]).await;
    for _ in 0..10 {
        redis.kill_tracking();
        scene.go_on(3).await;
    }
    scene.expect_whole(&redis, 0).await;
}

/// Two pods that do not read what Redis says, for as long as it takes Redis to give them up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tracking_connection_that_redis_closes_for_its_output_buffer_costs_nothing() {
    let redis = Redis::start();
    let chaos = Chaos::before(redis.port());
    let gateways = [(); 2].map(|()| Launch::gateway(&chaos).env("STALE_AFTER", "60s").start());
    let publisher = Launch::publisher(&redis).start();
    let markets: Vec<u64> = (0..4).map(|_| fresh_market()).collect();
    let mut desk = Desk::new(Admin::new(publisher.url("")));
    let mut followers =
        [Follower::start(gateways[0].api, &markets).await, Follower::start(gateways[1].api, &markets).await];
    // A change before the link breaks is notified. A change after it is never notified.
    let (before, after) = markets.split_at(2);
    for _ in 0..3 {
        redis.expect_tracking(3);
        chaos.set(Weather::Held);
        for &market in before {
            desk.publish_many(market, 5).await;
        }
        redis.overflow_tracking(2);
        for &market in after {
            desk.publish_many(market, 5).await;
        }
        chaos.set(Weather::Fair);
        for follower in &mut followers {
            follower.reach_all_of(&desk).await;
        }
    }
    for follower in &followers {
        for &market in &markets {
            assert_eq!((follower.known(market).resets, follower.known(market).updates.len()), (0, 15));
            follower.expect_as_in(&redis, market);
        }
    }
    for gateway in &gateways {
        gateway.expect_readiness(200).await;
    }
}

/// What Redis refuses is refused whole, and the publisher says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_override_that_redis_refuses_is_answered_503_and_nothing_of_it_is_done() {
    let redis = Redis::start();
    let mut scene = Scene::start(&redis, &[("STALE_AFTER", "60s")]).await;
    let admin = scene.services.admin();
    for refusal in [Refusal::ReadOnly, Refusal::OutOfMemory, Refusal::TooFewReplicas, Refusal::CannotSave] {
        let before: Value = redis.tell(&format!("HGETALL odds:state:{{{}}}", scene.market));
        let audited: u64 = redis.tell(&format!("XLEN odds:audit:{{{}}}", scene.market));
        redis.refuse(refusal);
        let answer = admin.send(&override_body(scene.market, &numbered(0))).await;
        let message = answer.expect_error(503, "SERVICE_UNAVAILABLE");
        assert!(message.contains("nothing was appended"), "{refusal:?}: {message}");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(before, redis.tell::<Value>(&format!("HGETALL odds:state:{{{}}}", scene.market)));
        assert_eq!(audited, redis.tell::<u64>(&format!("XLEN odds:audit:{{{}}}", scene.market)));
        redis.cure(refusal);
        scene.go_on(3).await;
    }
    scene.expect_whole(&redis, 0).await;
}
