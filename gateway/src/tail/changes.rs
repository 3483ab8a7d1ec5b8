//! Listens for changes and marks the markets.

use std::sync::Arc;

use backbone::{ChangeListener, Changes};

use super::health::{Health, Source};
use crate::{markets::Markets, metrics as names};

pub(super) async fn run(markets: Arc<Markets>, mut listener: Box<dyn ChangeListener>, health: Arc<Health>) {
    loop {
        match listener.wait().await {
            Ok(Changes::Markets(ids)) => {
                metrics::counter!(names::TAIL_RUNG).increment(ids.len() as u64);
                markets.work.mark_changed(ids);
            }
            Ok(Changes::All) => {
                metrics::counter!(names::TAIL_CONNECTS).increment(1);
                health.succeeded(Source::ChangeListener);
                markets.doubt_all();
            }
            Err(error) => health.failed(Source::ChangeListener, &error),
        }
    }
}
