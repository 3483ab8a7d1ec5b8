//! Traces: an override's way from the admin request to clients' sockets, as an OpenTelemetry collector receives it.

use std::collections::{BTreeSet, HashMap};

use tests::{
    Admin, Collector, Http, Launch, Redis, Service, Socket, admin::override_body, eventually, fresh_market,
    fresh_user, launch::log_field, ports::Port, process::Stream, tokens,
};

const PAYLOAD: &str = r#"{"moneyline":{"home":1.85,"away":2.10}}"#;

/// A trace that somebody else has begun.
struct Parent {
    trace: String,
    span: String,
}

impl Parent {
    fn new() -> Self {
        let random = || rand::random::<u64>() | 1;
        Self { trace: format!("{:016x}{:016x}", random(), random()), span: format!("{:016x}", random()) }
    }

    fn header(&self, flags: &str) -> String {
        format!("00-{}-{}-{flags}", self.trace, self.span)
    }
}

async fn publish(admin: &Admin, market: u64, traceparent: &str) -> String {
    let headers = [("traceparent", traceparent)];
    let answer = admin.post("/admin/odds/override", &headers, &override_body(market, PAYLOAD)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.header("x-request-id").unwrap().to_owned()
}

async fn subscriber(gateway: &Service, market: u64) -> Socket {
    let mut socket = Socket::connect(gateway.api, &tokens::for_user(fresh_user())).await;
    socket.subscribe(&[market]).await;
    socket
}

#[tokio::test]
async fn one_trace_leads_from_the_request_to_the_sockets() {
    let (redis, collector) = (Redis::start(), Collector::start().await);
    let settings = [("OTLP_ENDPOINT", &*collector.endpoint()), ("OTLP_SAMPLE_RATIO", "0")];
    let publisher = Launch::publisher(&redis).envs(&settings).env("RUST_LOG", "publisher=debug").start();
    let gateway = Launch::gateway(&redis).envs(&settings).start();
    let untraced = Launch::gateway(&redis).start();
    let (admin, market, parent) = (Admin::new(publisher.url("")), fresh_market(), Parent::new());
    // The gateway spreads connections over its two shards.
    let mut sockets = Vec::new();
    for gateway in [&gateway, &gateway, &gateway, &gateway, &untraced] {
        sockets.push(subscriber(gateway, market).await);
    }

    let request_id = publish(&admin, market, &parent.header("01")).await;
    for socket in &mut sockets {
        let update = socket.update().await;
        assert_eq!((update.seq, update.payload.text()), (1, PAYLOAD));
    }
    let names = ["POST /admin/odds/override", "append", "read", "deliver", "deliver"];
    let spans = collector.trace(&parent.trace, names).await;
    let [request, append, read, one, other] = &spans;
    for (child, parent) in [
        (request, &parent.span),
        (append, &request.id),
        (read, &append.id),
        (one, &read.id),
        (other, &read.id),
    ] {
        assert_eq!(&child.parent, parent, "{} comes from there", child.name);
        assert!(child.time_ns.0 <= child.time_ns.1, "{child:?}");
    }
    let services = spans.each_ref().map(|span| span.service.as_str());
    let (p, g) = ("kmarket-publisher", "kmarket-gateway");
    assert_eq!(services, [p, p, g, g, g]);
    assert_eq!(request.attributes["http.route"], "/admin/odds/override");
    assert_eq!(request.attributes["http.response.status_code"], "200");
    assert_eq!(request.attributes["kmarket.request_id"], request_id);
    for span in [append, read, one, other] {
        assert_eq!(span.attributes["kmarket.market"], market.to_string());
    }
    for deliver in [one, other] {
        assert_eq!(
            (&*deliver.attributes["kmarket.seq"], &*deliver.attributes["kmarket.sockets"]),
            ("1", "2")
        );
    }
    let shards: BTreeSet<&str> = [one, other].map(|span| &*span.attributes["kmarket.shard"]).into();
    assert_eq!(shards, ["0", "1"].into());

    publisher.process.expect_line("which trace the request is", |line| {
        let is = |name, value: &str| log_field(line, name).is_some_and(|found| found == value);
        (is("request_id", &request_id) && is("trace_id", &parent.trace)).then_some(())
    });
}

#[tokio::test]
async fn only_what_is_traced_says_so_in_the_log() {
    let (redis, collector) = (Redis::start(), Collector::start().await);
    let settings = [("OTLP_ENDPOINT", &*collector.endpoint()), ("OTLP_SAMPLE_RATIO", "0")];
    let publisher = Launch::publisher(&redis).envs(&settings).start();
    let (admin, market, parent) = (Admin::new(publisher.url("")), fresh_market(), Parent::new());
    admin.publish(market, PAYLOAD).await;
    publish(&admin, market, &parent.header("01")).await;
    let entries: Vec<(String, HashMap<String, String>)> =
        redis.tell(&format!("XRANGE odds:log:{{{market}}} - +"));
    let [(_, plain), (_, traced)] = &entries[..] else { panic!("two entries: {entries:?}") };
    assert_eq!(plain.keys().map(String::as_str).collect::<BTreeSet<_>>(), ["a", "p", "ts"].into());
    let [append] = collector.trace(&parent.trace, ["append"]).await;
    assert_eq!(traced["t"], format!("00-{}-{}-01", parent.trace, append.id));
    assert_eq!(traced["p"], PAYLOAD);
}

#[tokio::test]
async fn a_batch_is_appended_in_one_span_and_each_of_its_updates_goes_on_from_it() {
    let collector = Collector::start().await;
    let system = Launch::embedded()
        .envs(&[("OTLP_ENDPOINT", &collector.endpoint()), ("ADMIN_JWT_SECRET", tokens::ADMIN_JWT_SECRET)])
        .env("JWT_SECRET", tokens::JWT_SECRET)
        .start();
    let (admin, parent) = (Admin::new(system.url("")), Parent::new());
    let markets = [fresh_market(), fresh_market()];
    let mut socket = Socket::connect(system.api, &tokens::for_user(fresh_user())).await;
    socket.subscribe(&markets).await;
    let items = markets.map(|market| override_body(market, PAYLOAD)).join(",");
    let headers = [("traceparent", &*parent.header("01"))];
    assert_eq!(admin.post("/admin/odds/batch", &headers, &format!("[{items}]")).await.status, 200);
    for _ in markets {
        socket.update().await;
    }
    let names = ["POST /admin/odds/batch", "append", "read", "read", "deliver", "deliver"];
    let [request, append, read, another, ..] = collector.trace(&parent.trace, names).await;
    assert_eq!((&request.parent, &append.parent), (&parent.span, &request.id));
    assert_eq!((&read.parent, &another.parent), (&append.id, &append.id));
    assert_eq!(append.attributes["kmarket.overrides"], "2");
}

#[tokio::test]
async fn a_share_of_requests_begins_a_trace_and_a_parent_decides_for_its_own() {
    let (redis, collector) = (Redis::start(), Collector::start().await);
    let publisher = |ratio| {
        let settings = [("OTLP_ENDPOINT", &*collector.endpoint()), ("OTLP_SAMPLE_RATIO", ratio)];
        Launch::publisher(&redis).envs(&settings).start()
    };
    let (none, all) = (publisher("0"), publisher("1"));
    let (none, all) = (Admin::new(none.url("")), Admin::new(all.url("")));
    let (market, sampled, unsampled) = (fresh_market(), Parent::new(), Parent::new());
    none.publish(market, PAYLOAD).await;
    publish(&none, market, &unsampled.header("00")).await;
    publish(&all, market, &unsampled.header("00")).await;
    publish(&none, market, "00-nonsense-01").await;
    publish(&none, market, &sampled.header("01")).await;
    let own = publish(&all, market, "00-nonsense-01").await;

    let [request] = collector.trace(&sampled.trace, ["POST /admin/odds/override"]).await;
    assert_eq!(request.parent, sampled.span);
    eventually("the request that begins its own trace", async || {
        let spans = collector.spans();
        let request = spans.iter().find(|span| span.attributes.get("kmarket.request_id") == Some(&own))?;
        assert_eq!(request.parent, "");
        // Each publisher sends spans in order. So earlier spans that are missing were not sent.
        let traces: BTreeSet<&str> = spans.iter().map(|span| span.trace.as_str()).collect();
        assert_eq!(traces, [sampled.trace.as_str(), request.trace.as_str()].into());
        Some(())
    })
    .await;
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nothing_and_is_missed_once() {
    let (redis, port) = (Redis::start(), Port::free());
    let endpoint = format!("http://127.0.0.1:{}", port.number());
    let settings = [("OTLP_ENDPOINT", &*endpoint), ("OTLP_SAMPLE_RATIO", "1")];
    let publisher = Launch::publisher(&redis).envs(&settings).start();
    let (admin, market) = (Admin::new(publisher.url("")), fresh_market());
    let lost = async || {
        let text = Http::default().get(&publisher.ops_url("/metrics")).await.text;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(r#"publisher_trace_spans_total{outcome="lost"} "#));
        line.unwrap().parse::<u64>().unwrap()
    };
    // Two requests: the exporter tries to send again after the first failure.
    for _ in 0..2 {
        let before = lost().await;
        admin.publish(market, PAYLOAD).await;
        eventually("spans are lost", async || (lost().await > before).then_some(())).await;
    }
    let collector = Collector::at(port.number()).await;
    eventually("traces arrive", async || {
        admin.publish(market, PAYLOAD).await;
        (!collector.spans().is_empty()).then_some(())
    })
    .await;
    publisher.process.expect_line("the end of it", |line| line.contains("takes traces again").then_some(()));
    assert_eq!(publisher.process.said(Stream::Err).matches("traces are lost").count(), 1);
}

#[tokio::test]
async fn what_went_wrong_says_so() {
    let (redis, collector) = (Redis::start(), Collector::start().await);
    let publisher = Launch::publisher(&redis).env("OTLP_ENDPOINT", &collector.endpoint()).start();
    let (admin, market) = (Admin::new(publisher.url("")), fresh_market());
    let names = ["POST /admin/odds/override", "append"];
    let (good, bad) = (Parent::new(), Parent::new());
    publish(&admin, market, &good.header("01")).await;
    redis.kill();
    let headers = [("traceparent", &*bad.header("01"))];
    let answer = admin.post("/admin/odds/override", &headers, &override_body(market, PAYLOAD)).await;
    answer.expect_error(503, "SERVICE_UNAVAILABLE");
    for (parent, failed) in [(good, false), (bad, true)] {
        let spans = collector.trace(&parent.trace, names).await;
        assert_eq!(spans.map(|span| span.failed), [failed; 2]);
    }
}

#[tokio::test]
async fn what_has_not_been_sent_is_sent_when_the_service_ends() {
    let (redis, collector) = (Redis::start(), Collector::start().await);
    let publisher = Launch::publisher(&redis).env("OTLP_ENDPOINT", &collector.endpoint()).start();
    let (admin, parent) = (Admin::new(publisher.url("")), Parent::new());
    publish(&admin, fresh_market(), &parent.header("01")).await;
    publisher.process.terminate();
    assert!(publisher.process.wait().success());
    collector.trace(&parent.trace, ["POST /admin/odds/override", "append"]).await;
}

#[tokio::test]
async fn a_collector_that_never_answers_holds_up_neither_overrides_nor_the_end() {
    let (redis, silent) = (Redis::start(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let settings = [("OTLP_ENDPOINT", &*endpoint), ("OTLP_SAMPLE_RATIO", "1")];
    let publisher = Launch::publisher(&redis).envs(&settings).start();
    let admin = Admin::new(publisher.url(""));
    // The test waits for the collector's first request.
    admin.publish(fresh_market(), PAYLOAD).await;
    let (_kept, _) = tokio::task::spawn_blocking(move || silent.accept().unwrap()).await.unwrap();
    admin.publish_many(fresh_market(), 0, 1000).await;
    publisher.process.terminate();
    assert!(publisher.process.wait().success());
}
