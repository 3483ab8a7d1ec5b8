//! Secrets appear nowhere: in no log line at any level, in no metric, in no trace, and in no response.

use protocol::Secret;
use serde_json::Value;
use service::token::{Audience, Keyring, Role};
use tests::{
    Collector, Http, Launch, Postgres, Redis, Response, Service, Socket, eventually, fresh_market,
    fresh_user,
    postgres::{Database, PASSWORDS},
    process::Stream,
    tokens, within,
};

const JWT: &str = "canary-jwt-0123456789abcdef0123456789abcdef";
const ADMIN_JWT: &str = "canary-admin-0123456789abcdef0123456789abcdef";
const API_KEY: &str = "canary-api-key-0123456789abcdef";
/// What is no token, but stands where one belongs.
const NO_TOKEN: &str = "canary-no-token-0123456789abcdef";
/// The password of `Redis::with_user`, as it is and as the URL has it.
const REDIS_PASSWORDS: [&str; 2] = ["p@ss/word", "p%40ss%2Fword"];

/// Everything that comes out.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn answer(&mut self, what: &str, answer: &Response) {
        self.0.push((what.to_owned(), format!("{} {:?} {}", answer.status, answer.headers, answer.text)));
    }

    fn expect_none_of(&self, secrets: &[&str]) {
        for (what, text) in &self.0 {
            for secret in secrets {
                let line = text.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "{what} shows {secret}");
            }
        }
    }
}

