//! The Redis users that the project ships (`docker/redis/users.acl`): each may do its work, and nothing else.

use redis::{ErrorKind, RedisError, ServerErrorKind, Value};
use service::token::Role;
use tests::{
    Access, Admin, Cluster, Desk, Follower, Launch, Postgres, Redis, Sentinels, Services, Socket,
    acl::{SHIPPED, as_user},
    eventually, fresh_market, fresh_user, tokens,
};

#[test]
fn as_shipped_the_file_lets_nobody_in() {
    let redis = Redis::with(&["--aclfile", SHIPPED]);
    let refused: RedisError = redis.ask::<Value>("PING").unwrap_err();
    assert_eq!(refused.code(), Some("NOAUTH"), "{refused}");
    for user in ["gateway", "publisher", "replica", "sentinel"] {
        let client = redis::Client::open(as_user(&redis.url(), user)).unwrap();
        let refused = client.get_connection().err().unwrap();
        assert!(matches!(refused.kind(), ErrorKind::AuthenticationFailed), "{user}: {refused:?}");
    }
}

#[test]
fn a_gateway_can_write_nothing_and_read_nothing_but_what_it_delivers() {
    let redis = Redis::with_shipped_users();
    let _: String = redis.tell("XADD odds:log:{1} 1-1 ts 1 p {}");
    let refused = [
        "XADD odds:log:{1} * p {}",
        "XADD odds:revoked * jti a",
        "DEL odds:revoked",
        "SADD odds:markets 1",
        "SREM odds:markets 1",
        "XTRIM odds:log:{1} MAXLEN 0",
        "XDEL odds:log:{1} 1-1",
        "XSETID odds:log:{1} 9-9",
        "HSET odds:state:{1} seq 7",
        "HDEL odds:state:{1} seq",
        "SET odds:log:{1} x",
        "DEL odds:log:{1}",
        "UNLINK odds:log:{1}",
        "EXPIRE odds:log:{1} 1",
        "RENAME odds:log:{1} odds:log:{2}",
        "RESTORE odds:log:{2} 0 x",
        "EVAL return 0",
        "EVALSHA 0123456789012345678901234567890123456789 0",
        "SCRIPT LOAD return",
        "FUNCTION LOAD x",
        "PUBLISH odds x",
        "XREVRANGE odds:audit:{1} + - COUNT 1",
        "GET odds:idem:{1}:key",
        "HGETALL other",
        "WAIT 1 0",
    ];
    expect_refused(&redis, "gateway", &refused);
    expect_refused(&redis, "gateway", FOR_ADMINISTRATORS);
    expect_allowed(
        &redis,
        "gateway",
        &["XREVRANGE odds:log:{1} + - COUNT 1", "HGETALL odds:state:{1}", "SMEMBERS odds:markets"],
    );
}

#[test]
fn a_publisher_can_touch_nothing_but_markets_and_take_nothing_away() {
    let redis = Redis::with_shipped_users();
    let refused = [
        "DEL odds:log:{1}",
        "UNLINK odds:audit:{1}",
        "XTRIM odds:audit:{1} MAXLEN 0",
        "XDEL odds:audit:{1} 1-1",
        "XTRIM odds:revoked MAXLEN 0",
        "DEL odds:revoked",
        "DEL odds:markets",
        "SREM odds:markets 1",
        "SADD odds:others 1",
        "EXPIRE odds:audit:{1} 1",
        "RENAME odds:log:{1} odds:log:{2}",
        "EVAL return 0",
        "SCRIPT FLUSH",
        "XADD other * a b",
        "HSET odds:other a b",
        "GET secret",
    ];
    expect_refused(&redis, "publisher", &refused);
    expect_refused(&redis, "publisher", FOR_ADMINISTRATORS);
    expect_allowed(
        &redis,
        "publisher",
        &["XADD odds:log:{1} 1-1 ts 1 p {}", "HSET odds:state:{1} seq 1", "SADD odds:markets 1"],
    );
}

