//! `gateway check`

use std::process::ExitCode;

use shared::{
    backbone::check::GATEWAY,
    cli::check,
    settings::{Stop, variable},
};

use super::block_on;
use crate::settings::Settings;

pub(super) fn run(args: impl Iterator<Item = String>) -> Result<ExitCode, Stop> {
    let (connect, args) = check::take_connect(args);
    let (settings, summary) = Settings::explain(args, variable)?;
    let redis = settings.redis.as_ref().filter(|_| connect).map(|config| (config, GATEWAY));
    Ok(block_on(check::report(&summary, redis)))
}
