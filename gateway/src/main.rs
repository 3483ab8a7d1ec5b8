//! `gateway`: one pod, or without `REDIS_URL` the whole system.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use axum::Router;
use gateway::{drain, metrics as names, server, settings::Settings, standalone};
use shared::{
    backbone::{Backbone, RedisBackbone, Retention},
    http::probe,
    rotation,
    settings::Stop,
    signals::Signals,
    telemetry,
};

/// Gives memory back within seconds after a crowd has left, which glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    let probe = args.next_if_eq("probe").is_some();
    match Settings::read(args, |name| std::env::var(name).ok()) {
        Ok(settings) if probe => match probe::ready(settings.ops_listen) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("gateway: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(settings) => match run_to_end(&settings) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            }
        },
        Err(Stop::Help(help)) => {
            println!("{help}");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::from(2)
        }
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
    let (backbone, admin): (Arc<dyn Backbone>, Router) = match &settings.redis {
        None => standalone::embed(settings),
        Some(config) => {
            let retention = Retention { history_len: settings.history_len, ..Retention::default() };
            (Arc::new(RedisBackbone::new(config, retention).context("REDIS_URL")?), Router::new())
        }
    };
    rotation::follow(settings.secret_files.clone()).context("signals")?;
    let running = server::start(settings, Arc::clone(&backbone), admin, metrics).await?;
    if settings.redis.is_none() {
        standalone::introduce(&settings.admin_keys);
    }
    if settings.demo {
        tokio::spawn(standalone::demo(backbone));
    }
    drain::run(running, signals, settings.drain).await;
    Ok(())
}
