//! One gateway, put together from its settings.

use std::{
    io,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use axum::Router;
use backbone::{Backbone, RedisBackbone, Retention};
use metrics_exporter_prometheus::PrometheusHandle;
use protocol::{server_message, time::unix_ms};
use service::{
    http::{
        ops::{self, Readiness},
        serve::{Limits, serve},
    },
    rotation,
    signals::Signals,
    telemetry,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    board, drain, frame,
    http::{Gateway, router},
    log::Bound,
    markets::Markets,
    metrics as names,
    session::Rules,
    settings::Settings,
    shard::{self, ShardSettings, Stats, Timing},
    standalone::{self, demo::Demo},
    tail::{self, Health, TailSettings},
    tokens::Tokens,
    watchers::Watcher,
};

/// Encoded frames kept per market, bytes, whatever `HISTORY_LEN` says: about 1000 updates of 4 KiB.
const MARKET_BYTES: usize = 4 * 1024 * 1024;
/// The kernel's queue of connections to accept.
const BACKLOG: i32 = 4096;
/// A client's send buffer in the kernel, bytes: what may be on the way to it at once.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Of these, at most about so many wait there to be sent: what a stalled phone costs, and what a conflated snapshot
/// cannot overtake.
const NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;
/// How long the listeners wait for the backbone at start.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How often slow things are looked at: staleness, gauges.
const TICK: Duration = Duration::from_millis(250);
/// How often rate limits that are whole again are thrown away.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// How long a client may take to take an answer, after its request.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// A gateway that runs.
pub struct Running {
    /// Where clients connect.
    pub address: SocketAddr,
    /// What its handlers stand on.
    pub gateway: Arc<Gateway>,
    shards: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    /// Listeners, tail and ticks; they end with it.
    tasks: JoinSet<()>,
}

/// Serves until a signal ends the gateway.
#[must_use]
pub fn run(settings: &Settings) -> ExitCode {
    telemetry::init_logs(settings.log_format);
    let served = tokio::runtime::Runtime::new().context("threads").and_then(|runtime| {
        let served = runtime.block_on(serve_until_signal(settings));
        // A second signal leaves tasks behind. The process does not wait for them.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve_until_signal(settings: &Settings) -> anyhow::Result<()> {
    let metrics = telemetry::init_metrics().context("metrics")?;
    let _traces =
        telemetry::traces::init_traces("kmarket-gateway", names::TRACE_SPANS, settings.traces.as_ref());
    let signals = Signals::listen().context("signals")?;
    let (backbone, mut more): (Arc<dyn Backbone>, Router) = match &settings.redis {
        None => standalone::embed(settings),
        Some(config) => {
            let retention = Retention { history_len: settings.history_len, ..Retention::default() };
            (Arc::new(RedisBackbone::new(config, retention).context("REDIS_URL")?), Router::new())
        }
    };
    rotation::follow(settings.secret_files.clone()).context("signals")?;
    if settings.board {
        more = more.merge(board::router(settings.redis.is_none()));
    }
    let demo = settings.demo.then(Demo::default);
    if let Some(demo) = &demo {
        // The demo publishes before any client can look.
        demo.open(&backbone).await;
    }
    let running = start(settings, Arc::clone(&backbone), more, metrics).await?;
    if settings.redis.is_none() {
        standalone::introduce(settings, running.address);
    }
    if let Some(demo) = demo {
        tokio::spawn(demo.run(backbone));
    }
    drain::run(signals, settings.drain, running.drain(settings.drain)).await;
    Ok(())
}

/// Starts a gateway over `backbone`, with `more` routes beside its own.
///
/// # Errors
/// When an address cannot be listened on, or the kernel has no more threads or descriptors.
pub async fn start(
    settings: &Settings,
    backbone: Arc<dyn Backbone>,
    more: Router,
    metrics: PrometheusHandle,
) -> io::Result<Running> {
    names::describe();
    let files = settings.file_budget();
    #[expect(clippy::cast_precision_loss, reason = "an open-file limit is far below 2^52")]
    ::metrics::gauge!(names::MAX_CONNECTIONS).set(files.sockets as f64);
    let bound = Bound { updates: settings.history_len.max(settings.resume_max), bytes: MARKET_BYTES };
    let for_parts = Arc::clone(&backbone);
    let markets = Markets::new(bound, settings.workers, Box::new(move |id| for_parts.partition(id)));
    let stats = Arc::new(Stats::default());
    let tokens = Arc::new(Tokens::new(settings.keys.clone()));
    let shard_settings = Arc::new(shard_settings(settings, Arc::clone(&tokens)));
    let (mut handles, mut shards) = (Vec::new(), Vec::new());
    for index in 0..settings.workers {
        let (handle, thread) =
            shard::start(index, Arc::clone(&shard_settings), Arc::clone(&markets), Arc::clone(&stats))?;
        handles.push(handle);
        shards.push(thread);
    }
    markets.set_watchers(handles.iter().map(|handle| Arc::clone(handle) as Arc<dyn Watcher>).collect());
    let health = Arc::new(Health::new(settings.stale_after));
    let tail_settings = TailSettings { history: settings.resume_max, linger: settings.tail_linger };
    let mut tasks = tail::start(&markets, &backbone, &health, tail_settings);
    let gateway = Gateway::new(settings, files.sockets, backbone, markets, tokens, (handles, stats), health);
    tasks.spawn(follow_revocations(Arc::clone(&gateway)));

    // Who connects at once should find a pod that is ready. One that cannot be says so when asked.
    let _ = tokio::time::timeout(START_PATIENCE, gateway.health.started()).await;
    let (stop, stopped) = watch::channel(false);
    let api = listen(settings.listen, "api")?;
    let address = api.local_addr()?;
    let ops = listen(settings.ops_listen, "ops")?;
    let limits = Limits {
        header_timeout: settings.handshake_timeout,
        request_timeout: REQUEST_TIMEOUT,
        connections: files.http,
        refusals: files.refusals,
        drain: Duration::from_secs(1),
    };
    let clients = router(Arc::clone(&gateway), &settings.cors_origins, more);
    tasks.spawn(serve(api, clients, limits, until(stopped.clone())));
    let readiness = Arc::new(Ready(Arc::clone(&gateway)));
    tasks.spawn(serve(
        ops,
        ops::router(readiness, metrics.clone(), &names::HISTOGRAMS),
        Limits::default(),
        until(stopped),
    ));
    tasks.spawn(ops::upkeep(metrics));
    tasks.spawn(tick(Arc::clone(&gateway)));
    Ok(Running { address, gateway, shards, stop, tasks })
}

impl Running {
    /// Refuses new sockets and says goodbye to the open ones, spread over `over`; returns when all are gone, and
    /// the requests in flight are answered.
    pub async fn drain(self, over: Duration) {
        let Self { gateway, shards, stop, mut tasks, .. } = self;
        gateway.draining.store(true, Ordering::Relaxed);
        for shard in &gateway.shards {
            shard.drain(over);
        }
        let ended = tokio::task::spawn_blocking(move || {
            for shard in shards {
                // A shard that panicked has said so; its connections are gone.
                let _ = shard.join();
            }
        });
        let _ = ended.await;
        stop.send_replace(true);
        let _ = tokio::time::timeout(Duration::from_secs(2), tasks.join_next()).await;
        tasks.shutdown().await;
    }
}

/// Keeps the pod's tokens up to date, and the shards, whose sockets are open on some.
async fn follow_revocations(gateway: Arc<Gateway>) {
    let (tokens, backbone, health) =
        (Arc::clone(&gateway.tokens), Arc::clone(&gateway.backbone), Arc::clone(&gateway.health));
    tail::follow_revocations(tokens, backbone, health, || {
        for shard in &gateway.shards {
            shard.review_tokens();
        }
    })
    .await;
}

fn shard_settings(settings: &Settings, tokens: Arc<Tokens>) -> ShardSettings {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    ShardSettings {
        rules: Rules { tokens, max_markets: settings.max_markets, rate: settings.message_rate },
        timing: Timing {
            heartbeat_interval_ms: ms(settings.heartbeat_interval),
            heartbeat_timeout_ms: ms(settings.heartbeat_timeout),
            slow_after_ms: ms(settings.slow_after),
        },
        max_message_bytes: settings.max_message_bytes,
        resume_max: settings.resume_max as u64,
        flush_interval: settings.flush_interval,
    }
}

/// A listener whose connections inherit the send buffer's bounds.
fn listen(address: SocketAddr, name: &str) -> io::Result<TcpListener> {
    let listener = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    let listener = listener()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
    tracing::info!(listener = name, address = %listener.local_addr()?, "listening");
    Ok(listener)
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Tells clients when prices go stale or fresh, and keeps the gauges.
async fn tick(gateway: Arc<Gateway>) {
    let mut ticks = tokio::time::interval(TICK);
    let mut forget_at = tokio::time::Instant::now() + FORGET_EVERY;
    loop {
        let now = ticks.tick().await;
        if let Some((stale, since_ms)) = gateway.health.review() {
            tracing::warn!(stale, since_ms, "clients are told whether prices are fresh");
            let message = frame::text(&server_message::status(stale, ops::BACKBONE_UNREACHABLE, since_ms));
            for shard in &gateway.shards {
                shard.announce(stale, &message);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats; counts stay far below 2^52")]
        let gauge = |name, value: usize| metrics::gauge!(name).set(value as f64);
        gauge(names::CONNECTIONS, gateway.stats.connections.load(Ordering::Relaxed));
        gauge(names::MARKETS, gateway.markets.len());
        gauge(names::REVOCATIONS, gateway.tokens.known().len());
        gauge(names::STALE, usize::from(gateway.health.stale_since().is_some()));
        if now >= forget_at {
            forget_at = now + FORGET_EVERY;
            gateway.forget_old_rates();
            gateway.tokens.forget(unix_ms());
        }
    }
}

struct Ready(Arc<Gateway>);

#[async_trait]
impl Readiness for Ready {
    async fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.0.draining.load(Ordering::Relaxed) {
            reasons.push(ops::DRAINING.to_owned());
        }
        if !self.0.health.is_ready() {
            reasons.push(ops::BACKBONE_UNREACHABLE.to_owned());
        }
        reasons
    }
}
