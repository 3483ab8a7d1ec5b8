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
mod tests {
    use ::tests::frame::unmasked_frame;

    use super::*;
    use crate::markets::Markets;

    const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                             sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    const ACK: &str = r#"{"type":"ack","ok":true,"subscribed":[5],"positions":{"5":{"epoch":1,"seq":3}}}"#;

    struct Client {
        session: Session,
        counts: Counts,
        out: Vec<u8>,
    }

    impl Client {
        fn new(per_connection: usize) -> Self {
            let counts = Counts::new(Markets { first: 5, ..Markets::new(1, per_connection) }, 1);
            Self { session: Session::new(0, 100), counts, out: Vec::new() }
        }

        fn live() -> Self {
            let mut client = Self::new(1);
            client.receive(SWITCHING.as_bytes()).unwrap();
            client.text(ACK).unwrap();
            client.out.clear();
            client
        }

        fn receive(&mut self, bytes: &[u8]) -> Result<usize, Ended> {
            self.session.receive(bytes, 1_000, &mut self.counts, &mut self.out)
        }

        fn text(&mut self, text: &str) -> Result<usize, Ended> {
            self.receive(&text_frame(text))
        }

        /// The frames that it wants to send, by opcode.
        fn sent(&mut self) -> Vec<(u8, String)> {
            let bytes = std::mem::take(&mut self.out);
            let (mut rest, mut frames) = (&bytes[..], Vec::new());
            while let Some(frame) = parse(rest, Side::Client).unwrap() {
                frames.push((frame.opcode, String::from_utf8(frame.payload.to_vec()).unwrap()));
                rest = &rest[frame.length..];
            }
            frames
        }
    }

    fn text_frame(text: &str) -> Vec<u8> {
        unmasked_frame(last(opcode::TEXT), text.as_bytes())
    }

    fn text(text: &str) -> (u8, String) {
        (opcode::TEXT, text.to_owned())
    }

    fn update(seq: u64) -> String {
        format!(r#"{{"type":"odds_update","marketId":5,"seq":{seq},"ts":1,"payload":{{"a":{{}}}}}}"#)
    }

    #[test]
    fn a_client_upgrades_subscribes_and_is_live_after_the_ack() {
        let mut client = Client::new(1);
        for cut in 0..SWITCHING.len() {
            assert_eq!(client.receive(&SWITCHING.as_bytes()[..cut]), Ok(0));
        }
        assert_eq!(client.receive(SWITCHING.as_bytes()), Ok(SWITCHING.len()));
        assert_eq!(client.sent(), [text(r#"{"type":"subscribe","markets":["5"]}"#)]);
        assert!(!client.session.is_live());
        client.text(ACK).unwrap();
        assert!(client.session.is_live());
    }

    #[test]
    fn a_client_that_resumes_says_what_it_has() {
        let mut client = Client::new(1);
        client.counts = Counts::resuming(client.counts.check.markets, 1, vec![2]);
        client.receive(SWITCHING.as_bytes()).unwrap();
        assert_eq!(client.sent(), [text(r#"{"type":"resume","offsets":{"5":2}}"#)]);
        client.text(&ACK.replace(r#""seq":3"#, r#""seq":3,"recovered":true"#)).unwrap();
        client.text(&update(3)).unwrap();
        assert_eq!((client.counts.check.recovered, client.counts.check.broken()), (1, 0));
    }

    #[test]
    fn everything_may_arrive_in_one_read_and_the_cut_frame_is_left() {
        let mut client = Client::new(1);
        let frames = [ACK, &update(4), &update(5)].map(text_frame).concat();
        let whole = [SWITCHING.as_bytes(), &frames].concat();
        assert_eq!(client.receive(&[&whole[..], &[0x81, 20, b'{']].concat()), Ok(whole.len()));
        assert_eq!((client.counts.deliveries, client.counts.check.broken()), (2, 0));
    }

    #[test]
    fn heartbeats_of_both_kinds_get_a_pong() {
        let mut client = Client::live();
        client.text(r#"{"type":"ping","ts":1}"#).unwrap();
        client.receive(&unmasked_frame(last(opcode::PING), b"hi")).unwrap();
        assert_eq!(client.sent(), [text(r#"{"type":"pong"}"#), (opcode::PONG, "hi".into())]);
        let Counts { ping_messages, ping_frames, pongs, .. } = client.counts;
        assert_eq!((ping_messages, ping_frames, pongs), (1, 1, 2));
    }

    #[test]
    fn a_ping_is_measured_when_its_own_pong_comes_back() {
        let mut client = Client::live();
        client.session.ping(700, &mut client.out);
        assert_eq!(client.sent(), [text(r#"{"type":"ping","ts":700}"#)]);
        client.text(r#"{"type":"pong","ts":700}"#).unwrap();
        assert!(!client.session.awaits_pong());
        assert_eq!(client.counts.round_trip.max_us(), 300);
        assert!(client.text(r#"{"type":"pong","ts":701}"#).is_err());
    }

    #[test]
    fn without_markets_a_client_is_live_after_the_upgrade() {
        let mut client = Client::new(0);
        client.receive(SWITCHING.as_bytes()).unwrap();
        assert!(client.session.is_live() && client.out.is_empty());
    }

    #[test]
    fn a_refusal_names_status_code_and_what_to_do() {
        let response = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\n\r\n{\"code\":\"RATE_LIMITED\",\"message\":\"m\"}";
        let refused = Client::new(1).receive(response.as_bytes()).unwrap_err();
        assert_eq!(refused.why, "upgrade refused with 429 RATE_LIMITED");
        assert!(refused.hint.unwrap().contains("HANDSHAKE_RATE_LIMIT=0"));
    }

    #[test]
    fn what_the_protocol_forbids_ends_the_client() {
        let is_violation = |ended: Result<_, Ended>| ended.unwrap_err().why.starts_with("the server sent");
        assert!(is_violation(Client::new(1).receive(SWITCHING.replace("s3p", "xxx").as_bytes())));
        assert!(is_violation(Client::live().receive(&unmasked_frame(0x82, b"x"))));
        assert!(is_violation(Client::live().text("{")));
        assert!(is_violation(Client::live().text(r#"{"type":"ack","ok":true}"#)));
        let rejected =
            r#"{"type":"ack","ok":false,"positions":{},"rejected":[{"marketId":5,"code":"FORBIDDEN"}]}"#;
        let ended = Client::live().text(rejected).unwrap_err();
        assert_eq!(ended.why, "subscription rejected: FORBIDDEN for 1 of its markets");
    }

    #[test]
    fn a_close_is_returned_and_its_code_kept() {
        let mut client = Client::live();
        let closed = |ended: Result<_, Ended>| ended.unwrap_err().why;
        let ended = client.receive(&unmasked_frame(0x88, b"\x11\x39x"));
        assert_eq!(closed(ended), "closed by the server with 4409");
        assert_eq!(client.sent(), [(opcode::CLOSE, "\x11\x39x".into())]);
        let ended = Client::live().receive(&unmasked_frame(0x88, b""));
        assert_eq!(closed(ended), "closed by the server with 1005");
    }
}
