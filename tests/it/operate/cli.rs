//! Commands at the terminal, against real processes: what they do, how they fail, and that they show no secret.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use protocol::Secret;
use serde_json::Value;
use service::token::{Audience, Keyring, Role};
use tests::{
    Admin, Launch, Redis, Stack, acl,
    admin::numbered,
    binaries, eventually, fresh_market, fresh_user,
    launch::Finished,
    tokens::{self, ADMIN_JWT_SECRET, JWT_SECRET},
    vectors::in_text,
};

const PAYLOAD: &str = r#"{"moneyline":{"home":1.85,"away":2.10}}"#;

/// Runs it; whatever happens, secrets are not shown.
fn run(launch: Launch, args: &[&str]) -> (Option<i32>, String, String) {
    let Finished { status, out, err } = launch.args(args).run();
    for secret in [JWT_SECRET, ADMIN_JWT_SECRET, acl::PASSWORD, "hush-hush"] {
        assert!(!out.contains(secret) && !err.contains(secret), "a secret in: {out}{err}");
    }
    (status.code(), out, err)
}

#[test]
fn check_says_what_is_not_as_by_default_and_asks_redis_only_when_told_to() {
    let stack = Stack::shared();
    for (launch, secret) in [
        (Launch::gateway(stack.redis()), "JWT_SECRET = [redacted]"),
        (Launch::publisher(stack.redis()), "ADMIN_JWT_SECRET = [redacted]"),
    ] {
        let (code, out, err) = run(launch.clone(), &["check", "--history-len", "50"]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        for said in
            ["HISTORY_LEN = 50   (from a flag)", secret, "LISTEN = 127.0.0.1:0   (from the environment)"]
        {
            assert!(out.contains(said), "{said} in {out}");
        }
        assert!(!out.contains("Redis at") && !out.contains("AUDIT_LEN"), "{out}");
        let (code, out, err) = run(launch, &["check", "--connect"]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(out.contains("primary, Redis ") && out.contains("standalone"), "{out}");
    }
}

#[test]
fn check_prints_every_problem_and_fails_where_redis_is_not_what_is_needed() {
    let stack = Stack::shared();
    let bad =
        Launch::gateway(stack.redis()).env("HEARTBEAT_INTERVAL", "often").env("JWT_SECRET", "hush-hush");
    let (code, out, err) = run(bad, &["check", "--connect"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("HEARTBEAT_INTERVAL") && err.contains("JWT_SECRET"), "{err}");

    let nobody = "redis://user:hush-hush@127.0.0.1:1";
    for launch in [Launch::gateway(stack.redis()), Launch::publisher(stack.redis())] {
        let (code, out, err) = run(launch.clone().env("REDIS_URL", nobody), &["check", "--connect"]);
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(out.contains("REDIS_URL = redis://[redacted]@127.0.0.1:1"), "{out}");
        assert!(err.contains("Redis at 127.0.0.1:1: "), "{err}");
        let (code, ..) = run(launch.env("REDIS_URL", nobody), &["check"]);
        assert_eq!(code, Some(0), "the settings are good");
    }
}

#[test]
fn check_names_the_commands_that_a_user_of_redis_may_not_use() {
    let redis = Redis::with_shipped_users();
    let needs = [(Launch::gateway(&redis), "publisher"), (Launch::publisher(&redis), "gateway")];
    for (launch, other) in needs {
        let (code, out, err) = run(launch.clone(), &["check", "--connect"]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "the user that is shipped: {out}");
        let url = acl::as_user(&format!("redis://127.0.0.1:{}", redis.port()), other);
        let (code, _, err) = run(launch.env("REDIS_URL", &url), &["check", "--connect"]);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("this user may not: "), "{err}");
    }
}

#[tokio::test]
async fn a_client_s_token_is_minted_and_is_good_for_what_it_says() {
    let stack = Stack::shared();
    let gateway = || Launch::gateway(stack.redis());
    let (code, out, _) = run(gateway(), &["token", "--sub", "42", "--markets", "1001,1002", "--ttl", "90s"]);
    assert_eq!(code, Some(0));
    let claims = tokens::claims(out.trim());
    assert_eq!((claims.sub.as_str(), claims.exp - claims.iat), ("42", 90));
    assert_eq!(claims.markets.unwrap().iter().map(|market| market.get()).collect::<Vec<_>>(), [1001, 1002]);
    let (_, out, _) = run(gateway(), &["token", "--sub", "42"]);
    let mut socket = tests::Socket::connect(stack.gateway(0).api, out.trim()).await;
    assert!(socket.subscribe(&[fresh_market()]).await.ok, "all markets");
    for args in [
        vec!["token"],
        vec!["token", "--sub", "42", "--ttl", "2h"],
        vec!["token", "--sub", "42", "--markets", "0"],
    ] {
        let (code, out, err) = run(gateway(), &args);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    }
    assert_eq!(run(gateway().without("JWT_SECRET"), &["token", "--sub", "42"]).0, Some(2));
}

#[test]
fn inspect_says_what_a_token_says_and_whether_it_is_good_and_why_not() {
    let stack = Stack::shared();
    let gateway = || Launch::gateway(stack.redis());
    let good = tokens::expiring(42, 7_300);
    let (code, out, _) = run(gateway(), &["inspect", &good]);
    assert_eq!(code, Some(0), "{out}");
    for said in [r#""sub":"42""#, r#""alg":"HS256""#, "expires in 2 hours 1 minute", "Valid under JWT_SECRET"]
    {
        assert!(out.contains(said), "{said} in {out}");
    }
    let ring = |secret: &str, audience| Keyring::parse(&Secret::new(secret), audience).unwrap();
    let other = ring("somebody else's secret that is long enough", Audience::Ws);
    for (token, reason) in [
        (tokens::expiring(42, -3_700), "it has expired"),
        (tokens::expiring(42, -3_700), "expired 1 hour 1 minute ago"),
        (tokens::signed(&other, 42), "its signature is not by this secret"),
        (tokens::admin_signed(&ring(JWT_SECRET, Audience::Admin), Role::Trader), r#"aud is not "ws""#),
    ] {
        let (code, out, _) = run(gateway(), &["inspect", &token]);
        assert_eq!(code, Some(1), "{out}");
        assert!(out.contains(reason), "{reason} in {out}");
    }
    let named = gateway().env("JWT_SECRET", &format!("k1:{JWT_SECRET},k2:{ADMIN_JWT_SECRET}"));
    assert!(run(named, &["inspect", &good]).1.contains("it names no key (kid)"));
    let (code, out, _) = run(gateway().without("JWT_SECRET"), &["inspect", &good]);
    assert_eq!(code, Some(1));
    assert!(out.contains("Not verified"), "{out}");
    for args in [vec!["inspect", "nonsense"], vec!["inspect"], vec!["inspect", "a", "b"]] {
        assert_eq!(run(gateway(), &args).0, Some(2));
    }

    let mut asked = Command::new(binaries::path("gateway"))
        .args(["inspect", "-"])
        .env("JWT_SECRET", JWT_SECRET)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    asked.stdin.take().unwrap().write_all(format!("{good}\n").as_bytes()).unwrap();
    assert!(asked.wait_with_output().unwrap().status.success(), "from standard input");

    let publisher = || Launch::publisher(stack.redis());
    let (code, out, _) = run(publisher(), &["inspect", &tokens::admin(Role::Trader)]);
    assert_eq!(code, Some(0));
    assert!(out.contains(r#""role":"trader""#), "{out}");
    assert_eq!(run(publisher(), &["inspect", &good]).0, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_override_is_sent_with_its_prices_byte_for_byte() {
    let stack = Stack::shared();
    let (market, url) = (fresh_market(), stack.publisher().url(""));
    let id = market.to_string();
    let token = tokens::admin(Role::Trader);
    let send = |more: &[&str]| {
        let launch = Launch::publisher(stack.redis()).env("ADMIN_TOKEN", &token);
        run(launch, &[&["override", &url, &id, PAYLOAD][..], more].concat())
    };
    let (code, out, err) =
        send(&["--reason", "line \"move\"", "--expected-seq", "0", "--idempotency-key", "k1"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["seq"], 1);
    let state = tests::Rest::of(stack.gateway(0)).snapshot(market).await;
    assert_eq!(state.payload.text(), PAYLOAD);
    let entry: Value = stack.admin().audit(&format!("marketId={market}&limit=1")).await.ok();
    assert_eq!(entry["entries"][0]["reason"], "line \"move\"");

    // The same key appends nothing. A seq that is not the market's gives exit code 3.
    let again = send(&["--reason", "line \"move\"", "--expected-seq", "0", "--idempotency-key", "k1"]);
    assert_eq!((again.0, again.1.as_str()), (Some(0), out.as_str()));
    let (code, out, err) = send(&["--expected-seq", "0"]);
    assert_eq!((code, out.as_str()), (Some(3), ""));
    assert!(err.contains("the market is at seq 1"), "{err}");
}

#[test]
fn an_override_that_is_refused_or_cannot_be_sent_says_why() {
    let stack = Stack::shared();
    let (url, id) = (stack.publisher().url(""), fresh_market().to_string());
    let launch = |role| Launch::publisher(stack.redis()).env("ADMIN_TOKEN", &tokens::admin(role));
    for (launch, payload, code, said) in [
        (launch(Role::Trader), r#"{"moneyline":{"home":0.5}}"#, 1, "422"),
        (launch(Role::Viewer), PAYLOAD, 1, "403"),
        (launch(Role::Trader).env("ADMIN_TOKEN", "nonsense"), PAYLOAD, 1, "401"),
        (launch(Role::Trader), "{", 2, "JSON"),
        (launch(Role::Trader).without("ADMIN_TOKEN"), PAYLOAD, 2, "TOKEN"),
    ] {
        let (found, out, err) = run(launch, &["override", &url, &id, payload]);
        assert_eq!((found, out.as_str()), (Some(code), ""), "{err}");
        assert!(err.contains(said), "{said} in {err}");
    }
    let (code, _, err) = run(launch(Role::Trader), &["override", "nowhere", "0", PAYLOAD]);
    assert_eq!(code, Some(2));
    assert!(err.contains("URL") && err.contains("MARKET"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_override_outlives_a_publisher_s_restart_and_is_appended_once() {
    let stack = Stack::shared();
    let market = fresh_market();
    let down = stack.another_publisher(&[]);
    let (address, id) = (down.api.to_string(), market.to_string());
    down.process.kill();
    let sending = Launch::publisher(stack.redis())
        .env("ADMIN_TOKEN", &tokens::admin(Role::Trader))
        .args(&["override", &format!("http://{address}"), &id, PAYLOAD])
        .spawn();
    sending.expect_line("it is sent again", |line| line.contains("again in").then_some(()));
    let _up = Launch::publisher(stack.redis()).env("LISTEN", &address).start();
    assert!(sending.wait().success());
    assert_eq!(tests::Rest::of(stack.gateway(0)).snapshot(market).await.seq, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_shows_each_update_and_what_it_changed_and_sums_up() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish(market, PAYLOAD).await;
    let tail = Launch::gateway(stack.redis())
        .args(&["tail", &stack.gateway(0).url(""), &market.to_string()])
        .spawn();
    tail.expect_line("the state", |line| {
        line.contains("snapshot  moneyline  away 2.10  home 1.85").then_some(())
    });
    admin.publish(market, r#"{"moneyline":{"home":1.90,"away":2.05}}"#).await;
    admin.publish(market, r#"{"moneyline":null}"#).await;
    tail.expect_line("the change", |line| {
        let shown = format!("{market}  #2  moneyline  away 2.10 → 2.05 ▼  home 1.85 → 1.90 ▲  ");
        line.contains(&shown).then_some(())
    });
    tail.expect_line("the removal", |line| line.contains("#3  moneyline  removed  ").then_some(()));
    tail.interrupt();
    assert!(tail.wait().success());
    let said = tail.said(tests::process::Stream::Out);
    assert!(said.contains("-- 2 updates of 1 market in ") && said.contains("latency p50 "), "{said}");
    assert!(!said.contains('\x1b'), "no colours: it is no terminal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_as_json_prints_what_came_and_ends_after_as_many_as_asked_for() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish(market, PAYLOAD).await;
    let (url, id) = (stack.gateway(0).url(""), market.to_string());
    let tail = Launch::gateway(stack.redis())
        .env("TOKEN", &tokens::scoped(fresh_user(), &[market]))
        .args(&["tail", &url, &id, "--count", "2", "--json"])
        .spawn();
    tail.expect_line("the state", |line| line.contains(r#""type":"snapshot""#).then_some(()));
    admin.publish(market, "{\"win\":\n{\"yes\":1.50}}").await;
    admin.publish(market, &numbered(3)).await;
    assert!(tail.wait().success());
    let said = tail.said(tests::process::Stream::Out);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "a line each: {said}");
    assert!(lines[1].contains(r#""seq":2"#) && lines[1].contains("1.50"), "{said}");
    assert_eq!(in_text(lines[2])["payload"], in_text(&numbered(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_comes_back_after_its_gateway_and_misses_nothing() {
    let stack = Stack::shared();
    let (admin, market) = (stack.admin(), fresh_market());
    admin.publish(market, &numbered(1)).await;
    let gateway = stack.another_gateway(&[]);
    let address = gateway.api.to_string();
    let tail = Launch::gateway(stack.redis())
        .args(&["tail", &format!("http://{address}"), &market.to_string()])
        .spawn();
    tail.expect_line("the state", |line| line.contains("#1  snapshot").then_some(()));
    gateway.process.kill();
    tail.expect_line("it says so", |line| line.contains("connecting again in").then_some(()));
    admin.publish(market, &numbered(2)).await;
    let _again = Launch::gateway(stack.redis()).env("LISTEN", &address).start();
    tail.expect_line("what it missed", |line| line.contains("#2  win  n 1.0 → 2.0 ▲").then_some(()));
    tail.interrupt();
    assert!(tail.wait().success());
    assert!(tail.said(tests::process::Stream::Out).contains("1 reconnect"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_without_markets_follows_all_that_there_are() {
    let redis = Redis::start();
    let (gateway, publisher) = (Launch::gateway(&redis).start(), Launch::publisher(&redis).start());
    let tail = || Launch::gateway(&redis).args(&["tail", &gateway.url("")]).spawn();
    let early = tail();
    assert_eq!(early.wait().code(), Some(1));
    assert!(early.said(tests::process::Stream::Err).contains("say which to follow"));
    let (rest, market) = (tests::Rest::of(&gateway), fresh_market());
    Admin::new(publisher.url("")).publish(market, PAYLOAD).await;
    // The age is measured a moment after the publish.
    eventually("it is listed", async || {
        rest.get("/api/markets").await.text.contains(&market.to_string()).then_some(())
    })
    .await;
    tail().expect_line("a market", |line| line.contains("snapshot").then_some(()));
}

#[test]
fn tail_that_is_refused_says_why() {
    let stack = Stack::shared();
    let url = stack.gateway(0).url("");
    let launch = || Launch::gateway(stack.redis());
    let (code, _, err) = run(launch().env("TOKEN", &tokens::expiring(1, -60)), &["tail", &url, "1001"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("401"), "{err}");
    let (code, _, err) = run(launch(), &["tail", "nowhere", "0", "--colour", "x"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("URL") && err.contains("MARKET") && err.contains("--colour"), "{err}");
}

#[test]
fn each_command_has_help() {
    let stack = Stack::shared();
    let gateway =
        ["check", "token", "inspect", "tail"].map(|command| (Launch::gateway(stack.redis()), command));
    let publisher =
        ["check", "token", "inspect", "override"].map(|command| (Launch::publisher(stack.redis()), command));
    for (launch, command) in gateway.into_iter().chain(publisher) {
        let (code, out, err) = run(launch, &[command, "--help"]);
        assert_eq!((code, err.as_str()), (Some(0), ""));
        assert!(out.contains("  --"), "{out}");
    }
}
