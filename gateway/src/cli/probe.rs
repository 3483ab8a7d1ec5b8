//! `gateway probe`

use std::process::ExitCode;

use shared::{http::probe, settings::Stop};

use super::variable;
use crate::settings::Settings;

pub(super) fn run(args: impl Iterator<Item = String>) -> Result<ExitCode, Stop> {
    let settings = Settings::read(args, variable)?;
    Ok(match probe::ready(settings.ops_listen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    })
}
