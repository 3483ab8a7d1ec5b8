//! Hears which markets have changed, and queues their reads.

use std::sync::Arc;

use backbone::{ChangeListener, Changes};

use super::health::{Health, Source};
use crate::{markets::Markets, metrics as names};

/// Listens forever.
pub(super) async fn listen(
    markets: Arc<Markets>,
    mut listener: Box<dyn ChangeListener>,
    health: Arc<Health>,
) {
    loop {
        match listener.wait().await {
            Ok(Changes::Markets(ids)) => {
                metrics::counter!(names::TAIL_CHANGED).increment(ids.len() as u64);
                markets.work.mark_changed(ids);
            }
            // Listening began: changes before that went unnoticed, and history may have been lost.
            Ok(Changes::All) => {
                metrics::counter!(names::TAIL_CONNECTS).increment(1);
                health.succeeded(Source::ChangeListener);
                markets.doubt_all();
            }
            Err(error) => health.failed(Source::ChangeListener, &error),
        }
    }
}
