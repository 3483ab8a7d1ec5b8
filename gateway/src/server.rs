//! Puts one gateway together from its settings, and runs it.

use std::{
    io,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use axum::Router;
use backbone::{Backbone, RedisBackbone, Retention};
use metrics_exporter_prometheus::PrometheusHandle;
use service::{
    http::{
        ops,
        serve::{Limits, serve},
    },
    rotation,
    signals::Signals,
    telemetry,
};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    access::Access,
    board, drain,
    file_budget::FileBudget,
    http,
    limits::ConnectionPermits,
    listen::listen,
    listing::Listing,
    log::Bound,
    markets::Markets,
    metrics as names,
    ops::Serving,
    session::Rules,
    settings::Settings,
    shard::{self, ShardSettings, Stats},
    standalone::{self, Demo},
    state::Gateway,
    tail::{self, Health, TailSettings},
    tokens::Tokens,
    upkeep,
    watchers::Watcher,
};

/// The most bytes of encoded frames per market, whatever `HISTORY_LEN` allows: about 1000 updates of 4 KiB.
const MARKET_BYTES: usize = 4 * 1024 * 1024;
/// How long the listeners wait for the backbone at start.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// The time from a client's request to the end of its response.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// The time that requests in flight have once all sockets are closed.
const REQUEST_DRAIN: Duration = Duration::from_secs(1);
/// The time that the listeners have to end.
const LISTENER_DRAIN: Duration = Duration::from_secs(2);

