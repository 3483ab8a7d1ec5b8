//! Two clients with separate code, driven alike. Each reports its knowledge whenever that changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use protocol::{
    MarketId,
    client::{Actions, AfterClose, Cause, Client, Event, Fetch},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tests::{DEADLINE, Rest, Socket, fresh_user, message::parse, tokens, vectors};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

/// Where Debian has Node's libraries; other builds of Node do not look there.
const DEBIAN_NODE_PATH: &str = "/usr/share/nodejs";
/// Between attempts to connect while nobody is let in.
const BACKOFF: Duration = Duration::from_millis(20);

/// What a client knows and was told.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct State {
    pub markets: BTreeMap<u64, Known>,
    /// `reset`, `conflated`, and close codes.
    pub saw: BTreeSet<String>,
}

/// What a client knows of a market.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Known {
    pub epoch: u64,
    pub seq: Option<u64>,
    /// Lines as the vectors write them.
    pub lines: Value,
    pub fresh: bool,
    pub rejected: Option<String>,
}

/// A client that runs until it is dropped.
pub struct Running {
    name: &'static str,
    states: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Running {
    /// The client of `protocol::client`, over real sockets.
    pub fn rust(gateway: SocketAddr, markets: &[u64], tokens: &Tokens) -> Self {
        let (sender, states) = watch::channel(State::default());
        let client = Client::new(markets.iter().map(|&market| MarketId::new(market).unwrap()));
        let task = tokio::spawn(follow(client, gateway, tokens.clone(), sender));
        Self { name: "Rust", states, task }
    }

    /// The SDK in Node, as `tests/clients/sdk.js` runs it.
    pub fn java_script(gateway: SocketAddr, markets: &[u64], tokens: &Tokens) -> Self {
        let (sender, states) = watch::channel(State::default());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/sdk.js");
        let child = Command::new("node")
            .arg(script)
            .env("NODE_PATH", DEBIAN_NODE_PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("please install Node and its library ws: apt install nodejs node-ws");
        let start = json!({"url": format!("http://{gateway}"), "markets": markets});
        let task = tokio::spawn(talk(child, start, tokens.clone(), sender));
        Self { name: "JavaScript", states, task }
    }

    /// Returns the client's knowledge.
    pub fn state(&self) -> State {
        self.states.borrow().clone()
    }

    /// Waits until `is_so` holds for the client's knowledge.
    pub async fn until(&mut self, what: &str, is_so: impl Fn(&State) -> bool) {
        let is_there = timeout(DEADLINE, self.states.wait_for(is_so)).await.is_ok_and(|found| found.is_ok());
        assert!(is_there, "{}: {what}: not within {DEADLINE:?}: {:?}", self.name, self.state());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes the clients' tokens.
#[derive(Clone)]
pub struct Tokens {
    ttl_s: u64,
    scope: Arc<Mutex<Option<BTreeSet<u64>>>>,
}

impl Tokens {
    /// Issues tokens for all markets, with this lifetime.
    pub fn new(ttl_s: u64) -> Self {
        Self { ttl_s, scope: Arc::default() }
    }

    /// Issues tokens for these markets only from now on.
    pub fn narrow(&self, scope: BTreeSet<u64>) {
        *self.scope.lock().unwrap() = Some(scope);
    }

    /// Returns true if tokens cover this market.
    pub fn allow(&self, market: u64) -> bool {
        self.scope.lock().unwrap().as_ref().is_none_or(|scope| scope.contains(&market))
    }

    fn make(&self, user: u64) -> String {
        let scope = self.scope.lock().unwrap().clone();
        let scope: Option<Vec<u64>> = scope.map(|scope| scope.into_iter().collect());
        tokens::made(user, scope.as_deref(), self.ttl_s)
    }
}

async fn follow(mut client: Client, gateway: SocketAddr, tokens: Tokens, states: watch::Sender<State>) {
    let user = fresh_user();
    let mut token = tokens.make(user);
    let mut saw = BTreeSet::new();
    let tell = |client: &Client, saw: &BTreeSet<String>| _ = states.send(state(client, saw));
    loop {
        let Some(mut socket) = Socket::try_connect(gateway, &token).await else {
            tokio::time::sleep(BACKOFF).await;
            token = tokens.make(user); // it may have been that
            continue;
        };
        let mut send = client.opened();
        let code = loop {
            for text in std::mem::take(&mut send) {
                socket.try_send(text).await;
            }
            tell(&client, &saw);
            let text = match socket.text().await {
                Ok(text) => text,
                Err(code) => break code,
            };
            let mut actions = client.received(&text).unwrap();
            while let Some(fetch) = note(&mut actions, &mut send, &mut saw) {
                let answer = Rest::at(gateway).get(&fetch.path()).await;
                actions = client.fetched(fetch, &answer.text).unwrap();
            }
        };
        let AfterClose::Reconnect { code, least_wait_ms, new_token } = client.closed(code) else { break };
        saw.insert(code.to_string());
        tell(&client, &saw);
        if new_token {
            token = tokens.make(user);
        }
        tokio::time::sleep(Duration::from_millis(least_wait_ms)).await;
    }
}

fn note(actions: &mut Actions, send: &mut Vec<String>, saw: &mut BTreeSet<String>) -> Option<Fetch> {
    send.append(&mut actions.send);
    for event in actions.events.drain(..) {
        if let Event::Changed(changed) = event
            && let Cause::Snapshot { reset, conflated } = changed.cause
        {
            let told = [(reset, "reset"), (conflated, "conflated")];
            saw.extend(told.iter().filter(|(is, _)| *is).map(|(_, told)| (*told).to_owned()));
        }
    }
    actions.fetch.take()
}

fn state(client: &Client, saw: &BTreeSet<String>) -> State {
    let known = client.markets().iter().map(|(&id, market)| {
        let known = Known {
            epoch: market.epoch,
            seq: market.seq,
            lines: vectors::written(&market.lines),
            fresh: client.is_fresh(id),
            rejected: market.rejected.clone(),
        };
        (id.get(), known)
    });
    State { markets: known.collect(), saw: saw.clone() }
}

async fn talk(mut child: Child, start: Value, tokens: Tokens, states: watch::Sender<State>) {
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (user, mut lines) = (fresh_user(), BufReader::new(stdout).lines());
    let mut say = Some(start);
    loop {
        if let Some(say) = say.take()
            && stdin.write_all(format!("{say}\n").as_bytes()).await.is_err()
        {
            return;
        }
        let Ok(Some(line)) = lines.next_line().await else { return };
        match line.as_str() {
            "token" => say = Some(json!({"token": tokens.make(user)})),
            state => _ = states.send(parse(state)),
        }
    }
}
