//! Listens for changes and marks the markets.

use std::sync::Arc;

use backbone::{Doorbell, Ring};

use super::health::{Health, Part};
use crate::{market::Markets, metrics as names};

pub(super) async fn run(markets: Arc<Markets>, mut doorbell: Box<dyn Doorbell>, health: Arc<Health>) {
    loop {
        match doorbell.wait().await {
            Ok(Ring::Markets(ids)) => {
                metrics::counter!(names::TAIL_RUNG).increment(ids.len() as u64);
                markets.mark(ids);
            }
            Ok(Ring::All) => {
                metrics::counter!(names::TAIL_CONNECTS).increment(1);
                health.succeeded(Part::Doorbell);
                markets.doubt_all();
            }
            Err(error) => health.failed(Part::Doorbell, &error),
        }
    }
}