#[tokio::test]
async fn a_secret_is_in_no_log_line_no_metric_no_trace_and_no_answer() {
    let (redis, collector, postgres) = (Redis::with_user(), Collector::start().await, Postgres::shared());
    let database = postgres.database().await;
    let traces = [("OTLP_ENDPOINT", &*collector.endpoint()), ("OTLP_SAMPLE_RATIO", "1")];
    let gateway = Launch::gateway(&redis)
        .env("RUST_LOG", "trace")
        .env("JWT_SECRET", &format!("k1:{JWT}"))
        .env("TOKEN_API_KEY", API_KEY)
        .env("READ_AUTH", "token")
        .envs(&traces)
        .start();
    let publisher = Launch::publisher(&redis)
        .env("RUST_LOG", "trace")
        .env("ADMIN_JWT_SECRET", ADMIN_JWT)
        .env("DATABASE_URL", database.url())
        .envs(&traces)
        .start();
    let (http, mut seen) = (Http::default(), Seen::default());
    let (user, market) = (fresh_user(), fresh_market());
    let admin_keys = Keyring::parse(&Secret::new(ADMIN_JWT), Audience::Admin).unwrap();
    let admin_token = tokens::admin_signed(&admin_keys, Role::Admin);

    // Tokens are issued here.
    let (json, issue) = (("content-type", "application/json"), gateway.url("/api/ws/token"));
    let body = format!(r#"{{"userId":{user}}}"#);
    let ask = async |key: &str, body: &str| {
        http.post_with(&issue, &[json, ("authorization", &*format!("Bearer {key}"))], body).await
    };
    let issued: Value = ask(API_KEY, &body).await.ok();
    let token = issued["token"].as_str().unwrap().to_owned();
    seen.answer("a wrong key's answer", &ask(NO_TOKEN, &body).await);
    for body in in_bodies() {
        seen.answer("the token endpoint", &ask(API_KEY, &body).await);
    }

    // Clients bring tokens here: good ones, bad ones, and those of the other API.
    let read = format!("/api/markets/{market}/odds/snapshot");
    for token in [token.as_str(), NO_TOKEN, &admin_token, &format!("{token}x")] {
        for path in ["/ws/odds", read.as_str(), "/api/ws/health", "/nowhere"] {
            let (url, bearer) = (gateway.url(path), format!("Bearer {token}"));
            let protocols = format!("kmarket.v1, token.{token}");
            for (url, headers) in [
                (format!("{url}?token={token}"), vec![]),
                (format!("{url}?token={token}&token={token}"), vec![]),
                (url.clone(), vec![("authorization", bearer.as_str())]),
                (url.clone(), vec![("sec-websocket-protocol", protocols.as_str())]),
            ] {
                seen.answer(path, &http.handshake(&url, &headers).await);
                seen.answer(path, &http.get_with(&url, &headers).await);
            }
        }
    }
    let mut socket = Socket::connect(gateway.api, &token).await;
    for message in in_bodies().iter().map(String::as_str).chain([
        &*format!(r#"{{"type":"refresh","token":"{token}"}}"#),
        &*format!(r#"{{"type":"refresh","token":"{token}x"}}"#),
        &*format!(r#"{{"type":"refresh","token":"{NO_TOKEN}"}}"#),
        &*format!(r#"{{"type":"refresh","token":["{NO_TOKEN}"]}}"#),
        &*format!(r#"{{"type":"refresh","token":"{NO_TOKEN}"#),
        &*format!(r#"{{"type":"subscribe","markets":"{NO_TOKEN}"}}"#),
    ]) {
        socket.send(message).await;
        let answer = within("an answer", socket.recv()).await;
        seen.0.push(("a socket's answer".to_owned(), format!("{answer:?}")));
    }

    // The admin API.
    for token in [admin_token.as_str(), NO_TOKEN, &token] {
        let bearer = format!("Bearer {token}");
        for path in ["/admin/odds/override", "/admin/odds/batch", "/admin/tokens/revoke"] {
            for body in in_bodies() {
                let url = publisher.url(path);
                let answer = http.post_with(&url, &[json, ("authorization", &bearer)], &body).await;
                seen.answer(path, &answer);
            }
        }
        let url = publisher.url(&format!("/admin/audit?marketId={NO_TOKEN}&before={NO_TOKEN}"));
        seen.answer("the audit", &http.get_with(&url, &[("authorization", &bearer)]).await);
    }

    publisher.process.expect_line("the database's use", |line| line.contains("are up to date").then_some(()));

    refusals(&mut seen, &redis, &database);
    // A Redis and a Postgres that refuse the password.
    let stranger = Launch::gateway(&redis).env("RUST_LOG", "trace");
    let wrong = redis.access().url.replace(REDIS_PASSWORDS[1], NO_TOKEN);
    let stranger = stranger.env("REDIS_URL", &wrong).start_unready();
    stranger.process.expect_line("trouble", |line| line.contains("does not answer").then_some(()));
    let unarchived = Launch::publisher(&redis).env("RUST_LOG", "trace");
    let unarchived = unarchived.env("DATABASE_URL", &database.url_with_password(NO_TOKEN)).start();
    unarchived.process.expect_line("trouble", |line| line.contains("cannot be copied to").then_some(()));

    // The last request is also the last one in the log.
    let told = || collector.spans().iter().filter(|span| span.name == "GET /admin/audit").count();
    eventually("a trace of each read of the audit", async || (told() >= 3).then_some(())).await;
    seen.0.push(("a trace".to_owned(), collector.said()));

    for service in [gateway, publisher, stranger, unarchived] {
        end(&mut seen, service).await;
    }
    let signature = token.rsplit_once('.').unwrap().1;
    let admin_signature = admin_token.rsplit_once('.').unwrap().1;
    let secrets = [&JWT[..31], &ADMIN_JWT[..31], API_KEY, NO_TOKEN, signature, admin_signature];
    seen.expect_none_of(&[&secrets[..], &REDIS_PASSWORDS, &PASSWORDS].concat());
}

/// What refuses to start says why, and not more.
fn refusals(seen: &mut Seen, redis: &Redis, database: &Database) {
    for finished in [
        Launch::gateway(redis).env("JWT_SECRET", &format!("{JWT},{JWT}")).run(),
        Launch::gateway(redis).env("JWT_SECRET", &JWT[..31]).run(),
        Launch::publisher(redis).env("ADMIN_JWT_SECRET", &ADMIN_JWT[..31]).run(),
        Launch::gateway(redis).env("REDIS_URL", &format!("http://desk:{}@h", REDIS_PASSWORDS[1])).run(),
        Launch::gateway(redis).env("REDIS_URL", &format!("redis://desk:{}@:x/y", REDIS_PASSWORDS[1])).run(),
        Launch::publisher(redis).env("DATABASE_URL", &database.url().replace("postgres:", "http:")).run(),
        Launch::publisher(redis).env("DATABASE_URL", &format!("{}?sslmode=x", database.url())).run(),
    ] {
        assert!(!finished.status.success());
        seen.0.push(("a refusal to start".to_owned(), finished.err + &finished.out));
    }
}

/// A token in the place of each member that a request may have.
fn in_bodies() -> Vec<String> {
    vec![
        format!(r#""{NO_TOKEN}""#),
        NO_TOKEN.to_owned(),
        format!(r#"{{"userId":{{"{NO_TOKEN}":1}}}}"#),
        format!(r#"{{"userId":1,"scopeMarkets":"{NO_TOKEN}"}}"#),
        format!(r#"{{"userId":1,"scopeMarkets":["{NO_TOKEN}"]}}"#),
        format!(r#"{{"userId":1,"ttlSeconds":"{NO_TOKEN}"}}"#),
        format!(r#"{{"jti":["{NO_TOKEN}"]}}"#),
        format!(r#"{{"marketId":"{NO_TOKEN}","payload":{{}}}}"#),
        format!(r#"{{"marketId":1,"payload":"{NO_TOKEN}"}}"#),
        format!(r#"{{"marketId":1,"payload":{{}},"expectedSeq":"{NO_TOKEN}"}}"#),
        format!(r#"[{{"marketId":"{NO_TOKEN}"}}]"#),
    ]
}

/// Its metrics, and everything it has said to its end.
async fn end(seen: &mut Seen, service: Service) {
    seen.answer("metrics", &Http::default().get(&service.ops_url("/metrics")).await);
    seen.answer("readiness", &Http::default().get(&service.ops_url("/readyz")).await);
    service.process.kill();
    let ended: Option<()> = service.process.find_line("its end", |_| None);
    assert!(ended.is_none());
    let said = service.process.said(Stream::Err) + &service.process.said(Stream::Out);
    assert!(said.contains("listening"), "something was logged");
    seen.0.push(("a log".to_owned(), said));
}
