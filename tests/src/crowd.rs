//! Very many clients. Each follows a market across reconnects to any pod.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    message::{AckPosition, Bye, Message},
    raw::RawSocket,
    stack::fresh_user,
    tokens,
    wait::within,
};

/// Handshakes at the same time.
const IN_FLIGHT: usize = 200;
/// How long a refused client waits before it tries again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Running clients that reconnect as docs/protocol.md#how-to-write-a-client asks. Each panics at a hole, a duplicate,
/// a reordering or a snapshot, since no history is lost behind them.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    clients: JoinSet<Story>,
    subscribed: mpsc::UnboundedReceiver<()>,
    /// By market, the latest seq, at which clients end.
    ends: watch::Sender<Option<BTreeMap<u64, u64>>>,
}

/// What a client has been through.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// Every `bye` that it received.
    pub byes: Vec<Bye>,
    /// How often a pod refused its handshake.
    pub refusals: usize,
}

#[derive(Debug)]
struct Shared {
    /// The pods to which the balancer sends clients.
    pods: Mutex<Vec<SocketAddr>>,
    handshakes: Semaphore,
    subscribed: mpsc::UnboundedSender<()>,
}

struct Client {
    shared: Arc<Shared>,
    token: String,
    /// Counts attempts; chooses the next pod.
    turn: usize,
    market: u64,
    position: Option<AckPosition>,
    story: Story,
}

impl Crowd {
    /// Starts `count` clients, each on one of `markets`, and waits until all are subscribed at one of `pods`. Every
    /// market must have an update.
    pub async fn start(count: usize, markets: &[u64], pods: &[SocketAddr]) -> Self {
        let (sender, subscribed) = mpsc::unbounded_channel();
        let (ends, latest) = watch::channel(None);
        let shared = Arc::new(Shared {
            pods: Mutex::new(pods.to_vec()),
            handshakes: Semaphore::new(IN_FLIGHT),
            subscribed: sender,
        });
        let mut clients = JoinSet::new();
        for (turn, &market) in markets.iter().cycle().enumerate().take(count) {
            let client = Client {
                shared: Arc::clone(&shared),
                token: tokens::for_user(fresh_user()),
                turn,
                market,
                position: None,
                story: Story::default(),
            };
            clients.spawn(client.live(latest.clone()));
        }
        let mut crowd = Self { shared, clients, subscribed, ends };
        crowd.expect_subscribed(count).await;
        crowd
    }

    /// Sends clients that connect from now on to these pods.
    pub fn send_to(&self, pods: &[SocketAddr]) {
        pods.clone_into(&mut self.shared.pods());
    }

    /// Waits until clients have subscribed or resumed this many more times.
    pub async fn expect_subscribed(&mut self, times: usize) {
        for _ in 0..times {
            tokio::select! {
                biased;
                Some(ended) = self.clients.join_next() => panic!("a client ended too soon: {ended:?}"),
                some = within("another client's ack", self.subscribed.recv()) => assert!(some.is_some()),
            }
        }
    }

    /// Waits until each client has its market's latest seq, and ends the clients. Panics if one gets a later seq.
    pub async fn leave_at(mut self, latest: BTreeMap<u64, u64>) -> Vec<Story> {
        self.ends.send_replace(Some(latest));
        let mut stories = Vec::new();
        while let Some(ended) = within("another client's last update", self.clients.join_next()).await {
            stories.push(ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
        stories
    }
}

impl Shared {
    fn pods(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    async fn live(mut self, mut latest: watch::Receiver<Option<BTreeMap<u64, u64>>>) -> Story {
        loop {
            let mut socket = self.connect().await;
            if !self.subscribe(&mut socket).await {
                continue;
            }
            // No deadline here: the crowd waits with one.
            let bye = loop {
                if self.has_all(latest.borrow().as_ref()) {
                    return self.story;
                }
                tokio::select! {
                    message = socket.recv_patiently() => match message {
                        Some(Message::Update(update)) => self.take(update.market_id, update.seq),
                        Some(Message::Bye(bye)) => break Some(bye),
                        None => break None,
                        other => panic!("updates only, not {other:?}"),
                    },
                    changed = latest.changed() => changed.expect("the crowd lasts longer"),
                }
            };
            if let Some(bye) = bye {
                let after = Duration::from_millis(bye.after_ms.unwrap_or_default());
                self.story.byes.push(bye);
                drop(socket);
                sleep(after).await;
            }
        }
    }

    async fn connect(&mut self) -> RawSocket {
        loop {
            let shared = Arc::clone(&self.shared);
            let _one_of_some = shared.handshakes.acquire().await.expect("never closed");
            let pod = {
                let pods = shared.pods();
                pods[self.turn % pods.len()]
            };
            match RawSocket::try_connect(pod, &self.token).await {
                Ok(socket) => return socket,
                Err(response) => {
                    assert!(response.is_empty() || response.starts_with("HTTP/1.1 503 "), "{response}");
                    self.turn += 1;
                    self.story.refusals += 1;
                }
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    /// Returns false if the pod closed the connection instead.
    async fn subscribe(&mut self, socket: &mut RawSocket) -> bool {
        let market = self.market;
        let request = match &self.position {
            None => format!(r#"{{"type":"subscribe","markets":[{market}]}}"#),
            Some(AckPosition { epoch, seq, .. }) => {
                format!(r#"{{"type":"resume","offsets":{{"{market}":{{"epoch":{epoch},"seq":{seq}}}}}}}"#)
            }
        };
        socket.send(&request).await;
        let ack = match socket.recv().await {
            Some(Message::Ack(ack)) => ack,
            Some(Message::Bye(_)) | None => return false,
            other => panic!("an ack, not {other:?}"),
        };
        assert!(ack.ok, "{ack:?}");
        let latest = ack.position(market);
        match self.position {
            None => self.position = Some(latest),
            Some(here) => assert!(
                latest.recovered == Some(true) && latest.epoch == here.epoch && latest.seq >= here.seq,
                "{latest:?} after {here:?}"
            ),
        }
        // Fails once the crowd has ended.
        let _ = self.shared.subscribed.send(());
        true
    }

    fn take(&mut self, market: u64, seq: u64) {
        let here = self.position.as_mut().expect("it has subscribed");
        assert_eq!((market, seq), (self.market, here.seq + 1), "after {here:?}");
        here.seq = seq;
    }

    fn has_all(&self, latest: Option<&BTreeMap<u64, u64>>) -> bool {
        let (Some(latest), Some(here)) = (latest, self.position) else { return false };
        assert!(here.seq <= latest[&self.market], "nothing beyond what was published");
        here.seq == latest[&self.market]
    }
}
