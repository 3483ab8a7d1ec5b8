//! The usual design: axum's HTTP, tungstenite's WebSocket, a task per socket, and a broadcast channel between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::HashMap, net::Ipv4Addr, sync::Arc, time::Duration};

use ::tests::raw::ACCEPT;
use anyhow::{Context, Result};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use axum::response::{IntoResponse, Json};
use axum::routing::{get, post};
use axum::{Router, http::StatusCode, serve::ListenerExt};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, on};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::broadcast, sync::broadcast::error::RecvError, time::sleep};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use super::protocol::{RUN, Run, ack, announce, subscribed, update};
use crate::{client::runtime, clock::now_us};

pub(super) fn serve() -> Result<()> {
    runtime()?.block_on(async {
        let feed = Arc::new(Feed {
            market: AtomicU64::new(0),
            seq: AtomicU64::new(0),
            updates: broadcast::channel(KEPT).0,
        });
        let routes = Router::new().route("/ws/odds", get(upgrade)).route(RUN, post(run)).with_state(feed);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        announce(listener.local_addr()?);
        let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
        axum::serve(listener, routes).await.context("serving")
    })
}

/// Updates that a socket may be behind before it loses some.
const KEPT: usize = 1024;

struct Feed {
    market: AtomicU64,
    seq: AtomicU64,
    updates: broadcast::Sender<Utf8Bytes>,
}

/// All clients of this tool send the same key.
async fn upgrade(State(feed): State<Arc<Feed>>, request: Request) -> impl IntoResponse {
    tokio::spawn(deliver(on(request), feed));
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, "websocket"), (SEC_WEBSOCKET_ACCEPT, ACCEPT)];
    (StatusCode::SWITCHING_PROTOCOLS, headers)
}

async fn deliver(upgrade: OnUpgrade, feed: Arc<Feed>) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    let Some(Ok(Message::Text(text))) = socket.next().await else { return };
    let Some(&[market]) = subscribed(text.as_bytes()).as_deref() else { return };
    feed.market.store(market, Ordering::Relaxed);
    let mut updates = feed.updates.subscribe();
    let ack = ack(&[(market, feed.seq.load(Ordering::Relaxed))]);
    if socket.send(Message::text(ack)).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Ok(update) => if socket.send(Message::Text(update)).await.is_err() { return },
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            message = socket.next() => if !matches!(message, Some(Ok(_))) { return },
        }
    }
}

async fn run(State(feed): State<Arc<Feed>>, Json(run): Json<Run>) -> Json<HashMap<u64, u64>> {
    let market = feed.market.load(Ordering::Relaxed);
    for (due_us, payload) in run.due() {
        sleep(Duration::from_micros(due_us.saturating_sub(now_us()))).await;
        let seq = feed.seq.fetch_add(1, Ordering::Relaxed) + 1;
        // Fails without subscribers.
        let _ = feed.updates.send(update(market, seq, &payload).into());
    }
    Json(HashMap::from([(market, feed.seq.load(Ordering::Relaxed))]))
}
