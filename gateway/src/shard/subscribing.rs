//! Begins deliveries. Subscribe and resume, live and replay take the same path, keyed by position.

use protocol::{
    MarketId,
    server_message::{Ack, Subscribed},
};

use super::Shard;
use crate::{
    market::{Begin, Start, Wanted},
    metrics as names,
    session::Subscribe,
};

impl Shard {
    /// Begins the deliveries that connection `key` waits for, once all its markets are loaded. Returns whether it did.
    pub(super) fn try_subscribe(&mut self, key: usize) -> bool {
        let Some(mut waiting) =
            self.connections.get_mut(key).and_then(|connection| connection.waiting.take())
        else {
            return false;
        };
        let mut begins = Vec::with_capacity(waiting.subscribe.wanted.len());
        let mut missing = Vec::new();
        for wanted in &mut waiting.subscribe.wanted {
            match self.begin(key, wanted) {
                Some(begin) => begins.push(begin),
                None => missing.push(wanted.market),
            }
        }
        if missing.is_empty() {
            self.subscribe(key, waiting.subscribe, begins);
            return true;
        }
        for market in missing {
            self.subscriptions.wait(key, market);
        }
        self.connections[key].waiting = Some(waiting);
        self.schedule(key);
        false
    }

    fn begin(&mut self, key: usize, wanted: &mut Wanted) -> Option<Begin> {
        let market = self.subscriptions.open(wanted.market);
        match self.subscriptions.cursor(key, wanted.market) {
            Some(cursor) if wanted.start == Start::Live => {
                Some(Begin { cursor, latest: cursor, snapshot: None, generation: 0 })
            }
            _ => market.begin(wanted, self.settings.resume_max),
        }
    }

    fn subscribe(&mut self, key: usize, subscribe: Subscribe, begins: Vec<Begin>) {
        let Subscribe { id, resume, wanted, rejected } = subscribe;
        let mut subscribed = Vec::with_capacity(wanted.len());
        for (wanted, begin) in wanted.into_iter().zip(begins) {
            let market = wanted.market;
            if wanted.start != Start::Live || self.subscriptions.cursor(key, market).is_none() {
                self.subscriptions.subscribe(key, market, begin);
            }
            self.subscriptions.stop_waiting(key, market);
            let recovered = resume.then_some(begin.snapshot.is_none());
            if let Some(recovered) = recovered {
                let outcome = if recovered { "recovered" } else { "reset" };
                metrics::counter!(names::RESUMES, "outcome" => outcome).increment(1);
            }
            subscribed.push(Subscribed { market, position: begin.latest, recovered });
        }
        self.ack(key, &Ack { id, subscribed, rejected, with_positions: true, unsubscribed: None });
    }

    /// Looks at a market that has something new. Returns the connections whose requests waited for it and are done.
    pub(super) fn changed(&mut self, market: MarketId) -> Vec<usize> {
        let Self { subscriptions, connections, write_queue, .. } = self;
        let waiters = subscriptions.look(market, |key| write_queue.push(connections, key));
        let done = waiters.into_iter().filter(|&key| self.try_subscribe(key)).collect();
        self.subscriptions.close_unused(market);
        done
    }
}
