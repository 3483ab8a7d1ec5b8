//! A trading desk that retries until its overrides are accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    admin::{Accepted, Admin, numbered, override_body},
    redis::Redis,
    wait::{eventually, within},
};

/// The pause between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Sends overrides, each with an idempotency key, until they are accepted, and remembers them.
#[derive(Debug)]
pub struct Desk {
    admins: Vec<Admin>,
    /// Counts attempts; chooses the next publisher.
    turn: usize,
    sent: u64,
    accepted: Vec<(u64, (u64, u64), String)>,
    last: BTreeMap<u64, (u64, u64)>,
}

impl Desk {
    /// A desk at this publisher. It must be the only one that overrides its markets.
    #[must_use]
    pub fn new(admin: Admin) -> Self {
        Self::at(vec![admin])
    }

    /// A desk at these publishers in turn.
    #[must_use]
    pub fn at(admins: Vec<Admin>) -> Self {
        Self { admins, turn: 0, sent: 0, accepted: Vec::new(), last: BTreeMap::new() }
    }

    /// Publishes the next update. Panics unless the market's seq goes up by one, or, if history was lost, above every
    /// accepted seq.
    pub async fn publish(&mut self, market: u64) -> Accepted {
        within("an accepted override", self.persist(market)).await
    }

    /// Like [`Self::publish`], but without a deadline.
    pub async fn persist(&mut self, market: u64) -> Accepted {
        self.sent += 1;
        let (key, payload) = (format!("desk-{}", self.sent), numbered(self.sent));
        let body = override_body(market, &payload);
        let accepted: Accepted = loop {
            self.turn = (self.turn + 1) % self.admins.len();
            match self.admins[self.turn].try_send_with_key(&key, &body).await {
                Some(response) if response.status == 200 => break response.ok(),
                Some(response) => assert_eq!(response.status, 503, "{response:?}"),
                None => {}
            }
            sleep(AGAIN_AFTER).await;
        };
        let (epoch, seq) = self.last.get(&market).copied().unwrap_or_default();
        let follows = if accepted.epoch == epoch { accepted.seq == seq + 1 } else { accepted.seq > seq };
        assert!(accepted.epoch >= epoch && follows, "{accepted:?} of {market} after {epoch}-{seq}");
        let position = (accepted.epoch, accepted.seq);
        self.last.insert(market, position);
        self.accepted.push((market, position, payload));
        accepted
    }

    /// Sends the last override again with the same key. Panics unless the response is the first one again.
    pub async fn expect_last_is_replayed(&mut self, market: u64) {
        let (key, body) = (format!("desk-{}", self.sent), override_body(market, &numbered(self.sent)));
        for admin in &self.admins {
            let response = eventually("the first response", async || {
                let response = admin.try_send_with_key(&key, &body).await?;
                (response.status != 503).then_some(response)
            })
            .await;
            assert_eq!(response.header("idempotent-replayed"), Some("true"), "{response:?}");
            let accepted: Accepted = response.ok();
            assert_eq!((accepted.epoch, accepted.seq), self.last[&market]);
        }
    }

    /// Publishes `count` updates one after the other.
    pub async fn publish_many(&mut self, market: u64, count: usize) {
        for _ in 0..count {
            self.publish(market).await;
        }
    }

    /// Panics unless the market's log has every update that was accepted in this or a later epoch, exactly once.
    /// Blocks the thread.
    pub fn expect_all_in(&self, redis: &Redis, market: u64, epoch: u64) {
        let log: Vec<(String, BTreeMap<String, String>)> =
            redis.tell(&format!("XRANGE odds:log:{{{market}}} {epoch} +"));
        let payload = |mut fields: BTreeMap<String, String>| fields.remove("p").expect("every entry has one");
        let log: BTreeMap<String, String> =
            log.into_iter().map(|(id, fields)| (id, payload(fields))).collect();
        let payloads: BTreeSet<&String> = log.values().collect();
        assert_eq!(payloads.len(), log.len(), "an override of {market} is there twice: {log:?}");
        let of_log = |(of, (since, _), _): &&(u64, (u64, u64), String)| *of == market && *since >= epoch;
        for (_, (epoch, seq), payload) in self.accepted.iter().filter(of_log) {
            assert_eq!(log.get(&format!("{epoch}-{seq}")), Some(payload), "{epoch}-{seq} of {market}");
        }
    }

    /// Every accepted update: its market, its epoch and seq, and its payload.
    #[must_use]
    pub fn accepted(&self) -> &[(u64, (u64, u64), String)] {
        &self.accepted
    }

    /// The epoch and seq of each market's last accepted update.
    #[must_use]
    pub fn last(&self) -> &BTreeMap<u64, (u64, u64)> {
        &self.last
    }
}
