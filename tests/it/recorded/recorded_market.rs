//! The recorded exchange market of `tests/feeds/README.md`, replayed through the whole system.

use std::{net::SocketAddr, sync::Arc};

use tests::{
    Launch, Lines, Message, RawSocket, Rest, Stack, fresh_user,
    launch::feed,
    message::{Snapshot, Update},
    process::Process,
    recording::{self, MARKET, UPDATES},
    tokens, within,
};
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
};

/// Another market, for a replay that shows which updates the recording makes.
const REHEARSAL: u64 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_market_reaches_a_thousand_subscribers_over_two_gateways() {
    const SUBSCRIBERS: usize = 1000;
    let stack = Stack::with(&[], &[]);
    raise_open_files();
    rehearse(&stack).await;
    let mut connecting = JoinSet::new();
    for index in 0..SUBSCRIBERS {
        let gateway = stack.gateway(index % 2).api;
        connecting.spawn(async move { Subscriber::connect(gateway, 0).await });
    }
    let subscribers = connecting.join_all().await;

    let replay = replay(&stack, MARKET, "max");
    let mut following = JoinSet::new();
    for mut subscriber in subscribers {
        following.spawn(async move {
            while subscriber.last < UPDATES {
                assert!(subscriber.step().await, "the connection stays");
            }
            subscriber
        });
    }
    let subscribers = following.join_all().await;
    ended(replay).await;
    expect_whole(&stack, subscribers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_gateway_is_killed_in_the_middle_its_clients_resume_on_the_other_without_hole_or_duplicate() {
    const SUBSCRIBERS: usize = 200;
    /// The recording spans 32 hours, played in some seconds. Clients that reach the middle are far from its end.
    const SPEED: &str = "30000";
    let stack = Stack::with(&[], &[]);
    raise_open_files();
    rehearse(&stack).await;
    let (reached, mut middle) = watch::channel(0);
    let reached = Arc::new(reached);
    let addresses = [stack.gateway(0).api, stack.gateway(1).api];
    let mut following = JoinSet::new();
    let (ready, mut all_ready) = watch::channel(0);
    let ready = Arc::new(ready);
    for index in 0..SUBSCRIBERS {
        let (reached, ready) = (Arc::clone(&reached), Arc::clone(&ready));
        following.spawn(async move {
            let mut subscriber = Subscriber::connect(addresses[index % 2], 0).await;
            ready.send_modify(|ready| *ready += 1);
            let mut moved_at = None;
            while subscriber.last < UPDATES {
                if subscriber.step().await {
                    reached.send_if_modified(|reached| {
                        let further = subscriber.last > *reached;
                        *reached = subscriber.last.max(*reached);
                        further
                    });
                } else {
                    assert!(index % 2 == 0 && moved_at.is_none(), "only the first gateway is killed");
                    moved_at = Some(subscriber.last);
                    subscriber.resume(addresses[1]).await;
                }
            }
            (subscriber, moved_at)
        });
    }
    within("all subscribe", all_ready.wait_for(|ready| *ready == SUBSCRIBERS)).await.unwrap();
    let replay = replay(&stack, MARKET, SPEED);
    within("the middle", middle.wait_for(|reached| *reached >= UPDATES / 2)).await.unwrap();
    stack.gateway(0).process.kill();

    let (subscribers, moved): (Vec<_>, Vec<_>) = following.join_all().await.into_iter().unzip();
    ended(replay).await;
    let moved: Vec<u64> = moved.into_iter().flatten().collect();
    assert_eq!(moved.len(), SUBSCRIBERS / 2);
    assert!(moved.iter().all(|seq| *seq < UPDATES), "in the middle: {moved:?}");
    expect_whole(&stack, subscribers).await;
}

/// A client that keeps what it got, byte for byte.
struct Subscriber {
    socket: RawSocket,
    token: String,
    last: u64,
    lines: Lines,
    updates: Vec<Update>,
}

impl Subscriber {
    async fn connect(gateway: SocketAddr, last: u64) -> Self {
        let token = tokens::for_user(fresh_user());
        let socket = RawSocket::connect(gateway, &token).await;
        let mut this = Self { socket, token, last, lines: Lines::default(), updates: Vec::new() };
        this.resume_here().await;
        this
    }

    /// Connects to another gateway and continues from this client's position.
    async fn resume(&mut self, gateway: SocketAddr) {
        self.socket = RawSocket::connect(gateway, &self.token).await;
        self.resume_here().await;
    }

    async fn resume_here(&mut self) {
        let last = self.last;
        self.socket.send(&format!(r#"{{"type":"resume","offsets":{{"{MARKET}":{last}}}}}"#)).await;
        match self.socket.recv().await {
            Some(Message::Ack(ack)) => assert_eq!(ack.position(MARKET).recovered, Some(true)),
            other => panic!("an ack, not {other:?}"),
        }
    }

    /// Takes the next message, which must be the next update. Returns `false` when the connection has ended.
    async fn step(&mut self) -> bool {
        match self.socket.recv().await {
            Some(Message::Update(update)) => {
                assert_eq!((update.market_id, update.seq), (MARKET, self.last + 1));
                self.last = update.seq;
                self.lines.apply(update.payload.text());
                self.updates.push(update);
                true
            }
            Some(other) => panic!("updates only, not {other:?}"),
            None => false,
        }
    }
}

/// Every subscriber has every update, the same ones, and ends where the snapshot is.
async fn expect_whole(stack: &Stack, subscribers: Vec<Subscriber>) {
    let rest = Rest::of(stack.gateway(1));
    let snapshot: Snapshot = rest.snapshot(MARKET).await;
    let lines = Lines::of(snapshot.payload.text());
    assert_eq!(lines.get("status"), Some(r#"{"state":"closed","inPlay":true}"#));
    assert!(lines.get("win").is_some_and(|win| win.len() > 100), "{lines:?}");
    let page = rest.updates(MARKET, "since_seq=0&limit=1000").await;
    assert_eq!(page.to_seq, snapshot.seq);
    let rehearsed = rest.updates(REHEARSAL, "since_seq=0&limit=1000").await;
    let payloads =
        |updates: &[Update]| updates.iter().map(|update| update.payload.clone()).collect::<Vec<_>>();
    assert_eq!(payloads(&page.updates), payloads(&rehearsed.updates), "all of the recording");
    for subscriber in subscribers {
        assert_eq!(subscriber.updates, page.updates);
        assert_eq!(subscriber.lines, lines);
    }
}

/// Replays the recording as [`REHEARSAL`], which then has all of its updates.
async fn rehearse(stack: &Stack) {
    ended(replay(stack, REHEARSAL, "max")).await;
    assert_eq!(Rest::of(stack.gateway(1)).snapshot(REHEARSAL).await.seq, UPDATES);
}

fn replay(stack: &Stack, market: u64, speed: &str) -> Process {
    let launch = Launch::publisher(stack.redis());
    let market = market.to_string();
    launch
        .args(&[
            "replay",
            &feed(recording::FILE),
            "--format",
            "betfair",
            "--speed",
            speed,
            "--market",
            &market,
        ])
        .spawn()
}

async fn ended(replay: Process) {
    let status = spawn_blocking(move || replay.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

/// A thousand sockets and more are open here.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}
