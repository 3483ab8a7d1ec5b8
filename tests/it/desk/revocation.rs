//! `POST /admin/tokens/revoke` (`docs/protocol.md#admin-api`), and what it does on every pod.

use std::time::{Duration, Instant};

use protocol::time::unix_ms;
use serde_json::Value;
use service::token::Role;
use tests::{
    Admin, Http, Launch, Redis, Service, Socket, Stack, eventually, fresh_market, fresh_user,
    launch::log_field, tokens,
};

/// How soon open sockets are closed.
const SOON: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_revoked_user_s_sockets_close_with_4403_on_every_pod_within_a_second() {
    let stack = Stack::shared();
    let (user, other) = (fresh_user(), fresh_user());
    let mut closed = Vec::new();
    for gateway in [0, 1, 0, 1] {
        closed.push(Socket::connect(stack.gateway(gateway).api, &tokens::for_user(user)).await);
    }
    closed[0].subscribe(&[fresh_market()]).await;
    let mut open = Socket::connect(stack.gateway(0).api, &tokens::for_user(other)).await;
    revoke(&admin(stack.publisher()), &format!(r#"{{"userId":{user}}}"#)).await;
    let revoked = Instant::now();
    for socket in &mut closed {
        let bye = socket.closed().await;
        assert_eq!((bye.code, bye.reason.as_str(), bye.reconnect), (4403, "NOT_ALLOWED", false));
    }
    assert!(revoked.elapsed() < SOON, "{:?}", revoked.elapsed());
    open.expect_silence().await;
    let metrics = Http::default().get(&stack.gateway(0).ops_url("/metrics")).await.text;
    assert!(metrics.contains(r#"gateway_closes_total{code="4403"}"#), "{metrics}");
    eventually("the gauge", async || {
        let metrics = Http::default().get(&stack.gateway(0).ops_url("/metrics")).await.text;
        let known = metrics.lines().find_map(|line| line.strip_prefix("gateway_revocations "))?;
        (known.parse::<f64>().unwrap() >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_revoked_user_s_tokens_are_refused_everywhere_and_later_ones_are_good() {
    let stack = Stack::shared();
    let reader = stack.another_gateway(&[("READ_AUTH", "token")]);
    let user = fresh_user();
    // Tokens of both kinds: with an id, and without one.
    let earlier = [tokens::for_user(user), tokens::with_id(user, &format!("early-{user}"), 60)];
    let gateways = [stack.gateway(0), stack.gateway(1), &reader];
    for gateway in gateways {
        assert_eq!(handshake(gateway, &earlier[0]).await, 101);
    }
    revoke(&admin(stack.publisher()), &format!(r#"{{"userId":"{user}"}}"#)).await;
    for token in &earlier {
        for gateway in gateways {
            refused(gateway, token).await;
        }
        let url = reader.url(&format!("/api/markets/1/odds/snapshot?token={token}"));
        let message = Http::default().get(&url).await.expect_error(401, "UNAUTHORIZED");
        assert!(message.contains("revoked"), "{message}");
    }
    let later = eventually("a token of a later second", async || {
        let token = tokens::for_user(user);
        (handshake(&reader, &token).await == 101).then_some(token)
    })
    .await;
    let url = reader.url(&format!("/api/markets/1/odds/snapshot?token={later}"));
    assert_eq!(Http::default().get(&url).await.status, 200);
    refused(&reader, &earlier[1]).await;
}

#[tokio::test]
async fn a_revoked_token_is_taken_back_alone() {
    let stack = Stack::shared();
    let (user, gateway) = (fresh_user(), stack.gateway(0));
    let ids = ["a", "b", "c"].map(|id| format!("{id}-{user}"));
    let [a, b, c] = [0, 1, 2].map(|index| tokens::with_id(user, &ids[index], 0));
    let mut on_a = Socket::connect(gateway.api, &a).await;
    let mut on_b = Socket::connect(gateway.api, &b).await;
    let mut refreshed = Socket::connect(gateway.api, &a).await;
    refresh(&mut refreshed, &b).await;
    assert!(refreshed.ack().await.ok);
    let admin = admin(stack.publisher());
    revoke(&admin, &format!(r#"{{"jti":"{}"}}"#, ids[0])).await;
    assert_eq!(on_a.closed().await.code, 4403);
    refused(gateway, &a).await;
    for socket in [&mut on_b, &mut refreshed] {
        refresh(socket, &a).await;
        let error = socket.error().await;
        assert_eq!(error.code, "UNAUTHORIZED", "the old one stays: {}", error.message);
        socket.expect_silence().await;
    }
    // The connection's current token counts.
    refresh(&mut on_b, &c).await;
    assert!(on_b.ack().await.ok);
    revoke(&admin, &format!(r#"{{"jti":"{}"}}"#, ids[1])).await;
    assert_eq!(refreshed.closed().await.code, 4403);
    on_b.expect_silence().await;
}

#[tokio::test]
async fn a_pod_that_starts_later_refuses_what_was_revoked_before_from_its_first_answer_on() {
    let stack = Stack::shared();
    let (user, jti) = (fresh_user(), format!("restart-{}", fresh_user()));
    let revoked = [tokens::for_user(user), tokens::with_id(fresh_user(), &jti, 0)];
    let admin = admin(stack.publisher());
    revoke(&admin, &format!(r#"{{"userId":{user}}}"#)).await;
    revoke(&admin, &format!(r#"{{"jti":"{jti}"}}"#)).await;
    let gateway = Launch::gateway(stack.redis()).env("READ_AUTH", "token").start_unready();
    for token in &revoked {
        let status = eventually("an answer about the token", async || {
            Some(handshake(&gateway, token).await).filter(|status| *status != 503)
        })
        .await;
        assert_eq!(status, 401);
    }
}

#[tokio::test]
async fn a_pod_that_has_never_read_the_revocations_believes_no_token() {
    let mut redis = Redis::start();
    redis.kill();
    let gateway = Launch::gateway(&redis).env("READ_AUTH", "token").start_unready();
    let token = tokens::for_user(fresh_user());
    assert_eq!(handshake(&gateway, &token).await, 503);
    let url = gateway.url(&format!("/api/markets/1/odds/snapshot?token={token}"));
    let message = Http::default().get(&url).await.expect_error(503, "SERVICE_UNAVAILABLE");
    assert!(message.contains("revoked"), "{message}");
    redis.restart();
    gateway.expect_readiness(200).await;
    assert_eq!(Http::default().get(&url).await.status, 200);
}

#[tokio::test]
async fn what_a_pod_knows_holds_while_redis_is_away_and_when_it_comes_back_empty() {
    let mut redis = Redis::start();
    let gateway = Launch::gateway(&redis).env("READ_AUTH", "token").start();
    let publisher = Launch::publisher(&redis).start();
    let (user, later) = (fresh_user(), fresh_user());
    let [token, later_token] = [user, later].map(tokens::for_user);
    let admin = admin(&publisher);
    revoke(&admin, &format!(r#"{{"userId":{user}}}"#)).await;
    refused(&gateway, &token).await;
    let read = |token: &str| gateway.url(&format!("/api/markets/1/odds/snapshot?token={token}"));
    redis.kill();
    Http::default().get(&read(&token)).await.expect_error(401, "UNAUTHORIZED");
    redis.restart_empty();
    eventually("the publisher reaches Redis", async || {
        (admin.revoke(&format!(r#"{{"userId":{later}}}"#)).await.status == 200).then_some(())
    })
    .await;
    refused(&gateway, &later_token).await;
    Http::default().get(&read(&token)).await.expect_error(401, "UNAUTHORIZED");
}

/// What answers after an outage may be another Redis, whose newest revocation is the same and whose others are not.
#[tokio::test]
async fn after_an_error_all_revocations_are_read_again() {
    let redis = Redis::start();
    let gateway = Launch::gateway(&redis).start();
    let publisher = Launch::publisher(&redis).start();
    let (known, unknown) = (fresh_user(), fresh_user());
    let token = tokens::for_user(unknown);
    revoke(&admin(&publisher), &format!(r#"{{"userId":{known}}}"#)).await;
    refused(&gateway, &tokens::for_user(known)).await;

    let newest: Vec<(String, Vec<String>)> = redis.tell("XRANGE odds:revoked - +");
    let [(newest, _)] = &newest[..] else { panic!("one, not {newest:?}") };
    let earlier = newest.split('-').next().unwrap().parse::<u64>().unwrap() - 1;
    redis.tell::<String>(&format!("XADD elsewhere {earlier}-0 user {unknown} actor desk-1"));
    redis.tell::<String>(&format!("XADD elsewhere {newest} user {known} actor desk-1"));
    redis.tell::<()>("SET odds:revoked nonsense");
    gateway.process.expect_line("that the revocations cannot be read", |line| {
        (log_field(line, "part")? == "Revocations").then(|| log_field(line, "error"))
    });
    assert_eq!(handshake(&gateway, &token).await, 101);
    redis.tell::<()>("RENAME elsewhere odds:revoked");
    refused(&gateway, &token).await;
}

#[tokio::test]
async fn only_an_admin_may_revoke_and_the_log_says_who_did() {
    let stack = Stack::shared();
    let (user, url) = (fresh_user(), stack.publisher().url(""));
    let body = format!(r#"{{"userId":{user}}}"#);
    for role in [Role::Viewer, Role::Trader] {
        Admin::with_token(url.clone(), &tokens::admin(role))
            .revoke(&body)
            .await
            .expect_error(403, "FORBIDDEN");
    }
    for token in ["nonsense", &tokens::for_user(user), &tokens::admin_expiring(Role::Admin, -60)] {
        Admin::with_token(url.clone(), token).revoke(&body).await.expect_error(401, "UNAUTHORIZED");
    }
    assert_eq!(handshake(stack.gateway(0), &tokens::for_user(user)).await, 101, "nothing has happened");
    let before = unix_ms();
    let answer: Value = revoke(&admin(stack.publisher()), &body).await;
    assert_eq!(answer["userId"], user.to_string());
    let at = answer["revokedAt"].as_u64().unwrap();
    assert!(at.abs_diff(before) < 5000);
    assert_eq!(answer["expiresAt"].as_u64().unwrap() - at, 3_665_000, "an hour, the leeway, a minute");
    let whom = format!("User(\"{user}\")");
    let actor = stack.publisher().process.expect_line("who revoked whom", |line| {
        (log_field(line, "whom")? == whom).then(|| log_field(line, "actor"))
    });
    assert_eq!(actor.as_deref(), Some("desk-1"));
}

#[tokio::test]
async fn a_bad_revocation_is_refused() {
    let stack = Stack::shared();
    let admin = admin(stack.publisher());
    for body in
        ["", "{}", "[]", r#"{"userId":1,"jti":"a"}"#, r#"{"userId":1.5}"#, r#"{"jti":7}"#, r#"{"user":1}"#]
    {
        admin.revoke(body).await.expect_error(400, "BAD_REQUEST");
    }
    let long = format!(r#"{{"userId":"{}"}}"#, "x".repeat(5000));
    admin.revoke(&long).await.expect_error(413, "PAYLOAD_TOO_LARGE");
    let url = stack.publisher().url("/admin/tokens/revoke");
    Http::default().get(&url).await.expect_error(405, "METHOD_NOT_ALLOWED");
}

#[tokio::test]
async fn in_the_embedded_system_tokens_can_be_revoked_as_well() {
    let system = Launch::embedded().env("JWT_SECRET", tokens::JWT_SECRET).start();
    let token = system.process.expect_line("the admin token", |line| log_field(line, "adminToken"));
    let admin = Admin::with_token(system.url(""), &token);
    let issue = async || -> String {
        let answer = Http::default().post(&system.url("/api/ws/token"), r#"{"userId":1}"#).await;
        answer.ok::<Value>()["token"].as_str().unwrap().to_owned()
    };
    let (one, other) = (issue().await, issue().await);
    let [one_id, other_id] = [&one, &other].map(|token| tokens::claims(token).jti.unwrap());
    assert_ne!(one_id, other_id, "each its own");
    let mut on_one = Socket::connect(system.api, &one).await;
    let mut on_other = Socket::connect(system.api, &other).await;
    revoke(&admin, &format!(r#"{{"jti":"{one_id}"}}"#)).await;
    assert_eq!(on_one.closed().await.code, 4403);
    on_other.expect_silence().await;
    revoke(&admin, r#"{"userId":1}"#).await;
    assert_eq!(on_other.closed().await.code, 4403);
    refused(&system, &other).await;
}

fn admin(service: &Service) -> Admin {
    Admin::with_token(service.url(""), &tokens::admin(Role::Admin))
}

async fn revoke(admin: &Admin, body: &str) -> Value {
    admin.revoke(body).await.ok()
}

async fn refresh(socket: &mut Socket, token: &str) {
    socket.send(format_args!(r#"{{"type":"refresh","token":"{token}"}}"#)).await;
}

async fn handshake(gateway: &Service, token: &str) -> u16 {
    Http::default().handshake(&gateway.url(&format!("/ws/odds?token={token}")), &[]).await.status
}

/// Soon the gateway refuses the token.
async fn refused(gateway: &Service, token: &str) {
    eventually("the token is refused", async || {
        let status = handshake(gateway, token).await;
        assert!([101, 401, 429, 503].contains(&status), "{status}");
        (status == 401).then_some(())
    })
    .await;
}
