//! A desk that does not give up.

use std::collections::BTreeMap;

use crate::{
    admin::{Accepted, Admin, numbered, override_body},
    wait::eventually,
};

/// Sends overrides with an idempotency key each until they are accepted, and remembers what was.
#[derive(Debug)]
pub struct Desk {
    admin: Admin,
    sent: u64,
    accepted: Vec<(u64, (u64, u64), String)>,
    last: BTreeMap<u64, (u64, u64)>,
}

impl Desk {
    /// At this publisher; the only one of its markets.
    #[must_use]
    pub fn new(admin: Admin) -> Self {
        Self { admin, sent: 0, accepted: Vec::new(), last: BTreeMap::new() }
    }

    /// Publishes an update of its own kind. The market's seq goes up by one, come what may.
    pub async fn publish(&mut self, market: u64) -> Accepted {
        self.sent += 1;
        let (key, payload) = (format!("desk-{}", self.sent), numbered(self.sent));
        let body = override_body(market, &payload);
        let accepted = eventually("an accepted override", async || {
            let answer = self.admin.send_with_key(&key, &body).await;
            match answer.status {
                200 => Some(answer.ok::<Accepted>()),
                503 => None,
                _ => panic!("200 or 503, not {answer:?}"),
            }
        })
        .await;
        let (epoch, seq) = self.last.get(&market).copied().unwrap_or_default();
        assert!(accepted.epoch >= epoch && accepted.seq == seq + 1, "{accepted:?} after {epoch}-{seq}");
        let position = (accepted.epoch, accepted.seq);
        self.last.insert(market, position);
        self.accepted.push((market, position, payload));
        accepted
    }

    /// Publishes `count` updates, one after the other.
    pub async fn publish_many(&mut self, market: u64, count: usize) {
        for _ in 0..count {
            self.publish(market).await;
        }
    }

    /// Market, epoch and seq, and payload of all that was accepted.
    #[must_use]
    pub fn accepted(&self) -> &[(u64, (u64, u64), String)] {
        &self.accepted
    }

    /// Epoch and seq of each market's last update.
    #[must_use]
    pub fn last(&self) -> &BTreeMap<u64, (u64, u64)> {
        &self.last
    }
}
