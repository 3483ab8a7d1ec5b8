//! Pages for browsers: the live board, and its first requests.

use serde_json::{Value, json};
use tests::{
    Http, Launch, Redis, Rest, Services, Stack, eventually, fresh_market, fresh_user, launch::log_field,
    tokens,
};

const PAGE: [(&str, &str); 6] = [
    ("/", "text/html; charset=utf-8"),
    ("/board/board.js", "text/javascript; charset=utf-8"),
    ("/board/base.css", "text/css; charset=utf-8"),
    ("/board/i18n.js", "text/javascript; charset=utf-8"),
    ("/board/icon.svg", "image/svg+xml"),
    ("/board/sdk/index.js", "text/javascript; charset=utf-8"),
];

#[tokio::test]
async fn the_board_may_run_its_own_scripts_and_nothing_else() {
    let system = Launch::embedded().start();
    let http = Http::default();
    for (path, content_type) in PAGE {
        let page = http.get(&system.url(path)).await;
        assert_eq!((page.status, page.header("content-type")), (200, Some(content_type)), "{path}");
        let policy = page.header("content-security-policy").unwrap();
        for rule in
            ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"]
        {
            assert!(policy.split("; ").any(|part| part == rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(page.header(name), Some(value), "{path}: {name}");
        }
        let tag = page.header("etag").unwrap();
        let again = http.get_with(&system.url(path), &[("if-none-match", tag)]).await;
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
    }
    http.post(&system.url("/"), "").await.expect_error(405, "METHOD_NOT_ALLOWED");
    http.get(&system.url("/board/")).await.expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn the_board_is_there_when_embedded_and_where_it_is_asked_for() {
    let stack = Stack::shared();
    let on = stack.another_gateway(&[("BOARD", "true")]);
    let off = Launch::embedded().args(&["--board=false"]).start();
    for (service, status) in [(&on, 200), (&off, 404), (stack.gateway(0), 404)] {
        for path in ["/", "/board/board.js"] {
            assert_eq!(Rest::of(service).get(path).await.status, status, "{path}");
        }
    }
    // The trading console belongs to the publisher. Only a gateway that embeds one can link to it.
    assert!(Rest::of(&on).get("/board/console.js").await.text.contains("null"));
}

#[tokio::test]
async fn a_new_user_is_told_where_the_pages_are() {
    let system = Launch::embedded().start();
    let says = |name| system.process.expect_line(name, |line| log_field(line, name));
    assert_eq!(says("board"), system.url("/"));
    assert_eq!(says("console"), format!("{}#token={}", system.url("/console"), says("adminToken")));
    let module = Rest::of(&system).get("/board/console.js").await;
    assert!(module.text.contains("'console'"), "{}", module.text);
}

#[tokio::test]
async fn the_markets_that_there_are_come_in_pages() {
    let system = Launch::embedded().args(&["--demo"]).start();
    let rest = Rest::of(&system);
    for (query, from, to, has_more) in [
        ("", 1001, 1008, false),
        ("?limit=3", 1001, 1003, true),
        ("?limit=8", 1001, 1008, false),
        ("?after=1003&limit=3", 1004, 1006, true),
        ("?after=1006", 1007, 1008, false),
        ("?after=1008&limit=1000", 1009, 1008, false),
    ] {
        let page: Value = rest.get(&format!("/api/markets{query}")).await.ok();
        assert_eq!(
            page,
            json!({ "markets": (from..=to).collect::<Vec<u64>>(), "hasMore": has_more }),
            "{query}"
        );
    }
    for (query, name) in
        [("limit=0", "limit"), ("limit=1001", "limit"), ("after=-1", "after"), ("after=1&after=2", "twice")]
    {
        let message = rest.get(&format!("/api/markets?{query}")).await.expect_error(400, "BAD_REQUEST");
        assert!(message.contains(name), "{message}");
    }
}

#[tokio::test]
async fn a_reader_with_a_scope_is_told_of_no_other_market() {
    let stack = Stack::shared();
    let (mine, others) = (fresh_market(), fresh_market());
    for market in [mine, others] {
        stack.admin().publish(market, r#"{"moneyline":{"home":1.85}}"#).await;
    }
    let gateway = stack.another_gateway(&[("READ_AUTH", "token")]);
    let (http, url) = (Http::default(), gateway.url(&format!("/api/markets?after={}&limit=1000", mine - 1)));
    http.get(&url).await.expect_error(401, "UNAUTHORIZED");
    let listed = async |token: &str| {
        let answer: Value = http.get_with(&url, &[("authorization", &format!("Bearer {token}"))]).await.ok();
        answer["markets"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let all = tokens::for_user(fresh_user());
    eventually("both in the list", async || {
        let list = listed(&all).await;
        [mine, others].iter().all(|market| list.contains(market)).then_some(())
    })
    .await;
    assert_eq!(listed(&tokens::scoped(fresh_user(), &[mine])).await, [mine]);
    assert!(listed(&tokens::scoped(fresh_user(), &[])).await.is_empty());
}

#[tokio::test]
async fn many_who_ask_for_the_markets_cost_redis_one_read() {
    let redis = Redis::start();
    let services = Services::start(&redis, &[], &[]);
    services.expect_ready().await;
    let reads = || -> u64 {
        let info: String = redis.tell("INFO commandstats");
        let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_smembers:calls="));
        calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    };
    let before = reads();
    let began = std::time::Instant::now();
    let rest = Rest::of(services.gateway(0));
    let asked: Vec<_> = (0..64)
        .map(|_| {
            let rest = rest.clone();
            tokio::spawn(async move { rest.get("/api/markets").await.status })
        })
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap(), 200);
    }
    // One read, and one more for each second that this took.
    assert!(reads() - before <= 1 + began.elapsed().as_secs(), "{} reads", reads() - before);
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_503() {
    let redis = Redis::start();
    let services = Services::start(&redis, &[], &[]);
    services.expect_ready().await;
    let rest = Rest::of(services.gateway(0));
    redis.kill();
    eventually("the last answer to be too old", async || {
        let answer = rest.get("/api/markets").await;
        (answer.status != 200).then(|| answer.expect_error(503, "SERVICE_UNAVAILABLE"))
    })
    .await;
}
