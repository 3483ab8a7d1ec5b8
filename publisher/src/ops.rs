//! The operators' listener: whether the publisher is ready (`docs/operations.md#health`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use backbone::Backbone;
use service::{
    http::ops::{self, Readiness},
    settings::Setting,
};
use tokio::{sync::watch, time::timeout};

/// The listener of `/livez`, `/readyz` and `/metrics`.
pub(crate) const OPS_LISTEN: Setting<SocketAddr> =
    ops::OPS_LISTEN.with("127.0.0.1:9181", ops::OPS_LISTEN.row().help);
/// How long the backbone may take to reply to a ping before the publisher is not ready.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Ready while the backbone replies and the publisher does not drain.
pub(crate) struct Publishing {
    pub(crate) backbone: Arc<dyn Backbone>,
    /// True after SIGTERM.
    pub(crate) draining: watch::Receiver<bool>,
}

#[async_trait]
impl Readiness for Publishing {
    async fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if *self.draining.borrow() {
            reasons.push(ops::DRAINING.to_owned());
        }
        match timeout(PING_TIMEOUT, self.backbone.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => reasons.push(format!("{}: {error}", ops::BACKBONE_UNREACHABLE)),
            Err(_) => reasons.push(format!("{}: no answer to a ping", ops::BACKBONE_UNREACHABLE)),
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use backbone::{
        MemoryBackbone, Retention,
        failing::{FailingBackbone, Failure},
    };

    use super::*;

    async fn reasons(backbone: impl Backbone, draining: bool) -> Vec<String> {
        Publishing { backbone: Arc::new(backbone), draining: watch::channel(draining).1 }.reasons().await
    }

    #[tokio::test]
    async fn ready_while_the_backbone_replies_and_nothing_drains() {
        assert!(reasons(MemoryBackbone::new(Retention::default()), false).await.is_empty());
        assert_eq!(reasons(MemoryBackbone::new(Retention::default()), true).await, ["DRAINING"]);
    }

    #[tokio::test(start_paused = true)]
    async fn not_ready_while_the_backbone_is_silent_or_refuses() {
        let started = tokio::time::Instant::now();
        assert_eq!(
            reasons(FailingBackbone(Failure::NoReply), false).await,
            ["BACKBONE_UNREACHABLE: no answer to a ping"]
        );
        assert_eq!(started.elapsed(), PING_TIMEOUT);
        let both = reasons(FailingBackbone(Failure::ConnectionRefused), true).await;
        assert!(both.len() == 2 && both[1].starts_with("BACKBONE_UNREACHABLE: redis: "), "{both:?}");
    }
}
