//! Overrides, sent to a publisher in an open or in a closed loop.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{cell::RefCell, collections::BTreeMap, ops::Range, rc::Rc, thread, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::task::LocalSet;

use super::schedule::Schedule;
use crate::client::{Asked, Endpoint, Http, payload, refusal, runtime};
use crate::clock::{as_us, now_us};
use crate::report::{Times, per_second, progress, time};
use crate::{markets::Markets, options::Publisher};

/// The admin API of a publisher, and the markets to override in turn.
#[derive(Clone)]
pub(crate) struct AdminApi {
    pub(crate) endpoint: Endpoint,
    pub(crate) token: Option<String>,
    pub(crate) markets: Markets,
}

impl AdminApi {
    pub(crate) fn new(flags: &Publisher, default: &Endpoint, markets: Markets) -> Self {
        let endpoint = flags.publisher.as_ref().unwrap_or(default).clone();
        Self { endpoint, token: flags.admin_token.clone(), markets }
    }

    pub(crate) fn http(&self) -> Http {
        Http::new(&self.endpoint, self.token.clone())
    }

    /// Publishes one update, to see that address and token are good before there is any load. Fails with a remedy.
    pub(crate) fn try_one(&self) -> Result<()> {
        let response = runtime()?.block_on(self.http().post(OVERRIDE, self.body(0, now_us(), 0)))?;
        let accepted = response.status == 200;
        if accepted { Ok(()) } else { Err(refusal(Asked::Override, &self.endpoint, &response)) }
    }

    /// Sends the overrides with these indices in one request. Returns the `seq` of each or why it was refused, or why
    /// the whole request failed.
    pub(crate) async fn send(
        &self,
        http: &mut Http,
        indices: Range<usize>,
        due_us: u64,
        payload_bytes: usize,
    ) -> Result<Vec<Result<u64, String>>, String> {
        let wanted = indices.len();
        let bodies = indices.map(|index| self.body(index, due_us, payload_bytes));
        let (path, body) = match wanted {
            1 => (OVERRIDE, bodies.collect()),
            _ => ("/admin/odds/batch", format!("[{}]", bodies.collect::<Vec<_>>().join(","))),
        };
        let response = http.post(path, body).await.map_err(|error| format!("{error:#}"))?;
        if response.status != 200 {
            return Err(response.status.to_string());
        }
        let items = match wanted {
            1 => serde_json::from_slice(&response.body).map(|item| vec![item]),
            _ => serde_json::from_slice::<Vec<Item>>(&response.body),
        };
        let items = items.context("200").map_err(|error| format!("{error:#}"))?;
        if items.len() != wanted {
            return Err(format!("{} results for {wanted} overrides", items.len()));
        }
        Ok(items.into_iter().map(Item::result).collect())
    }

    fn body(&self, index: usize, due_us: u64, payload_bytes: usize) -> String {
        let (market, payload) = (self.markets.id(index), payload(due_us, payload_bytes));
        format!(r#"{{"marketId":{market},"payload":{payload},"reason":"swarm"}}"#)
    }
}

const OVERRIDE: &str = "/admin/odds/override";

/// The result of one override: the `seq` of an accepted one or the `code` of a refused one.
#[derive(Deserialize)]
struct Item {
    seq: Option<u64>,
    code: Option<String>,
}

impl Item {
    fn result(self) -> Result<u64, String> {
        self.seq.ok_or(self.code.unwrap_or_default())
    }
}

#[derive(Default)]
pub(crate) struct Sent {
    /// By a schedule.
    pub(crate) wanted: usize,
    pub(crate) took_us: u64,
    pub(crate) accepted: u64,
    /// The others, by response or code.
    failed: BTreeMap<String, u64>,
    /// From request, or from when it was due, to response.
    pub(crate) responses: Times,
    /// From due to sent.
    pub(crate) late: Times,
    /// Left out, because they were still waiting a second after the end of their schedule.
    unsent: u64,
    seqs: Vec<Seqs>,
}

/// The range of a market's accepted seqs.
#[derive(Debug, Clone, Default)]
struct Seqs {
    count: u64,
    lowest: u64,
    highest: u64,
}

impl Sent {
    fn new(markets: Markets) -> Self {
        Self { seqs: vec![Seqs::default(); markets.count], ..Self::default() }
    }

    pub(crate) fn per_second(&self) -> f64 {
        per_second(self.accepted, self.took_us)
    }

    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        let twice: u64 = self.seqs.iter().map(Seqs::too_many).sum();
        let failed = (!self.failed.is_empty()).then(|| format!("overrides failed: {:?}", self.failed));
        let twice = (twice > 0).then(|| format!("{twice} overrides were accepted with the seq of another"));
        let nothing = (self.accepted == 0).then(|| "no override was accepted".to_owned());
        failed.into_iter().chain(twice).chain(nothing)
    }

    /// The highest accepted `seq` of each market; 0 for none.
    pub(crate) fn latest(&self) -> Vec<u64> {
        self.seqs.iter().map(|seqs| seqs.highest).collect()
    }

    /// Whether updates were sent when they were due; if not, what to do.
    pub(crate) fn schedule(&self) -> String {
        if self.unsent == 0 && self.late.p99_us() <= LATE_US {
            return "kept".to_owned();
        }
        format!(
            "NOT KEPT: sent up to {} late, {} not sent at all; latencies include the wait. Lower --rate, or raise \
             --publish-connections if the publisher has time left",
            time(self.late.max_us()),
            self.unsent
        )
    }