/// Serves until a signal ends the gateway.
#[must_use]
pub fn run(settings: Settings) -> ExitCode {
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

async fn serve_until_signal(mut settings: Settings) -> anyhow::Result<()> {
    let metrics = telemetry::init_metrics().context("metrics")?;
    names::describe();
    let _traces =
        telemetry::traces::init_traces("kmarket-gateway", names::TRACE_SPANS, settings.traces.as_ref());
    let signals = Signals::listen().context("signals")?;
    let is_embedded = settings.redis.is_none();
    let retention = Retention { history_len: settings.logs.history_len, ..Retention::default() };
    let (backbone, mut more): (Arc<dyn Backbone>, Router) = match &settings.redis {
        None => standalone::embed(&settings.standalone, retention),
        Some(config) => {
            (Arc::new(RedisBackbone::new(config, retention).context("REDIS_URL")?), Router::new())
        }
    };
    rotation::follow(std::mem::take(&mut settings.secret_files)).context("signals")?;
    if settings.board {
        more = more.merge(board::router(is_embedded));
    }
    let demo = settings.standalone.demo.then(Demo::default);
    if let Some(demo) = &demo {
        // Before the first client can connect.
        demo.open(&backbone).await;
    }
    let files = settings.files.budget();
    #[expect(clippy::cast_precision_loss, reason = "an open-file limit is far below 2^52")]
    ::metrics::gauge!(names::MAX_CONNECTIONS).set(files.sockets as f64);
    let mut running = Running::start(&settings, files, Arc::clone(&backbone))?;
    // A client that connects at once should find a pod that is ready. A pod that cannot be ready responds with 503.
    let _ = tokio::time::timeout(START_PATIENCE, running.gateway.health.started()).await;
    let address = running.listen(&settings, files, more, metrics)?;
    if is_embedded {
        standalone::introduce(&settings.standalone, address, settings.board, settings.log_format);
    }
    if let Some(demo) = demo {
        tokio::spawn(demo.run(backbone));
    }
    drain::run(signals, settings.drain, running.drain(settings.drain)).await;
    Ok(())
}

/// A gateway that runs.
struct Running {
    gateway: Arc<Gateway>,
    shards: Vec<JoinHandle<()>>,
    /// Ends the listeners.
    stop: watch::Sender<bool>,
    /// The listeners, the tail and the upkeep. Dropping the set ends them.
    tasks: JoinSet<()>,
}

impl Running {
    /// Starts everything behind the listeners: the shards' threads, and the tasks that follow the backbone.
    ///
    /// # Errors
    /// When the kernel has no more threads or descriptors.
    fn start(settings: &Settings, files: FileBudget, backbone: Arc<dyn Backbone>) -> io::Result<Self> {
        let Settings { logs, tail, .. } = settings;
        let bound = Bound { updates: logs.history_len.max(logs.resume_max), bytes: MARKET_BYTES };
        let for_partitions = Arc::clone(&backbone);
        let partition = move |id| for_partitions.partition(id);
        let markets = Markets::new(bound, settings.shards.workers, Box::new(partition));
        let stats = Arc::new(Stats::default());
        let tokens = Arc::new(Tokens::new(settings.keys.clone()));
        let shard_settings = Arc::new(shard_settings(settings, Arc::clone(&tokens)));
        let (shards, threads): (Vec<_>, Vec<_>) = (0..settings.shards.workers)
            .map(|index| {
                shard::start(index, Arc::clone(&shard_settings), Arc::clone(&markets), Arc::clone(&stats))
            })
            .collect::<io::Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        markets.set_watchers(shards.iter().map(|shard| Arc::clone(shard) as Arc<dyn Watcher>).collect());
        let health = Arc::new(Health::new(tail.stale_after));
        let tail_settings = TailSettings { history: logs.resume_max, linger: tail.linger };
        let mut tasks = tail::start(&markets, &backbone, &health, tail_settings);
        let gateway = Arc::new(Gateway {
            backbone,
            markets,
            shards,
            stats,
            permits: ConnectionPermits::new(files.sockets, settings.max_connections_per_user),
            health,
            draining: AtomicBool::new(false),
            tokens,
            access: Access::new(settings.access.clone()),
            listing: Listing::default(),
            next_shard: AtomicUsize::new(0),
        });
        tasks.spawn(follow_revocations(Arc::clone(&gateway)));
        Ok(Self { gateway, shards: threads, stop: watch::Sender::new(false), tasks })
    }

    /// Serves clients and operators. Returns the clients' address. `more` are routes beside the gateway's own.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    fn listen(
        &mut self,
        settings: &Settings,
        files: FileBudget,
        more: Router,
        metrics: PrometheusHandle,
    ) -> io::Result<SocketAddr> {
        let api = listen(settings.listen.api, "api")?;
        let address = api.local_addr()?;
        let operators = listen(settings.listen.ops, "ops")?;
        let limits = Limits {
            header_timeout: settings.listen.handshake_timeout,
            request_timeout: REQUEST_TIMEOUT,
            connections: files.http,
            refusals: files.refusals,
            drain: REQUEST_DRAIN,
        };
        let clients = http::router(Arc::clone(&self.gateway), &settings.cors_origins, more);
        let readiness = Arc::new(Serving(Arc::clone(&self.gateway)));
        let ops_router = ops::router(readiness, metrics.clone(), &names::HISTOGRAMS);
        let until_stopped = || until(self.stop.subscribe());
        self.tasks.spawn(serve(api, clients, limits, until_stopped()));
        self.tasks.spawn(serve(operators, ops_router, Limits::default(), until_stopped()));
        self.tasks.spawn(ops::upkeep(metrics));
        self.tasks.spawn(upkeep::run(Arc::clone(&self.gateway)));
        Ok(address)
    }

    /// Refuses new sockets and closes the open ones over `over`. Returns when all are closed, and the requests in flight
    /// are answered.
    async fn drain(self, over: Duration) {
        let Self { gateway, shards, stop, mut tasks } = self;
        gateway.draining.store(true, Ordering::Relaxed);
        for shard in &gateway.shards {
            shard.drain(over);
        }
        let ended = tokio::task::spawn_blocking(move || {
            for shard in shards {
                // An error means that the shard panicked. Its connections are gone, and the panic is in the log.
                let _ = shard.join();
            }
        });
        let _ = ended.await;
        stop.send_replace(true);
        let _ = tokio::time::timeout(LISTENER_DRAIN, tasks.join_next()).await;
        tasks.shutdown().await;
    }
}

/// Keeps the pod's revocations up to date, and has the shards close connections whose token is revoked.
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
    let Settings { shards, session, logs, .. } = settings;
    ShardSettings {
        rules: Rules { tokens, max_markets: session.max_markets, rate: session.message_rate },
        timing: shards.timing,
        max_message_bytes: shards.max_message_bytes,
        resume_max: logs.resume_max as u64,
        flush_interval: shards.flush_interval,
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
