//! Which markets there are, whatever Redis lost of it.

use std::collections::BTreeSet;

use tests::{Redis, Services, admin::numbered, eventually, fresh_market};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_was_lost_is_whole_again_once_the_publisher_listens_anew() {
    let redis = Redis::start();
    let services = Services::start(&redis, &[], &[]);
    let markets = [fresh_market(), fresh_market()];
    for market in markets {
        services.admin().publish(market, &numbered(1)).await;
    }
    expect_listed(&redis, markets).await;
    redis.expect_tracking(3);
    // As after a failover to a replica that had not heard of it, all connections being new.
    let _: u64 = redis.tell("DEL odds:markets");
    redis.kill_tracking();
    expect_listed(&redis, markets).await;
}

async fn expect_listed(redis: &Redis, markets: [u64; 2]) {
    eventually("both markets in the list", async || {
        (redis.tell::<BTreeSet<u64>>("SMEMBERS odds:markets") == BTreeSet::from(markets)).then_some(())
    })
    .await;
}
