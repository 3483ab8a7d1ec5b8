//! Publishing in an open loop: each update has its time, and is late rather than left out when answers are slow.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::clock::{now_us, sleep_until};
use crate::hive::offset_us;
use crate::http::{Asked, Endpoint, Http, refusal, runtime};
use crate::markets::Markets;
use crate::message::payload;
use crate::options::Publisher;
use crate::report::{self, Percentiles, time};
use crate::tally::Times;

/// Who publishes where.
pub(crate) struct Desk {
    /// The admin API.
    pub(crate) endpoint: Endpoint,
    token: Option<String>,
    /// The markets to publish to, in turn.
    pub(crate) markets: Markets,
}

impl Desk {
    /// A desk as the flags say; by default the first gateway has the admin API too.
    pub(crate) fn new(publisher: &Publisher, gateway: &Endpoint, markets: Markets) -> Self {
        let endpoint = publisher.publisher.as_ref().unwrap_or(gateway).clone();
        Self { endpoint, token: publisher.admin_token.clone(), markets }
    }

    /// A connection to the admin API.
    pub(crate) fn http(&self) -> Http {
        Http::new(&self.endpoint, self.token.clone())
    }

    /// Publishes one update, to see that the address and the token are good before load is put on anything.
    ///
    /// # Errors
    /// With what to do, when it is not accepted.
    pub(crate) fn try_one(&self) -> Result<()> {
        let body = self.body(0, now_us(), 0);
        let answer = runtime()?.block_on(self.http().post(OVERRIDE, body))?;
        if answer.status == 200 { Ok(()) } else { Err(refusal(Asked::Override, &self.endpoint, &answer)) }
    }

    /// Sends the overrides with these indices in one request: what became of each, its `seq` or why not, in order.
    ///
    /// # Errors
    /// Why the request as a whole was not carried out, as far as is known.
    pub(crate) async fn send(
        &self,
        http: &mut Http,
        indices: Range<usize>,
        payload_bytes: usize,
    ) -> Result<Vec<Result<u64, String>>, String> {
        let wanted = indices.len();
        let bodies = indices.map(|index| self.body(index, now_us(), payload_bytes));
        let (path, body) = match wanted {
            1 => (OVERRIDE, bodies.collect()),
            _ => ("/admin/odds/batch", format!("[{}]", bodies.collect::<Vec<_>>().join(","))),
        };
        let answer = http.post(path, body).await.map_err(|error| format!("{error:#}"))?;
        if answer.status != 200 {
            return Err(answer.status.to_string());
        }
        let items = match wanted {
            1 => serde_json::from_slice(&answer.body).map(|item| vec![item]),
            _ => serde_json::from_slice::<Vec<Item>>(&answer.body),
        };
        let items = items.context("200").map_err(|error| format!("{error:#}"))?;
        if items.len() != wanted {
            return Err(format!("{} results for {wanted} overrides", items.len()));
        }
        Ok(items.into_iter().map(Into::into).collect())
    }

    /// The body of an override of the market with this index.
    pub(crate) fn body(&self, index: usize, intended_us: u64, payload_bytes: usize) -> String {
        let (market, payload) = (self.markets.id(index), payload(intended_us, payload_bytes));
        format!(r#"{{"marketId":{market},"payload":{payload},"reason":"swarm"}}"#)
    }
}

/// Where one override goes.
const OVERRIDE: &str = "/admin/odds/override";

/// What the publisher says about an accepted override.
#[derive(Deserialize)]
struct Accepted {
    /// Its place in the market's log.
    seq: u64,
}

/// What a batch is answered with for each of its overrides, in order.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Accepted(Accepted),
    Refused { code: String },
}

impl From<Item> for Result<u64, String> {
    fn from(item: Item) -> Self {
        match item {
            Item::Accepted(accepted) => Ok(accepted.seq),
            Item::Refused { code } => Err(code),
        }
    }
}

/// When to send what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    /// When the first update is due.
    pub(crate) start_us: u64,
    /// Updates a second.
    pub(crate) rate: f64,
    /// Updates in all.
    pub(crate) updates: usize,
    /// Bytes of each payload, at least.
    pub(crate) payload_bytes: usize,
}

impl Schedule {
    /// When the update with this index is due.
    pub(crate) fn due_us(&self, index: usize) -> u64 {
        self.start_us + offset_us(index, self.rate)
    }
}