    /// Notes the results of a request that began with this index.
    fn note(&mut self, first: usize, results: Result<Vec<Result<u64, String>>, String>) {
        for (index, result) in (first..).zip(results.unwrap_or_else(|why| vec![Err(why)])) {
            match result {
                Ok(seq) => {
                    self.accepted += 1;
                    let markets = self.seqs.len();
                    self.seqs[index % markets].add(&Seqs { count: 1, lowest: seq, highest: seq });
                }
                Err(why) => *self.failed.entry(why).or_default() += 1,
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.unsent += other.unsent;
        self.late.add(&other.late);
        self.responses.add(&other.responses);
        self.seqs.iter_mut().zip(&other.seqs).for_each(|(seqs, other)| seqs.add(other));
        for (why, count) in other.failed {
            *self.failed.entry(why).or_default() += count;
        }
    }
}

impl Seqs {
    fn add(&mut self, other: &Self) {
        self.lowest = if self.count == 0 { other.lowest } else { self.lowest.min(other.lowest) };
        self.highest = self.highest.max(other.highest);
        self.count += other.count;
    }

    /// How many more there are than fit into their range: that many were given twice.
    fn too_many(&self) -> u64 {
        self.count.saturating_sub(self.highest + 1 - self.lowest)
    }
}

/// Up to this late at p99 a schedule counts as kept.
const LATE_US: u64 = 10_000;

const GRACE_US: u64 = 1_000_000;

/// Follows the schedule with a thread for each of `connections`: the next free thread takes the next update and sleeps
/// until it is due. An update is late rather than left out when responses are slow.
pub(crate) fn open_loop(api: &AdminApi, schedule: Schedule, connections: usize) -> Result<Sent> {
    let (next, progress) = (AtomicUsize::new(0), progress(schedule.updates, "updates"));
    let over_us = schedule.due_us(schedule.updates) + GRACE_US;
    let work = || -> Result<Sent> {
        let (runtime, mut http, mut sent) = (runtime()?, api.http(), Sent::new(api.markets));
        runtime.block_on(http.open())?;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= schedule.updates {
                return Ok(sent);
            }
            if now_us() > over_us {
                sent.unsent += 1;
                continue;
            }
            let due_us = schedule.wait_for(index, &mut sent.late);
            let sending = api.send(&mut http, index..index + 1, due_us, schedule.payload_bytes);
            let results = runtime.block_on(sending);
            if results.is_ok() {
                sent.responses.record(now_us() - due_us);
            }
            sent.note(index, results);
            progress.inc(1);
        }
    };
    let mut total = Sent::new(api.markets);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            total.add(thread.join().expect("publishing threads do not panic")?);
        }
        progress.finish_and_clear();
        Ok(Sent { wanted: schedule.updates, ..total })
    })
}

/// A connection stops after so many failures in a row, so that a dead server is not flooded.
const GIVE_UP_AFTER: u32 = 20;

/// Sends overrides on all connections for this long, `batch` in a request. Each connection sends its next request when
/// it has the response to the last.
pub(crate) fn closed_loop(
    api: &AdminApi,
    connections: usize,
    batch: usize,
    payload_bytes: usize,
    duration: Duration,
) -> Result<Sent> {
    let (next, total) = (Rc::new(RefCell::new(0)), Rc::new(RefCell::new(Sent::new(api.markets))));
    let took_us = runtime()?.block_on(async {
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut http = api.http();
            http.open().await?;
            open.push(http);
        }
        let (began_us, senders) = (now_us(), LocalSet::new());
        for mut http in open {
            let (api, next, total) = (api.clone(), Rc::clone(&next), Rc::clone(&total));
            senders.spawn_local(async move {
                let mut failed_in_a_row = 0;
                while now_us() < began_us + as_us(duration) && failed_in_a_row < GIVE_UP_AFTER {
                    let (first, sent_us) = (next.replace_with(|next| *next + batch), now_us());
                    let results = api.send(&mut http, first..first + batch, sent_us, payload_bytes).await;
                    failed_in_a_row = if results.is_ok() { 0 } else { failed_in_a_row + 1 };
                    let mut total = total.borrow_mut();
                    if results.is_ok() {
                        total.responses.record(now_us() - sent_us);
                    }
                    total.note(first, results);
                }
            });
        }
        senders.await;
        anyhow::Ok(now_us() - began_us)
    })?;
    Ok(Sent { took_us, ..total.take() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_a_result_for_each_item() {
        let body = r#"[{"ok":true,"marketId":1,"epoch":2,"seq":3,"ts":4,"auditId":"a"},
                       {"ok":false,"code":"UNPROCESSABLE","message":"m"}]"#;
        let items = serde_json::from_str::<Vec<Item>>(body).unwrap().into_iter().map(Item::result);
        assert_eq!(items.collect::<Vec<_>>(), [Ok(3), Err("UNPROCESSABLE".into())]);
    }

    #[test]
    fn a_seq_given_twice_shows() {
        let mut sent = Sent::new(Markets::new(2, 0));
        sent.note(1, Ok(vec![Ok(7), Ok(1), Ok(5), Err("X".into()), Ok(6)]));
        assert_eq!((sent.accepted, sent.latest()), (4, vec![1, 7]));
        assert_eq!(sent.failures().collect::<Vec<_>>(), [r#"overrides failed: {"X": 1}"#]);
        sent.note(3, Ok(vec![Ok(6)]));
        assert!(sent.failures().any(|failure| failure.starts_with("1 overrides were accepted with the seq")));
    }
}
