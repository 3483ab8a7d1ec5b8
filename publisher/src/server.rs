//! Starts and ends a publisher: its listeners, its background tasks, and its drain.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use backbone::{Backbone, RedisBackbone};
use service::{
    http::{
        ops,
        serve::{Limits, serve},
    },
    redis_settings, rotation,
    settings::Stop,
    signals::Signals,
    telemetry,
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use crate::{
    archive::Archive, export::AuditCopy, http, metrics, ops::Publishing, settings::Settings, state::Admin,
};

/// Serves until a signal ends the publisher. Returns the exit code.
///
/// # Errors
/// [`Stop`] if `REDIS_URL` or the certificates cannot be used.
pub fn run(settings: Settings) -> Result<ExitCode, Stop> {
    let redis = redis_settings::backbone(&settings.redis, settings.retention)?;
    telemetry::init_logs(settings.log_format);
    let served = tokio::runtime::Runtime::new()
        .context("threads")
        .and_then(|runtime| runtime.block_on(serve_until_signal(settings, redis)));
    Ok(match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

async fn serve_until_signal(settings: Settings, redis: RedisBackbone) -> anyhow::Result<()> {
    let metrics = telemetry::init_metrics().context("metrics")?;
    metrics::describe();
    let _traces =
        telemetry::traces::init_traces("kmarket-publisher", metrics::TRACE_SPANS, settings.traces.as_ref());
    let redis = Arc::new(redis.with_min_replicas(settings.min_replicas));
    tokio::spawn(Arc::clone(&redis).remember_others());
    let copy = settings.database.map(|database| AuditCopy::new(Arc::clone(&redis), Archive::new(database)));
    copy.clone().map(|copy| tokio::spawn(copy.export()));
    let backbone: Arc<dyn Backbone> = redis;
    // Before the listeners open: without a handler, a signal would end the process at once.
    let mut signals = Signals::listen().context("signals")?;
    rotation::follow(settings.secret_files).context("signals")?;
    let api =
        TcpListener::bind(settings.listen).await.with_context(|| format!("LISTEN {}", settings.listen))?;
    let operators_listener = TcpListener::bind(settings.ops_listen)
        .await
        .with_context(|| format!("OPS_LISTEN {}", settings.ops_listen))?;
    tracing::info!(listener = "api", address = %api.local_addr()?, "listening");
    tracing::info!(listener = "ops", address = %operators_listener.local_addr()?, "listening");

    let (drain, mut draining) = watch::channel(false);
    tokio::spawn(ops::upkeep(metrics.clone()));
    // The operators' listener closes last, so that operators can watch the drain.
    let (drained, after_drain) = oneshot::channel::<()>();
    let readiness = Publishing { backbone: Arc::clone(&backbone), draining: draining.clone() };
    let operators = ops::router(Arc::new(readiness), metrics, &[]);
    let operators = tokio::spawn(serve(operators_listener, operators, Limits::default(), async {
        _ = after_drain.await;
    }));
    let admin = http::service(Admin { backbone, copy, keys: settings.keys });
    let until_draining = async move { _ = draining.wait_for(|draining| *draining).await };
    let serving = async {
        serve(api, admin, Limits::default(), until_draining).await;
        drop(drained);
        operators.await.context("ops listener")
    };
    let stopping = async {
        signals.next().await;
        tracing::info!(
            "draining: requests in flight are answered, further ones refused; a second signal ends at once"
        );
        drain.send_replace(true);
        signals.next().await;
    };
    tokio::select! {
        served = serving => {
            served?;
            tracing::info!("drained");
        }
        () = stopping => tracing::warn!("second signal: ending at once"),
    }
    Ok(())
}
