//! `TAIL_FROM=replica`: gateways follow logs at replicas, and the primaries stay the truth.

use std::time::Duration;

use tests::{
    Cluster, Commands, Desk, Follower, Launch, Redis, Sentinels, Services, Stack,
    chaos::{Chaos, Weather},
    cluster, fresh_market,
};

const REPLICA: &[(&str, &str)] = &[("TAIL_FROM", "replica"), ("STALE_AFTER", "1s")];

/// How many times this Redis was asked what came after cursors.
fn reads_at(redis: &Redis) -> u64 {
    Commands::so_far(redis).expect("Redis runs").of("xread").calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_asks_the_primary_for_nothing() {
    let primary = Redis::start();
    let replica = Redis::replica_of(primary.port());
    let services = Services::start(&primary, REPLICA, &[]);
    let market = fresh_market();
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &[market]).await;
    for _ in 0..20 {
        desk.publish(market).await;
        follower.reach_all_of(&desk).await;
    }
    assert_eq!(reads_at(&primary), 0);
    assert!(reads_at(&replica) > 0);
    assert_eq!(follower.known(market).resets, 0);
    follower.expect_as_in(&primary, market);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_knows_more_than_a_replica_waits_for_it_and_is_not_reset() {
    let primary = Redis::start();
    let link = Chaos::before(primary.port());
    let replica = Redis::replica_of(link.port());
    let ahead = Launch::gateway(&primary).start();
    let behind = Launch::gateway(&primary).envs(REPLICA).start();
    let publisher = Launch::publisher(&primary).start();
    let market = fresh_market();
    let mut desk = Desk::new(tests::Admin::new(publisher.url("")));
    let mut waits = Follower::start(behind.api, &[market]).await;
    let mut moves = Follower::start(ahead.api, &[market]).await;
    desk.publish_many(market, 3).await;
    waits.reach_all_of(&desk).await;
    link.set(Weather::Slow(Duration::from_millis(500)));
    for _ in 0..3 {
        desk.publish_many(market, 3).await;
        moves.reach_all_of(&desk).await;
        moves.resume(behind.api).await;
        desk.publish(market).await;
        moves.reach_all_of(&desk).await;
        moves.resume(ahead.api).await;
    }
    waits.reach_all_of(&desk).await;
    for follower in [&waits, &moves] {
        assert_eq!(follower.known(market).resets, 0);
        follower.expect_as_in(&primary, market);
    }
    assert!(reads_at(&replica) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_is_left_for_the_primary_until_it_keeps_up_again() {
    let primary = Redis::start();
    let replica = Redis::replica_of(primary.port());
    let services = Services::start(&primary, REPLICA, &[]);
    let market = fresh_market();
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &[market]).await;
    desk.publish(market).await;
    follower.reach_all_of(&desk).await;
    replica.process().pause();
    desk.publish(market).await;
    follower.reach_all_of(&desk).await;
    assert!(reads_at(&primary) > 0);
    replica.process().unpause();
    let back = |line: &str| line.contains("these are tailed from now on").then_some(());
    services.gateway(0).process.expect_line("it is back at the replica", back);
    let before = reads_at(&replica);
    desk.publish(market).await;
    follower.reach_all_of(&desk).await;
    assert!(reads_at(&replica) > before);
    assert_eq!(follower.known(market).resets, 0);
    services.expect_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_behind_sentinels_costs_nothing() {
    let set = Sentinels::start();
    let services = Services::start(&set, REPLICA, &[]);
    let market = fresh_market();
    let mut desk = Desk::new(services.admin());
    let mut followers = [
        Follower::start(services.gateway(0).api, &[market]).await,
        Follower::start(services.gateway(1).api, &[market]).await,
    ];
    desk.publish_many(market, 5).await;
    assert_eq!(set.node(0).tell::<u64>("WAIT 2 5000"), 2, "both replicas have it");
    set.node(0).kill();
    desk.publish_many(market, 5).await;
    let primary = set.primary();
    for follower in &mut followers {
        follower.reach_all_of(&desk).await;
        assert_eq!(follower.known(market).resets, 0, "nothing was lost");
        follower.expect_as_in(set.node(primary), market);
    }
    services.expect_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_each_primary_has_a_replica_followed_and_is_replaced_by_it() {
    let cluster = Cluster::start();
    let services = Services::start(&cluster, REPLICA, &[]);
    let markets = [0, 1, 2].map(|primary| cluster.fresh_market_at(primary));
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &markets).await;
    for market in markets {
        desk.publish_many(market, 3).await;
    }
    follower.reach_all_of(&desk).await;
    for primary in 0..cluster::PRIMARIES {
        assert_eq!(reads_at(cluster.node(primary)), 0);
        assert!(reads_at(cluster.node(primary + cluster::PRIMARIES)) > 0);
        assert_eq!(cluster.node(primary).tell::<u64>("WAIT 1 5000"), 1, "the replica has it");
    }
    cluster.node(0).kill();
    for market in markets {
        desk.publish_many(market, 3).await;
    }
    follower.reach_all_of(&desk).await;
    for market in markets {
        assert_eq!(follower.known(market).resets, 0, "nothing was lost");
    }
    follower.expect_as_in(cluster.node(cluster::PRIMARIES), markets[0]);
    services.expect_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_replica_the_primary_is_followed() {
    let stack = Stack::with(REPLICA, &[]);
    let market = fresh_market();
    let mut desk = Desk::new(stack.admin());
    let mut follower = Follower::start(stack.gateway(0).api, &[market]).await;
    desk.publish_many(market, 3).await;
    follower.reach_all_of(&desk).await;
}
