//! A desk that does not give up.

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

/// Between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Sends overrides with an idempotency key each until they are accepted, and remembers what was.
#[derive(Debug)]
pub struct Desk {
    admins: Vec<Admin>,
    /// Whose turn it is.
    turn: usize,
    sent: u64,
    accepted: Vec<(u64, (u64, u64), String)>,
    last: BTreeMap<u64, (u64, u64)>,
}

impl Desk {
    /// At this publisher; the only desk of its markets.
    #[must_use]
    pub fn new(admin: Admin) -> Self {
        Self::at(vec![admin])
    }

    /// At these publishers in turn.
    #[must_use]
    pub fn at(admins: Vec<Admin>) -> Self {
        Self { admins, turn: 0, sent: 0, accepted: Vec::new(), last: BTreeMap::new() }
    }

    /// Publishes an update of its own kind. The market's seq goes up by one, come what may; when history was lost, to
    /// above all that was accepted.
    pub async fn publish(&mut self, market: u64) -> Accepted {
        within("an accepted override", self.persist(market)).await
    }

    /// The same, however long it takes.
    pub async fn persist(&mut self, market: u64) -> Accepted {
        self.sent += 1;
        let (key, payload) = (format!("desk-{}", self.sent), numbered(self.sent));
        let body = override_body(market, &payload);
        let accepted: Accepted = loop {
            self.turn = (self.turn + 1) % self.admins.len();
            match self.admins[self.turn].try_send_with_key(&key, &body).await {
                Some(answer) if answer.status == 200 => break answer.ok(),
                Some(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
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

    /// The last override again, with the same key: the first answer again, and nothing is appended.
    pub async fn expect_last_is_replayed(&mut self, market: u64) {
        let (key, body) = (format!("desk-{}", self.sent), override_body(market, &numbered(self.sent)));
        for admin in &self.admins {
            let answer = eventually("the first answer", async || {
                let answer = admin.try_send_with_key(&key, &body).await?;
                (answer.status != 503).then_some(answer)
            })
            .await;
            assert_eq!(answer.header("idempotent-replayed"), Some("true"), "{answer:?}");
            let accepted: Accepted = answer.ok();
            assert_eq!((accepted.epoch, accepted.seq), self.last[&market]);
        }
    }

    /// Publishes `count` updates, one after the other.
    pub async fn publish_many(&mut self, market: u64, count: usize) {
        for _ in 0..count {
            self.publish(market).await;
        }
    }

    /// Panics unless the market's log has everything that was accepted in this epoch and later ones, and nothing twice.
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
