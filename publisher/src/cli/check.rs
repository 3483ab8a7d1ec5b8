//! `publisher check`

use std::process::ExitCode;

use shared::{backbone::check::PUBLISHER, cli::check, settings::Stop};

use crate::settings::Serve;

/// Reads the settings as the publisher would, and says what they are.
///
/// # Errors
/// [`Stop`] with the help, or with everything that is wrong.
pub async fn run(
    args: impl Iterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ExitCode, Stop> {
    let (connect, args) = check::take_connect(args);
    let (settings, summary) = Serve::explain(args, env)?;
    let redis = connect.then_some((&settings.redis, PUBLISHER));
    Ok(check::report(&summary, redis).await)
}
