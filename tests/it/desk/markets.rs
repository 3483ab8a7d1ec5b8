//! All markets at once (`docs/protocol.md#admin-api`): listed, whatever Redis lost of the list; suspended; opened.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::{Redis, Services, Socket, Stack, admin::numbered, eventually, fresh_market, fresh_user, tokens};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_market_is_listed_with_its_prices_as_they_were_written() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish(market, r#"{"win":{"home":1.850,"away":2.10}}"#).await;
    let expected = format!(r#"{{"marketId":{market},"epoch":"#);
    let listed = eventually("the market in the list", async || {
        let page = admin.get(&format!("/admin/markets?search={market}")).await;
        page.text.contains(&expected).then_some(page)
    })
    .await;
    assert!(listed.text.contains(r#""payload":{"win":{"home":1.850,"away":2.10}}"#), "{listed:?}");
}

/// Who suspends does not take back a price that somebody sets meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_is_suspended_while_its_prices_move_and_clients_are_told() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    let mut socket = Socket::connect(stack.gateway(0).api, &tokens::for_user(fresh_user())).await;
    socket.subscribe(&[market]).await;
    admin.publish(market, r#"{"status":{"state":"open","inPlay":true}}"#).await;
    let body = format!(r#"{{"marketIds":[{market}],"reason":"storm"}}"#);
    let suspending = admin.post("/admin/markets/suspend", &[], &body);
    // Redis lists fewer markets than there are.
    let moving = async {
        for _ in 0..4 {
            admin.publish(market, r#"{"win":{"home":1.85}}"#).await;
        }
    };
    let (answer, ()) = tokio::join!(suspending, moving);
    let results: Vec<Value> = answer.ok();
    assert_eq!((&results[0]["ok"], &results[0]["changed"]), (&true.into(), &true.into()), "{results:?}");
    let mut states = Vec::new();
    for seq in 1..=6 {
        let update = socket.update().await;
        assert_eq!(update.seq, seq);
        if update.payload.text().contains("status") {
            states.push(update.payload);
        }
    }
    let suspended = r#"{"status":{"state":"suspended","inPlay":true}}"#;
    assert_eq!(states, [r#"{"status":{"state":"open","inPlay":true}}"#, suspended]);
    let page = admin.get(&format!("/admin/markets?ids={market}")).await.text;
    assert!(page.contains(r#""win":{"home":1.85}"#) && page.contains("suspended"), "{page}");
    let entries = admin.audit(&format!("marketId={market}")).await.text;
    assert!(entries.contains(r#""reason":"storm""#), "{entries}");
}

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
    // This is the state after a failover to a replica that lacks the list. All connections are new.
    let _: u64 = redis.tell("DEL odds:markets");
    redis.kill_tracking();
    expect_listed(&redis, markets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_that_cannot_be_read_hides_no_other_and_keeps_none_from_being_suspended() {
    let redis = Redis::start();
    let services = Services::start(&redis, &[], &[]);
    let (admin, market, broken) = (services.admin(), fresh_market(), fresh_market());
    admin.publish(market, &numbered(1)).await;
    let _: String = redis.tell(&format!("SET odds:state:{{{broken}}} x"));
    let _: u64 = redis.tell(&format!("SADD odds:markets {market} {broken}"));
    let page: Value = admin.get("/admin/markets").await.ok();
    let listed: Vec<&Value> = page["markets"].as_array().unwrap().iter().map(|of| &of["marketId"]).collect();
    assert_eq!(listed, [&Value::from(market)]);
    let mut results: Vec<Value> = admin.post("/admin/markets/suspend", &[], r#"{"all":true}"#).await.ok();
    if broken < market {
        results.reverse();
    }
    assert_eq!(results[0]["changed"], true, "{results:?}");
    assert_eq!(results[1]["code"], "INTERNAL", "{results:?}");
    assert!(results[1]["message"].as_str().unwrap().contains(&broken.to_string()));
}

async fn expect_listed(redis: &Redis, markets: [u64; 2]) {
    eventually("both markets in the list", async || {
        (redis.tell::<BTreeSet<u64>>("SMEMBERS odds:markets") == BTreeSet::from(markets)).then_some(())
    })
    .await;
}
