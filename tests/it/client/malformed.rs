//! Foreign data in Redis costs the market that it is in, and no other.

use tests::{Admin, Http, Launch, Redis, Socket, admin::numbered, fresh_user, tokens};

#[tokio::test]
async fn a_log_that_cannot_be_understood_holds_up_no_other_market() {
    let redis = Redis::start();
    let gateway = Launch::gateway(&redis).env("STALE_AFTER", "500ms").start();
    let publisher = Launch::publisher(&redis).start();
    let admin = Admin::new(publisher.url(""));
    let [followed, broken, healthy, cold] = [101, 102, 103, 104];
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    socket.subscribe(&[followed, healthy]).await;

    // A log that is no stream at all, and a foreign entry in a log that a gateway follows.
    let _: String = redis.tell(&format!("SET odds:log:{{{broken}}} nonsense"));
    let _: String = redis.tell(&format!("XADD odds:log:{{{followed}}} 1-1 foreign entry"));
    let mut unlucky = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    unlucky.send(format_args!(r#"{{"type":"subscribe","markets":[{broken}]}}"#)).await;
    let mut lucky = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    lucky.subscribe(&[cold]).await;
    for seq in 1..=3 {
        for market in [healthy, cold] {
            admin.publish(market, &numbered(seq)).await;
        }
        assert_eq!(socket.update().await.seq, seq);
        assert_eq!(lucky.update().await.seq, seq);
    }
    // A followed log turns into something else.
    let _: String = redis.tell(&format!("SET odds:log:{{{followed}}} nonsense"));
    admin.publish(healthy, &numbered(4)).await;
    assert_eq!(socket.update().await.seq, 4);
    // Only the client of the broken market is closed. The pod stays as ready as before.
    assert_eq!(unlucky.closed().await.code, 1013);
    assert_eq!(Http::default().get(&gateway.ops_url("/readyz")).await.status, 200);
}
