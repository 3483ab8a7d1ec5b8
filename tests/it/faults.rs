//! Whatever goes wrong between the services and Redis, and in Redis: each [`Follower`] checks that it sees no hole, no
//! duplicate and no reordering, and in the end its state is the one in Redis.

use std::{fs, time::Duration};

use redis::Value;
use tests::{
    Access, Desk, Follower, Http, Redis, Rest, Services,
    admin::{numbered, override_body},
    chaos::{Chaos, Weather},
    eventually, fresh_market,
    redis::until,
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

    /// Publishes, and waits until everybody has it.
    async fn go_on(&mut self, updates: usize) {
        self.desk.publish_many(self.market, updates).await;
        for follower in &mut self.followers {
            follower.reach_all_of(&self.desk).await;
        }
    }

    /// The end of every story.
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
        let (http, url) = (Http::default(), self.services.gateway(index).ops_url("/readyz"));
        eventually("readiness", async || (http.get(&url).await.status == status).then_some(())).await;
    }
}

#[tokio::test]
async fn replies_that_break_off_in_the_middle_cost_nothing() {
    let redis = Redis::start();
    let chaos = Chaos::before(&redis);
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
    let chaos = Chaos::before(&redis);
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
    let chaos = Chaos::before(&redis);
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

#[tokio::test]
async fn a_publisher_s_half_open_connection_is_noticed_and_replaced() {
    let redis = Redis::start();
    let chaos = Chaos::before(&redis);
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
    let (files, copy) = (redis.dir().join("appendonlydir"), redis.dir().join("copy"));
    copy_files(&files, &copy);
    scene.go_on(5).await;
    redis.kill();
    fs::remove_dir_all(&files).unwrap();
    copy_files(&copy, &files);
    redis.restart();
    scene.go_on(3).await;
    scene.expect_whole(&redis, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_that_lagged_goes_on_in_a_new_epoch() {
    let primary = Redis::start();
    let replica = Redis::with(&["--repl-diskless-sync-delay", "0"]);
    replica.tell::<()>(&format!("REPLICAOF 127.0.0.1 {}", primary.port()));
    until("the replica follows", || (replica.info("master_link_status")? == "up").then_some(()));
    let chaos = Chaos::before(&primary);
    let mut scene = Scene::start(&chaos, &[]).await;
    let replicas: u64 = primary.tell("WAIT 1 5000");
    assert_eq!(replicas, 1);
    replica.tell::<()>("REPLICAOF NO ONE");
    // Acknowledged, and seen by everybody, and nowhere but on the primary.
    scene.go_on(4).await;
    primary.kill();
    chaos.lead_to(&replica);
    scene.go_on(3).await;
    scene.expect_whole(&replica, 1).await;
}

#[tokio::test]
async fn a_killed_tracking_connection_costs_nothing() {
    let redis = Redis::start();
    let mut scene = Scene::start(&redis, &[("STALE_AFTER", "60s")]).await;
    for _ in 0..10 {
        let clients: String = redis.tell("CLIENT LIST");
        let is_tracking = |line: &&str| {
            line.split(' ').find_map(|field| field.strip_prefix("flags=")).is_some_and(|f| f.contains('t'))
        };
        for client in clients.lines().filter(is_tracking) {
            let id = client.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap();
            let _: Value = redis.tell(&format!("CLIENT KILL ID {id}"));
        }
        scene.go_on(3).await;
    }
    scene.expect_whole(&redis, 0).await;
}

/// What Redis refuses is refused whole, and the publisher says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_override_that_redis_refuses_is_answered_503_and_nothing_of_it_is_done() {
    let redis = Redis::start();
    let mut scene = Scene::start(&redis, &[("STALE_AFTER", "60s")]).await;
    let admin = scene.services.admin();
    fs::create_dir(redis.dir().join("dump.rdb")).unwrap();
    let nobody = tests::ports::free();
    let faults = [
        (format!("REPLICAOF 127.0.0.1 {nobody}"), "REPLICAOF NO ONE"),
        ("CONFIG SET maxmemory 1mb".to_owned(), "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1".to_owned(), "CONFIG SET min-replicas-to-write 0"),
        ("CONFIG SET save 3600:1".to_owned(), "CONFIG SET stop-writes-on-bgsave-error no"),
    ];
    for (fault, cure) in faults {
        let before: Value = redis.tell(&format!("HGETALL odds:state:{{{}}}", scene.market));
        let audited: u64 = redis.tell(&format!("XLEN odds:audit:{{{}}}", scene.market));
        if fault.contains("save") {
            set_save(&redis);
            redis.tell::<()>("CONFIG SET stop-writes-on-bgsave-error yes");
            let _: Value = redis.tell("BGSAVE");
            until("the save fails", || (redis.info("rdb_last_bgsave_status")? == "err").then_some(()));
        } else {
            redis.tell::<()>(&fault);
        }
        let answer = admin.send(&override_body(scene.market, &numbered(0))).await;
        let message = answer.expect_error(503, "SERVICE_UNAVAILABLE");
        assert!(message.contains("nothing was appended"), "{fault}: {message}");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(before, redis.tell::<Value>(&format!("HGETALL odds:state:{{{}}}", scene.market)));
        assert_eq!(audited, redis.tell::<u64>(&format!("XLEN odds:audit:{{{}}}", scene.market)));
        redis.tell::<()>(cure);
        scene.go_on(3).await;
    }
    scene.expect_whole(&redis, 0).await;
}

/// `save 3600 1`, whose value has a space.
fn set_save(redis: &Redis) {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd("CONFIG").arg("SET").arg("save").arg("3600 1").query::<()>(&mut connection).unwrap();
}

fn copy_files(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
