//! Appending to the logs without a publisher, in an open loop: every update is sent when it is due, whether the ones
//! before it were answered or not.

use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ::tests::Redis;
use anyhow::{Context, Result};
use backbone::{Append, Backbone, RedisBackbone, Retention, keys};
use protocol::time::unix_ms;
use protocol::{MarketId, Payload, Position};
use redis::{Cmd, Parser, cmd};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::clock::{now_us, sleep_until};
use crate::markets::Markets;
use crate::message::payload;
use crate::publish::Schedule;
use crate::tally::Times;

/// Appends to markets at random, each of which has a log.
pub(crate) struct Appender {
    port: u16,
    markets: Markets,
    /// Where each market's log ends, by its index.
    tops: Vec<Position>,
    backbone: Arc<RedisBackbone>,
    runtime: Runtime,
}

/// How an update gets into a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The bare command: `XADD` of the same entry, and nothing else.
    Xadd,
    /// As the publisher does it: the script, with state and audit.
    Script,
}

impl Appender {
    /// Gives every market a log with one entry.
    ///
    /// # Errors
    /// When Redis refuses.
    pub(crate) fn new(redis: &Redis, markets: Markets) -> Result<Self> {
        let backbone = Arc::new(RedisBackbone::new(&redis.access().config(), Retention::default())?);
        // One worker takes the appends in the order they are due.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut tops = Vec::with_capacity(markets.count);
        let all = (0..markets.count).map(|index| append(markets, index, 0, 0)).collect::<Result<Vec<_>>>()?;
        for some in all.chunks(SEEDED_AT_ONCE) {
            for appended in runtime.block_on(backbone.append(some.to_vec())) {
                tops.push(appended?.position);
            }
        }
        Ok(Self { port: redis.port(), markets, tops, backbone, runtime })
    }

    /// Where each market's log ends, by its index.
    pub(crate) fn tops(&self) -> &[Position] {
        &self.tops
    }

    /// Works the schedule off and waits for the last answer; `answered` counts along. Says how late updates were sent.
    ///
    /// # Errors
    /// When Redis refuses an update, or does not answer for 10 s.
    pub(crate) fn run(&mut self, schedule: Schedule, way: Way, answered: &AtomicU64) -> Result<Times> {
        match way {
            Way::Xadd => self.xadds(schedule, answered),
            Way::Script => self.scripts(schedule, answered),
        }
    }

    fn xadds(&mut self, schedule: Schedule, answered: &AtomicU64) -> Result<Times> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answers = stream.try_clone()?;
        let mut late = Times::default();
        thread::scope(|scope| {
            let reading = scope.spawn(move || read_answers(answers, schedule.updates, answered));
            for update in 0..schedule.updates {
                let market = rand::random_range(0..self.markets.count);
                let due_us = wait(schedule, update, &mut late);
                let top = &mut self.tops[market];
                top.seq = top.seq.next();
                let xadd = xadd(id(self.markets, market)?, *top, &payload(due_us, schedule.payload_bytes));
                stream.write_all(&xadd.get_packed_command())?;
            }
            reading.join().expect("the reading thread does not panic")
        })?;
        Ok(late)
    }

    fn scripts(&mut self, schedule: Schedule, answered: &AtomicU64) -> Result<Times> {
        let mut late = Times::default();
        let mut appends = JoinSet::new();
        for update in 0..schedule.updates {
            let market = rand::random_range(0..self.markets.count);
            let due_us = wait(schedule, update, &mut late);
            let append = append(self.markets, market, due_us, schedule.payload_bytes)?;
            let backbone = Arc::clone(&self.backbone);
            let one = async move { (market, backbone.append(vec![append]).await) };
            appends.spawn_on(one, self.runtime.handle());
            while let Some(ended) = appends.try_join_next() {
                note(&mut self.tops, ended?, answered)?;
            }
        }
        while let Some(ended) = self.runtime.block_on(appends.join_next()) {
            note(&mut self.tops, ended?, answered)?;
        }
        Ok(late)
    }
}

/// Logs that are begun in one round trip.
const SEEDED_AT_ONCE: usize = 500;

/// How long Redis may leave a command unanswered.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sleeps until an update is due, and says when that was.
fn wait(schedule: Schedule, update: usize, late: &mut Times) -> u64 {
    let due_us = schedule.due_us(update);
    sleep_until(due_us);
    late.record(now_us() - due_us);
    due_us
}

fn read_answers(stream: TcpStream, wanted: usize, answered: &AtomicU64) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut parser = Parser::new();
    for _ in 0..wanted {
        parser.parse_value(&mut stream)?.extract_error()?;
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

type Appended = Vec<Result<backbone::Appended, backbone::AppendError>>;

fn note(tops: &mut [Position], (market, appended): (usize, Appended), answered: &AtomicU64) -> Result<()> {
    for appended in appended {
        tops[market] = tops[market].max(appended?.position);
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn id(markets: Markets, index: usize) -> Result<MarketId> {
    MarketId::new(markets.id(index)).context("a market id that is too large")
}

/// An entry as append.lua writes it (contract, section 6).
fn xadd(market: MarketId, position: Position, payload: &str) -> Cmd {
    let ts = unix_ms();
    let mut xadd = cmd("XADD");
    xadd.arg(keys::log(market)).arg("MAXLEN").arg("~").arg(Retention::default().history_len);
    xadd.arg(position.to_string()).arg("ts").arg(ts).arg("p").arg(payload).arg("a").arg(format!("{ts}-0"));
    xadd
}

fn append(markets: Markets, index: usize, due_us: u64, payload_bytes: usize) -> Result<Append> {
    Ok(Append {
        market: id(markets, index)?,
        payload: Payload::parse(&payload(due_us, payload_bytes))?,
        expected_seq: None,
        idempotency: None,
        actor: "swarm".to_owned(),
        reason: "swarm".to_owned(),
        request_id: String::new(),
        trace: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_append_is_an_entry_as_the_contract_has_it() {
        let xadd = xadd(MarketId::new(7).unwrap(), Position::new(3, 9), r#"{"a":{}}"#);
        let text = String::from_utf8(xadd.get_packed_command()).unwrap();
        let words: Vec<_> = text.split("\r\n").filter(|word| !word.starts_with(['$', '*'])).collect();
        assert_eq!(words[..6], ["XADD", "odds:log:{7}", "MAXLEN", "~", "1000", "3-9"]);
        assert_eq!([words[6], words[8], words[9], words[10]], ["ts", "p", r#"{"a":{}}"#, "a"]);
    }
}
