//! The whole system over every topology of Redis, through failovers and slot moves.

use std::time::{Duration, Instant};

use tests::{Access, Cluster, Desk, Follower, Rest, Sentinels, Services, cluster, eventually, fresh_market};

use super::backbone;

/// Far below every time-out of a call to Redis: whoever waits for another part's node takes longer.
const NOT_HELD_UP: Duration = Duration::from_secs(2);

#[tokio::test]
async fn updates_are_delivered_and_resumed_elsewhere_over_tls() {
    deliver_and_resume_elsewhere(&*backbone::tls::SET.get()).await;
}

#[tokio::test]
async fn updates_are_delivered_and_resumed_elsewhere_with_an_acl_user() {
    deliver_and_resume_elsewhere(&*backbone::acl_user::SET.get()).await;
}

#[tokio::test]
async fn updates_are_delivered_and_resumed_elsewhere_behind_sentinels() {
    deliver_and_resume_elsewhere(&*backbone::sentinels::SET.get()).await;
}

#[tokio::test]
async fn updates_are_delivered_and_resumed_elsewhere_in_a_cluster() {
    deliver_and_resume_elsewhere(&*backbone::cluster::SET.get()).await;
}

#[tokio::test]
async fn updates_are_delivered_and_resumed_elsewhere_behind_sentinels_over_tls() {
    deliver_and_resume_elsewhere(&Sentinels::with_tls()).await;
}

#[tokio::test]
async fn updates_are_delivered_and_resumed_elsewhere_in_a_cluster_over_tls() {
    deliver_and_resume_elsewhere(&Cluster::with_tls()).await;
}

async fn deliver_and_resume_elsewhere(redis: impl Into<Access>) {
    let services = Services::start(redis, &[], &[]);
    let markets: Vec<u64> = (0..12).map(|_| fresh_market()).collect();
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &markets).await;
    for &market in &markets {
        desk.publish_many(market, 3).await;
    }
    follower.reach_all_of(&desk).await;
    follower.resume(services.gateway(1).api).await;
    for &market in &markets {
        desk.publish_many(market, 2).await;
    }
    follower.reach_all_of(&desk).await;
    for market in markets {
        let known = follower.known(market);
        assert_eq!((known.seq, known.resets, known.updates.len()), (5, 0, 5));
        let snapshot = Rest::of(services.gateway(0)).snapshot(market).await;
        assert_eq!((snapshot.epoch, snapshot.seq), (known.epoch, known.seq));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_of_a_cluster_is_replaced_and_holds_up_no_other_market() {
    let cluster = Cluster::start();
    let services = Services::start(&cluster, &[("STALE_AFTER", "1s")], &[]);
    let [lost, other, third] = [0, 1, 2].map(|primary| cluster.fresh_market_at(primary));
    let (mut desk, mut others_desk) = (Desk::new(services.admin()), Desk::new(services.admin()));
    let mut everything = Follower::start(services.gateway(0).api, &[lost, other, third]).await;
    // The gateway of this client follows no market on the nodes that stay.
    let mut only_lost = Follower::start(services.gateway(1).api, &[lost]).await;
    let mut only_others = Follower::start(services.gateway(0).api, &[other, third]).await;
    desk.publish_many(lost, 3).await;
    let replicas: u64 = cluster.node(0).tell("WAIT 1 5000");
    assert_eq!(replicas, 1, "the replica has it");
    everything.reach_all_of(&desk).await;
    only_lost.reach_all_of(&desk).await;

    cluster.node(0).kill();
    let failed_over = desk.publish(lost);
    let others = go_on_until(failed_over, &mut others_desk, &mut only_others, [other, third]);
    let accepted = Box::pin(others).await;
    assert_eq!(accepted.seq, 4);
    desk.publish(lost).await;
    assert_eq!(cluster.holder_of(lost), cluster::PRIMARIES, "its replica holds it");
    let promoted = cluster.node(cluster::PRIMARIES);
    for follower in [&mut everything, &mut only_lost] {
        follower.reach_all_of(&desk).await;
        assert_eq!(follower.known(lost).resets, 0, "nothing was lost");
        follower.expect_as_in(promoted, lost);
    }
    everything.reach_all_of(&others_desk).await;
    services.expect_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_had_when_it_was_acknowledged_outlives_a_primary_that_is_killed_under_load() {
    let mut cluster = Cluster::start();
    let services = Services::start(&cluster, &[], &[("PUBLISH_MIN_REPLICAS", "1")]);
    let market = cluster.fresh_market_at(0);
    let mut follower = Follower::start(services.gateway(0).api, &[market]).await;
    let mut desk = Desk::new(services.admin());
    let first = desk.publish(market).await;
    let publishing = tokio::spawn(async move {
        desk.publish_many(market, 300).await;
        desk
    });
    follower.reach(market, (first.epoch, 100)).await;
    cluster.node(0).kill();
    eventually("its replica holds it", async || {
        (cluster.holder_of(market) == cluster::PRIMARIES).then_some(())
    })
    .await;
    // The new primary needs a replica of its own before a publisher acknowledges again.
    cluster.restart(0);
    let desk = publishing.await.unwrap();
    desk.expect_all_in(cluster.node(cluster::PRIMARIES), market, first.epoch);
    follower.reach_all_of(&desk).await;
    follower.expect_as_in(cluster.node(cluster::PRIMARIES), market);
    services.expect_ready().await;
}

/// The link to one node of a cluster is dead, and nobody is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_link_to_one_primary_of_a_cluster_holds_up_no_other_market() {
    let mut cluster = Cluster::start();
    cluster.put_chaos_before(0);
    let services = Services::start(&cluster, &[("STALE_AFTER", "1s")], &[]);
    let [lost, other, third] = [0, 1, 2].map(|primary| cluster.fresh_market_at(primary));
    let (mut desk, mut others_desk) = (Desk::new(services.admin()), Desk::new(services.admin()));
    let mut everything = Follower::start(services.gateway(0).api, &[lost, other, third]).await;
    let mut only_others = Follower::start(services.gateway(1).api, &[other, third]).await;
    desk.publish_many(lost, 3).await;
    everything.reach_all_of(&desk).await;

    cluster.node(0).chaos().swallow();
    let delivered = async {
        desk.publish(lost).await;
        everything.reach_all_of(&desk).await;
    };
    Box::pin(go_on_until(delivered, &mut others_desk, &mut only_others, [other, third])).await;
    everything.reach_all_of(&others_desk).await;
    assert_eq!(everything.known(lost).resets, 0);
    everything.expect_as_in(cluster.node(0), lost);
    services.expect_ready().await;
}

/// Publishes and delivers in other markets until `until` is done, none of it held up; what that gave.
async fn go_on_until<T>(
    until: impl Future<Output = T>,
    desk: &mut Desk,
    follower: &mut Follower,
    markets: [u64; 2],
) -> T {
    let (mut slowest, mut rounds) = (Duration::ZERO, 0);
    let going_on = async {
        loop {
            for market in markets {
                let began = Instant::now();
                desk.publish(market).await;
                follower.reach_all_of(desk).await;
                slowest = slowest.max(began.elapsed());
            }
            rounds += 1;
        }
    };
    let done = tokio::select! {
        () = going_on => unreachable!("goes on until the other is done"),
        done = until => done,
    };
    assert!(slowest < NOT_HELD_UP && rounds > 10, "{rounds} rounds, {slowest:?} the slowest");
    done
}

/// Primaries are told apart by their place among the others, which a failover may change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_that_reads_failed_in_no_pod_stays_stale() {
    let (cluster, lost) = std::iter::repeat_with(Cluster::start)
        .find_map(|cluster| {
            let lost = (0..cluster::PRIMARIES).find(|lost| changes_places(&cluster, *lost))?;
            Some((cluster, lost))
        })
        .unwrap();
    let services = Services::start(&cluster, &[("STALE_AFTER", "1s")], &[]);
    let market = cluster.fresh_market_at(lost);
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &[market]).await;
    desk.publish(market).await;
    follower.reach_all_of(&desk).await;
    let replica = cluster.node(lost + cluster::PRIMARIES).process();
    replica.pause();
    cluster.node(lost).kill();
    let failed = |line: &str| (line.contains("does not answer") && line.contains("Read(")).then_some(());
    services.gateway(0).process.expect_line("a failed read", failed);
    replica.unpause();
    assert!(follower.status().await.stale);
    desk.publish(market).await;
    follower.reach_all_of(&desk).await;
    services.expect_ready().await;
}

