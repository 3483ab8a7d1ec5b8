//! A backbone whose calls all fail, for tests of other crates.

use std::io;

use async_trait::async_trait;
use protocol::{MarketId, Position, Seq};

use crate::{
    Append, AppendError, Appended, AuditEntry, AuditId, Backbone, BackboneError, ChangeListener, Followed,
    Loaded, LogPage, Revocation, Revocations, RevokeError, Revoked, StreamId, Tails,
};

/// Fails every call in the same way.
#[derive(Clone, Copy, Debug)]
pub struct FailingBackbone(pub Failure);

/// How every call fails.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The call never returns.
    NoReply,
    /// The connection is refused.
    ConnectionRefused,
    /// The connection is lost after the command was sent.
    ConnectionLost,
}

impl FailingBackbone {
    async fn fail<T>(self) -> Result<T, BackboneError> {
        let kind = match self.0 {
            Failure::NoReply => std::future::pending().await,
            Failure::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            Failure::ConnectionLost => io::ErrorKind::BrokenPipe,
        };
        Err(BackboneError::Redis(io::Error::from(kind).into()))
    }
}

#[async_trait]
impl Backbone for FailingBackbone {
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
        let mut results = Vec::new();
        for _ in appends {
            results.push(self.fail().await.map_err(AppendError::from));
        }
        results
    }

    async fn read_after(&self, _: MarketId, _: Seq, _: usize) -> Result<LogPage, BackboneError> {
        self.fail().await
    }

    async fn load(&self, _: &[MarketId], _: usize) -> Result<Vec<Loaded>, BackboneError> {
        self.fail().await
    }

    fn partition(&self, _: MarketId) -> usize {
        0
    }

    async fn read_tails(&self, _: &[(MarketId, Position)], _: usize) -> Result<Tails, BackboneError> {
        self.fail().await
    }

    async fn latest_positions(&self, _: &[MarketId]) -> Result<Vec<Position>, BackboneError> {
        self.fail().await
    }

    async fn markets(&self) -> Result<Vec<MarketId>, BackboneError> {
        self.fail().await
    }

    async fn audit(
        &self,
        _: MarketId,
        _: Option<AuditId>,
        _: usize,
    ) -> Result<Vec<AuditEntry>, BackboneError> {
        self.fail().await
    }

    async fn revoke(&self, _: Revoked, _: &str) -> Result<Revocation, RevokeError> {
        self.fail().await.map_err(RevokeError::from)
    }

    async fn revocations(&self, _: StreamId) -> Result<Option<Revocations>, BackboneError> {
        self.fail().await
    }

    fn change_listener(&self, _: Followed) -> Box<dyn ChangeListener> {
        panic!("a failing backbone has no change listener")
    }

    async fn ping(&self) -> Result<(), BackboneError> {
        self.fail().await
    }
}
