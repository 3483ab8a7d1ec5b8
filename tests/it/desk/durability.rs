//! `PUBLISH_MIN_REPLICAS`: where an acknowledged override is.

use service::token::Role;
use tests::{
    Admin, Launch, Redis, Rest,
    admin::{Accepted, numbered, override_body},
    fresh_market, tokens,
};

#[tokio::test]
async fn an_override_is_acknowledged_when_enough_replicas_have_it() {
    let primary = Redis::start();
    let replica = Redis::replica_of(primary.port());
    let publisher = Launch::publisher(&primary).env("PUBLISH_MIN_REPLICAS", "1").start();
    let gateway = Launch::gateway(&primary).start();
    let admin = Admin::with_token(publisher.url(""), &tokens::admin(Role::Trader));
    let market = fresh_market();
    assert_eq!(admin.publish(market, &numbered(1)).await.durability, "replicated");

    // The response tells what happened: the update is in the log, and one replica too few has it.
    replica.kill();
    let body = override_body(market, &numbered(2));
    let message = admin.send_with_key("again", &body).await.expect_error(503, "SERVICE_UNAVAILABLE");
    assert!(message.contains("appended as seq 2") && message.contains("0 of 1"), "{message}");
    assert_eq!(Rest::of(&gateway).snapshot(market).await.seq, 2);

    // The same request appends nothing, and waits for the replicas again.
    let _other = Redis::replica_of(primary.port());
    let answer = admin.send_with_key("again", &body).await;
    let accepted: Accepted = answer.json();
    assert_eq!((accepted.seq, accepted.durability.as_str()), (2, "replicated"));
}

#[tokio::test]
async fn without_a_promise_an_override_is_in_memory() {
    let redis = Redis::start();
    let publisher = Launch::publisher(&redis).start();
    let admin = Admin::with_token(publisher.url(""), &tokens::admin(Role::Trader));
    assert_eq!(admin.publish(fresh_market(), &numbered(1)).await.durability, "memory");
}
