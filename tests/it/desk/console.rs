//! The trading console: where it is served, and with which headers.

use tests::{Http, Launch, Redis, Rest, Services, Stack};

#[tokio::test]
async fn the_console_may_run_its_own_scripts_and_nothing_else() {
    let stack = Stack::shared();
    let http = Http::default();
    for (path, content_type) in [
        ("/console", "text/html; charset=utf-8"),
        ("/console/", "text/html; charset=utf-8"),
        ("/console/main.js", "text/javascript; charset=utf-8"),
        ("/console/i18n.js", "text/javascript; charset=utf-8"),
        ("/console/console.css", "text/css; charset=utf-8"),
        ("/console/base.css", "text/css; charset=utf-8"),
        ("/console/icon.svg", "image/svg+xml"),
    ] {
        let url = stack.publisher().url(path);
        let page = http.get(&url).await;
        assert_eq!((page.status, page.header("content-type")), (200, Some(content_type)), "{path}");
        let policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
        for (name, value) in [
            ("content-security-policy", policy),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(page.header(name), Some(value), "{path}: {name}");
        }
        let tag = page.header("etag").unwrap();
        assert_eq!(http.get_with(&url, &[("if-none-match", tag)]).await.status, 304, "{path}");
        http.post(&url, "").await.expect_error(405, "METHOD_NOT_ALLOWED");
    }
    http.get(&stack.publisher().url("/console/else.js")).await.expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn the_console_is_where_the_admin_api_is() {
    let redis = Redis::start();
    let services = Services::start(&redis, &[], &[]);
    let embedded = Launch::embedded().start();
    let there = Http::default().get(&services.publisher().url("/console")).await;
    assert_eq!((there.status, Rest::of(&embedded).get("/console").await.status), (200, 200));
    assert_eq!(Rest::of(services.gateway(0)).get("/console").await.status, 404);
}
