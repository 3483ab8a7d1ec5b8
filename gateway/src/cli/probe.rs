//! `gateway probe`

use std::process::ExitCode;

use shared::{
    cli::probe,
    settings::{Stop, variable},
};

use super::block_on;
use crate::settings::Settings;

pub(super) fn run(args: impl Iterator<Item = String>) -> Result<ExitCode, Stop> {
    let settings = Settings::read(args, variable)?;
    Ok(block_on(probe::report("gateway", settings.ops_listen)))
}
