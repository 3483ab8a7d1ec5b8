//! One client's side of the protocol, without I/O: bytes come in, counts and bytes to send go out.

use std::fmt;

use ::tests::frame::{Side, frame, last, opcode, parse};
use ::tests::{Message, message::Ack, raw::ACCEPT};
use serde::Deserialize;

use super::http::{Asked, explain};
use super::message::{self, Received, Update};
use crate::report::Counts;

/// A client from its upgrade request to its end.
#[derive(Debug)]
pub(crate) struct Session {
    index: usize,
    phase: Phase,
    began_us: u64,
    /// When the `ping` was sent whose `pong` is still missing.
    pinged_us: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Phase {
    Upgrading,
    Subscribing,
    Live,
}

/// Why a client ended, in words by which ends are counted, and what a user can do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) why: String,
    pub(crate) hint: Option<&'static str>,
}

impl Session {
    /// A client whose upgrade request has just been sent.
    pub(crate) fn new(index: usize, now_us: u64) -> Self {
        Self { index, phase: Phase::Upgrading, began_us: now_us, pinged_us: None }
    }

    /// Whether all markets are subscribed to.
    pub(crate) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    pub(crate) fn awaits_pong(&self) -> bool {
        self.pinged_us.is_some()
    }

    /// Takes what was read and returns how much of it was used. The caller keeps the rest for the next call.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        now_us: u64,
        counts: &mut Counts,
        out: &mut Vec<u8>,
    ) -> Result<usize, Ended> {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            let Some(length) = upgraded(bytes)? else { return Ok(0) };
            used = length;
            counts.handshake.record(now_us - self.began_us);
            self.subscribe(now_us, counts, out);
        }
        while let Some(frame) = parse(&bytes[used..], Side::Server).map_err(Ended::violation)? {
            used += frame.length;
            match frame.opcode {
                opcode::TEXT => self.message(&frame.payload, now_us, counts, out)?,
                opcode::PING => {
                    counts.ping_frames += 1;
                    counts.pongs += 1;
                    send(opcode::PONG, &frame.payload, out);
                }
                opcode::CLOSE => {
                    send(opcode::CLOSE, &frame.payload, out);
                    let code = frame.payload.first_chunk();
                    let code = code.map_or(1005, |&code| u16::from_be_bytes(code));
                    return Err(Ended::new(format!("closed by the server with {code}")));
                }
                opcode::BINARY => return Err(Ended::violation("a binary message")),
                _ => {}
            }
        }
        Ok(used)
    }

    /// Sends a `ping` message; the time until its `pong` is measured.
    pub(crate) fn ping(&mut self, now_us: u64, out: &mut Vec<u8>) {
        self.pinged_us = Some(now_us);
        send(opcode::TEXT, format!(r#"{{"type":"ping","ts":{now_us}}}"#).as_bytes(), out);
    }

    fn subscribe(&mut self, now_us: u64, counts: &Counts, out: &mut Vec<u8>) {
        let check = &counts.check;
        if check.markets.per_connection == 0 {
            self.phase = Phase::Live;
            return;
        }
        let market = |market| match check.offset(market) {
            Some(seq) => format!("\"{market}\":{seq}"),
            None => format!("\"{market}\""),
        };
        let markets = check.markets.of(self.index).map(market).collect::<Vec<_>>().join(",");
        let message = if check.is_resuming() {
            format!(r#"{{"type":"resume","offsets":{{{markets}}}}}"#)
        } else {
            format!(r#"{{"type":"subscribe","markets":[{markets}]}}"#)
        };
        send(opcode::TEXT, message.as_bytes(), out);
        self.phase = Phase::Subscribing;
        self.began_us = now_us;
    }

    fn message(
        &mut self,
        text: &[u8],
        now_us: u64,
        counts: &mut Counts,
        out: &mut Vec<u8>,
    ) -> Result<(), Ended> {
        let message = message::parse(text).map_err(|error| {
            Ended::violation(format_args!("{error} in {:?}", String::from_utf8_lossy(text)))
        })?;
        match message {
            Received::Update(Update { market, seq, due_us }) => {
                counts.update(self.index, (market, seq), due_us, now_us);
            }
            Received::Other(Message::Snapshot(snapshot)) => {
                counts.snapshots += 1;
                counts.resets += u64::from(snapshot.reset);
                counts.conflated += u64::from(snapshot.conflated);
                counts.check.snapshot(self.index, snapshot.market_id, snapshot.seq, snapshot.reset);
            }
            Received::Other(Message::Ack(ack)) => self.acknowledged(&ack, now_us, counts)?,
            Received::Other(Message::Ping(_)) => {
                counts.ping_messages += 1;
                counts.pongs += 1;
                send(opcode::TEXT, br#"{"type":"pong"}"#, out);
            }
            Received::Other(Message::Pong(pong)) => {
                let ts = pong.ts.and_then(|ts| ts.as_u64());
                let sent_us = self.pinged_us.take().filter(|&sent_us| ts == Some(sent_us));
                let wrong = || Ended::violation("a pong with another ts than the ping's");
                counts.round_trip.record(now_us - sent_us.ok_or_else(wrong)?);
            }
            Received::Other(Message::Status(status)) => counts.stale += u64::from(status.stale),
            Received::Other(Message::Error(error)) => *counts.errors.entry(error.code).or_default() += 1,
            Received::Other(Message::Bye(bye)) => {
                *counts.errors.entry(format!("bye {}", bye.reason)).or_default() += 1;
            }
            Received::Other(Message::Update(_) | Message::Unknown(_)) => {}
        }
        Ok(())
    }

    fn acknowledged(&mut self, ack: &Ack, now_us: u64, counts: &mut Counts) -> Result<(), Ended> {
        if let Some(first) = ack.rejected.first() {
            let markets = ack.rejected.iter().filter(|other| other.code == first.code).count();
            let why = format!("subscription rejected: {} for {markets} of its markets", first.code);
            return Err(Ended::new(why));
        }
        let mut known = 0;
        for (market, position) in ack.positions.iter().flatten() {
            let start = |market| {
                counts.check.start(self.index, market, position.seq, position.recovered == Some(true))
            };
            known += usize::from(market.parse().is_ok_and(start));
        }
        let wanted = counts.check.markets.per_connection;
        if known != wanted {
            let what = format_args!("an ack with the positions of {known} of {wanted} markets");
            return Err(Ended::violation(what));
        }
        if self.phase == Phase::Subscribing {
            counts.subscribe.record(now_us - self.began_us);
            self.phase = Phase::Live;
        }
        Ok(())
    }
}

impl Ended {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), hint: None }
    }

    /// The server, or a proxy before it, does not speak the protocol.
    fn violation(what: impl fmt::Display) -> Self {
        Self::new(format!("the server sent {what}"))
    }

    /// The connection ended without a close frame, or was never established.
    pub(crate) fn lost(why: impl fmt::Display) -> Self {
        let hint = Some("look at the gateway's log and at its open-file limit");
        Self { why: format!("connection lost: {why}"), hint }
    }
}

fn send(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.extend(frame(last(opcode), payload));
}

/// The length of a 101 response's head; `None` while it is incomplete.
fn upgraded(bytes: &[u8]) -> Result<Option<usize>, Ended> {
    #[derive(Deserialize)]
    struct ErrorBody {
        code: String,
    }

    const MAX_HEAD_BYTES: usize = 16 * 1024;
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        let too_long = bytes.len() > MAX_HEAD_BYTES;
        return if too_long { Err(Ended::violation("no HTTP response")) } else { Ok(None) };
    };
    let (head, body) = bytes.split_at(end + 4);
    let head = String::from_utf8_lossy(head);
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    match status.ok_or_else(|| Ended::violation("a response that is not HTTP/1.1"))? {
        101 if head.contains(ACCEPT) => Ok(Some(end + 4)),
        101 => Err(Ended::violation("a 101 without the right Sec-WebSocket-Accept")),
        status => {
            let code = serde_json::from_slice(body).map_or(String::new(), |ErrorBody { code }| code);
            let why = format!("upgrade refused with {status} {code}");
            Err(Ended { why, hint: explain(Asked::Socket, status) })
        }
    }
}

#[cfg(test)]
mod tests;
