//! A Redis whose ACL forbids `CLIENT TRACKING`: the tail uses blocking reads.

use tests::{Access, Desk, Follower, Http, Redis, Services, fresh_market};

#[tokio::test]
async fn a_gateway_that_may_not_track_follows_all_the_same() {
    let redis = Redis::start();
    let _: String = redis.tell("ACL SETUSER untracked on >secret ~* &* +@all -client|tracking");
    let url = format!("redis://untracked:secret@127.0.0.1:{}", redis.port());
    let services = Services::start(Access { url, ca_file: None, has_users: false }, &[], &[]);
    // These markets need more than one group of blocking reads.
    let markets: Vec<u64> = (0..150).map(|_| fresh_market()).collect();
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &markets).await;
    for _ in 0..3 {
        for &market in &markets {
            desk.publish(market).await;
        }
        follower.reach_all_of(&desk).await;
    }
    // The change came through the listener, not through the sweep.
    let metrics = Http::default().get(&services.gateway(0).ops_url("/metrics")).await.text;
    let changed =
        metrics.lines().find_map(|line| line.strip_prefix("gateway_tail_rung_total ")?.parse::<u64>().ok());
    assert!(changed.is_some_and(|count| count >= 150), "{changed:?}");

    follower.resume(services.gateway(1).api).await;
    desk.publish(markets[0]).await;
    follower.reach_all_of(&desk).await;
}
