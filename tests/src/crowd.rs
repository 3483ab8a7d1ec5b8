//! Very many clients, each of which follows a market wherever pods take it.

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

/// Handshakes at once.
const IN_FLIGHT: usize = 200;
/// Before a client that no pod took asks again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Clients that run, and do what the contract asks of a client when they are sent away. Each panics at a hole, a
/// duplicate, a reordering or a snapshot: nothing is lost behind them.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    clients: JoinSet<Story>,
    subscribed: mpsc::UnboundedReceiver<()>,
    tops: watch::Sender<Option<BTreeMap<u64, u64>>>,
}

/// What became of a client.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What it was told each time that it was sent away.
    pub byes: Vec<Bye>,
    /// How often it was refused.
    pub refusals: usize,
}

#[derive(Debug)]
struct Shared {
    /// Where the balancer sends clients.
    pods: Mutex<Vec<SocketAddr>>,
    handshakes: Semaphore,
    subscribed: mpsc::UnboundedSender<()>,
}

struct Client {
    shared: Arc<Shared>,
    token: String,
    /// Whose turn it is.
    turn: usize,
    market: u64,
    position: Option<AckPosition>,
    story: Story,
}

impl Crowd {
    /// Starts `count` clients, each on one of `markets`, all of which have been published; returns when all are
    /// subscribed at one of `pods`.
    pub async fn start(count: usize, markets: &[u64], pods: &[SocketAddr]) -> Self {
        let (sender, subscribed) = mpsc::unbounded_channel();
        let (tops, reach) = watch::channel(None);
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
            clients.spawn(client.live(reach.clone()));
        }
        let mut crowd = Self { shared, clients, subscribed, tops };
        crowd.expect_subscribed(count).await;
        crowd
    }

    /// Sends those who come from now on to these pods.
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

    /// Waits until each has its market's update with this number, and nothing beyond it, and goes.
    pub async fn leave_at(mut self, tops: BTreeMap<u64, u64>) -> Vec<Story> {
        self.tops.send_replace(Some(tops));
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
    async fn live(mut self, mut tops: watch::Receiver<Option<BTreeMap<u64, u64>>>) -> Story {
        loop {
            let mut socket = self.connect().await;
            if !self.subscribe(&mut socket).await {
                continue;
            }
            // A client's patience has no end here: what must not fail to come is waited for by the crowd.
            let bye = loop {
                if self.has_all(tops.borrow().as_ref()) {
                    return self.story;
                }
                tokio::select! {
                    message = socket.recv_patiently() => match message {
                        Some(Message::Update(update)) => self.take(update.market_id, update.seq),
                        Some(Message::Bye(bye)) => break Some(bye),
                        None => break None,
                        other => panic!("updates only, not {other:?}"),
                    },
                    changed = tops.changed() => changed.expect("the crowd lasts longer"),
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
                Err(answer) => {
                    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
                    self.turn += 1;
                    self.story.refusals += 1;
                }
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    /// Whether the pod was there for it.
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
        let top = ack.position(market);
        match self.position {
            None => self.position = Some(top),
            Some(here) => assert!(
                top.recovered == Some(true) && top.epoch == here.epoch && top.seq >= here.seq,
                "{top:?} after {here:?}"
            ),
        }
        // Nobody listens any more once all is over.
        let _ = self.shared.subscribed.send(());
        true
    }

    fn take(&mut self, market: u64, seq: u64) {
        let here = self.position.as_mut().expect("it has subscribed");
        assert_eq!((market, seq), (self.market, here.seq + 1), "after {here:?}");
        here.seq = seq;
    }

    fn has_all(&self, tops: Option<&BTreeMap<u64, u64>>) -> bool {
        let (Some(tops), Some(here)) = (tops, self.position) else { return false };
        assert!(here.seq <= tops[&self.market], "nothing beyond what was published");
        here.seq == tops[&self.market]
    }
}
