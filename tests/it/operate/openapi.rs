//! The OpenAPI documents: served, committed, and complete. `tests/api/run` checks that responses match them.

use std::{collections::BTreeSet, env, fs, path::Path};

use serde_json::Value;
use tests::{Http, Launch, Service, Stack, admin::numbered, fresh_market};

const GATEWAY: &str = "/api/openapi.json";
const PUBLISHER: &str = "/admin/openapi.json";

#[tokio::test]
async fn each_service_serves_the_document_that_is_committed() {
    let stack = Stack::shared();
    for (name, url) in
        [("gateway", stack.gateway(0).url(GATEWAY)), ("publisher", stack.publisher().url(PUBLISHER))]
    {
        let answer = Http::default().get(&url).await;
        assert_eq!(
            (answer.status, &answer.headers["content-type"]),
            (200, &"application/json".parse().unwrap())
        );
        let file = checkout().join(format!("docs/openapi/{name}.json"));
        if env::var_os("UPDATE_OPENAPI").is_some() {
            fs::write(&file, &answer.text).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap_or_default();
        let renew = "UPDATE_OPENAPI=1 cargo test -p tests openapi";
        assert!(committed == answer.text, "{} is not what is served: {renew}", file.display());
    }
}

#[tokio::test]
async fn the_embedded_system_serves_both_and_pages_may_read_the_gateway_s() {
    let service = Launch::embedded().env("CORS_ORIGINS", "https://play.example").start();
    let http = Http::default();
    let from = [("origin", "https://play.example")];
    let gateway = http.get_with(&service.url(GATEWAY), &from).await;
    assert_eq!(gateway.headers["access-control-allow-origin"], "https://play.example");
    for (answer, name) in [(gateway, "gateway"), (http.get(&service.url(PUBLISHER)).await, "publisher")] {
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.text,
            fs::read_to_string(checkout().join(format!("docs/openapi/{name}.json"))).unwrap()
        );
    }
}

/// A route without a document, and a document without a route.
#[tokio::test]
async fn every_route_is_documented_and_every_documented_one_answers() {
    let stack = Stack::shared();
    for (service, path, source) in [
        (stack.gateway(0), GATEWAY, "gateway/src/http.rs"),
        (stack.publisher(), PUBLISHER, "publisher/src/http.rs"),
    ] {
        let document = read(service, path).await;
        let documented = operations(&document);
        assert_eq!(documented, routes(source), "the routes of {source} and the document");
        for (method, path) in documented {
            let url = service.url(&path.replace("{id}", "1001"));
            let http = Http::default();
            let (right, wrong) = match &*method {
                "get" => (http.get(&url).await, http.post(&url, "").await),
                _ => (http.post(&url, "").await, http.get(&url).await),
            };
            assert!(![404, 405].contains(&right.status), "{method} {path}: {}", right.text);
            wrong.expect_error(405, "METHOD_NOT_ALLOWED");
            assert!(wrong.headers.contains_key("allow"), "{method} {path}");
        }
    }
}

/// The two answers that are written as text; the others are written by what their schemas are derived from.
#[tokio::test]
async fn an_answer_has_the_members_that_are_documented_and_no_others() {
    let stack = Stack::shared();
    let (service, market) = (stack.gateway(0), fresh_market());
    stack.admin().publish(market, &numbered(1)).await;
    let document = read(service, GATEWAY).await;
    let rest = Http::default();
    for (path, name) in [("snapshot", "Snapshot"), ("updates?since_seq=0", "Updates")] {
        let answer = rest.get(&service.url(&format!("/api/markets/{market}/odds/{path}"))).await;
        let answer: Value = serde_json::from_str(&answer.text).unwrap();
        expect_members(&answer, &document, name);
        for update in answer["updates"].as_array().into_iter().flatten() {
            expect_members(update, &document, "OddsUpdate");
        }
    }
}

fn expect_members(answer: &Value, document: &Value, name: &str) {
    let schema = &document["components"]["schemas"][name];
    let parts = schema["allOf"].as_array().map_or(vec![schema], |parts| parts.iter().collect());
    let resolved = parts.into_iter().map(|part| match part["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => part,
    });
    let (mut all, mut required) = (BTreeSet::new(), BTreeSet::new());
    for part in resolved {
        all.extend(part["properties"].as_object().into_iter().flatten().map(|(name, _)| &**name));
        required.extend(part["required"].as_array().into_iter().flatten().filter_map(Value::as_str));
    }
    let has: BTreeSet<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(has.is_superset(&required) && has.is_subset(&all), "{name}: {has:?}");
}

async fn read(service: &Service, path: &str) -> Value {
    serde_json::from_str(&Http::default().get(&service.url(path)).await.text).unwrap()
}

/// Method, in lower case, and path.
fn operations(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
        })
        .collect()
}

/// What a router's source says: `.route("PATH", METHOD(…`. One for any method is no operation.
fn routes(source: &str) -> BTreeSet<(String, String)> {
    let source = fs::read_to_string(checkout().join(source)).unwrap();
    let routes = source.split(".route(").skip(1).map(|route| {
        let (path, handler) = route.trim_start().trim_start_matches('"').split_once('"').unwrap();
        let (method, _) = handler.trim_start_matches([',', ' ', '\n']).split_once('(').unwrap();
        (method.to_owned(), path.to_owned())
    });
    routes.filter(|(method, _)| method != "any").collect()
}

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
