//! `publisher` and its commands.

use std::{env, process::ExitCode, sync::Arc};

use anyhow::Context;
use publisher::{
    archive::Archive,
    auth, cli,
    export::AuditCopy,
    http::{self, Admin},
    metrics,
    ops::Publishing,
    replay,
    settings::{Replay, Serve, Token},
};
use shared::{
    backbone::{Backbone, RedisBackbone, RedisConfig, Retention},
    cli::probe,
    http::{
        ops,
        serve::{Limits, serve},
    },
    rotation,
    settings::{Stop, variable},
    signals::Signals,
    telemetry,
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

const COMMANDS: [&str; 6] = ["probe", "check", "token", "inspect", "override", "replay"];

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = env::args().skip(1).peekable();
    let command = args.next_if(|arg| COMMANDS.contains(&arg.as_str()));
    let done = match command.as_deref() {
        Some("check") => cli::check::run(args, variable).await.map_err(Into::into),
        Some("token") => run_token(args),
        Some("inspect") => cli::inspect::run(args, variable).map_err(Into::into),
        Some("override") => cli::send::run(args, variable).await.map_err(Into::into),
        Some("probe") => run_probe(args).await,
        Some(_) => run_replay(args).await,
        None => run_server(args).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<Stop>() {
            Some(stop) => shared::cli::stop(stop),
            None => {
                eprintln!("publisher: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

async fn run_server(args: impl Iterator<Item = String>) -> anyhow::Result<ExitCode> {
    let settings = Serve::read(args, variable)?;
    telemetry::init_logs(settings.log_format);
    let metrics = telemetry::init_metrics().context("metrics")?;
    metrics::describe();
    let _traces =
        telemetry::traces::init_traces("kmarket-publisher", metrics::TRACE_SPANS, settings.traces.as_ref());
    let redis = connect(&settings.redis, settings.retention, settings.min_replicas)?;
    tokio::spawn(Arc::clone(&redis).remember_others());
    let copy = settings.database.map(|database| AuditCopy::new(Arc::clone(&redis), Archive::new(database)));
    copy.clone().map(|copy| tokio::spawn(copy.keep()));
    let backbone: Arc<dyn Backbone> = redis;
    // Before anybody can know that this runs: a signal that comes first would end it on the spot.
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
    // The operators' listener outlives the other one, so that a drain can be watched.
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
    Ok(ExitCode::SUCCESS)
}

fn run_token(args: impl Iterator<Item = String>) -> anyhow::Result<ExitCode> {
    let Token { keys, sub, role, ttl } = Token::read(args, variable)?;
    println!("{}", auth::mint(&keys, &sub, role, ttl));
    Ok(ExitCode::SUCCESS)
}

async fn run_probe(args: impl Iterator<Item = String>) -> anyhow::Result<ExitCode> {
    Ok(probe::report("publisher", Serve::read(args, variable)?.ops_listen).await)
}

async fn run_replay(args: impl Iterator<Item = String>) -> anyhow::Result<ExitCode> {
    let settings = Replay::read(args, variable)?;
    telemetry::init_logs(settings.log_format);
    let backbone = connect(&settings.redis, settings.retention, 0)?;
    let mut signals = Signals::listen().context("signals")?;
    let file = settings.options.file.display();
    let summary =
        replay::run(&*backbone, &settings.options, signals.next()).await.with_context(|| file.to_string())?;
    println!("{summary}");
    Ok(ExitCode::SUCCESS)
}

/// Does not wait for Redis: readiness does.
fn connect(
    config: &RedisConfig,
    retention: Retention,
    min_replicas: usize,
) -> anyhow::Result<Arc<RedisBackbone>> {
    let backbone = RedisBackbone::new(config, retention)
        .map_err(|error| Stop::Problems(vec![format!("REDIS_URL: {error}")]))?;
    Ok(Arc::new(backbone.with_min_replicas(min_replicas)))
}
