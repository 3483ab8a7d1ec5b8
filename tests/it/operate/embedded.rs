//! Without `REDIS_URL` one process is the whole system.

use tests::{
    Admin, FieldClient, Http, Launch, Lines, Rest, Service, Socket, Stack, admin::numbered, fresh_market,
    launch::log_field,
};

#[tokio::test]
async fn one_process_takes_overrides_and_delivers_them() {
    let system = Launch::embedded().start();
    let market = fresh_market();
    let admin = admin(&system);
    admin.publish(market, r#"{"moneyline":{"home":1.85,"away":2.10}}"#).await;

    let mut socket = Socket::connect(system.api, &token(&system, 1).await).await;
    socket.send(format_args!(r#"{{"type":"subscribe","markets":["{market}"],"snapshot":true}}"#)).await;
    assert_eq!(socket.ack().await.position(market).seq, 1);
    assert_eq!(socket.snapshot().await.payload, r#"{"moneyline":{"home":1.85,"away":2.10}}"#);
    admin.publish(market, r#"{"moneyline":{"home":1.90}}"#).await;
    assert_eq!(socket.update().await.payload, r#"{"moneyline":{"home":1.90}}"#);

    let rest = Rest::of(&system);
    assert_eq!(rest.snapshot(market).await.payload, r#"{"moneyline":{"home":1.90}}"#);
    assert_eq!(rest.updates(market, "since_seq=0").await.updates.len(), 2);
    assert_eq!(admin.audit(&format!("marketId={market}")).await.status, 200);
    let health = rest.health().await;
    assert_eq!((health.connections, health.topics), (1, 1));
    let http = Http::default();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(http.get(&system.ops_url(path)).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn resume_and_the_field_client_work_as_with_redis() {
    let system = Launch::embedded().env("RESUME_MAX", "50").start();
    let (admin, market, token) = (admin(&system), fresh_market(), token(&system, 2).await);
    admin.publish_many(market, 0, 100).await;
    let mut socket = Socket::connect(system.api, &token).await;
    assert_eq!(socket.resume(market, 60).await.position(market).recovered, Some(true));
    for seq in 61..=100 {
        assert_eq!(socket.update().await.seq, seq);
    }
    let mut socket = Socket::connect(system.api, &token).await;
    assert_eq!(socket.resume(market, 10).await.position(market).recovered, Some(false));
    assert!(socket.snapshot().await.reset);

    let mut field = FieldClient::new(token, market);
    field.connect(system.api).await;
    admin.keep_publishing(market, &mut 101, field.reach(101)).await;
    assert_eq!(field.lines(), &Lines::of(&numbered(field.last())));
}

#[tokio::test]
async fn its_secrets_are_its_own_and_it_says_that_nothing_survives() {
    let systems = [Launch::embedded().start(), Launch::embedded().start()];
    let token = token(&systems[0], 3).await;
    let url = systems[1].url(&format!("/ws/odds?token={token}"));
    Http::default().handshake(&url, &[]).await.expect_error(401, "UNAUTHORIZED");
    let foreign = Admin::with_token(systems[1].url(""), &admin_token(&systems[0]));
    foreign.send("{}").await.expect_error(401, "UNAUTHORIZED");
    systems[0].process.expect_line("a word on restarts", |line| line.contains("restart").then_some(()));
}

#[tokio::test]
async fn demo_publishes_markets_to_look_at() {
    let system = Launch::embedded().args(&["--demo"]).start();
    let token = token(&system, 4).await;
    let mut socket = Socket::connect(system.api, &token).await;
    let market = DEMO_MARKET;
    socket.subscribe(&[market]).await;
    let first = socket.update().await;
    let second = socket.update().await;
    assert_eq!((first.market_id, second.seq), (market, first.seq + 1));
}

#[tokio::test]
async fn with_redis_the_gateway_has_no_admin_api() {
    let stack = Stack::shared();
    let admin = Admin::new(stack.gateway(0).url(""));
    admin.send("{}").await.expect_error(404, "NOT_FOUND");
}

/// One of the markets that `--demo` invents.
const DEMO_MARKET: u64 = 1001;

fn admin(system: &Service) -> Admin {
    Admin::with_token(system.url(""), &admin_token(system))
}

fn admin_token(system: &Service) -> String {
    system.process.expect_line("the admin token", |line| log_field(line, "adminToken"))
}

async fn token(system: &Service, user: u64) -> String {
    let answer = Http::default().post(&system.url("/api/ws/token"), &format!(r#"{{"userId":{user}}}"#)).await;
    let issued: serde_json::Value = answer.ok();
    issued["token"].as_str().unwrap().to_owned()
}
