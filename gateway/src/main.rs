//! `gateway`: one pod, or without `REDIS_URL` the whole system.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use axum::Router;
use gateway::{
    board, cli, drain, metrics as names, server,
    settings::Settings,
    standalone::{self, demo::Demo},
};
use shared::{
    backbone::{Backbone, RedisBackbone, Retention},
    rotation,
    settings::variable,
    signals::Signals,
    telemetry,
};

/// Gives memory back within seconds after a crowd has left, which glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if let Some(code) = cli::run(std::env::args().skip(1)) {
        return code;
    }
    match Settings::read(std::env::args().skip(1), variable) {
        Ok(settings) => match run_to_end(&settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            }
        },
        Err(stop) => shared::cli::stop(&stop),
    }
}

fn run_to_end(settings: &Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("threads")?;
    let ended = runtime.block_on(run(settings));
    // What a second signal left behind is not waited for.
    runtime.shutdown_background();
    ended
}

async fn run(settings: &Settings) -> anyhow::Result<()> {
    telemetry::init_logs(settings.log_format);
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
        // Before anybody can look.
        demo.open(&backbone).await;
    }
    let running = server::start(settings, Arc::clone(&backbone), more, metrics).await?;
    if settings.redis.is_none() {
        standalone::introduce(settings, running.address);
    }
    if let Some(demo) = demo {
        tokio::spawn(demo.run(backbone));
    }
    drain::run(running, signals, settings.drain).await;
    Ok(())
}