/// What became of a schedule.
#[derive(Serialize)]
pub(crate) struct Published {
    /// Updates in the schedule.
    pub(crate) scheduled: usize,
    /// Answered with 200.
    pub(crate) accepted: u64,
    /// Anything else, by answer.
    pub(crate) failed: BTreeMap<String, u64>,
    /// Left out, because their time was over by more than a second when the schedule had ended.
    pub(crate) unsent: u64,
    /// From intended to sent.
    pub(crate) late: Percentiles,
    /// From intended to answered.
    pub(crate) answered: Percentiles,
    /// The highest `seq` acknowledged, by market index; 0 where nothing was.
    #[serde(skip)]
    pub(crate) tops: Vec<u64>,
}

impl Published {
    /// Whether updates were sent when they should have been; else what to do.
    pub(crate) fn kept_schedule(&self) -> Result<(), String> {
        if self.unsent == 0 && self.late.p99 <= LATE_US {
            return Ok(());
        }
        Err(format!(
            "NOT KEPT: sent up to {} late, {} not sent at all; latencies include the wait. Lower --rate, or raise \
             --publish-connections if the publisher has time left",
            time(self.late.max),
            self.unsent
        ))
    }
}

/// Up to this late at p99 a schedule counts as kept.
const LATE_US: u64 = 10_000;

const GRACE_US: u64 = 1_000_000;

/// Works the schedule off, with a thread for each of `connections`: whichever is free takes the next update and sleeps until
/// it is due.
///
/// # Errors
/// When threads or sockets cannot be had. Refused updates are counted, not errors.
pub(crate) fn publish(desk: &Desk, schedule: Schedule, connections: usize) -> Result<Published> {
    let run = Run {
        desk,
        schedule,
        next: AtomicUsize::new(0),
        tops: (0..desk.markets.count).map(|_| AtomicU64::new(0)).collect(),
        progress: report::progress(schedule.updates, "updates"),
    };
    let mut total = Totals::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(|| run.work())).collect();
        for thread in threads {
            total.add(thread.join().expect("publishing threads do not panic")?);
        }
        anyhow::Ok(())
    })?;
    run.progress.finish_and_clear();
    Ok(Published {
        scheduled: schedule.updates,
        accepted: total.accepted,
        failed: total.failed,
        unsent: total.unsent,
        late: (&total.late).into(),
        answered: (&total.answered).into(),
        tops: run.tops.into_iter().map(AtomicU64::into_inner).collect(),
    })
}

struct Run<'a> {
    desk: &'a Desk,
    schedule: Schedule,
    next: AtomicUsize,
    tops: Vec<AtomicU64>,
    progress: indicatif::ProgressBar,
}

impl Run<'_> {
    fn work(&self) -> Result<Totals> {
        let Schedule { updates, payload_bytes, .. } = self.schedule;
        let over_us = self.schedule.due_us(updates) + GRACE_US;
        let runtime = runtime()?;
        let mut http = self.desk.http();
        let mut totals = Totals::default();
        runtime.block_on(http.open())?;
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= updates {
                return Ok(totals);
            }
            let intended_us = self.schedule.due_us(index);
            sleep_until(intended_us);
            let sent_us = now_us();
            if sent_us > over_us {
                totals.unsent += 1;
                continue;
            }
            totals.late.record(sent_us - intended_us);
            let body = self.desk.body(index, intended_us, payload_bytes);
            match runtime.block_on(override_one(&mut http, body)) {
                Ok(seq) => {
                    totals.answered.record(now_us() - intended_us);
                    totals.accepted += 1;
                    self.tops[index % self.tops.len()].fetch_max(seq, Ordering::Relaxed);
                }
                Err(why) => *totals.failed.entry(why).or_default() += 1,
            }
            self.progress.inc(1);
        }
    }
}

async fn override_one(http: &mut Http, body: String) -> Result<u64, String> {
    let answer = http.post(OVERRIDE, body).await.map_err(|error| format!("{error:#}"))?;
    if answer.status != 200 {
        return Err(answer.status.to_string());
    }
    let accepted = serde_json::from_slice::<Accepted>(&answer.body).context("200 without seq");
    accepted.map(|accepted| accepted.seq).map_err(|error| format!("{error:#}"))
}

#[derive(Default)]
struct Totals {
    accepted: u64,
    failed: BTreeMap<String, u64>,
    unsent: u64,
    late: Times,
    answered: Times,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.unsent += other.unsent;
        self.late.add(&other.late);
        self.answered.add(&other.answered);
        for (why, count) in other.failed {
            *self.failed.entry(why).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_answered_item_by_item() {
        let answer = r#"[{"ok":true,"marketId":1,"epoch":2,"seq":3,"ts":4,"auditId":"a"},
                         {"ok":false,"code":"UNPROCESSABLE","message":"m"}]"#;
        let items = serde_json::from_str::<Vec<Item>>(answer).unwrap().into_iter().map(Result::from);
        assert_eq!(items.collect::<Vec<_>>(), [Ok(3), Err("UNPROCESSABLE".into())]);
    }
}
