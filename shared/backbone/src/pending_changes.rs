//! Changes that a [`ChangeListener`](crate::ChangeListener) has not reported yet.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use protocol::ids::MarketId;
use tokio::sync::Notify;

use crate::{BackboneError, Changes};

/// Collects changes until the listener takes them. Keeps at most one entry per market, and one error.
#[derive(Debug, Default)]
pub(crate) struct PendingChanges {
    pending: Mutex<Pending>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    all: bool,
    markets: BTreeSet<MarketId>,
    error: Option<BackboneError>,
}

impl PendingChanges {
    /// Adds markets that have new updates.
    pub(crate) fn mark_changed(&self, markets: impl IntoIterator<Item = MarketId>) {
        self.record(|pending| pending.markets.extend(markets));
    }

    /// Notes that any market may have changed.
    pub(crate) fn mark_all_changed(&self) {
        self.record(|pending| pending.all = true);
    }

    /// Notes that changes may have been missed.
    pub(crate) fn fail(&self, error: BackboneError) {
        self.record(|pending| pending.error = Some(error));
    }

    /// Waits for the next report.
    pub(crate) async fn next(&self) -> Result<Changes, BackboneError> {
        loop {
            if let Some(report) = self.take() {
                return report;
            }
            self.notify.notified().await;
        }
    }

    /// Takes everything that is pending, as one report. An error beside changes is dropped: it comes again with the next
    /// attempt to listen.
    fn take(&self) -> Option<Result<Changes, BackboneError>> {
        let pending = std::mem::take(&mut *self.pending());
        if pending.all {
            Some(Ok(Changes::All))
        } else if pending.markets.is_empty() {
            pending.error.map(Err)
        } else {
            Some(Ok(Changes::Markets(pending.markets.into_iter().collect())))
        }
    }

    fn record(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending());
        self.notify.notify_one();
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_before_an_error_and_each_market_once() {
        let pending = PendingChanges::default();
        let market = |id| MarketId::new(id).unwrap();
        let error = || BackboneError::Malformed { key: "k".into(), problem: "p".into() };
        assert!(pending.take().is_none());
        pending.mark_changed([market(2), market(1)]);
        pending.mark_changed([market(2)]);
        pending.fail(error());
        let report = pending.take().unwrap().unwrap();
        assert_eq!(report, Changes::Markets(vec![market(1), market(2)]));
        pending.fail(error());
        assert!(pending.take().unwrap().is_err());
        pending.mark_changed([market(1)]);
        pending.mark_all_changed();
        assert_eq!(pending.take().unwrap().unwrap(), Changes::All);
        assert!(pending.take().is_none());
    }
}
