//! Reads the states of markets: to list them ([`list`]), and to suspend or open them ([`set_status`]).

mod listing;
mod set_status;
mod status_request;

use std::time::Duration;

use backbone::{Backbone, BackboneError};
use protocol::{MarketId, update::MarketState};
use tokio::time::timeout;

pub(crate) use self::{
    listing::{InvalidMarketsQuery, MarketsPage, MarketsQuery, list},
    set_status::{StatusNotSet, StatusSet, set_status},
    status_request::{InvalidStatus, MAX_STATUS_BYTES, Status, StatusRequest},
};

/// How long the backbone may take to reply to a read.
const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// Why markets cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MarketsError {
    #[error("the backbone did not reply in time")]
    TimedOut,
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// A publisher of another version, or another program, wrote the state.
    #[error("a market's state is not JSON: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Returns each market's state. A market that cannot be read is `None` and logged: it neither hides the other markets
/// nor keeps them from being suspended.
///
/// # Errors
/// [`MarketsError`] if the backbone cannot be reached.
async fn load(backbone: &dyn Backbone, ids: &[MarketId]) -> Result<Vec<Option<MarketState>>, MarketsError> {
    let concerns_one_market =
        |error: &MarketsError| matches!(error, MarketsError::Backbone(error) if !error.is_outage());
    match in_time(backbone.load(ids, 0)).await {
        Ok(loaded) => return Ok(loaded.into_iter().map(|loaded| Some(loaded.state)).collect()),
        Err(error) if concerns_one_market(&error) => {}
        Err(error) => return Err(error),
    }
    let mut states = Vec::with_capacity(ids.len());
    for &id in ids {
        states.push(match in_time(backbone.load(&[id], 0)).await {
            Ok(mut loaded) => loaded.pop().map(|loaded| loaded.state),
            Err(error) if concerns_one_market(&error) => {
                tracing::error!(market = %id, %error, "a market cannot be read");
                None
            }
            Err(error) => return Err(error),
        });
    }
    Ok(states)
}

async fn in_time<T>(read: impl Future<Output = Result<T, BackboneError>>) -> Result<T, MarketsError> {
    Ok(timeout(READ_TIMEOUT, read).await.map_err(|_| MarketsError::TimedOut)??)
}
