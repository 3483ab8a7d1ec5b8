//! Sentinels name the primary. Without them the services use the last one that they know.

use tests::{Desk, Follower, Sentinels, Services, fresh_market};

#[tokio::test]
async fn while_no_sentinel_answers_the_last_known_primary_serves() {
    let redis = tokio::task::spawn_blocking(Sentinels::start).await.unwrap();
    let services = Services::start(&redis, &[], &[]);
    let (market, later) = (fresh_market(), fresh_market());
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &[market]).await;
    desk.publish_many(market, 3).await;
    follower.reach_all_of(&desk).await;

    // Every connection is lost, and no sentinel says where the primary is.
    redis.kill_sentinels();
    let _: u64 = redis.node(0).tell("CLIENT KILL TYPE normal SKIPME yes");
    desk.publish_many(market, 3).await;
    follower.reach_all_of(&desk).await;
    // A market that is not in memory yet also needs the primary.
    Follower::start(services.gateway(1).api, &[later]).await;
}
