//! Whether the gateway can serve clients, as `GET /readyz` reports it (docs/operations.md#health).

use std::sync::{Arc, atomic::Ordering};

use async_trait::async_trait;
use service::http::ops::{self, Readiness};

use crate::state::Gateway;

/// A gateway is ready while its prices are fresh and nothing drains.
pub struct Serving(pub Arc<Gateway>);

#[async_trait]
impl Readiness for Serving {
    async fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.0.draining.load(Ordering::Relaxed) {
            reasons.push(ops::DRAINING.to_owned());
        }
        if !self.0.health.is_ready() {
            reasons.push(ops::BACKBONE_UNREACHABLE.to_owned());
        }
        reasons
    }
}
