//! How a backbone reports that markets have new updates.

use std::sync::Arc;

use async_trait::async_trait;
use protocol::{ids::MarketId, position::Position};

use crate::BackboneError;

/// Reports which markets changed.
///
/// Reports are hints: one report may stand for several changes, and reports may be lost. The log decides.
#[async_trait]
pub trait ChangeListener: Send {
    /// Waits for the next report. It is [`Changes::All`] each time listening begins at a node.
    ///
    /// An error says that reports may be lost until the next [`Changes::All`]. The listener reconnects by itself, with
    /// a pause between attempts.
    async fn wait(&mut self) -> Result<Changes, BackboneError>;
}

/// One report of a [`ChangeListener`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// These markets have new updates.
    Markets(Vec<MarketId>),
    /// Listening has just begun: any market may have changed before.
    All,
}

/// Returns the markets that are followed now, each with the cursor up to which its log has been read.
pub type Followed = Arc<dyn Fn() -> Vec<(MarketId, Position)> + Send + Sync>;