/// Whether the replica of this primary would stand elsewhere in the order of addresses.
fn changes_places(cluster: &Cluster, lost: usize) -> bool {
    let address = |node: usize| format!("127.0.0.1:{}", cluster.node(node).port());
    let before = |own: &str| {
        let others = (0..cluster::PRIMARIES).filter(|node| *node != lost);
        others.filter(|node| address(*node).as_str() < own).count()
    };
    before(&address(lost)) != before(&address(lost + cluster::PRIMARIES))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_to_another_primary_while_updates_flow_costs_none() {
    const MOVES: [(usize, usize); 4] = [(0, 1), (1, 2), (2, 1), (1, 0)];
    let cluster = std::sync::Arc::new(Cluster::start());
    let services = Services::start(&*cluster, &[("STALE_AFTER", "60s")], &[]);
    let market = cluster.fresh_market_at(0);
    let mut desk = Desk::new(services.admin());
    let mut followers = [
        Follower::start(services.gateway(0).api, &[market]).await,
        Follower::start(services.gateway(1).api, &[market]).await,
    ];
    desk.publish_many(market, 10).await;
    for (from, to) in MOVES {
        let moving = std::sync::Arc::clone(&cluster);
        let moved = tokio::task::spawn_blocking(move || moving.move_slot_of(market, from, to));
        while !moved.is_finished() {
            desk.publish(market).await;
        }
        moved.await.unwrap();
        desk.publish_many(market, 10).await;
        assert_eq!(cluster.holder_of(market), to);
        for follower in &mut followers {
            follower.reach_all_of(&desk).await;
            assert_eq!(follower.known(market).resets, 0);
            follower.expect_as_in(cluster.node(to), market);
        }
    }
    services.expect_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_behind_sentinels_is_replaced_and_subscribers_go_on() {
    let set = Sentinels::start();
    let services = Services::start(&set, &[("STALE_AFTER", "1s")], &[]);
    let markets = [fresh_market(), fresh_market()];
    let mut desk = Desk::new(services.admin());
    let mut followers = [
        Follower::start(services.gateway(0).api, &markets).await,
        Follower::start(services.gateway(1).api, &markets[..1]).await,
    ];
    for market in markets {
        desk.publish_many(market, 5).await;
    }
    let replicas: u64 = set.node(0).tell("WAIT 2 5000");
    assert_eq!(replicas, 2, "both replicas have it");
    set.node(0).kill();
    for market in markets {
        desk.publish_many(market, 5).await;
    }
    let primary = set.primary();
    assert_ne!(primary, 0);
    for follower in &mut followers {
        follower.reach_all_of(&desk).await;
        assert_eq!(follower.known(markets[0]).resets, 0, "nothing was lost");
        follower.expect_as_in(set.node(primary), markets[0]);
    }
    services.expect_ready().await;
}
