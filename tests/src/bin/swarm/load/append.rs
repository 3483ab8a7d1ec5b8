//! Appends to the logs without a publisher.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{io::BufReader, io::Write, net::TcpStream, thread};

use ::tests::Redis;
use anyhow::Result;
use backbone::{Retention, keys};
use protocol::{MarketId, Position, time::unix_ms};
use redis::{Cmd, Parser, Script, cmd};

use super::schedule::Schedule;
use crate::client::{TIMEOUT, payload};
use crate::{clock::now_us, markets::Markets, report::Times};

/// Appends to random markets that have a log.
pub(crate) struct Appender {
    port: u16,
    script: Script,
    markets: Markets,
    latest: Vec<Position>,
}

/// How an update gets into a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A bare `XADD` of the same entry.
    Xadd,
    /// The publisher's script, with state and audit.
    Script,
}

pub(crate) const APPEND: &str = include_str!("../../../../../shared/backbone/src/append.lua");

impl Appender {
    /// Gives every market a log with so many entries.
    pub(crate) fn new(redis: &Redis, markets: Markets, entries: usize, payload_bytes: usize) -> Result<Self> {
        let latest = vec![Position::default(); markets.count];
        let mut this = Self { port: redis.port(), script: Script::new(APPEND), markets, latest };
        let mut connection = redis::Client::open(redis.url())?.get_connection()?;
        this.script.prepare_invoke().load(&mut connection)?;
        for index in 0..entries * markets.count {
            let payload = payload(now_us(), payload_bytes);
            let append = this.script(MarketId::new(markets.id(index))?, &payload);
            let (_, epoch, seq, ..): (String, u64, u64, String, String) = append.query(&mut connection)?;
            this.latest[index % markets.count] = Position::new(epoch, seq);
        }
        Ok(this)
    }

    /// The latest position of each market, by its index.
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
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let replies = BufReader::new(stream.try_clone()?);
        let mut late = Times::default();
        thread::scope(|scope| {
            let reading = scope.spawn(move || read_replies(replies, schedule.updates, replied));
            for update in 0..schedule.updates {
                let index = rand::random_range(0..self.markets.count);
                let due_us = schedule.wait_for(update, &mut late);
                let latest = &mut self.latest[index];
                latest.seq = latest.seq.next();
                let (latest, market) = (*latest, MarketId::new(self.markets.id(index))?);
                let payload = payload(due_us, schedule.payload_bytes);
                let append = match way {
                    Way::Xadd => xadd(market, latest, &payload),
                    Way::Script => self.script(market, &payload),
                };
                stream.write_all(&append.get_packed_command())?;
            }
            reading.join().expect("the reading thread does not panic")
        })?;
        Ok((late, self.latest.iter().map(|latest| latest.seq.get()).collect()))
    }

    fn script(&self, market: MarketId, payload: &str) -> Cmd {
        let mut script = cmd("EVALSHA");
        let keys = [keys::log(market), keys::state(market), keys::audit(market)];
        script.arg(self.script.get_hash()).arg(script_args(keys, payload));
        script
    }
}

fn read_replies(mut replies: BufReader<TcpStream>, wanted: usize, replied: &AtomicU64) -> Result<()> {
    let mut parser = Parser::new();
    for _ in 0..wanted {
        parser.parse_value(&mut replies)?.extract_error()?;
        replied.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// An entry as `append.lua` writes it.
fn xadd(market: MarketId, position: Position, payload: &str) -> Cmd {
    let ts = unix_ms();
    let mut xadd = cmd("XADD");
    xadd.arg(keys::log(market)).arg("MAXLEN").arg("~").arg(Retention::default().history_len);
    xadd.arg(position.to_string()).arg("ts").arg(ts).arg("p").arg(payload).arg("a").arg(format!("{ts}-0"));
    xadd
}

/// What follows the hash of `append.lua` in an `EVALSHA` of a payload of this tool: no expected seq, no idempotency key,
/// and no position remembered.
pub(crate) fn script_args(keys: [String; 3], payload: &str) -> Vec<String> {
    let Retention { history_len, audit_len, idempotency_ttl, .. } = Retention::default();
    let line = payload.strip_prefix(r#"{"swarm":"#).and_then(|rest| rest.strip_suffix('}'));
    let [log, state, audit] = keys;
    let keys = ["3".to_owned(), log, state, audit, payload.to_owned(), String::new(), String::new()];
    let limits = [idempotency_ttl.as_secs(), 0, 0, history_len as u64, audit_len as u64];
    let rest = ["desk-1", "swarm", "", "swarm", "\"swarm\"", line.expect("a payload of one line")];
    keys.into_iter().chain(limits.map(|limit| limit.to_string())).chain(rest.map(str::to_owned)).collect()
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
