//! Clients by other authors: Node's `ws` and Python's `websockets` against a real gateway.
//!
//! The scripts in `tests/clients` do the same with each: a token in each of its three forms, updates, a message in fragments,
//! pings, heartbeats, and closing from both sides. They offer `permessage-deflate`.

use std::{path::Path, process::Stdio};

use tests::{Stack, fresh_market, fresh_user, tokens, within};
use tokio::process::Command;

/// Where Debian has Node's libraries; other builds of Node do not look there.
const DEBIAN_NODE_PATH: &str = "/usr/share/nodejs";

#[tokio::test]
async fn node_s_ws_is_served() {
    let node = ["node"];
    let found = find(&node, &["-e", "require('ws')"]).await;
    let node = found.expect("please install Node and its library ws: apt install nodejs node-ws");
    expect_served(node, "ws.js").await;
}

#[tokio::test]
async fn python_s_websockets_is_served() {
    // The path may name another Python first than the one that has the libraries.
    let pythons = ["python3", "/usr/bin/python3"];
    let found = find(&pythons, &["-c", "import websockets"]).await;
    let python = found.expect("please install Python's library websockets: apt install python3-websockets");
    expect_served(python, "websockets.py").await;
}

/// The first of `programs` that runs with these arguments.
async fn find<'a>(programs: &[&'a str], arguments: &[&str]) -> Option<&'a str> {
    for program in programs {
        let output = command(program).args(arguments).output().await;
        if output.is_ok_and(|output| output.status.success()) {
            return Some(program);
        }
    }
    None
}

async fn expect_served(program: &str, script: &str) {
    let stack = Stack::shared();
    let gateway = stack.another_gateway(&[("HEARTBEAT_INTERVAL", "300ms"), ("HEARTBEAT_TIMEOUT", "2s")]);
    let market = fresh_market();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let url = format!("ws://{}/ws/odds", gateway.api);
    let token = tokens::for_user(fresh_user());
    let mut client = command(program);
    client.arg(script).args([url, token, market.to_string()]);
    let output =
        stack.admin().keep_publishing(market, &mut 1, within("the client's end", client.output())).await;
    let output = output.expect("the client starts");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("NODE_PATH", DEBIAN_NODE_PATH).stdin(Stdio::null()).kill_on_drop(true);
    command
}
