//! Appends to the logs without a publisher.

use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ::tests::Redis;
use anyhow::{Context, Result};
use redis::{Cmd, Parser, cmd};
use shared::backbone::{self, Append, Backbone, RedisBackbone, Retention, keys};
use shared::time::unix_ms;
use shared::{MarketId, Payload, Position};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::Schedule;
use crate::client::http::TIMEOUT;
use crate::client::message::payload;
use crate::markets::Markets;
use crate::report::times::Times;

/// Appends to random markets, each of which has a log.
pub(crate) struct Appender {
    port: u16,
    markets: Markets,
    /// The latest position of each market, by its index.
    latest: Vec<Position>,
    backbone: Arc<RedisBackbone>,
    runtime: Runtime,
}

/// How an update gets into a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A bare `XADD` of the same entry.
    Xadd,
    /// The publisher's script, with state and audit.
    Script,
}

impl Appender {
    /// Gives every market a log with one entry.
    pub(crate) fn new(redis: &Redis, markets: Markets) -> Result<Self> {
        let backbone = Arc::new(RedisBackbone::new(&redis.access().config(), Retention::default())?);
        // One worker takes the appends in the order in which they are due.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut latest = Vec::with_capacity(markets.count);
        let all = (0..markets.count).map(|index| append(markets, index, 0, 0)).collect::<Result<Vec<_>>>()?;
        for some in all.chunks(SEEDED_AT_ONCE) {
            for appended in runtime.block_on(backbone.append(some.to_vec())) {
                latest.push(appended?.position);
            }
        }
        Ok(Self { port: redis.port(), markets, latest, backbone, runtime })
    }

    pub(crate) fn latest(&self) -> &[Position] {
        &self.latest
    }

    /// Follows the schedule and waits for the last reply; `replied` counts along. Returns how late updates were sent,
    /// and the latest seq of each market.
    pub(crate) fn run(
        &mut self,
        schedule: Schedule,
        way: Way,
        replied: &AtomicU64,
    ) -> Result<(Times, Vec<u64>)> {
        let late = match way {
            Way::Xadd => self.xadds(schedule, replied)?,
            Way::Script => self.scripts(schedule, replied)?,
        };
        Ok((late, self.latest.iter().map(|latest| latest.seq.get()).collect()))
    }

    fn xadds(&mut self, schedule: Schedule, replied: &AtomicU64) -> Result<Times> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let replies = stream.try_clone()?;
        let mut late = Times::default();
        thread::scope(|scope| {
            let reading = scope.spawn(move || read_replies(replies, schedule.updates, replied));
            for update in 0..schedule.updates {
                let market = rand::random_range(0..self.markets.count);
                let due_us = schedule.wait_for(update, &mut late);
                let latest = &mut self.latest[market];
                latest.seq = latest.seq.next();
                let payload = payload(due_us, schedule.payload_bytes);
                stream.write_all(&xadd(id(self.markets, market)?, *latest, &payload).get_packed_command())?;
            }
            reading.join().expect("the reading thread does not panic")
        })?;
        Ok(late)
    }

    fn scripts(&mut self, schedule: Schedule, replied: &AtomicU64) -> Result<Times> {
        let mut late = Times::default();
        let mut appends = JoinSet::new();
        let mut note = |(market, appended): (usize, Vec<Result<backbone::Appended, _>>)| -> Result<()> {
            for appended in appended {
                self.latest[market] = self.latest[market].max(appended?.position);
                replied.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        for update in 0..schedule.updates {
            let market = rand::random_range(0..self.markets.count);
            let due_us = schedule.wait_for(update, &mut late);
            let append = append(self.markets, market, due_us, schedule.payload_bytes)?;
            let backbone = Arc::clone(&self.backbone);
            let one = async move { (market, backbone.append(vec![append]).await) };
            appends.spawn_on(one, self.runtime.handle());
            while let Some(ended) = appends.try_join_next() {
                note(ended?)?;
            }
        }
        while let Some(ended) = self.runtime.block_on(appends.join_next()) {
            note(ended?)?;
        }
        Ok(late)
    }
}

/// Logs that are begun in one round trip.
const SEEDED_AT_ONCE: usize = 500;

fn read_replies(stream: TcpStream, wanted: usize, replied: &AtomicU64) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut parser = Parser::new();
    for _ in 0..wanted {
        parser.parse_value(&mut stream)?.extract_error()?;
        replied.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn id(markets: Markets, index: usize) -> Result<MarketId> {
    MarketId::new(markets.id(index)).context("a market id that is too large")
}

/// An entry as `append.lua` writes it.
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
    fn a_bare_append_is_an_entry_as_the_publisher_writes_it() {
        let xadd = xadd(MarketId::new(7).unwrap(), Position::new(3, 9), r#"{"a":{}}"#);
        let text = String::from_utf8(xadd.get_packed_command()).unwrap();
        let words: Vec<_> = text.split("\r\n").filter(|word| !word.starts_with(['$', '*'])).collect();
        assert_eq!(words[..6], ["XADD", "odds:log:{7}", "MAXLEN", "~", "1000", "3-9"]);
        assert_eq!([words[6], words[8], words[9], words[10]], ["ts", "p", r#"{"a":{}}"#, "a"]);
    }
}