/// Whatever else a stolen password would be good for.
const FOR_ADMINISTRATORS: &[&str] = &[
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "SCAN 0",
    "CONFIG GET requirepass",
    "CONFIG SET dir /tmp",
    "ACL LIST",
    "ACL SETUSER gateway nopass",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "MODULE LIST",
    "REPLICAOF NO ONE",
    "CLUSTER FAILOVER",
    "CLUSTER RESET",
    "MIGRATE 127.0.0.1 1 odds:log:{1} 0 1",
    "SHUTDOWN NOSAVE",
    "SAVE",
    "BGREWRITEAOF",
    "MONITOR",
    "SUBSCRIBE odds",
    "INFO",
    "SELECT 1",
    "SWAPDB 0 1",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_users_do_all_that_services_do() {
    let redis = Redis::with_shipped_users();
    publish_and_follow(&redis, &[], &[]).await;
    expect_nothing_refused(&redis);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_users_do_all_that_services_do_with_replicas_behind_sentinels() {
    let set = Sentinels::with_shipped_users();
    publish_and_follow(&set, FROM_REPLICA, REPLICATED).await;
    (0..3).for_each(|node| expect_nothing_refused(set.node(node)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_users_do_all_that_services_do_with_replicas_in_a_cluster() {
    let cluster = Cluster::with_shipped_users();
    publish_and_follow(&cluster, FROM_REPLICA, REPLICATED).await;
    (0..6).for_each(|node| expect_nothing_refused(cluster.node(node)));
}

/// The sentinels' user is good for a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_needs_no_more_than_the_shipped_users() {
    let set = Sentinels::with_shipped_users();
    let services = Services::start(&set, &[("STALE_AFTER", "1s")], &[]);
    let market = fresh_market();
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &[market]).await;
    desk.publish_many(market, 3).await;
    assert_eq!(set.node(0).tell::<u64>("WAIT 2 5000"), 2, "both replicas have it");
    set.node(0).kill();
    desk.publish_many(market, 3).await;
    follower.reach_all_of(&desk).await;
    assert_eq!(follower.known(market).resets, 0);
    (1..3).for_each(|node| expect_nothing_refused(set.node(node)));
}

const FROM_REPLICA: &[(&str, &str)] = &[("TAIL_FROM", "replica")];
const REPLICATED: &[(&str, &str)] = &[("PUBLISH_MIN_REPLICAS", "1")];

/// Live delivery, older history, reads, audit with its copy and a resume at another gateway.
async fn publish_and_follow(redis: impl Into<Access>, gateway: &[(&str, &str)], publisher: &[(&str, &str)]) {
    let (redis, postgres) = (redis.into(), Postgres::shared());
    let database = postgres.database().await;
    let publisher = [publisher, &[("DATABASE_URL", database.url())]].concat();
    let services = Services::start(&redis, gateway, &publisher);
    let markets: Vec<u64> = (0..6).map(|_| fresh_market()).collect();
    let mut desk = Desk::new(services.admin());
    let mut follower = Follower::start(services.gateway(0).api, &markets).await;
    for &market in &markets {
        desk.publish_many(market, 3).await;
        desk.expect_last_is_replayed(market).await;
    }
    follower.reach_all_of(&desk).await;
    follower.resume(services.gateway(1).api).await;
    for &market in &markets {
        desk.publish(market).await;
        let page = tests::Rest::of(services.gateway(1)).updates(market, "since_seq=0").await;
        assert_eq!((page.updates.len(), page.latest_seq), (4, 4));
        assert_eq!(services.admin().audit(&format!("marketId={market}")).await.status, 200);
    }
    follower.reach_all_of(&desk).await;
    eventually("the audit is copied", async || {
        (database.audit().await.len() == markets.len() * 4).then_some(())
    })
    .await;
    let user = fresh_user();
    let mut taken_back = Socket::connect(services.gateway(1).api, &tokens::for_user(user)).await;
    let admin = Admin::with_token(services.publisher().url(""), &tokens::admin(Role::Admin));
    assert_eq!(admin.revoke(&format!(r#"{{"userId":{user}}}"#)).await.status, 200);
    assert_eq!(taken_back.closed().await.code, 4403);
    // A gateway that follows no market yet reads from Redis.
    let cold = Launch::gateway(&redis).start();
    assert_eq!(tests::Rest::of(&cold).snapshot(markets[0]).await.seq, 4);
    let listed = async |path: &str| {
        let page = tests::Rest::of(services.gateway(0)).get(path).await.text;
        page.contains(&markets[0].to_string()).then_some(())
    };
    eventually("the gateway lists a market", async || listed("/api/markets?limit=1000").await).await;
    let page = admin.get(&format!("/admin/markets?ids={}", markets[0])).await;
    assert!(page.status == 200 && page.text.contains(r#""seq":4"#), "{}", page.text);
    for state in ["suspend", "open"] {
        let body = format!(r#"{{"marketIds":[{}]}}"#, markets[0]);
        let done = admin.post(&format!("/admin/markets/{state}"), &[], &body).await;
        assert!(done.status == 200 && done.text.contains(r#""ok":true"#), "{state}: {}", done.text);
    }
    services.expect_ready().await;
}

fn expect_refused(redis: &Redis, user: &str, commands: &[&str]) {
    for command in commands {
        let refused = ask_as::<Value>(redis, user, command).unwrap_err();
        let noperm = refused.kind() == ErrorKind::Server(ServerErrorKind::NoPerm);
        assert!(noperm, "{user} must not: {command}: {refused}");
    }
}

fn expect_allowed(redis: &Redis, user: &str, commands: &[&str]) {
    for command in commands {
        ask_as::<Value>(redis, user, command)
            .unwrap_or_else(|error| panic!("{user} may: {command}: {error}"));
    }
}

fn ask_as<T: redis::FromRedisValue>(redis: &Redis, user: &str, command: &str) -> redis::RedisResult<T> {
    let mut connection = redis::Client::open(as_user(&redis.url(), user))?.get_connection()?;
    let mut words = command.split(' ');
    let mut asked = redis::cmd(words.next().unwrap());
    words.for_each(|word| _ = asked.arg(word));
    asked.query(&mut connection)
}

/// Nothing that a service did was more than its user may; a library's greeting that newer servers know aside.
fn expect_nothing_refused(redis: &Redis) {
    let log: Vec<Vec<Value>> = redis.tell("ACL LOG");
    for entry in log {
        let text = format!("{entry:?}");
        assert!(text.contains("client|setinfo"), "{text}");
    }
}
