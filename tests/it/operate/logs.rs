//! The table of `docs/operations.md#logs`: each message that operators search for exists under its documented name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;
use tests::{
    Admin, Http, Launch, Redis, Service, admin::override_body, fresh_market, launch::log_field,
    process::Stream,
};

const SECRET: &str = "a secret that is as long as it has to be";

/// A row: the level, the fields that are always there, and those that may be.
struct Event {
    level: String,
    always: BTreeSet<String>,
    sometimes: BTreeSet<String>,
}

/// By message.
fn documented() -> BTreeMap<String, Event> {
    let page = include_str!("../../../docs/operations.md");
    let logs = page.split("\n## Logs\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let names =
        |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let &["", message, level, fields, _, ""] = &cells[..] else { return None };
        let message = message.strip_prefix('`')?.strip_suffix('`')?;
        let (always, sometimes) = fields.split_once("; ").unwrap_or((fields, ""));
        let event = Event { level: level.to_owned(), always: names(always), sometimes: names(sometimes) };
        Some((message.to_owned(), event))
    };
    logs.lines().filter_map(row).collect()
}

#[tokio::test]
async fn what_happens_is_logged_under_the_documented_names() {
    let mut redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let gateway = Launch::gateway(&redis)
        .without("JWT_SECRET")
        .env("JWT_SECRET_FILE", secret.to_str().unwrap())
        .env("STALE_AFTER", "500ms")
        .env("DRAIN_SECONDS", "0")
        .env("RUST_LOG", "info,gateway=debug")
        .start();
    let publisher = Launch::publisher(&redis).env("RUST_LOG", "info,publisher=debug").start();
    let admin = Admin::new(publisher.url(""));

    Http::default()
        .handshake(&gateway.url("/ws/odds?token=none"), &[])
        .await
        .expect_error(401, "UNAUTHORIZED");
    for (content, said) in [("short", "the file cannot be used"), (&SECRET.to_uppercase(), "a new secret")] {
        fs::write(&secret, content).unwrap();
        gateway.process.hang_up();
        expect(&gateway, said);
    }
    redis.kill();
    expect(&gateway, "the backbone does not answer");
    expect(&gateway, "clients are told whether prices are fresh");
    let refused = admin.send(&override_body(fresh_market(), r#"{"win":{"home":1.85}}"#)).await;
    refused.expect_error(503, "SERVICE_UNAVAILABLE");
    redis.restart();
    expect(&gateway, "the backbone answers again");
    for service in [&gateway, &publisher] {
        service.expect_readiness(200).await;
        service.process.terminate();
        assert!(service.process.wait().success());
    }

    let documented = documented();
    let mut seen = BTreeSet::new();
    for line in [gateway, publisher]
        .iter()
        .flat_map(|service| service.process.said(Stream::Err).lines().map(str::to_owned).collect::<Vec<_>>())
    {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        for name in ["timestamp", "level", "target"] {
            assert!(line[name].is_string(), "{name} in {line}");
        }
        let fields = line["fields"].as_object().unwrap();
        let Some(event) = documented.get(fields["message"].as_str().unwrap()) else { continue };
        assert_eq!(line["level"], *event.level, "{line}");
        let mut names: BTreeSet<String> = fields.keys().cloned().collect();
        names.remove("message");
        assert!(names.is_superset(&event.always), "{line}");
        assert!(names.is_subset(&(&event.always | &event.sometimes)), "{line}");
        seen.insert(fields["message"].as_str().unwrap().to_owned());
    }
    for message in [
        "listening",
        "a handshake is refused",
        "the file cannot be used: the former secret stays in use",
        "a new secret is in use",
        "the backbone does not answer: retrying, clients stay connected",
        "clients are told whether prices are fresh",
        "append failed",
        "an admin request is answered",
        "the backbone answers again",
        "drained",
    ] {
        assert!(seen.contains(message), "{message:?} of {seen:?}");
    }
    assert_eq!(seen.iter().filter(|message| message.starts_with("draining: ")).count(), 2);
}

#[test]
fn every_documented_message_is_somewhere_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut code = String::new();
    let mut dirs: Vec<_> = ["gateway/src", "publisher/src", "shared"].map(|dir| root.join(dir)).into();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                code += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let documented = documented();
    assert!(documented.len() > 20);
    for message in documented.keys() {
        assert!(code.contains(&format!("\"{message}\"")), "{message}");
    }
}

fn expect(service: &Service, message: &str) {
    service.process.expect_line(message, |line| {
        log_field(line, "message").is_some_and(|found| found.starts_with(message)).then_some(())
    });
}
