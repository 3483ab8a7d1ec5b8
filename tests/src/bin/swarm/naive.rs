//! The baseline that one would write otherwise: axum's WebSocket, a task a socket, and a broadcast channel between.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::response::{Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::sleep;

use crate::baseline::{RUN, Run, ack, announce, subscribed, update};
use crate::clock::now_us;
use crate::http::runtime;

/// Serves until the process ends.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn serve() -> Result<()> {
    runtime()?.block_on(async {
        let feed = Arc::new(Feed {
            market: AtomicU64::new(0),
            seq: AtomicU64::new(0),
            updates: broadcast::channel(KEPT).0,
        });
        let routes = Router::new().route("/ws/odds", get(upgrade)).route(RUN, get(run)).with_state(feed);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        announce(listener.local_addr()?);
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| _ = stream.set_nodelay(true));
        axum::serve(listener, routes).await.context("serving")
    })
}

/// Updates that a socket may be behind before it loses some.
const KEPT: usize = 1024;

/// One market's updates.
struct Feed {
    market: AtomicU64,
    seq: AtomicU64,
    updates: broadcast::Sender<Utf8Bytes>,
}

async fn upgrade(upgrade: WebSocketUpgrade, State(feed): State<Arc<Feed>>) -> Response {
    upgrade.on_upgrade(move |socket| deliver(socket, feed))
}

async fn deliver(mut socket: WebSocket, feed: Arc<Feed>) {
    let Some(Ok(Message::Text(text))) = socket.recv().await else { return };
    let Some(&[market]) = subscribed(text.as_bytes()).as_deref() else { return };
    feed.market.store(market, Ordering::Relaxed);
    let mut updates = feed.updates.subscribe();
    let ack = ack(&[(market, feed.seq.load(Ordering::Relaxed))]);
    if socket.send(Message::Text(ack.into())).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Ok(update) => if socket.send(Message::Text(update)).await.is_err() { return },
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
        }
    }
}

async fn run(Query(run): Query<Run>, State(feed): State<Arc<Feed>>) -> Json<HashMap<u64, u64>> {
    let market = feed.market.load(Ordering::Relaxed);
    for (due_us, payload) in run.due() {
        sleep(Duration::from_micros(due_us.saturating_sub(now_us()))).await;
        let seq = feed.seq.fetch_add(1, Ordering::Relaxed) + 1;
        // Fails when nobody is there.
        let _ = feed.updates.send(update(market, seq, &payload).into());
    }
    Json(HashMap::from([(market, feed.seq.load(Ordering::Relaxed))]))
}
